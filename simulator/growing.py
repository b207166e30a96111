"""Tables that grow row by row while a simulation runs: a block of rows in memory, the others in unnamed files."""

import tempfile
import weakref
from collections.abc import Sequence
from typing import IO

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError

BLOCK_ROWS = 1 << 16
"""Rows kept in memory; ten columns of them are 5 MB."""


class GrowingTable:
    """Columns of float64. Full blocks go to disk, a file per column that vanishes with the table."""

    def __init__(self, columns: Sequence[str]) -> None:
        """Start without rows."""
        self.columns = tuple(columns)
        self._block = np.empty((BLOCK_ROWS, len(columns)))
        self._in_block = 0
        self._on_disk = 0
        self._files: list[IO[bytes]] = []

    def __len__(self) -> int:
        return self._on_disk + self._in_block

    def append(self, values: Sequence[float]) -> None:
        """Add a row: a value for each column, in order."""
        if self._in_block == len(self._block):
            self._write_block()
        self._block[self._in_block] = values
        self._in_block += 1

    def __getitem__(self, column: str) -> NDArray[np.float64]:
        """One column: a copy of a short one, a view of the file of a long one."""
        position = self.columns.index(column)
        if not self._on_disk:
            return self._block[: self._in_block, position].copy()
        self._write_block()
        return np.memmap(self._files[position], dtype=np.float64, mode="r", shape=(self._on_disk,))

    def _write_block(self) -> None:
        """Move the rows in memory to the ends of the files.

        Raises:
            DataError: there is no folder for temporary files, or no room in it.
        """
        try:
            self._append_to_files()
        except OSError as error:
            rule = f"must be a folder with room for the steps of the run ({error.strerror or error}); TMPDIR names it"
            raise DataError(tempfile.gettempdir(), rule) from error
        self._on_disk += self._in_block
        self._in_block = 0

    def _append_to_files(self) -> None:
        if not self._files:
            self._files = [tempfile.TemporaryFile() for _ in self.columns]  # noqa: SIM115  # live as long as the table
            weakref.finalize(self, _close, self._files)
        for position, file in enumerate(self._files):
            file.write(self._block[: self._in_block, position].tobytes())
            file.flush()


def _close(files: Sequence[IO[bytes]]) -> None:
    """Views of the files stay valid: each holds its file open by itself."""
    for file in files:
        file.close()


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
