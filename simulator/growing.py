"""Tables that grow row by row while a simulation runs, in flat memory: 8 bytes per value."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_FIRST_ROWS = 1024


class GrowingTable:
    """Columns of float64 with room that doubles when it is full."""

    def __init__(self, columns: Sequence[str]) -> None:
        """Start without rows."""
        self.columns = tuple(columns)
        self._values = np.empty((_FIRST_ROWS, len(columns)))
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def append(self, values: Sequence[float]) -> None:
        """Add a row: a value for each column, in order."""
        if self._rows == len(self._values):
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
        self._values[self._rows] = values
        self._rows += 1

    def __getitem__(self, column: str) -> NDArray[np.float64]:
        """One column, as a copy."""
        return self._values[: self._rows, self.columns.index(column)].copy()


def counted_percentiles(
    values: NDArray[np.float64], counts: NDArray[np.float64], percents: Sequence[float]
) -> list[float]:
    """`np.percentile` of the values, each repeated `counts` times, without repeating them.

    Args:
        values: float64[value], at least one.
        counts: float64[value], whole numbers >= 1.
        percents: 0 to 100.
    """
    order = np.argsort(values, kind="stable")
    values, ends = values[order], np.cumsum(counts[order])
    positions = np.asarray(percents) / 100 * (ends[-1] - 1)
    low, high = (values[np.searchsorted(ends, edge(positions), side="right")] for edge in (np.floor, np.ceil))
    interpolated: list[float] = (low + (high - low) * (positions - np.floor(positions))).tolist()
    return interpolated
