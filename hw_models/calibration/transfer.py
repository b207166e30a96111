"""Predicting a GPU that a fit never saw from GPUs of other families, by physics alone.

Parameters that belong to how kernels are built (shares of peaks, latencies, overlap) are fitted to several GPUs at
once; what a data sheet says comes from each GPU's own. L2 bandwidth, which data sheets leave out, is taken to grow
with the bf16 rate, and latencies to fall with the clock. Measurements run over the same few operands again and again,
so what fits into the L2 cache never came from DRAM; the tables are corrected for that first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from moesim.hw_models.calibration.errors import ErrorSummary
from moesim.hw_models.calibration.fit import STANDARD, Free, Settings, fit
from moesim.hw_models.calibration.measured import Floats, Ints, Measured
from moesim.hw_models.calibration.routed_tokens import row_weights
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.hw_models.parameters import with_values
from moesim.workloads.operator_table import GEMM, OperatorTable

_US = 1e-6
_L2 = "l2_bytes_per_flop"
_SHARE = Free(0.3, 1e-3, 1.0)
SPACES: dict[str, dict[str, Free]] = {
    "gemm": {
        "formats.bf16.sustained": Free(0.8, 0.2, 1.0),
        "dram_sustained": Free(0.8, 0.3, 1.0),
        "kernel_latency": Free(2 * _US, 1 * _US, 10 * _US),
        "tile_latency": Free(1 * _US, 0.01 * _US, 10 * _US),
        "split_latency": Free(2 * _US, 0.05 * _US, 20 * _US),
        "step_latency": Free(1e-9, 1e-11, 1e-8),
        "exposed": _SHARE,
        "wave_tail": _SHARE,
        _L2: Free(0.02, 0.002, 0.2),
    },
    "experts": {
        "grouped_gemm.sustained.bf16": Free(0.7, 0.1, 1.0),
        "grouped_gemm.weights_dram_sustained": Free(0.8, 0.2, 1.0),
        "grouped_gemm.moved_dram_sustained": Free(0.5, 0.05, 1.0),
        "grouped_gemm.latency": Free(30 * _US, 2 * _US, 200 * _US),
        "grouped_gemm.shared_latency": Free(5 * _US, 0.01 * _US, 100 * _US),
        "grouped_gemm.tile_latency": Free(1.5 * _US, 0.05 * _US, 20 * _US),
        "grouped_gemm.step_latency": Free(1e-10, 1e-11, 1e-7),
        "grouped_gemm.partial_tile": Free(0.05, 1e-3, 4.0),
        "grouped_gemm.exposed": _SHARE,
        "grouped_gemm.wave_tail": _SHARE,
        _L2: Free(0.02, 0.002, 0.2),
    },
}
"""Parameters that GPUs of different families share, for bf16."""


_LATENCIES = ("kernel_latency", "shared_latency", "tile_latency", "split_latency", "step_latency")
_REFERENCE_HZ = 1.755e9
"""Clock at which the shared latencies hold: the boost clock of the H100 SXM."""
_COPIES = 6
"""Weights of which aiconfigurator's collectors take turns for single products; experts' run again and again."""
_WEIGHT_SHARE, _ACTIVATION_SHARE = 0.9, 0.25
"""Shares of the L2 cache that weights taking turns, and activations, find; the first is nearly all, the second an
assumption (fits to the RTX PRO 6000 alone have 0.18 to 0.34)."""


class Chip(NamedTuple):
    """What data sheets say and device files do not need: boost clock and L2 capacity."""

    clock_hz: float
    l2_bytes: float


_MEASURED = ("residual", "cached_bytes", "split_from", "vectors", "power_slowdown", "boost_time", "cold_start")
"""Of a GPU's own kernels, what it must not bring along."""
_UNMEASURED = dict.fromkeys(("narrow_slowdown", "unaligned_slowdown", "resident_tiles", "token_passes", "benchmark"))
"""The same of its experts."""
CHIPS = {
    "a100-sxm": Chip(1.41e9, 40e6),
    "h100-sxm": Chip(1.755e9, 50e6),
    "h200-sxm": Chip(1.755e9, 50e6),
    "rtx-pro-6000": Chip(2.43e9, 128e6),
}
"""NVIDIA architecture white papers (A100 2020, H100 2022, RTX Blackwell PRO 2025); clocks as of tensor peaks."""

FAMILIES = {"a100-sxm": "Ampere", "h100-sxm": "Hopper", "h200-sxm": "Hopper", "rtx-pro-6000": "Blackwell"}
"""Architectures of these GPUs."""


@dataclass(frozen=True)
class Sample:
    """A GPU and measurements of its bf16 kernels."""

    config: GpuConfig
    measured: Measured[OperatorTable]
    chip: Chip

    @property
    def table(self) -> OperatorTable:
        """What ran, with the bytes that came from DRAM."""
        held, cache = self.measured.table, self.chip.l2_bytes
        single = held.form == GEMM
        copies = np.where(single, _COPIES, 1)
        hot = copies * held.weight_bytes_read < _WEIGHT_SHARE * cache
        moved = held.read_bytes + held.write_bytes
        share = np.maximum(0.0, 1 - _ACTIVATION_SHARE * cache / np.maximum(moved, 1.0))
        cold = np.where(single, share, 1.0)
        columns = {
            "weight_bytes_read": np.where(hot, 0.0, held.weight_bytes_read),
            "read_bytes": held.read_bytes * cold,
            "write_bytes": held.write_bytes * cold,
        }
        return held.with_columns(columns)


