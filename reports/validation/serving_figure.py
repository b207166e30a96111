"""Predicted against measured, a panel for each of TTFT, TPOT and E2E."""

import math
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
_TICKS = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0),
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0),
)
"""What is labelled of every power of ten: the first that gives `_FEWEST_TICKS`, so that few labels share an axis."""
_FEWEST_TICKS = 3
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
        figure.set_layout_engine("compressed", w_pad=0.1)  # of square panels; the usual one cuts their labels off
        axes = figure.subplots(1, len(ops), squeeze=False)[0]
        for op, panel in zip(ops, axes, strict=True):
            predictions(op, [one for one in shown if one.op == op], series, panel)
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right upper")
    return save(figure, path)


def predictions(op: str, compared: Sequence[Comparison], series: Sequence[tuple[str, str]], axes: "Axes") -> "Axes":
    """One panel: measured to the right, predicted upwards, both on logarithmic axes.

    Args:
        op: what was measured, the title.
        compared: measurements of it, with predictions.
        series: (framework, model) in the order of their colours.
        axes: of the panel.
    """
    seconds = [value for one in compared for value in (one.measured_s, one.predicted_s or 0.0) if value > 0]
    unit, scale = ("s", 1.0) if seconds and min(seconds) >= 1 else ("ms", 1e3)
    for number, (framework, model) in enumerate(series):
        points = [one for one in compared if (one.framework, one.model) == (framework, model)]
        measured = [one.measured_s * scale for one in points]
        predicted = [(one.predicted_s or np.nan) * scale for one in points]
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
    low, high = (min(seconds) * scale / 1.4, max(seconds) * scale * 1.4) if seconds else (1.0, 10.0)
    line = np.array([low, high])
    axes.fill_between(line, line * (1 - BAND), line * (1 + BAND), color=GRID, zorder=0, linewidth=0)
    axes.plot(line, line, color=SUBTLE, linewidth=0.8, zorder=1)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), box_aspect=1)
    axes.set(title=op.upper(), xlabel=f"measured ({unit})", ylabel=f"predicted ({unit})")
    ticks = axis_ticks(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{tick:,.12g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.grid(visible=True)
    if not compared:
        axes.text(0.03, 0.97, "nothing was answered", transform=axes.transAxes, va="top", color=SUBTLE)
    return axes


def axis_ticks(low: float, high: float) -> list[float]:
    """Round values to label between two positive ones, in order; around 3 to 6."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for digits in _TICKS:
        found = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(found) >= _FEWEST_TICKS:
            break
    return found
