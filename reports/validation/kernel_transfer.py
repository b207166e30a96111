"""How well a GPU is predicted that no fit saw: from GPUs of other families, beside times scaled by the peaks."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from moesim.errors import DataError
from moesim.hw_models.calibration.fit import Settings
from moesim.hw_models.calibration.transfer import CHIPS, FAMILIES, SPACES, Sample, transfer
from moesim.reports.validation.kernel_files import GpuData, read_sets
from moesim.reports.validation.kernel_prices import load_gpu

_KINDS: dict[str, Literal["gemm", "experts"]] = {"gemm": "gemm", "moe": "experts"}
_FRAMEWORK, _DTYPE = "vllm", "bf16"
"""The kernels that all GPUs were measured with."""


@dataclass(frozen=True)
class TransferError:
    """Mean |predicted / measured - 1| of one operator on one GPU.

    Attributes:
        gpu: that is predicted.
        op: `gemm` or `moe`.
        sources: GPUs that the shared parameters were fitted to.
        rows: of the GPU.
        physics: error on all of them.
        shared_physics: error on the rows that the nearest source has too; None where there are none.
        shared_baseline: error there of the nearest source's times, scaled by the ratio of the peaks.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("GPU", "op", "fitted to", "rows", "physics", "shared rows", "scaled times")
    gpu: str
    op: str
    sources: tuple[str, ...]
    rows: int
    physics: float
    shared_physics: float | None
    shared_baseline: float | None

    def as_dict(self) -> dict[str, Any]:
        """One row for programs."""
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """One row of a table, under `COLUMNS`."""
        shared = ("-" if value is None else f"{value:.1%}" for value in (self.shared_physics, self.shared_baseline))
        return (self.gpu, self.op, ", ".join(self.sources), f"{self.rows:,}", f"{self.physics:.1%}", *shared)


def transfers(
    found: Sequence[GpuData], target: str, operators: Sequence[str], settings: Settings
) -> Iterator[TransferError]:
    """Predict `target` from every measured GPU of another family, by operator.

    Raises:
        DataError: no GPU of another family was measured.
    """
    others = [one for one in found if one.gpu in CHIPS and FAMILIES[one.gpu] != FAMILIES.get(target)]
    own = next(one for one in found if one.gpu == target)
    if target not in CHIPS or not others:
        known = ", ".join(CHIPS)
        raise DataError("--transfer", f"needs measurements of a GPU of another family, among {known}", target)
    for op in operators:
        samples = {one.gpu: sample for one in (own, *others) if op in SPACES_OF and (sample := _sample(one, op))}
        held = samples.pop(target, None)
        if held is not None and samples:
            done = transfer(list(samples.values()), held, _KINDS[op], settings)
            shared = (done.shared_physics, done.shared_baseline)
            means = (None if summary is None else summary.mean for summary in shared)
            yield TransferError(target, op, tuple(samples), len(held.measured), done.physics.mean, *means)


SPACES_OF = tuple(op for op, kind in _KINDS.items() if kind in SPACES)
"""Operators that are predicted across families."""


def _sample(found: GpuData, op: str) -> Sample | None:
    for one in read_sets(GpuData(found.gpu, found.folders, ()), [op]):
        if one.framework == _FRAMEWORK and one.model == _DTYPE:
            return Sample(load_gpu(found.gpu, _FRAMEWORK).config, one.measured, CHIPS[found.gpu])
    return None