@dataclass(frozen=True)
class Transfer:
    """How well one GPU was predicted from others.

    Attributes:
        values: shared parameters.
        physics: errors on all rows of the target.
        shared_physics: errors on the rows that the nearest source has too.
        shared_baseline: errors there of the nearest source's times, scaled by the ratio of the bf16 peaks; None where
            the two have no rows in common.
        nearest: the source whose peak is nearest, as its publisher calls it.
    """

    values: dict[str, float]
    physics: ErrorSummary
    shared_physics: ErrorSummary | None
    shared_baseline: ErrorSummary | None
    nearest: str


def transfer(
    sources: Sequence[Sample], target: Sample, kind: Literal["gemm", "experts"], settings: Settings = STANDARD
) -> Transfer:
    """Fit to `sources` together and predict `target`.

    Args:
        sources: GPUs to fit to; each weighs the same, whatever its rows, but less as far as they are random draws.
        target: the GPU to predict; only its data sheet is used.
        kind: single products or expert FFNs.
        settings: of the fit.
    """
    fewest = min(settings.rows, *(len(source.measured) for source in sources))
    rng = np.random.default_rng(settings.seed)
    counts = [int(fewest * row_weights(source.measured).mean()) for source in sources]
    rows = [
        np.sort(rng.permutation(len(source.measured))[:count]) for source, count in zip(sources, counts, strict=True)
    ]
    tables = tuple(source.table.take(part) for source, part in zip(sources, rows, strict=True))
    table = _Fleet(tables, np.arange(sum(counts)))
    together = Measured(
        table,
        np.concatenate([source.measured.time_s[part] for source, part in zip(sources, rows, strict=True)]),
        np.arange(len(table)),
        target.measured.source,
        {},
    )

    def price(values: Mapping[str, float], fleet: _Fleet) -> Floats:
        return fleet.priced([_processor(source, values, kind) for source in sources])

    values = fit(together, price, SPACES[kind], settings)
    predicted_s = _processor(target, values, kind).price(target.table).time_s
    nearest = min(sources, key=lambda source: abs(np.log(_peak(source.config) / _peak(target.config))))
    own, other = _shared_rows(target.measured.table, nearest.measured.table)
    scaled_s = nearest.measured.time_s[other] * (_peak(nearest.config) / _peak(target.config))
    measured_s = target.measured.time_s
    return Transfer(
        values,
        ErrorSummary.of(predicted_s, measured_s),
        ErrorSummary.of(predicted_s[own], measured_s[own]) if len(own) else None,
        ErrorSummary.of(scaled_s, measured_s[own]) if len(own) else None,
        nearest.measured.source.device,
    )


@dataclass(frozen=True)
class _Fleet:
    """Rows of several GPUs, one after the other."""

    tables: tuple[OperatorTable, ...]
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Ints) -> "_Fleet":
        return _Fleet(self.tables, self.rows[rows])

    def priced(self, processors: Sequence[GPU]) -> Floats:
        times = [gpu.price(table).time_s for gpu, table in zip(processors, self.tables, strict=True)]
        chosen: Floats = np.concatenate(times)[self.rows]
        return chosen


def _processor(sample: Sample, values: Mapping[str, float], kind: str) -> GPU:
    slower = _REFERENCE_HZ / sample.chip.clock_hz
    own = {
        name: value * (slower if name.split(".")[-1] in _LATENCIES else 1.0)
        for name, value in values.items()
        if name != _L2
    }
    section = "grouped_gemm." if kind == "experts" else ""
    own[f"{section}l2_bandwidth"] = values[_L2] * _peak(sample.config)
    grouped = sample.config.grouped_gemm
    experts = {name: kernels.model_copy(update=_UNMEASURED) for name, kernels in grouped.weights.items()}
    update = dict.fromkeys(_MEASURED) | {"grouped_gemm": grouped.model_copy(update={"weights": experts})}
    return GPU(with_values(sample.config.model_copy(update=update), own))


def _peak(config: GpuConfig) -> float:
    return float(config.formats["bf16"].peak.value)


def _shared_rows(own: OperatorTable, other: OperatorTable) -> tuple[Ints, Ints]:
    """Rows of the same work in both, pairwise."""
    keys = [
        [
            (*row, round(flops))
            for *row, flops in zip(table.m, table.n, table.k, table.weight_bytes_read, table.flops, strict=True)
        ]
        for table in (own, other)
    ]
    known = {key: at for at, key in enumerate(keys[1])}
    pairs = [(at, known[key]) for at, key in enumerate(keys[0]) if key in known]
    result = np.array(pairs, np.int64).reshape(-1, 2)
    return result[:, 0], result[:, 1]
