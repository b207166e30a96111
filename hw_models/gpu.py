"""GPUs: a roofline with tiles, waves and launches, fitted to measured kernels."""

import operator
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from moesim.configs.loader import Config
from moesim.hw_models.gpu_products import (
    Format,
    GroupedGemm,
    ProductKernels,
    TensorFormat,
    format_rows,
)
from moesim.hw_models.parameters import Count, Fit, Fitted, Fraction, Parameter, Slowdown
from moesim.hw_models.processor import Cost
from moesim.hw_models.residual import FOLDER, Trees, fingerprint, joined, load_residual
from moesim.hw_models.stated_errors import PLANES, product_errors, product_rows
from moesim.units import BytesPerS, JoulesPerByte, Seconds, Watts
from moesim.workloads.matrices import DTypeName
from moesim.workloads.operator_table import DTYPES, FORMS, OperatorTable

_QUANTITIES = {
    "gemm": ("m", "n", "k"),
    "grouped_gemm": ("m", "n", "k"),
    "attention": ("m", "flops", "bytes"),
    "elementwise": ("", "", "bytes"),
}
"""Quantities whose calibrated range is checked, by form."""


class AttentionKernels(Config):
    """Attention of prefill chunks and decode sequences, both in bf16."""

    prefill_latency: Parameter[Seconds] = Field(description="Launch and set-up of a step with prefill, s.")
    prefill_sustained: Parameter[Fraction] = Field(description="Share of the bf16 peak in prefill.")
    prefill_dram_sustained: Parameter[Fraction] = Field(
        description="Prefill traffic adds time as if at this share of the DRAM bandwidth."
    )
    decode_latency: Parameter[Seconds] = Field(description="Launch and set-up of a step of decodes only, s.")
    decode_sustained: Parameter[Fraction] = Field(description="Share of the bf16 peak in decode.")
    decode_dram_sustained: Parameter[Fraction] = Field(description="Share of the DRAM bandwidth in decode.")
    decode_wave: Parameter[Seconds] = Field(
        description="Time of one wave of (sequence, KV head) pairs over the multiprocessors, s."
    )
    mixed_decode_slowdown: Parameter[Slowdown] = Field(
        description="Decode beside prefill takes this many times as long as in a step of its own."
    )


class GpuFit(Fit):
    """A calibration of GPU kernels, and what it covers."""

    forms: tuple[Literal["gemm", "grouped_gemm", "attention", "elementwise"], ...] = Field(
        description="Operator forms that it covers."
    )
    weights: tuple[DTypeName, ...] = Field(description="Weight formats (attention: KV cache formats) that it covers.")


class GpuConfig(Fitted, ProductKernels):
    """Parameters of a GPU; those of `ProductKernels` are of products in bf16, and defaults of the other formats."""

    kind: Literal["gpu"]
    multiprocessors: Parameter[Count] = Field(description="Streaming multiprocessors.")
    formats: dict[Format, TensorFormat] = Field(description="Tensor-core formats; bf16 is required.")
    dram_bandwidth: Parameter[BytesPerS] = Field(description="Datasheet DRAM bandwidth, B/s.")
    dram_sustained: Parameter[Fraction] = Field(description="Share of it that large transfers reach.")
    l2_bandwidth: Parameter[BytesPerS] = Field(description="L2 to multiprocessors, all together, B/s.")
    kernel_latency: Parameter[Seconds] = Field(description="Launch of one kernel inside a CUDA graph, s.")
    tile_latency: Parameter[Seconds] = Field(description="Start and end of a tile on a multiprocessor, s.")
    split_latency: Parameter[Seconds] = Field(description="Extra time of a product that is split along k, s.")
    grouped_gemm: GroupedGemm
    attention: AttentionKernels
    kernels: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="What differs with the kernels of another serving framework (vllm, sglang, trtllm): its keys and"
        " theirs below, merged over the above where a scenario's scheduler asks for that framework.",
    )
    residual: str | None = Field(
        default=None,
        description="File in configs/devices/residuals with learned corrections of products and experts; none: physics"
        " alone. They apply to the very parameters that they were learned beside, and inside the calibrated range.",
    )
    default_kernels: str = Field(default="", description="Framework whose kernels the above describes, if measured.")
    active_power: Parameter[Watts] = Field(
        description="Power of clocks, caches and schedulers while anything runs, on top of idle power, W."
    )
    dram_energy: Parameter[JoulesPerByte] = Field(description="Dynamic energy per DRAM byte, J.")
    fits: dict[str, GpuFit] = Field(default_factory=dict, description="Calibrations by name.")  # type: ignore[assignment]

    @model_validator(mode="after")
    def _bf16_present(self) -> "GpuConfig":
        if "bf16" not in self.formats:
            raise ValueError("formats must hold bf16")
        if "bf16" in self.grouped_gemm.weight_only:
            raise ValueError("grouped_gemm.weight_only must not hold bf16")
        return self

    def build(self, name: str) -> "GPU":
        """The processor with these parameters."""
        return GPU(self, name)


