"""Least squares on the logarithm of times, within bounds, from several starts, judged on shapes left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.hw_models.calibration.errors import ErrorSummary, error_buckets
from moesim.hw_models.calibration.measured import Floats, Ints, Measured, T
from moesim.hw_models.calibration.splits import folds, sample

Price = Callable[[Mapping[str, float], T], Floats]
"""Times that parameters give to the rows of a table: (values by name, table) -> float64[row] in seconds."""


@dataclass(frozen=True)
class Free:
    """A parameter to fit: where to start, and the range that is physically possible (all > 0)."""

    start: float
    low: float
    high: float

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

    rows: int = 4000
    starts: int = 3
    folds: int = 5
    softness: float = 0.1
    evaluations: int = 40
    seed: int = 0


@dataclass(frozen=True)
class FitResult:
    """Fitted values and how they do.

    Attributes:
        values: by name, fitted to all groups.
        seen: errors of these values on all rows, by bucket of time.
        unseen: errors of every row under a fit that left its group out, by bucket of time; what a fit states.
        unseen_s: float64[row], those predictions.
        at_bounds: names of values that ended at a bound.
    """

    values: dict[str, float]
    seen: dict[str, ErrorSummary]
    unseen: dict[str, ErrorSummary]
    unseen_s: Floats
    at_bounds: tuple[str, ...]


def calibrate(
    measured: Measured[T],
    price: Price[T],
    space: Mapping[str, Free],
    settings: Settings = Settings(),
    progress: Callable[[int, int], None] | None = None,
) -> FitResult:
    """Fit to all groups, and once per fold to the others, for the error.

    Args:
        measured: what to fit to.
        price: the model; called with values for all names of `space`.
        space: what may change, by name.
        settings: how.
        progress: called with the fits done and the fits to do.
    """
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, settings.folds + 1)

    values = fit(measured, price, space, settings)
    advance()
    unseen_s = np.empty(len(measured))
    once = Settings(settings.rows, 1, settings.folds, settings.softness, settings.evaluations, settings.seed)
    near = {name: Free(values[name], free.low, free.high) for name, free in space.items()}
    for kept, left_out in folds(measured.group, settings.folds, settings.seed):
        # From the overall values: shorter, and the shapes left out are still left out of what is minimised.
        fold_values = fit(measured.take(kept), price, near, once)
        unseen_s[left_out] = price(fold_values, measured.table.take(left_out))
        advance()
    seen = error_buckets(price(values, measured.table), measured.time_s)
    at_bounds = tuple(name for name, free in space.items() if _is_at_bound(values[name], free))
    return FitResult(values, seen, error_buckets(unseen_s, measured.time_s), unseen_s, at_bounds)


def fit(
    measured: Measured[T], price: Price[T], space: Mapping[str, Free], settings: Settings = Settings()
) -> dict[str, float]:
    """The values of `space` that minimise a robust loss of log(predicted / measured); the best of several starts."""
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
    for start in _starts(space, settings):
        found = least_squares(
            residuals,
            np.clip(start, low + 1e-9, high - 1e-9),
            bounds=(low - 1e-9, high + 1e-9),
            loss="soft_l1",
            f_scale=settings.softness,
            # A price is smooth in pieces only (waves, choices of tiles): steps must be wide enough to cross pieces.
            diff_step=1e-2,
            max_nfev=settings.evaluations,
        )
        if found.cost < best_cost:
            best_cost, best = float(found.cost), found.x
    found_values = np.exp(best).tolist()
    return {
        name: min(max(value, free.low), free.high)
        for (name, free), value in zip(space.items(), found_values, strict=True)
    }


def _starts(space: Mapping[str, Free], settings: Settings) -> Sequence[Floats]:
    """The given start, and others at random between it and the bounds, in logarithms."""
    rng = np.random.default_rng(settings.seed)
    given, low, high = (np.log([getattr(free, end) for free in space.values()]) for end in ("start", "low", "high"))
    reach = rng.uniform(-0.5, 0.5, (settings.starts - 1, len(given)))
    others = given + np.where(reach > 0, reach * (high - given), -reach * (low - given))
    return [given, *others]


def _is_at_bound(value: float, free: Free) -> bool:
    near = 1e-3
    return value <= free.low * (1 + near) or value >= free.high * (1 - near)


def valid_range(column: Floats | Ints) -> tuple[float, float]:
    """Least and greatest value, for the `valid` of a fit."""
    return float(column.min()), float(column.max())
