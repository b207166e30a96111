"""Measured times of one kind of kernel, lowered to the table that the simulator prices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NOT_TUNED = "not tuned"
"""Label of rows, bool[row], whose kernels ran in a configuration that had not been chosen for their shape."""


class Table(Protocol):
    """What a processor or an interconnect prices: rows that can be chosen from, such as `OperatorTable`."""

    def __len__(self) -> int:
        """Rows."""
        ...

    def take(self, rows: Ints, /) -> Self:
        """The given rows, in the given order."""
        ...


T = TypeVar("T", bound=Table)


@dataclass(frozen=True)
class Source:
    """Where measurements come from.

    Attributes:
        publisher: who published them.
        device: as the publisher calls it.
        framework: serving framework whose kernels ran: vllm, sglang or trtllm; a library such as nccl elsewhere.
        version: of the framework.
        kernel: what ran, such as `gemm bf16`.
    """

    publisher: str
    device: str
    framework: str
    version: str
    kernel: str

    @property
    def text(self) -> str:
        """One line, for the `data` of a fit."""
        return f"{self.publisher}, {self.framework} {self.version} on {self.device}, {self.kernel}"


@dataclass(frozen=True)
class Measured(Generic[T]):
    """Measured rows of one kernel source; fit and simulation price `table` by the same code.

    Attributes:
        table: what ran, a row per measurement.
        time_s: float64[row].
        group: int64[row], number of the row's shape group; rows of one group are never on both sides of a split.
        source: where the rows come from.
        labels: what to report errors by, such as tokens or distribution: name -> array[row].
    """

    table: T
    time_s: Floats
    group: Ints
    source: Source
    labels: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.time_s)

    def take(self, rows: Ints) -> "Measured[T]":
        """The given rows, in the given order; groups keep their numbers."""
        labels = {name: values[rows] for name, values in self.labels.items()}
        return Measured(self.table.take(rows), self.time_s[rows], self.group[rows], self.source, labels)


def group_numbers(columns: Sequence[NDArray[Any]]) -> Ints:
    """int64[row]: rows that agree in all of `columns` share a number, and only those; numbers follow sorted order."""
    stacked = np.stack([np.unique(column, return_inverse=True)[1] for column in columns], axis=1)
    numbers: Ints = np.unique(stacked, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return numbers
