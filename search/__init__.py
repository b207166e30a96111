"""Which choice is best: placement, batching, bit widths, accelerators."""

from moesim.search.solution import Solution, Status

__all__ = ["Solution", "Status"]
