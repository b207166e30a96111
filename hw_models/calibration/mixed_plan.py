"""Fits of what only attention inside a model tells.

Mixed steps of a prefill kernel that takes decodes as tiles of its own; decodes that end later than in a benchmark.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.hw_models.calibration.attention_fit import US
from moesim.hw_models.calibration.attention_plan import AttentionPlan
from moesim.hw_models.calibration.attention_rows import read_mixed_attention
from moesim.hw_models.calibration.fit import STANDARD, FitResult, Free, Progress, Settings, calibrate
from moesim.hw_models.calibration.llmservingsim import profiles_of
from moesim.hw_models.calibration.measured import Floats, Measured
from moesim.hw_models.calibration.tables import joined_sets
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.workloads.attention_blocks import GroupedQueryAttention
from moesim.workloads.models import load_model
from moesim.workloads.operator_table import OperatorTable

_SPACE = {
    "decode_block": Free(0.1 * US, 1e-4 * US, 5 * US),
    "shared": Free(80e6, 2e6, 4e8),
    "idle_tile": Free(1e-3 * US, 1e-5 * US, 0.1 * US),
}
_LEAST_GROUP = 2
"""Query heads per KV head of which decode kernels for groups are."""
_LATE_SPACE = {"late": Free(20 * US, 0.01 * US, 200 * US), "late_bytes": Free(1e8, 1e6, 1e9)}


class MixedPlan(AttentionPlan):
    """A fit to steps that prefill and decode; `kernel` is the prefill kernel, whose other values stay."""

    def run(self, settings: Settings = STANDARD, progress: Progress | None = None) -> FitResult:
        """Fit, and cross-validate."""
        return calibrate(self.measured, self.price, self.space, settings, progress)

    def price(self, values: Mapping[str, float], table: OperatorTable) -> Floats:
        """Times of the rows with these values."""
        return GPU(self.with_values(values).model_copy(update={"residual": None})).price(table).time_s

    def with_values(self, values: Mapping[str, float]) -> GpuConfig:
        """The device with some values of the kernel, in its place."""
        changed = self.kernel.model_copy(update={**values, "mixed_fit": self.name})
        kernels = tuple(changed if held.fit == self.kernel.fit else held for held in self.config.attention.kernels)
        attention = self.config.attention.model_copy(update={"kernels": kernels})
        return self.config.model_copy(update={"attention": attention})

    def as_measured(self, config: GpuConfig) -> GpuConfig:
        """`config` itself: steps were measured inside a model."""
        return config

    def representative(self, config: GpuConfig) -> NDArray[np.bool_]:  # noqa: ARG002
        """bool[row]: all rows."""
        return np.ones(len(self.measured), np.bool_)


class LatePlan(MixedPlan):
    """A fit to steps that only decode; `kernel` is the decode kernel, whose other values stay, residual included."""

    @property
    def residual_name(self) -> str:
        """None: rows of few heads, beside a residual of hundreds."""
        return ""

    def price(self, values: Mapping[str, float], table: OperatorTable) -> Floats:
        """Times of the rows with these values."""
        return GPU(self.with_values(values)).price(table).time_s

    def with_values(self, values: Mapping[str, float]) -> GpuConfig:
        """The device with some values of the kernel, in its place."""
        changed = self.kernel.model_copy(update={**values, "late_fit": self.name})
        kernels = tuple(changed if held.fit == self.kernel.fit else held for held in self.config.attention.kernels)
        fits = self.config.fits | {self.name: self.config.fits[str(self.kernel.fit)]}  # until it is known
        attention = self.config.attention.model_copy(update={"kernels": kernels})
        return self.config.model_copy(update={"attention": attention, "fits": fits})


def read_mixed_steps(data: Path, device: str) -> Measured[OperatorTable]:
    """Steps that prefill a chunk and decode, of all models and shards that were profiled on a device, a group each.

    Raises:
        DataError: there are none.
    """
    return _read_steps(data, device, prefills=True)


def read_decode_steps(data: Path, device: str) -> Measured[OperatorTable]:
    """Steps that only decode, as `read_mixed_steps`."""
    return _read_steps(data, device, prefills=False)


def _read_steps(data: Path, device: str, *, prefills: bool) -> Measured[OperatorTable]:
    parts = []
    for profile in profiles_of(data, device):
        assert profile.model is not None  # those of other models were left out
        block = load_model(profile.model).layers[0].attention
        if not isinstance(block, GroupedQueryAttention):
            continue
        for shards, folder in profile.shards:
            if (folder / "attention.csv").is_file():
                heads = block.heads // shards, max(1, block.kv_heads // shards), block.head_dim
                measured = read_mixed_attention(folder / "attention.csv", *heads)
                chosen = ((measured.labels["tokens"] > 0) == prefills) & (measured.labels["sequences"] > 0)
                kernel = measured.source.kernel if prefills else "attention of decodes"
                parts.append(replace(measured.take(np.flatnonzero(chosen)), source=profile.source(kernel)))
    if not parts:
        raise DataError(str(data), "must hold attention.csv in profiles of models with grouped-query attention")
    return joined_sets(parts)


def mixed_plans(config: GpuConfig, measured: Measured[OperatorTable]) -> list[MixedPlan]:
    """The fit of the first prefill kernel for such heads that takes decodes without packing heads; none without."""
    head_dim = measured.table.n[0] / measured.table.groups[0]
    found = [
        kernel
        for kernel in config.attention.kernels
        if kernel.takes_decodes and not kernel.packs_heads and "bf16" in kernel.cache and kernel.fit
        if kernel.head_dim[0] <= head_dim <= kernel.head_dim[1]
    ]
    return [MixedPlan(f"mixed_{str(one.fit).split('_', 1)[1]}", measured, config, one, _SPACE) for one in found[:1]]


def late_plans(config: GpuConfig, measured: Measured[OperatorTable]) -> list[LatePlan]:
    """The fit of the decode kernel for such heads; none without."""
    head_dim, group = measured.table.n[0] / measured.table.groups[0], _LEAST_GROUP
    found = [
        kernel
        for kernel in config.attention.kernels
        if kernel.phase == "decode" and "bf16" in kernel.cache and kernel.fit and kernel.window != "only"
        if kernel.head_dim[0] <= head_dim <= kernel.head_dim[1] and kernel.heads_per_kv_head[0] <= group
        if kernel.heads_per_kv_head[1] > group
    ]
    return [LatePlan(f"late_{str(one.fit).split('_', 1)[1]}", measured, config, one, _LATE_SPACE) for one in found[:1]]
