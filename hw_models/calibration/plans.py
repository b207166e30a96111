"""Which parameters of a GPU a measured set of kernels determines, and within which bounds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.calibration.aiconfigurator import PUBLISHER
from moesim.hw_models.calibration.errors import stated_error
from moesim.hw_models.calibration.fit import STANDARD, FitResult, Free, Progress, Settings, calibrate, valid_range
from moesim.hw_models.calibration.measured import NOT_TUNED, Floats, Ints, Measured
from moesim.hw_models.gpu import GPU, GpuConfig, GpuFit
from moesim.hw_models.gpu_product_rows import benchmark_of
from moesim.hw_models.gpu_products import (
    COMPUTE_FORMATS,
    Format,
    GroupedKernels,
    ProductBenchmark,
    ProductKernels,
)
from moesim.hw_models.parameters import Parameter, parameters, with_values
from moesim.units import Seconds
from moesim.workloads.operator_table import OperatorTable

T = TypeVar("T", bound=ProductKernels)
_US = 1e-6
_PRODUCT_SPACE = {
    "dram_sustained": Free(0.8, 0.3, 1.0),
    "kernel_latency": Free(2.5 * _US, 0.5 * _US, 25 * _US),  # with `tile_latency`, which no product is without
    "tile_latency": Free(0.7 * _US, 0.01 * _US, 10 * _US),
    "split_latency": Free(2 * _US, 0.05 * _US, 20 * _US),
    "step_latency": Free(1e-9, 1e-11, 2e-8),
    "exposed": Free(0.3, 1e-3, 1.0),
    "wave_tail": Free(0.3, 1e-3, 1.0),
    "power_slowdown": Free(1.1, 1.0, 1.6),  # down to two thirds of the boost clock, about the base clock
    "boost_time": Free(1e-3, 1e-4, 1e-2),
}
_QUANTISE_SPACE = {
    "quantise_latency": Free(2 * _US, 0.01 * _US, 20 * _US),
    "quantise_bandwidth": Free(2e12, 1e11, 2e13),
    "quantise_row": Free(1e-9, 1e-12, 1e-7),
}
_EXPERT_SPACE = {
    "latency": Free(30 * _US, 2 * _US, 300 * _US),
    "shared_latency": Free(2 * _US, 0.01 * _US, 100 * _US),
    "weights_dram_sustained": Free(0.7, 0.03, 1.0),
    "moved_dram_sustained": Free(0.5, 0.03, 1.0),
    "tile_latency": Free(1 * _US, 0.05 * _US, 20 * _US),
    "step_latency": Free(1e-9, 1e-11, 1e-7),
    "partial_tile": Free(0.1, 1e-3, 4.0),
    "exposed": Free(0.3, 1e-3, 1.0),
    "wave_tail": Free(0.3, 1e-3, 1.0),
}
_NARROW = Free(1.4, 1.0, 4.0)
_KEPT_LATENCY = Free(0.5, 0.1, 1.0)
_RESIDENT = Free(4.0, 1.0, 16.0)
_STEP = Free(5e-9, 1e-11, 1e-7)
"""A third of a microsecond, about the latency of DRAM, for 64 inputs."""
_TOKEN_PASSES = Free(1.0, 0.01, 8.0)
_UNALIGNED = Free(4.0, 1.0, 16.0, lone=True)
"""Of 2-byte weights that come one by one or by pairs instead of eight at a time, beside all that a tile does else."""
_SUSTAINED = Free(0.7, 0.02, 1.0)
_L2_RATIOS = (0.5, 8.0, 64.0)
"""Of L2 and DRAM bandwidth: least, likely and most."""
_ELEMENTWISE_SPACE = {
    "elementwise.latency": Free(2 * _US, 0.5 * _US, 10 * _US),
    "elementwise.cached_bytes": Free(30e6, 1e6, 2.5e8),
}
_COPIES_FIT = "gemm_bf16"
"""The fit that also gives elementwise work its DRAM bandwidth, and its latency where nothing else does."""
_SINGLE_SETTINGS: dict[str, Any] = {"starts": 6, "evaluations": 40, "softness": 0.02}
"""Of fits to single products: their prices have many local minima, and some rows are long by chance."""
_TRAFFIC_SLOWDOWN = Free(1.2, 1.0, 2.0)
_LAUNCH = Free(60 * _US, 5 * _US, 1000 * _US)
_COLD_START = Free(1.5 * _US, 1e-3 * _US, 10 * _US)
_KEPT = Free(1e8, 1e7, 1.4e8)
_KEPT_SHARES = (0.85, 0.2, 1.1)
"""Of the L2 cache: likely, least and most."""
_HIDDEN = ("quantise_latency", "quantise_row", "quantise_block", "step_latency")
"""What small products tell, unless their times are those of the host."""
_HOST_SPREAD = 2.0
"""Times that differ by no more than this are all those of the host."""
_LEAST_UNLIKE = 0.05
"""Work was measured otherwise than it runs in a model if its price there differs by more."""


@dataclass(frozen=True)
class Plan:
    """A fit to be made.

    Attributes:
        name: of the fit.
        measured: to what.
        config: the device as it is, with room for all parameters of `space`.
        space: dotted names of parameters of `config`, and their bounds.
        forms, weights: what the fit covers.
        valid: least and greatest m, n, k.
        repeated: rows are those of a benchmark, which `as_measured` prices.
    """

    name: str
    measured: Measured[OperatorTable]
    config: GpuConfig
    space: Mapping[str, Free]
    forms: tuple[Any, ...]
    weights: tuple[Any, ...]
    valid: dict[str, tuple[float, float]]
    repeated: bool = False

    @property
    def residual_name(self) -> str:
        """Name of its model in a file of residuals; empty for elementwise layers, which have none."""
        if self.forms == ("elementwise",):
            return ""
        plane = "gemm" if self.forms[0] == "gemm" else self.name.rsplit("experts", 1)[0] + "experts"
        return f"{plane}.{self.weights[0]}"

    def with_values(self, values: Mapping[str, float]) -> GpuConfig:
        """The device with these values."""
        config: GpuConfig = with_values(self.config, values)
        return config

    def price(self, values: Mapping[str, float], table: OperatorTable) -> Floats:
        """Times of the rows with these values, as they were measured."""
        return GPU(self.as_measured(self.with_values(values))).price(table).time_s

    def as_measured(self, config: GpuConfig) -> GpuConfig:
        """`config` in the state in which it was measured."""
        return config.model_copy(update={"repeated": self.repeated})

    def representative(self, config: GpuConfig) -> NDArray[np.bool_]:
        """bool[row]: rows that show kernels rather than a benchmark's host."""
        return ~self.hidden(config)

    def hidden(self, config: GpuConfig) -> NDArray[np.bool_]:
        """bool[row]: rows that show the host, so that no residual changes their price."""
        table = self.measured.table
        processors = GPU(self.as_measured(config)), GPU(self.as_measured(without_launches(config)))
        shown, own = (processor.price(table).time_s for processor in processors)
        hidden: NDArray[np.bool_] = shown > own
        return hidden

    def anchors(self, config: GpuConfig) -> OperatorTable | None:
        """Work that was measured otherwise than it runs in a model, where residuals must leave physics alone."""
        table = self.measured.table
        model = config.model_copy(update={"cold_start": None})  # which comes after residuals
        measured_s, model_s = (GPU(item).price(table).time_s for item in (self.as_measured(config), model))
        unlike = np.flatnonzero(np.abs(measured_s / model_s - 1) > _LEAST_UNLIKE)
        return table.take(unlike) if len(unlike) else None

    def run(self, settings: Settings = STANDARD, progress: Progress | None = None) -> FitResult:
        """Fit, and cross-validate."""
        present = {name: float(item.value) for name, item in parameters(self.config) if item.fit == self.name}
        if self.forms[0] == "gemm":
            settings = replace(settings, **_SINGLE_SETTINGS)
        return calibrate(self.measured, self.price, self.space, settings, progress, present)

    def fitted(self, result: FitResult) -> GpuConfig:
        """The device with the fitted values and the fit's own entry."""
        config: GpuConfig = with_values(self.config, result.values, "fitted", self.name)
        return config.model_copy(update={"fits": config.fits | {self.name: self.entry(result)}})

    def entry(self, result: FitResult) -> GpuFit:
        """What the device states about the fit."""
        return GpuFit(
            forms=self.forms,
            weights=self.weights,
            data=self.measured.source.text,
            rows=len(self.measured),
            error=stated_error(result.unseen["all"].mean),
            median=stated_error(result.unseen["all"].median),
            valid=self.valid,
        )


