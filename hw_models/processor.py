"""What every processor offers: a price for each operator of a step."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.workloads.operator_table import OperatorTable

BOUNDS = ("compute", "memory", "latency", "network")
"""What limits an operator or a transfer."""
COMPUTE, MEMORY, LATENCY, NETWORK = range(4)


@dataclass(frozen=True)
class Cost:
    """Price of every row of a table: one execution by one device.

    Attributes:
        time_s: float64[row].
        energy_j: float64[row], dynamic energy only; the device draws its idle power on top, whatever it does.
        bound: int8[row], index into `BOUNDS`.
        extrapolated: bool[row], the row lies outside the range in which the price was held against measurements.
    """

    time_s: NDArray[np.float64]
    energy_j: NDArray[np.float64]
    bound: NDArray[np.int8]
    extrapolated: NDArray[np.bool_]

    @classmethod
    def zeros(cls, rows: int) -> "Cost":
        """Room for the price of `rows` rows."""
        return cls(np.zeros(rows), np.zeros(rows), np.zeros(rows, np.int8), np.zeros(rows, np.bool_))

    def __len__(self) -> int:
        return len(self.time_s)


class Processor(Protocol):
    """Something that executes operators. Prices depend on the operators and the processor's parameters only."""

    @property
    def name(self) -> str:
        """Name within the device."""
        ...

    @property
    def active_w(self) -> float:
        """Power while anything runs, beyond idle power and energy per FLOP and byte; prices include it."""
        ...

    def price(self, operators: OperatorTable) -> Cost:
        """Price of one execution of each row by one shard; `repeats` and `shards` are the caller's to apply.

        A row without tokens (m = 0) costs nothing.
        """
        ...

    def stated_errors(self, operators: OperatorTable) -> NDArray[np.float64]:
        """float64[row]: mean of |predicted / measured - 1| that the calibration behind each row's price states.

        It is of shapes that the calibration did not see, and holds inside its range only; NaN where there is none.
        """
        ...
