"""Which choice is best: placement of experts, grids of scenarios, kept runs."""

from moesim.search.solution import Solution, Status

__all__ = ["Solution", "Status"]