class ColdPlan(Plan):
    """A fit of the start of products among other kernels; all else stays, residuals included."""

    @property
    def residual_name(self) -> str:
        """None."""
        return ""

    def run(self, settings: Settings = STANDARD, progress: Progress | None = None) -> FitResult:
        """Fit, and cross-validate."""
        return calibrate(self.measured, self.price, self.space, settings, progress)


def cold_plan(config: GpuConfig, measured: Measured[OperatorTable]) -> ColdPlan:
    """The fit of `cold_start` to products that were measured inside an engine."""
    parameter = Parameter[Seconds](value=0.0, source="not yet fitted")
    config = config.model_copy(update={"cold_start": config.cold_start or parameter})
    return ColdPlan("cold_start", measured, config, {"cold_start": _COLD_START}, (), _covered("bf16"), {})


def product_plan(config: GpuConfig, measured: Measured[OperatorTable], dtype: str) -> Plan:
    """The fit of single products with weights of `dtype`; rows that show L2 or the host become anchors."""
    used = next(name for name in COMPUTE_FORMATS[dtype] if name in config.formats)
    fmt = config.formats[used]
    if used == "bf16":
        own, names = "", list(_PRODUCT_SPACE)
        splits = config.splits is not False
    else:
        own, names = f"formats.{used}.kernels.", [name for name in _PRODUCT_SPACE if name != "kernel_latency"]
        splits = fmt.kernels.splits is not False
    kept = [name for name in names if splits or name != "split_latency"]
    space = {f"formats.{used}.sustained": _SUSTAINED}
    space |= {f"{own}{name}": _PRODUCT_SPACE[name] for name in kept}
    space[f"{own}l2_bandwidth"] = _l2_space(config)
    held = config if used == "bf16" else fmt.kernels
    if held.cached_bytes is not None:
        space[f"{own}cached_bytes"] = Free(2e7, 1e6, 1.5e8)
    if used != "bf16":
        space |= {f"formats.{used}.{name}": free for name, free in _QUANTISE_SPACE.items()}
        if fmt.quantise_block is not None:
            space[f"formats.{used}.quantise_block"] = Free(1e-9, 1e-11, 1e-7)
    if held.empty_bandwidth is not None:
        space[f"{own}empty_bandwidth"] = _l2_space(config)
    if held.least_traffic is not None:
        space |= {f"{own}least_traffic.{name}": _TRAFFIC_SLOWDOWN for name in type(held.least_traffic).model_fields}
    if held.lone_slowdown is not None:
        space[f"{own}lone_slowdown"] = Free(1.5, 1.0, 4.0)
    repeated = measured.source.publisher == PUBLISHER
    if repeated:
        space |= _benchmark_space(config, used, f"{own}benchmark.")
    name = f"gemm_{used}"
    plan = Plan(
        name,
        measured,
        config,
        space,
        ("gemm", "elementwise") if name == _COPIES_FIT else ("gemm",),
        _covered(dtype),
        _valid(measured.table, with_bytes=name == _COPIES_FIT),
        repeated,
    )
    return replace(plan, space=_determined(plan))


