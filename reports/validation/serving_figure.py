"""Predicted against measured, a panel for each of TTFT, TPOT and E2E."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moesim.reports.style import GRID, OKABE_ITO, SUBTLE, new_figure, plain, save, styled
from moesim.reports.validation.serving import Comparison
from moesim.reports.validation.serving_deployment import OPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
BAND = 0.1
"""Half the width of the band around exact predictions."""
_WIDE = 200
"""Largest over smallest value from which on only powers of ten are labelled; more would overlap."""
_WIDTH_IN, _HEIGHT_IN, _LEGEND_IN = 3.6, 3.6, 2.0


def draw_predictions(compared: Sequence[Comparison], path: Path) -> Path:
    """Write a figure of all measurements that were answered.

    Raises:
        DataError: as `style.save`.
    """
    shown = [one for one in compared if one.predicted_s is not None and one.broken is None]
    ops = [op for op in OPS if any(one.op == op for one in shown)] or list(OPS[:2])
    series = sorted({(one.framework, one.model) for one in shown})
    with styled():
        figure = new_figure(_WIDTH_IN * len(ops) + _LEGEND_IN, _HEIGHT_IN)
        axes = figure.subplots(1, len(ops), squeeze=False)[0]
        for op, panel in zip(ops, axes, strict=True):
            predictions([one for one in shown if one.op == op], series, panel)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
    return save(figure, path)


def predictions(compared: Sequence[Comparison], series: Sequence[tuple[str, str]], axes: "Axes") -> "Axes":
    """One panel: measured to the right, predicted upwards, both in ms on logarithmic axes."""
    from matplotlib.ticker import LogLocator, NullLocator

    for number, (framework, model) in enumerate(series):
        points = [one for one in compared if (one.framework, one.model) == (framework, model)]
        measured = [one.measured_s * 1e3 for one in points]
        predicted = [(one.predicted_s or np.nan) * 1e3 for one in points]
        axes.scatter(
            measured,
            predicted,
            s=14,
            marker=MARKERS[number // len(OKABE_ITO) % len(MARKERS)],
            color=OKABE_ITO[number % len(OKABE_ITO)],
            alpha=0.75,
            linewidths=0,
            label=plain(f"{model}, {framework}"),
        )
    values = [
        value for one in compared for value in (one.measured_s * 1e3, (one.predicted_s or 0.0) * 1e3) if value > 0
    ]
    low, high = (min(values) / 1.4, max(values) * 1.4) if values else (1.0, 10.0)
    line = np.array([low, high])
    axes.fill_between(line, line * (1 - BAND), line * (1 + BAND), color=GRID, zorder=0, linewidth=0)
    axes.plot(line, line, color=SUBTLE, linewidth=0.8, zorder=1)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), box_aspect=1)
    op = compared[0].op.upper() if compared else ""
    axes.set(title=op, xlabel="measured (ms)", ylabel="predicted (ms)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _WIDE * low else (1,)))
        axis.set_major_formatter(lambda value, _: f"{value:,.12g}")
        axis.set_minor_locator(NullLocator())
    axes.grid(visible=True)
    return axes
