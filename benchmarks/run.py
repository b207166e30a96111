"""Runs every benchmark and prints one table: `python benchmarks/run.py`. Exits with 1 if a target is missed."""

import sys
from collections.abc import Callable

from engines import engines
from routing_traces import routing_traces
from serving import serving
from table import Row, show

BENCHMARKS: tuple[Callable[[], list[Row]], ...] = (engines, serving, routing_traces)
"""To add one, write a function that returns rows and list it here."""


def main() -> int:
    rows = [row for benchmark in BENCHMARKS for row in benchmark()]
    show(rows)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