def _determined(plan: Plan) -> dict[str, Free]:
    """What the rows can tell: where the host launched one by one, little or nothing about small products."""
    launches = {name: free for name, free in plan.space.items() if ".launches." in name}
    if not launches:
        return dict(plan.space)
    if plan.measured.time_s.max() < _HOST_SPREAD * plan.measured.time_s.min():
        return launches
    return {name: free for name, free in plan.space.items() if name.split(".")[-1] not in _HIDDEN}


def _benchmark_space(config: GpuConfig, used: Format, own: str) -> dict[str, Free]:
    """What the benchmark of a format added and spared."""
    benchmark = benchmark_of(config, used) or ProductBenchmark()
    space = {f"{own}launches.{name}.time": _LAUNCH for name in benchmark.launches}
    if benchmark.kept is not None:
        space |= _kept_space(config, own, benchmark)
    return space


def _kept_space(config: GpuConfig, own: str, benchmark: ProductBenchmark) -> dict[str, Free]:
    """Weights that L2 keeps in a benchmark."""
    dram, kept = config.dram_bandwidth.value, _KEPT
    if benchmark.cache is not None:
        start, low, high = (share * benchmark.cache.value for share in _KEPT_SHARES)
        kept = Free(start, low, high)
    return {f"{own}kept": kept, f"{own}kept_bandwidth": Free(3 * dram, 0.8 * dram, 50 * dram)}


