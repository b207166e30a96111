"""GPUs: a roofline with tiles, waves and launches, fitted to measured kernels."""

import operator
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from moesim.configs.loader import Config
from moesim.hw_models.attention_config import AttentionKernels, cover_table, kernel_table
from moesim.hw_models.parameters import Count, Fit, Fitted, Fraction, Parameter
from moesim.hw_models.processor import Cost
from moesim.units import BytesPerS, FlopsPerS, JoulesPerByte, JoulesPerFlop, Seconds, Watts
from moesim.workloads.matrices import DTypeName
from moesim.workloads.operator_table import ATTENTION, DTYPES, FORMS, OperatorTable

Format = Literal["tf32", "bf16", "fp8", "fp8_block", "int8", "fp4"]

COMPUTE_FORMATS: dict[str, tuple[Format, ...]] = {
    "fp32": ("tf32", "bf16"),
    "bf16": ("bf16",),
    "fp16": ("bf16",),
    "fp8": ("fp8", "bf16"),
    "fp8_block": ("fp8_block", "fp8", "bf16"),
    "int8": ("int8", "bf16"),
    "mxfp4": ("fp4", "bf16"),
}
"""Tensor-core formats in which weights of a format are multiplied, best first. Where only bf16 is left, other weights
are turned into it on the way (as Marlin kernels do). `fp8_block` is fp8 with a scale per block: other kernels."""

_OPERAND_BYTES: dict[Format, float] = {"tf32": 4.0, "bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int8": 1.0, "fp4": 0.5}
_QUANTITIES = {
    "gemm": ("m", "n", "k"),
    "grouped_gemm": ("m", "n", "k"),
    "attention": ("m", "flops", "bytes"),
    "elementwise": ("", "", "bytes"),
}
"""Quantities whose calibrated range is checked, by form."""


class TensorFormat(Config):
    """Matrix products in one number format."""

    peak: Parameter[FlopsPerS] = Field(description="Dense tensor-core rate, FLOP/s (2 per multiply-add).")
    sustained: Parameter[Fraction] = Field(description="Share of the peak that large products reach.")
    energy: Parameter[JoulesPerFlop] = Field(description="Dynamic energy per FLOP, J.")
    quantise_latency: Parameter[Seconds] | None = Field(
        default=None, description="Extra time of the kernel that turns 16-bit inputs into this format, s."
    )
    quantise_bandwidth: Parameter[BytesPerS] | None = Field(
        default=None, description="Rate at which it reads and writes, B/s."
    )


class GroupedGemm(Config):
    """Expert FFNs: grouped products, with the sorting and gathering of tokens around them."""

    latency: Parameter[Seconds] = Field(description="Launches, sorting and activation of one expert FFN, s.")
    sustained: dict[Format, Parameter[Fraction]] = Field(description="Share of each format's peak.")
    weight_only: tuple[Format, ...] = Field(
        default=(), description="Formats without expert kernels of their own: weights are turned into bf16 on the way."
    )
    dequantise_sustained: Parameter[Fraction] = Field(
        description="Share of the bf16 peak with weights turned into bf16 on the way."
    )
    weights_dram_sustained: Parameter[Fraction] = Field(description="Share of the DRAM bandwidth for weights.")
    moved_dram_sustained: Parameter[Fraction] = Field(description="Share of the DRAM bandwidth for activations.")
    tile_latency: Parameter[Seconds] = Field(description="Start and end of a tile on a multiprocessor, s.")


class GpuFit(Fit):
    """A calibration of GPU kernels, and what it covers."""

    forms: tuple[Literal["gemm", "grouped_gemm", "attention", "elementwise"], ...] = Field(
        description="Operator forms that it covers."
    )
    weights: tuple[DTypeName, ...] = Field(description="Weight formats (attention: KV cache formats) that it covers.")


