"""GPUs: a roofline with tiles, waves and launches, fitted to measured kernels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from moesim.configs.loader import Config
from moesim.hw_models.attention_config import AttentionKernels, cover_table, kernel_table, pricing_values
from moesim.hw_models.gpu_product_rows import format_rows, launch_rows, traffic_tables
from moesim.hw_models.gpu_products import (
    ANY_TOKENS_PER_EXPERT,
    Format,
    GroupedGemm,
    ProductKernels,
    TensorFormat,
)
from moesim.hw_models.parameters import Count, Fit, Fitted, Fraction, Parameter
from moesim.hw_models.processor import Cost
from moesim.hw_models.residual import FOLDER, Trees, fingerprint, joined, load_residual
from moesim.hw_models.stated_errors import (
    PLANES,
    attention_errors,
    attention_rows,
    elementwise_error,
    product_errors,
    product_rows,
)
from moesim.units import Bytes, BytesPerS, JoulesPerByte, Seconds, Watts
from moesim.workloads.matrices import DTypeName
from moesim.workloads.operator_table import ATTENTION, DTYPES, ELEMENTWISE, FORMS, OperatorTable

_QUANTITIES = {
    "gemm": ("m", "n", "k"),
    "grouped_gemm": ("m", "n", "k"),
    "attention": ("m", "flops", "bytes"),
    "elementwise": ("", "", "bytes"),
}
"""Quantities whose calibrated range is checked, by form."""


class GpuFit(Fit):
    """A calibration of GPU kernels, and what it covers."""

    forms: tuple[Literal["gemm", "grouped_gemm", "attention", "elementwise"], ...] = Field(
        description="Operator forms that it covers."
    )
    weights: tuple[DTypeName, ...] = Field(description="Weight formats (attention: KV cache formats) that it covers.")


class Elementwise(Config):
    """Norms, activation functions, rotary embeddings and other work that multiplies next to nothing."""

    latency: Parameter[Seconds] | None = Field(
        default=None, description="Launch of one such kernel inside a CUDA graph, s; `kernel_latency` if empty."
    )
    cached_bytes: Parameter[Bytes] | None = Field(
        default=None,
        description="Operands and results that the L2 cache holds from one kernel to the next, bytes; 0 if empty.",
    )
    l2_bandwidth: Parameter[BytesPerS] | None = Field(
        default=None, description="Rate of reading and writing them there, B/s; `l2_bandwidth` above if empty."
    )


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
    elementwise: Elementwise = Elementwise()
    grouped_gemm: GroupedGemm
    attention: AttentionKernels
    kernels: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="What differs with the kernels of another serving framework (vllm, sglang, trtllm): its keys and"
        " theirs below, merged over the above where a scenario's scheduler asks for that framework.",
    )
    residual: str | None = Field(
        default=None,
        description="File in configs/devices/residuals with learned corrections of products, experts and attention"
        " kernels; none: physics alone. They apply to the very parameters that they were learned beside, and inside the"
        " calibrated range.",
    )
    repeated: bool = Field(
        default=False,
        description="Price products as in the benchmark that they were fitted to, with what `benchmark` says of"
        " the host and of the L2 cache. A simulation adds the host itself, and other layers' data come between.",
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
        named = {name for kernel in self.attention.kernels for name in (kernel.fit, kernel.mixed_fit, kernel.late_fit)}
        unknown = named - {None, *self.fits}
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
        from moesim.hw_models import attention_kernel, gpu_columns, gpu_kernel, gpu_tiles

        self.config = config
        self.name = name
        self._price_rows = gpu_kernel.price_rows
        self._columns_of = gpu_columns.columns_of
        self._parameters = _parameter_vector(config, gpu_kernel)
        formats, tiles, tuned = format_rows(config, gpu_kernel)
        self._products = gpu_columns.Products(formats, tiles, launch_rows(config), tuned, np.zeros((0, 2)))
        self._traffic = traffic_tables(formats, tiles, gpu_kernel, gpu_tiles)
        self._chooses = bool(formats[0, :, gpu_kernel.GROUP_SLOWDOWN].any())
        self._choose = gpu_tiles.choose
        self._valid = _valid_ranges(config)
        self._price_attention: Any = attention_kernel.price_rows
        self._features = attention_kernel.RESIDUAL_FEATURES
        self._attention_result = gpu_columns.Attention
        self._attention = _attention_tables(config, repeated=config.attention.repeated)
        self._attention_in_models = _attention_tables(config, repeated=False)
        found, columns = self.matching_models(), max(len(DTYPES), 2 * len(config.attention.kernels))
        models = [(*place, model) for name, model in found.items() for place in self._places(name)]
        self._residuals = gpu_columns.Residuals(*joined(models, len(PLANES), columns))
        self._corrects_attention = any(PLANES[plane] == "attention" for plane, _, _ in models)
        self._product_errors = product_errors(config.fits, models)
        self._attention_errors = attention_errors(config, models)

    @property
    def active_w(self) -> float:
        """Power while anything runs (see `Processor.active_w`)."""
        return self.config.active_power.value

    @property
    def residual_file(self) -> Path | None:
        """The file with learned corrections, if there are any."""
        return None if self.config.residual is None else FOLDER / self.config.residual

    def price(self, operators: OperatorTable) -> Cost:
        """Price of one execution of each row by one shard (see `Processor.price`)."""
        columns = self._columns_of(operators)
        cost = Cost.zeros(len(operators))
        # First, because the other rows' pass adds residuals and energy to all of them.
        attention = self._attend(columns, cost, with_features=self._corrects_attention)
        self._price_rows(
            columns,
            self._parameters,
            self._with_tiles(columns),
            self._valid,
            self._residuals,
            attention,
            (cost.time_s, cost.energy_j, cost.bound, cost.extrapolated),
        )
        return cost

    def _with_tiles(self, columns: Any) -> Any:
        """`gpu_columns.Products`, with the tiles of libraries that choose them by themselves."""
        if not self._chooses:
            return self._products
        chosen = np.zeros((len(columns.m), 2))
        self._choose(columns, *self._traffic, float(self.config.multiprocessors.value), chosen)
        return self._products._replace(chosen=chosen)

    def stated_errors(self, operators: OperatorTable) -> NDArray[np.float64]:
        """Error that calibrations state of each row's price (see `Processor.stated_errors`).

        Of an attention row of both phases, or without tokens, the greater error of the two kernels.
        """
        from moesim.hw_models.attention_kernel import kernels_of_rows

        errors = product_rows(self._product_errors, operators)
        errors[operators.form == ELEMENTWISE] = elementwise_error(self.config.fits)
        rows = np.flatnonzero(operators.form == ATTENTION)
        if len(rows):
            kernels = kernels_of_rows(self._columns_of(operators), rows, *self._attention[:3])
            decodes = operators.decode_m[rows]
            prefills = operators.m[rows] - decodes
            errors[rows] = attention_rows(self._attention_errors[kernels], prefills, decodes)
        return errors

    def _attend(self, columns: Any, cost: Cost, *, with_features: bool) -> Any:
        """Write times, bounds and extrapolation of rows of attention; returns their `gpu_columns.Attention`."""
        rows = np.flatnonzero(columns.form == ATTENTION)
        kernel, features = np.empty(len(rows), np.int64), np.zeros((len(rows) * with_features, self._features))
        if len(rows):
            written = features
            if with_features and self.config.attention.repeated:
                # Residuals know work by its price in a model.
                scratch = Cost.zeros(len(cost))
                outputs = scratch.time_s, scratch.bound, scratch.extrapolated
                self._price_attention(columns, rows, *self._attention_in_models, outputs, (kernel, features))
                written = features[:0]
            outputs = cost.time_s, cost.bound, cost.extrapolated
            self._price_attention(columns, rows, *self._attention, outputs, (kernel, written))
        return self._attention_result(kernel, features)

    def residual_features(self, operators: OperatorTable) -> NDArray[np.float64]:
        """float64[row, feature]: what residuals look at, beside this processor's prices, which must be without any.

        Rows must be of attention, or products.
        """
        from moesim.hw_models import gpu_kernel

        columns = self._columns_of(operators)
        if np.all(operators.form == ATTENTION):
            attention = self._attend(columns, Cost.zeros(len(operators)), with_features=True)
            return np.asarray(attention.features, np.float64)
        features = np.zeros((len(operators), gpu_kernel.FEATURES))
        physics_s, multiprocessors = self.price(operators).time_s, self.config.multiprocessors.value
        gpu_kernel.feature_rows(columns, physics_s, self._products.formats, multiprocessors, features)
        return features

    def corrected_rows(self, operators: OperatorTable) -> NDArray[np.bool_]:
        """bool[row]: which rows a residual may correct, of attention: not those that take as long as the host does."""
        kernel = self._attend(self._columns_of(operators), Cost.zeros(len(operators)), with_features=False).kernel
        rows = np.ones(len(operators), np.bool_)
        rows[operators.form == ATTENTION] = kernel >= 0
        return rows

    def fingerprint(self, model: str) -> str:
        """Name of all values that decide the prices that a model is learned beside.

        Args:
            model: `plane.key`, of `PLANES` and a weight format; of attention, the name of a kernel's calibration.

        Raises:
            KeyError: no kernel names that calibration.
        """
        plane, index = self._place(model)
        multiprocessors = [self.config.multiprocessors.value]
        if plane == PLANES.index("attention"):
            rates = [self.config.formats["bf16"].peak.value, self.config.dram_bandwidth.value]
            mixed, kernel = divmod(index, len(self.config.attention.kernels))
            values = pricing_values(self.config.attention.kernels[kernel], mixed=bool(mixed))
            return fingerprint(np.concatenate([multiprocessors, rates]), *values)
        from moesim.hw_models import gpu_kernel

        row = self._products.formats[plane, index]
        tiles = self._products.tiles[int(row[gpu_kernel.FIRST_TILE]) : int(row[gpu_kernel.END_TILE])]
        shared = [multiprocessors, row[: gpu_kernel.MODEL_COLUMNS]]
        if plane == PLANES.index("gemm"):
            rare = row[list(gpu_kernel.RARE_COLUMNS)]
            singles = np.append(row[list(gpu_kernel.SINGLE_COLUMNS)], rare if rare.any() else rare[:0])
            own = singles, tiles[:, : gpu_kernel.TOKENS_PER_EXPERT].ravel()
        else:
            limits, narrow = tiles[:, gpu_kernel.TOKENS_PER_EXPERT], np.flatnonzero(tiles[:, gpu_kernel.NARROW])
            factors = row[list(gpu_kernel.EXPERT_COLUMNS)]
            tuned = self._products.tuned[int(row[gpu_kernel.FIRST_TUNED]) : int(row[gpu_kernel.END_TUNED])]
            own = tiles[:, : gpu_kernel.LONE].ravel(), limits[limits < ANY_TOKENS_PER_EXPERT]
            # What came later counts where it is something at all, so that older models keep their names.
            shared += [narrow, factors[: len(factors) * (factors > 1.0).any()], tuned.ravel()]
        return fingerprint(np.concatenate([*shared, *own]))

    def _place(self, model: str) -> tuple[int, int]:
        """Plane and column of a model by name; attention has a column per kernel, and one more for its mixed steps."""
        plane, key = model.split(".")
        if plane != "attention":
            return PLANES.index(plane), list(DTYPES).index(key)
        kernels = self.config.attention.kernels
        fits = [*(kernel.fit for kernel in kernels), *(kernel.mixed_fit for kernel in kernels)]
        if key not in fits:
            raise KeyError(key)
        return PLANES.index(plane), fits.index(key)

    def _places(self, model: str) -> Iterator[tuple[int, int]]:
        """Planes and columns that a model is for: experts of every kind share it where they share all parameters."""
        plane, index = self._place(model)
        yield plane, index
        if PLANES[plane] == "experts":
            for other, name in enumerate(PLANES):
                shares = name.endswith("_experts") and np.array_equal(
                    self._products.formats[other, index], self._products.formats[plane, index]
                )
                if shares:
                    yield other, index

    def matching_models(self) -> dict[str, Trees]:
        """Residuals by name, of those in the device's file that were learned beside the parameters it has."""
        if self.residual_file is None:
            return {}
        kernels = self.config.attention.kernels
        known = {f"attention.{fit}" for kernel in kernels for fit in (kernel.fit, kernel.mixed_fit)}
        return {
            name: model
            for name, model in load_residual(self.residual_file).items()
            if name in known or not name.startswith("attention.")
            if model.fingerprint == self.fingerprint(name)
        }