def expert_plan(config: GpuConfig, measured: Measured[OperatorTable], dtype: str, section: str = "weights") -> Plan:
    """The fit of expert FFNs with weights of `dtype`; in a section of `EXPERT_PLANES` where these run other kernels.

    Rows labelled as not tuned are no part of it.
    """
    broken = measured.labels.get(NOT_TUNED, np.zeros(len(measured), np.bool_))
    measured = measured.take(np.flatnonzero(~broken))
    own = _prefix(dtype, section)
    if own == "grouped_gemm.":
        sustained = f"{own}sustained.bf16"
    else:
        config, sustained = _with_section(config, section, dtype), f"{own}sustained"
    space = {sustained: _SUSTAINED} | {f"{own}{name}": free for name, free in _EXPERT_SPACE.items()}
    space[f"{own}l2_bandwidth"] = _l2_space(config)
    space |= _expert_extras(config, dtype, section)
    name = f"experts_{dtype}" if section == "weights" else f"{section}_experts_{dtype}"
    valid, repeated = _valid(measured.table), measured.source.publisher == PUBLISHER
    return Plan(name, measured, config, space, ("grouped_gemm",), _covered(dtype), valid, repeated)


def _prefix(dtype: str, section: str) -> str:
    """Where the parameters of expert FFNs are that all kernels have."""
    return "grouped_gemm." if section == "weights" and dtype == "bf16" else f"grouped_gemm.{section}.{dtype}."


def _expert_extras(config: GpuConfig, dtype: str, section: str) -> dict[str, Free]:
    """What only some kernels of experts have, where the device says so."""
    kernels: GroupedKernels = getattr(config.grouped_gemm, section).get(dtype, GroupedKernels())
    own, space = f"grouped_gemm.{section}.{dtype}.", {}
    if any(tile.narrow for tile in kernels.tiles):
        space[f"{own}narrow_slowdown"] = _NARROW
    if kernels.resident_tiles is not None:
        space[f"{own}resident_tiles"] = _RESIDENT
        space[f"{_prefix(dtype, section)}step_latency"] = _STEP
    if kernels.token_passes is not None:
        space[f"{own}token_passes"] = _TOKEN_PASSES
    if kernels.unaligned_slowdown is not None:
        space[f"{own}unaligned_slowdown"] = _UNALIGNED
    if kernels.benchmark is not None and kernels.benchmark.kept is not None:
        space |= _kept_space(config, f"{own}benchmark.", kernels.benchmark)
        if kernels.benchmark.kept_latency is not None:
            space[f"{own}benchmark.kept_latency"] = _KEPT_LATENCY
    return space


