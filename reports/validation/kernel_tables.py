"""Tables of errors of kernels: as text cells, Markdown and CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from moesim.reports.validation.kernels import (
    ALL,
    RESIDUAL,
    TIMES_S,
    UNSEEN,
    VARIANTS,
    GroupError,
    Kernels,
    as_dict,
    group_errors,
    group_rows,
)

VARIANT_COLUMNS = ("kernel", "rows", *VARIANTS, "median", "P90", "bias", "unseen shapes")
TIME_COLUMNS = ("kernel", *(name for name in TIMES_S if name != ALL))
_MISSING = "-"


def variant_cells(kernels: Sequence[Kernels]) -> list[tuple[str, ...]]:
    """A row per kernel: mean |e| of each variant; median, P90 and bias of the last; mean on unseen shapes."""
    cells = []
    for item, row in zip(kernels, group_rows(kernels), strict=True):
        means = {e.variant: e.errors.mean for e in group_errors([item]) if e.time == ALL and e.shapes == item.shapes}
        last = (row["median_abs_error"], row["p90_abs_error"])
        unseen = _percent(row["unseen_mean_abs_error"]) + ("*" if row["unseen_from"] == "refit" else "")
        values = [*(means[variant] for variant in VARIANTS), *last]
        cells.append((label(item), f"{row['rows']:,}", *map(_percent, values), f"{row['bias']:+.1%}", unseen))
    return cells


def time_cells(kernels: Sequence[Kernels]) -> list[tuple[str, ...]]:
    """A row per kernel: mean |e| and rows in each range of measured time, of refits where there are any."""
    cells = []
    for item in kernels:
        shapes = UNSEEN if item.unseen_s else item.shapes
        found = {e.time: e.errors for e in group_errors([item]) if e.variant == RESIDUAL and e.shapes == shapes}
        texts = [
            f"{found[time].mean:.1%} ({found[time].rows:,})" if time in found else _MISSING for time in TIME_COLUMNS[1:]
        ]
        cells.append((label(item), *texts))
    return cells


def label(item: Kernels) -> str:
    """Name of a kernel in tables."""
    mark = "" if item.shapes == "seen" else " †"
    return f"{item.op} {item.framework} {item.version} {item.model}{mark}"


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.1%}"


NOTES = (
    "Mean |predicted / measured - 1|; median, P90 and bias (median of the error itself) are of physics + residual.",
    "The parameters saw these rows, but for kernels with a dagger, whose rows no calibration of the device is made of.",
    "Unseen shapes: mean that the fits state of shapes left out of them; * of a refit that left them out just now.",
)
"""What the columns mean."""


def as_markdown(kernels: Sequence[Kernels]) -> str:
    """Both tables of every GPU."""
    lines = []
    for gpu in dict.fromkeys(item.gpu for item in kernels):
        chosen = [item for item in kernels if item.gpu == gpu]
        lines += [f"## {gpu}", "", *_markdown(VARIANT_COLUMNS, variant_cells(chosen)), ""]
        lines += [*_markdown(TIME_COLUMNS, time_cells(chosen)), ""]
    return "\n".join([*lines, *NOTES]) + "\n"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = ["|".join(["", *columns, ""]), "|".join(["", "---", *["---:"] * (len(columns) - 1), ""])]
    return head + ["|".join(["", *row, ""]) for row in rows]


def as_csv(errors: Sequence[GroupError]) -> str:
    """Every error, a line each."""
    rows: list[dict[str, Any]] = [as_dict(error) for error in errors]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