def _attention_tables(config: GpuConfig, *, repeated: bool) -> tuple[Any, ...]:
    """What `attention_kernel.price_rows` takes between rows and outputs."""
    section = config.attention.model_copy(update={"repeated": repeated})
    return (
        kernel_table(section, config.formats["bf16"].peak.value, config.dram_bandwidth.value),
        cover_table(section),
        np.array([dtype.bytes for dtype in DTYPES.values()]),
        float(config.multiprocessors.value),
    )


def _parameter_vector(config: GpuConfig, kernel: Any) -> NDArray[np.float64]:
    dram, own = config.dram_bandwidth.value, config.elementwise
    values = {
        kernel.MULTIPROCESSORS: config.multiprocessors.value,
        kernel.S_PER_DRAM_BYTE: 1 / (dram * config.dram_sustained.value),
        kernel.S_PER_PEAK_DRAM_BYTE: 1 / dram,
        kernel.ELEMENTWISE_LATENCY_S: (own.latency or config.kernel_latency).value,
        kernel.ELEMENTWISE_CACHED_BYTES: own.cached_bytes.value if own.cached_bytes else 0.0,
        kernel.S_PER_CACHED_BYTE: 1 / (own.l2_bandwidth or config.l2_bandwidth).value,
        kernel.J_PER_DRAM_BYTE: config.dram_energy.value,
        kernel.ACTIVE_W: config.active_power.value,
        kernel.J_PER_ATTENTION_FLOP: config.formats["bf16"].energy.value,
        # A repeated measurement may find everything in L2.
        kernel.LEAST_S_PER_ATTENTION_BYTE: 0.0 if config.attention.repeated else 1 / dram,
    }
    return np.array([float(values[position]) for position in range(kernel.PARAMETERS)])


def _valid_ranges(config: GpuConfig) -> NDArray[np.float64]:
    """float64[form, weight dtype, 6]; an empty range where no calibration covers the combination.

    Calibrations of attention count if a kernel names them: a set of kernels replaces the kernels, but adds to `fits`.
    """
    named = {kernel.fit for kernel in config.attention.kernels}
    fits = [fit for name, fit in config.fits.items() if name in named or fit.forms != ("attention",)]
    ranges: NDArray[np.float64] = np.tile([np.inf, -np.inf], (len(FORMS), len(DTYPES), 3))
    for fit in fits:
        for form in fit.forms:
            row = np.ravel([fit.valid.get(quantity, (0.0, np.inf)) for quantity in _QUANTITIES[form]])
            for dtype in fit.weights:
                known = ranges[FORMS.index(form), list(DTYPES).index(dtype)]
                known[0::2] = np.minimum(known[0::2], row[0::2])
                known[1::2] = np.maximum(known[1::2], row[1::2])
    return ranges