class GPU:
    """Prices operators on one GPU; see `gpu_kernel` for the equations.

    Args:
        config: parameters.
        name: name within the device.
    """

    def __init__(self, config: GpuConfig, name: str = "gpu") -> None:
        from moesim.hw_models import gpu_kernel

        self.config = config
        self.name = name
        self._price_rows = gpu_kernel.price_rows
        self._columns = gpu_kernel.Columns
        self._columns_of = operator.attrgetter(*gpu_kernel.Columns._fields)
        self._parameters = _parameter_vector(config, gpu_kernel)
        self._formats, self._tiles = format_rows(config, gpu_kernel)
        self._valid = _valid_ranges(config.fits)
        models = self._matching_models()
        self._residuals = gpu_kernel.Residuals(*joined(models, len(PLANES), len(DTYPES)))
        self._product_errors = product_errors(config.fits, models)

    @property
    def active_w(self) -> float:
        """Power while anything runs (see `Processor.active_w`)."""
        return self.config.active_power.value

    def price(self, operators: OperatorTable) -> Cost:
        """Price of one execution of each row by one shard (see `Processor.price`)."""
        columns = self._columns(*self._columns_of(operators))
        cost = Cost.zeros(len(operators))
        self._price_rows(
            columns,
            self._parameters,
            self._formats,
            self._tiles,
            self._valid,
            self._residuals,
            cost.time_s,
            cost.energy_j,
            cost.bound,
            cost.extrapolated,
        )
        return cost

    def stated_errors(self, operators: OperatorTable) -> NDArray[np.float64]:
        """Mean error on unseen shapes that calibrations state of each row's price (see `Processor.stated_errors`)."""
        return product_rows(self._product_errors, operators)

    def residual_features(self, operators: OperatorTable) -> NDArray[np.float64]:
        """float64[row, feature]: what residuals look at, beside the prices of this processor, which must have none."""
        from moesim.hw_models import gpu_kernel

        features = np.zeros((len(operators), gpu_kernel.FEATURES))
        columns = self._columns(*self._columns_of(operators))
        gpu_kernel.feature_rows(columns, self.price(operators).time_s, self.config.multiprocessors.value, features)
        return features

    def fingerprint(self, plane: str, dtype: str) -> str:
        """Name of all values that decide prices of products with weights of `dtype`; `plane` is one of `PLANES`."""
        row = self._formats[PLANES.index(plane), list(DTYPES).index(dtype)]
        tiles = self._tiles[int(row[-2]) : int(row[-1])].ravel()
        return fingerprint(np.concatenate([[self.config.multiprocessors.value], row[:-2], tiles]))

    def _matching_models(self) -> list[tuple[int, int, Trees]]:
        """Models that were trained beside the parameters of this processor, with their plane and weight format."""
        if self.config.residual is None:
            return []
        found = []
        for name, model in load_residual(FOLDER / self.config.residual).items():
            plane, dtype = name.split(".")
            if model.fingerprint == self.fingerprint(plane, dtype):
                found.append((PLANES.index(plane), list(DTYPES).index(dtype), model))
        return found


def _parameter_vector(config: GpuConfig, kernel: Any) -> NDArray[np.float64]:
    dram = config.dram_bandwidth.value
    bf16 = config.formats["bf16"].peak.value
    attention = config.attention
    values = {
        kernel.MULTIPROCESSORS: config.multiprocessors.value,
        kernel.S_PER_DRAM_BYTE: 1 / (dram * config.dram_sustained.value),
        kernel.S_PER_PEAK_DRAM_BYTE: 1 / dram,
        kernel.KERNEL_LATENCY_S: config.kernel_latency.value,
        kernel.PREFILL_LATENCY_S: attention.prefill_latency.value,
        kernel.DECODE_LATENCY_S: attention.decode_latency.value,
        kernel.MIXED_DECODE_SLOWDOWN: attention.mixed_decode_slowdown.value,
        kernel.S_PER_PREFILL_FLOP: 1 / (bf16 * attention.prefill_sustained.value),
        kernel.S_PER_PREFILL_BYTE: 1 / (dram * attention.prefill_dram_sustained.value),
        kernel.S_PER_DECODE_FLOP: 1 / (bf16 * attention.decode_sustained.value),
        kernel.S_PER_DECODE_BYTE: 1 / (dram * attention.decode_dram_sustained.value),
        kernel.DECODE_WAVE_S: attention.decode_wave.value,
        kernel.J_PER_DRAM_BYTE: config.dram_energy.value,
        kernel.ACTIVE_W: config.active_power.value,
        kernel.J_PER_ATTENTION_FLOP: config.formats["bf16"].energy.value,
    }
    return np.array([float(values[position]) for position in range(kernel.PARAMETERS)])


def _valid_ranges(fits: Mapping[str, GpuFit]) -> NDArray[np.float64]:
    """float64[form, weight dtype, 6]; an empty range where no calibration covers the combination."""
    ranges: NDArray[np.float64] = np.tile([np.inf, -np.inf], (len(FORMS), len(DTYPES), 3))
    for fit in fits.values():
        for form in fit.forms:
            row = np.ravel([fit.valid.get(quantity, (0.0, np.inf)) for quantity in _QUANTITIES[form]])
            for dtype in fit.weights:
                known = ranges[FORMS.index(form), list(DTYPES).index(dtype)]
                known[0::2] = np.minimum(known[0::2], row[0::2])
                known[1::2] = np.maximum(known[1::2], row[1::2])
    return ranges
