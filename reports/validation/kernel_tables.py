"""Tables of errors of kernels: as text cells, Markdown and CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from moesim.reports.validation.kernels import (
    ALL,
    BALANCED,
    PHYSICS,
    RESIDUAL,
    ROOFLINE,
    SEEN,
    TIMES_S,
    UNSEEN,
    VARIANTS,
    GroupError,
    Kernels,
    as_dict,
    by_distribution,
    group_errors,
    group_rows,
)

VARIANT_COLUMNS = ("kernel", "rows", ROOFLINE, PHYSICS, "+ residual", "unseen")
TIMES = tuple(name for name in TIMES_S if name != ALL)
TIME_COLUMNS = ("kernel", "median", "P90", "bias", *(name.removesuffix(" us") for name in TIMES))
LONG = ">50 us"
LOAD_COLUMNS = ("kernel", "loads", "rows", "of", PHYSICS, f"{PHYSICS} >50", "+ residual", "+ residual >50")
"""Errors of experts by how loads spread: means of balanced ones, medians of power laws, whose rows are random draws."""
_MISSING = "-"
_NOTE = """\
Mean |predicted / measured - 1| of all rows, and by measured time in us; median, P90 and bias (median of the error with
its sign) are of `+ residual`, which is what a simulation uses. The parameters saw the rows, but for those with a
dagger: no calibration of the device is made of these. `unseen` is the mean that the fits state of shapes left out of
them; with an asterisk, of a refit that left them out now, whose errors the second table then shows."""
NOTES = (_NOTE.replace("\n", " "),)
"""What the columns mean."""


def variant_cells(kernels: Sequence[Kernels]) -> list[tuple[str, ...]]:
    """Under `VARIANT_COLUMNS`: rows, mean error of each variant, and that on unseen shapes."""
    cells = []
    for item, row in zip(kernels, group_rows(kernels), strict=True):
        means = {e.variant: e.errors.mean for e in group_errors([item]) if e.time == ALL and e.shapes == item.shapes}
        unseen = _percent(row["unseen_mean_abs_error"]) + ("*" if row["unseen_from"] == "refit" else "")
        cells.append((label(item), f"{row['rows']:,}", *(_percent(means[variant]) for variant in VARIANTS), unseen))
    return cells


def time_cells(kernels: Sequence[Kernels]) -> list[tuple[str, ...]]:
    """Under `TIME_COLUMNS`: errors of what a simulation uses, or of its refit; means by measured time."""
    cells = []
    for item in kernels:
        shapes = UNSEEN if item.unseen_s else item.shapes
        found = {e.time: e.errors for e in group_errors([item]) if e.variant == RESIDUAL and e.shapes == shapes}
        whole = found[ALL]
        means = (_percent(found[time].mean) if time in found else _MISSING for time in TIMES)
        cells.append((label(item), _percent(whole.median), _percent(whole.p90), f"{whole.bias:+.1%}", *means))
    return cells


def load_cells(kernels: Sequence[Kernels]) -> list[tuple[str, ...]]:
    """Under `LOAD_COLUMNS`: of kernels of experts, errors by distribution; those of refits where there are any."""
    cells = []
    for item in by_distribution(kernels):
        if item.distribution is None:
            continue
        shapes, name = (UNSEEN if item.unseen_s else item.shapes), "mean" if item.distribution == BALANCED else "median"
        found = {(e.variant, e.time): getattr(e.errors, name) for e in group_errors([item]) if e.shapes == shapes}
        ways = ((variant, time) for variant in (PHYSICS, RESIDUAL) for time in (ALL, LONG))
        errors = (_percent(found.get(way)) for way in ways)
        cells.append((label(item), item.distribution, f"{len(item.measured):,}", name, *errors))
    return cells


def label(item: Kernels) -> str:
    """Name of a kernel in the tables of one operator."""
    name = item.model if item.framework == item.model else f"{item.framework} {item.model}"
    return name if item.shapes == SEEN else f"{name} †"


def sections(kernels: Sequence[Kernels]) -> list[tuple[str, list[Kernels]]]:
    """Title and kernels of each GPU and operator, in the order in which they come."""
    found: dict[tuple[str, str], list[Kernels]] = {}
    for item in kernels:
        found.setdefault((item.gpu, item.op), []).append(item)
    return [(f"{gpu}: {op.replace('_', ' ')}", members) for (gpu, op), members in found.items()]


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.1%}"


def as_markdown(
    kernels: Sequence[Kernels], others: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]] = ()
) -> str:
    """Both tables of every GPU and operator, and then `others`: columns and rows of further tables."""
    lines = []
    for title, chosen in sections(kernels):
        lines += [f"## {title}", "", *_markdown(VARIANT_COLUMNS, variant_cells(chosen)), ""]
        lines += [*_markdown(TIME_COLUMNS, time_cells(chosen)), ""]
        if loads := load_cells(chosen):
            lines += [*_markdown(LOAD_COLUMNS, loads), ""]
    further = [line for columns, rows in others if rows for line in (*_markdown(columns, rows), "")]
    return "\n".join([*lines, *further, *NOTES]) + "\n"


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
