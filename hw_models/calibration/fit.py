"""Least squares on the logarithm of times, within bounds, from several starts, judged on shapes left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.errors import DataError
from moesim.hw_models.calibration.errors import ErrorSummary, error_buckets, soft_l1
from moesim.hw_models.calibration.measured import Floats, Ints, Measured, T
from moesim.hw_models.calibration.splits import folds, sample

Price = Callable[[Mapping[str, float], T], Floats]
"""Times that parameters give to the rows of a table: (values by name, table) -> float64[row] in seconds."""


Progress = Callable[[int, int], None]
"""Called with the fits that are done and the fits to do."""


@dataclass(frozen=True)
class Free:
    """A parameter to fit: where to start, and the range that is physically possible (all > 0).

    Attributes:
        start, low, high: those.
        lone: few groups tell it; all fits start at `start`, and stay there where none of these groups is among theirs.
    """

    start: float
    low: float
    high: float
    lone: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.start <= self.high:
            raise ValueError(f"0 < low <= start <= high must hold, got {self}")


@dataclass(frozen=True)
class Settings:
    """How to fit.

    Attributes:
        rows: most rows that one fit looks at, drawn evenly from the groups.
        starts: starting points: the given one, and random ones between the bounds.
        folds: of the cross-validation.
        softness: errors (of the logarithm) above this weigh linearly rather than as squares.
        evaluations: most evaluations of one start, derivatives not counted.
        seed: of every draw.
    """

    rows: int = 2500
    starts: int = 2
    folds: int = 5
    softness: float = 0.1
    evaluations: int = 20
    seed: int = 0


STANDARD = Settings()


@dataclass(frozen=True)
class FitResult:
    """Fitted values and how they do.

    Attributes:
        values: by name, fitted to all groups.
        seen: errors of these values on all rows, by bucket of time.
        unseen: errors of every row under a fit that left its group out, by bucket of time; what a fit states.
        unseen_s: float64[row], those predictions.
        fold_values: values of each fold, fitted without the groups that the fold leaves out.
        at_bounds: names of values that ended at a bound.
    """

    values: dict[str, float]
    seen: dict[str, ErrorSummary]
    unseen: dict[str, ErrorSummary]
    unseen_s: Floats
    fold_values: tuple[dict[str, float], ...]
    at_bounds: tuple[str, ...]


def calibrate(
    measured: Measured[T],
    price: Price[T],
    space: Mapping[str, Free],
    settings: Settings = STANDARD,
    progress: Progress | None = None,
    present: Mapping[str, float] | None = None,
) -> FitResult:
    """Fit to all groups, and once per fold to the others, for the error.

    Args:
        measured: what to fit to.
        price: the model; called with values for all names of `space`.
        space: what may change, by name, with starts that know nothing of the measurements.
        settings: how.
        progress: called with the fits done and the fits to do.
        present: values of an earlier fit. The fit to all groups also starts from these, or from those of a fold, if
            they do better. Folds must not: where only groups left out tell a parameter, a fit that starts there would
            keep what it should not know.

    Raises:
        DataError: as `fold_count`.
    """
    count = fold_count(measured, settings)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, count + 1)

    unseen_s, fold_values = np.empty(len(measured)), []
    for kept, left_out in folds(measured.group, count, settings.seed):
        values_without = fit(measured.take(kept), price, space, settings)
        fold_values.append(values_without)
        unseen_s[left_out] = price(values_without, measured.table.take(left_out))
        advance()
    values = fit(measured, price, space, settings, [*fold_values, *([present] if present else [])])
    advance()
    seen = error_buckets(price(values, measured.table), measured.time_s)
    at_bounds = tuple(name for name, free in space.items() if _is_at_bound(values[name], free))
    unseen = error_buckets(unseen_s, measured.time_s)
    return FitResult(values, seen, unseen, unseen_s, tuple(fold_values), at_bounds)


def fold_count(measured: Measured[T], settings: Settings) -> int:
    """Folds of the cross-validation: one per group at most.

    Raises:
        DataError: there are no two groups, of which one could be left out.
    """
    groups = len(np.unique(measured.group))
    if groups < 2:  # noqa: PLR2004
        raise DataError(measured.source.text, "must be of at least two shapes, for an error on one left out", groups)
    return min(settings.folds, groups)


def fit(
    measured: Measured[T],
    price: Price[T],
    space: Mapping[str, Free],
    settings: Settings = STANDARD,
    known: Sequence[Mapping[str, float]] = (),
) -> dict[str, float]:
    """The values of `space` that minimise a robust loss of log(predicted / measured); the best of several starts.

    One more start is at the best of the `known` values, if there are any.
    """
    from scipy.optimize import least_squares

    rows = sample(measured.group, settings.rows, settings.seed)
    part = measured.take(rows)
    log_measured = np.log(part.time_s)
    names = list(space)
    low, high = (np.log([getattr(space[name], end) for name in names]) for end in ("low", "high"))

    def residuals(logs: Floats) -> Floats:
        values = dict(zip(names, np.exp(logs).tolist(), strict=True))
        log_ratio: Floats = np.log(price(values, part.table)) - log_measured
        return log_ratio

    best_cost, best = np.inf, np.empty(0)
    starts = [*_starts(space, settings)]
    if known:
        points = [np.log([free.start for free in _started(space, values).values()]) for values in known]
        starts.append(min(points, key=lambda point: float(soft_l1(residuals(point), settings.softness).sum())))
    for start in starts:
        found = least_squares(
            residuals,
            np.clip(start, low + 1e-9, high - 1e-9),
            bounds=(low - 1e-9, high + 1e-9),
            loss="soft_l1",
            f_scale=settings.softness,
            # A price is smooth in pieces only (waves, choices of tiles): steps must be wide enough to cross pieces.
            diff_step=np.full(len(names), 1e-2),
            max_nfev=settings.evaluations,
        )
        if found.cost < best_cost:
            best_cost, best = float(found.cost), found.x
    found_values = np.exp(best).tolist()
    return {
        name: min(max(value, free.low), free.high)
        for (name, free), value in zip(space.items(), found_values, strict=True)
    }


def _started(space: Mapping[str, Free], present: Mapping[str, float]) -> dict[str, Free]:
    """`space` with starts at present values, within the bounds, where there are any."""
    return {
        name: replace(free, start=min(max(present.get(name, free.start), free.low), free.high))
        for name, free in space.items()
    }


def _starts(space: Mapping[str, Free], settings: Settings) -> Sequence[Floats]:
    """The given start, and others at random between it and the bounds, in logarithms."""
    rng = np.random.default_rng(settings.seed)
    given, low, high = (np.log([getattr(free, end) for free in space.values()]) for end in ("start", "low", "high"))
    reach = rng.uniform(-0.5, 0.5, (settings.starts - 1, len(given))) * [not free.lone for free in space.values()]
    others = given + np.where(reach > 0, reach * (high - given), -reach * (low - given))
    return [given, *others]


def _is_at_bound(value: float, free: Free) -> bool:
    near = 1e-3
    return value <= free.low * (1 + near) or value >= free.high * (1 - near)


def valid_range(column: Floats | Ints) -> tuple[float, float]:
    """Least and greatest value, for the `valid` of a fit."""
    return float(column.min()), float(column.max())