def profiled_expert_plan(config: GpuConfig, measured: Measured[OperatorTable]) -> Plan:
    """The fit of expert FFNs that were measured inside an engine, all experts on one rank, with bf16 weights."""
    config, own = _with_section(config, "weights", "bf16"), "grouped_gemm.weights.bf16."
    space = {f"{own}sustained": _SUSTAINED} | {f"{own}{name}": free for name, free in _EXPERT_SPACE.items()}
    space[f"{own}l2_bandwidth"] = _l2_space(config)
    del space[f"{own}shared_latency"]  # which only several ranks show
    return Plan("experts_bf16", measured, config, space, ("grouped_gemm",), _covered("bf16"), _valid(measured.table))


def elementwise_plan(config: GpuConfig, measured: Measured[OperatorTable]) -> Plan:
    """The fit of elementwise layers as they run between others; DRAM bandwidth stays that of products."""
    space = _ELEMENTWISE_SPACE | {"elementwise.l2_bandwidth": _l2_space(config)}
    valid = {"bytes": _valid(measured.table, with_bytes=True)["bytes"]}
    return Plan("elementwise", measured, config, space, ("elementwise",), _covered("bf16"), valid)


def expert_sections(measured: Measured[OperatorTable]) -> dict[str, Ints]:
    """Rows by section of `EXPERT_PLANES`: ungated experts, and those of several ranks, where they run other kernels."""
    kernel, table = measured.labels["kernel"], measured.table
    sections = {"weights": np.arange(len(measured))}
    for section, rows in (("ungated", table.up_matrices == 1), ("sharded", table.expert_ranks > 1)):
        others = sections["weights"]
        own, rest = others[rows[others]], others[~rows[others]]
        if len(own) and len(rest) and not np.isin(kernel[own], kernel[rest]).any():
            sections |= {"weights": rest, section: own}
    return sections


def without_launches(config: GpuConfig) -> GpuConfig:
    """`config` whose benchmarks do not show the host."""
    formats = {name: fmt.model_copy(update={"kernels": _hostless(fmt.kernels)}) for name, fmt in config.formats.items()}
    return _hostless(config).model_copy(update={"formats": formats})


def _hostless(kernels: T) -> T:
    if kernels.benchmark is None:
        return kernels
    return kernels.model_copy(update={"benchmark": kernels.benchmark.model_copy(update={"launches": {}})})


def _l2_space(config: GpuConfig) -> Free:
    low, start, high = (ratio * config.dram_bandwidth.value for ratio in _L2_RATIOS)
    return Free(start, low, high)


def _covered(dtype: str) -> tuple[str, ...]:
    return {"bf16": ("bf16", "fp16")}.get(dtype, (dtype,))


def _valid(table: OperatorTable, *, with_bytes: bool = False) -> dict[str, tuple[float, float]]:
    columns: dict[str, Ints | Floats] = {"m": np.maximum(table.m, 1), "n": table.n, "k": table.k}
    if with_bytes:
        columns["bytes"] = table.weight_bytes_read + table.read_bytes + table.write_bytes
    return {name: valid_range(column) for name, column in columns.items()}


def _with_section(config: GpuConfig, section: str, dtype: str) -> GpuConfig:
    """`config` with a section for experts of `dtype`, if it has none."""
    grouped = config.grouped_gemm
    held = getattr(grouped, section)
    if dtype in held:
        return config
    grouped = grouped.model_copy(update={section: held | {dtype: GroupedKernels()}})
    return config.model_copy(update={"grouped_gemm": grouped})
