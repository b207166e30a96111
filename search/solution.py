"""What every optimiser returns: what it found, what it could prove about it, and how long it took."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Self, TypeVar

T = TypeVar("T")

EQUAL = 1e-9
"""Objectives that differ by less than this fraction count as equal: rounding of sums of some hundred float64 loads."""


class Status(StrEnum):
    """Why a search ended, from the best news to the worst."""

    OPTIMAL = "optimal"
    """Nothing better exists."""
    WITHIN_GAP = "within_gap"
    """Proven to be as near to the optimum as was asked for."""
    HEURISTIC = "heuristic"
    """A heuristic's best; how near to the optimum it is, the gap bounds."""
    TOO_LARGE = "too_large"
    """A heuristic's best, because the exact model is larger than a solver can use."""
    TIME_LIMIT = "time_limit"
    """The solver's incumbent and bound when its time was up."""
    TIME_LIMIT_HEURISTIC = "time_limit_heuristic"
    """Time was up before the solver said anything: a heuristic's best."""
    SOLVER_FAILED = "solver_failed"
    """The solver's process died: a heuristic's best."""


def worst(statuses: Iterable[Status]) -> Status:
    """The worst news among `statuses` (at least one)."""
    order = list(Status)
    return max(statuses, key=order.index)


def relative_gap(objective: float, bound: float) -> float:
    """By which fraction of `objective` it could still fall: (objective - bound) / objective, 0 where they are equal."""
    difference = objective - bound
    return 0.0 if difference <= EQUAL * abs(objective) else difference / abs(objective)


@dataclass(frozen=True)
class Solution(Generic[T]):
    """Result of a minimisation.

    Args:
        value: what was found.
        objective: what it costs.
        bound: no feasible value costs less.
        gap: `relative_gap(objective, bound)`.
        status: why the search ended.
        wall_s: seconds it took.
    """

    value: T
    objective: float
    bound: float
    gap: float
    status: Status
    wall_s: float

    @classmethod
    def of(cls, value: T, objective: float, bound: float, status: Status, wall_s: float) -> Self:
        """A solution with the gap that follows from objective and bound."""
        return cls(value, objective, bound, relative_gap(objective, bound), status, wall_s)