class GpuConfig(Fitted):
    """Parameters of a GPU."""

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
    active_power: Parameter[Watts] = Field(
        description="Power of clocks, caches and schedulers while anything runs, on top of idle power, W."
    )
    dram_energy: Parameter[JoulesPerByte] = Field(description="Dynamic energy per DRAM byte, J.")
    kernels: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="What differs with the kernels of another serving framework (vllm, sglang, trtllm): its keys and"
        " theirs below, merged over the above where a scenario's scheduler asks for that framework.",
    )
    fits: dict[str, GpuFit] = Field(default_factory=dict, description="Calibrations by name.")  # type: ignore[assignment]

    @model_validator(mode="after")
    def _bf16_present(self) -> "GpuConfig":
        if "bf16" not in self.formats:
            raise ValueError("formats must hold bf16")
        if "bf16" in self.grouped_gemm.weight_only:
            raise ValueError("grouped_gemm.weight_only must not hold bf16")
        unknown = {kernel.fit for kernel in self.attention.kernels} - {None, *self.fits}
        if unknown:
            raise ValueError(f"attention.kernels: fit must be one of fits, got {min(map(str, unknown))!r}")
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
        from moesim.hw_models import attention_kernel, gpu_kernel

        self.config = config
        self.name = name
        self._price_rows = gpu_kernel.price_rows
        self._columns = gpu_kernel.Columns
        self._columns_of = operator.attrgetter(*gpu_kernel.Columns._fields)
        self._parameters = _parameter_vector(config, gpu_kernel)
        self._formats = np.array(
            [[_format_row(config, dtype, gpu_kernel, experts=experts) for dtype in DTYPES] for experts in (False, True)]
        )
        self._valid = _valid_ranges(config.fits)
        self._price_attention = attention_kernel.price_rows
        self._attention_columns = attention_kernel.Columns
        self._attention_columns_of = operator.attrgetter(*attention_kernel.Columns._fields)
        self._attention = (
            kernel_table(config.attention, config.formats["bf16"].peak.value, config.dram_bandwidth.value),
            cover_table(config.attention),
            np.array([dtype.bytes for dtype in DTYPES.values()]),
            float(config.multiprocessors.value),
        )

    @property
    def active_w(self) -> float:
        """Power while anything runs (see `Processor.active_w`)."""
        return self.config.active_power.value

    def price(self, operators: OperatorTable) -> Cost:
        """Price of one execution of each row by one shard (see `Processor.price`)."""
        columns = self._columns(*self._columns_of(operators))
        cost = Cost.zeros(len(operators))
        attention = np.flatnonzero(operators.form == ATTENTION)
        if len(attention):
            # First, because the other rows' pass adds energy to all of them.
            attention_columns = self._attention_columns(*self._attention_columns_of(operators))
            outputs = cost.time_s, cost.bound, cost.extrapolated
            self._price_attention(attention_columns, attention, *self._attention, outputs)
        self._price_rows(
            columns,
            self._parameters,
            self._formats,
            self._valid,
            cost.time_s,
            cost.energy_j,
            cost.bound,
            cost.extrapolated,
        )
        return cost


def _parameter_vector(config: GpuConfig, kernel: Any) -> NDArray[np.float64]:
    dram = config.dram_bandwidth.value
    grouped = config.grouped_gemm
    values = {
        kernel.MULTIPROCESSORS: config.multiprocessors.value,
        kernel.S_PER_DRAM_BYTE: 1 / (dram * config.dram_sustained.value),
        kernel.S_PER_L2_BYTE: 1 / config.l2_bandwidth.value,
        kernel.KERNEL_LATENCY_S: config.kernel_latency.value,
        kernel.TILE_LATENCY_S: config.tile_latency.value,
        kernel.SPLIT_LATENCY_S: config.split_latency.value,
        kernel.GROUPED_LATENCY_S: grouped.latency.value,
        kernel.GROUPED_TILE_LATENCY_S: grouped.tile_latency.value,
        kernel.GROUPED_S_PER_WEIGHT_BYTE: 1 / (dram * grouped.weights_dram_sustained.value),
        kernel.GROUPED_S_PER_MOVED_BYTE: 1 / (dram * grouped.moved_dram_sustained.value),
        kernel.J_PER_DRAM_BYTE: config.dram_energy.value,
        kernel.ACTIVE_W: config.active_power.value,
        kernel.J_PER_ATTENTION_FLOP: config.formats["bf16"].energy.value,
    }
    return np.array([float(values[position]) for position in range(kernel.PARAMETERS)])


def _format_row(config: GpuConfig, dtype: str, kernel: Any, *, experts: bool) -> list[float]:
    """Columns of `gpu_kernel`'s table of weight formats for weights of `dtype` in products or in expert FFNs."""
    grouped = config.grouped_gemm
    without = grouped.weight_only if experts else ()
    used = next(name for name in COMPUTE_FORMATS[dtype] if name in config.formats and name not in without)
    fmt = config.formats[used]
    sustained = fmt.sustained
    if experts:
        native = used != "bf16" or dtype in {"bf16", "fp16"}
        sustained = grouped.sustained.get(used, fmt.sustained) if native else grouped.dequantise_sustained
    quantised = 2.0 + _OPERAND_BYTES[used]  # bytes read and written per element
    values = {
        kernel.S_PER_FLOP: 1 / (fmt.peak.value * sustained.value),
        kernel.ACTIVATION_BYTES: _OPERAND_BYTES[used],
        kernel.WEIGHT_BYTES: DTYPES[dtype].bytes,
        kernel.J_PER_FLOP: fmt.energy.value,
        kernel.QUANTISE_LATENCY_S: fmt.quantise_latency.value if fmt.quantise_latency else 0.0,
        kernel.S_PER_QUANTISED_ELEMENT: quantised / fmt.quantise_bandwidth.value if fmt.quantise_bandwidth else 0.0,
    }
    return [values[column] for column in range(kernel.FORMAT_COLUMNS)]


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
