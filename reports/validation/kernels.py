"""Measured kernels beside what prices them: a textbook roofline, the physics, and the physics with its residual.

Errors are those of e = predicted / measured - 1. Shipped parameters saw most of the rows they are judged on here
(`seen`); a refit that leaves whole shapes out gives the errors on shapes that it did not see (`unseen`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moesim.hw_models.calibration.errors import BUCKETS_S, ErrorSummary
from moesim.hw_models.calibration.measured import NOT_TUNED, Floats, Ints, Measured

BALANCED, POWER_LAW = "balanced", "power law"
ROOFLINE, PHYSICS, RESIDUAL = "roofline", "physics", "physics + residual"
VARIANTS = (ROOFLINE, PHYSICS, RESIDUAL)
"""What predicts; the last is what a simulation uses."""
ALL = "all"
TIMES_S = {ALL: (0.0, np.inf)} | BUCKETS_S | {">50 us": (50e-6, np.inf)}
"""Ranges of measured time that errors are told by."""
SEEN, UNSEEN, OTHER = "seen", "unseen", "other"
"""Whether the parameters were fitted to rows of the same shapes; `other`: the fit was to a different set of rows."""


@dataclass(frozen=True)
class Kernels:
    """Measured rows of one kernel and what predicts them.

    Attributes:
        gpu: shipped device or file.
        op: such as `gemm`, `moe`, `decode_attention`, `all_reduce`.
        framework: whose kernels ran.
        version: of the framework.
        model: number format, or kernel.
        measured: what ran and how long it took.
        predicted_s: float64[row] by variant, with the parameters as they are.
        shapes: `SEEN` or `OTHER`.
        extrapolated: share of the rows outside the calibrated range.
        stated: mean error on unseen shapes that the fits state of these rows; None where there is no fit.
        unseen_s: float64[row] by variant, of refits that left the row's shape out, NaN for rows of no fit; empty
            without refits.
        distribution: how loads spread over experts, where these are the rows of one kind: `BALANCED` or `POWER_LAW`.
    """

    gpu: str
    op: str
    framework: str
    version: str
    model: str
    measured: Measured[Any]
    predicted_s: dict[str, Floats]
    shapes: str
    extrapolated: float
    stated: float | None
    unseen_s: dict[str, Floats] = field(default_factory=dict)
    distribution: str | None = None

    @property
    def publisher(self) -> str:
        """Who measured."""
        return self.measured.source.publisher

    @property
    def is_tuned(self) -> bool:
        """Whether these are rows of kernels as they are meant; fits leave out what was not tuned for its shape."""
        return not self.measured.labels.get(NOT_TUNED, np.zeros(1, np.bool_)).any()


@dataclass(frozen=True)
class GroupError:
    """Errors of one variant on the rows of one kernel in one range of measured time."""

    kernels: Kernels
    variant: str
    shapes: str
    time: str
    errors: ErrorSummary


def by_distribution(kernels: Iterable[Kernels]) -> Iterator[Kernels]:
    """Kernels of experts apart by how loads spread over experts; all others as they are.

    Rows of a power law are a random draw each, so that medians tell more of them than means. What is stated of a
    kernel, and its extrapolated share, are of all its rows.
    """
    for item in kernels:
        labels = item.measured.labels.get("distribution")
        if labels is None:
            yield item
            continue
        even = labels == BALANCED
        for name, chosen in ((BALANCED, even), (POWER_LAW, ~even)):
            if chosen.any():
                yield _rows_of(item, np.flatnonzero(chosen), name)


def _rows_of(item: Kernels, rows: Ints, distribution: str) -> Kernels:
    predicted_s = {variant: times[rows] for variant, times in item.predicted_s.items()}
    unseen_s = {variant: times[rows] for variant, times in item.unseen_s.items()}
    measured = item.measured.take(rows)
    return replace(item, measured=measured, predicted_s=predicted_s, unseen_s=unseen_s, distribution=distribution)


def group_errors(kernels: Iterable[Kernels]) -> Iterator[GroupError]:
    """Errors of every variant and range of time, of the present parameters and then of refits."""
    for item in kernels:
        for shapes, predictions in ((item.shapes, item.predicted_s), (UNSEEN, item.unseen_s)):
            for variant, predicted_s in predictions.items():
                for time, summary in _by_time(predicted_s, item.measured.time_s):
                    yield GroupError(item, variant, shapes, time, summary)


def _by_time(predicted_s: Floats, measured_s: Floats) -> Iterator[tuple[str, ErrorSummary]]:
    for name, (low, high) in TIMES_S.items():
        rows = (measured_s >= low) & (measured_s < high) & np.isfinite(predicted_s)
        if rows.any():
            yield name, ErrorSummary.of(predicted_s[rows], measured_s[rows])


def as_dict(error: GroupError) -> dict[str, Any]:
    """One row for programs."""
    kernels, summary = error.kernels, error.errors
    return {
        "gpu": kernels.gpu,
        "op": kernels.op,
        "framework": kernels.framework,
        "version": kernels.version,
        "model": kernels.model,
        "distribution": kernels.distribution,
        "publisher": kernels.publisher,
        "variant": error.variant,
        "shapes": error.shapes,
        "time": error.time,
        "rows": summary.rows,
        "mean_abs_error": summary.mean,
        "median_abs_error": summary.median,
        "p90_abs_error": summary.p90,
        "bias": summary.bias,
    }


def group_rows(kernels: Sequence[Kernels]) -> list[dict[str, Any]]:
    """One row per group: errors of what a simulation uses, and beside them the mean on unseen shapes.

    `unseen_mean_abs_error` is that of a refit if there was one (`unseen_from`: `refit`), else what the fits state
    (`stated`), else None.
    """
    rows = []
    for item in kernels:
        [overall] = [e for e in group_errors([item]) if _is_headline(e) and e.shapes == item.shapes]
        refit = next((e.errors.mean for e in group_errors([item]) if _is_headline(e) and e.shapes == UNSEEN), None)
        source = "refit" if refit is not None else "stated" if item.stated is not None else None
        unseen = {"unseen_mean_abs_error": item.stated if refit is None else refit, "unseen_from": source}
        rows.append(as_dict(overall) | unseen | {"extrapolated_fraction": item.extrapolated})
    return rows


def _is_headline(error: GroupError) -> bool:
    return error.variant == RESIDUAL and error.time == ALL
