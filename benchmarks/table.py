"""What a benchmark returns, and the table of all of them."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

_WIDTH = 120
"""Columns of the printed table, also where the output is no terminal."""


@dataclass(frozen=True)
class Row:
    """One measurement beside what it is measured against: a rival in the same run, or a published figure.

    `better` says which is better, a higher or a lower value; `target` is how many times better than the peer the value
    should at least be, None if nothing is promised.
    """

    name: str
    value: float
    unit: str
    peer_name: str
    peer_value: float
    target: float | None = None
    better: str = "higher"

    @property
    def ratio(self) -> float:
        """How many times better the value is than its peer's."""
        return self.value / self.peer_value if self.better == "higher" else self.peer_value / self.value

    @property
    def holds(self) -> bool:
        return self.target is None or self.ratio >= self.target


def best_of(function: Callable[[], object], runs: int) -> float:
    """Seconds of the fastest of some runs: what the code needs when nothing else disturbs it."""
    fastest_s = float("inf")
    for _ in range(runs):
        begin_s = time.perf_counter()
        function()
        fastest_s = min(fastest_s, time.perf_counter() - begin_s)
    return fastest_s


def show(rows: Iterable[Row]) -> None:
    """Print the table."""
    table = Table("benchmark", "measured", "against", "times better", "target")
    for row in rows:
        target = "" if row.target is None else f">= {row.target:g} {'holds' if row.holds else 'MISSED'}"
        peer = f"{row.peer_name} {row.peer_value:.4g} {row.unit}"
        table.add_row(row.name, f"{row.value:.4g} {row.unit}", peer, f"{row.ratio:.3g}", target)
    Console(width=_WIDTH).print(table)
