"""What every command needs to print."""

import json
import math
import sys

from rich import box
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def print_json(settings: object, results: object, **more: object) -> None:
    """One JSON object on stdout: what was asked for, and what came out."""
    sys.stdout.write(json.dumps({"settings": settings, "results": results, **more}, indent=2, allow_nan=False) + "\n")


def show(*parts: RenderableType) -> None:
    """Print for a person: with colours on a terminal, else as plain text without spaces at the ends of lines."""
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        console.print(Group(*parts), crop=False)
        return
    with console.capture() as captured:
        console.print(Group(*parts), crop=False)
    sys.stdout.write("\n".join(line.rstrip() for line in captured.get().split("\n")))


def table(*columns: str, right: tuple[str, ...] = (), header: bool = True) -> Table:
    """An empty table; `right` names the columns of numbers."""
    empty = Table(box=box.SIMPLE_HEAD, show_header=header, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        justify: JustifyMethod = "right" if column in right else "left"
        empty.add_column(column, justify=justify, overflow="fold", no_wrap=index == 0)
    return empty


def number(value: float) -> str:
    """Three significant digits, and all digits before the point: `0.150`, `9.16`, `1,651`."""
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def si(value: float, unit: str) -> str:
    """`value` with an SI prefix, such as `3.35 TB`."""
    factor, prefix = next((pair for pair in _PREFIXES if abs(value) >= pair[0]), _PREFIXES[-1])
    return f"{number(value / factor)} {prefix}{unit}".rstrip()


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it, or a dash."""
    if value is None:
        return "-"
    factor, unit = next((pair for pair in _TIMES if abs(value) >= pair[0]), _TIMES[-1])
    return f"{number(value / factor)} {unit}"
