"""Predicted against measured times of kernels: a figure per GPU and operator, a panel per variant."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.hw_models.calibration.errors import ErrorSummary
from moesim.reports.style import GRID, OKABE_ITO, SUBTLE, TEXT, new_figure, plain, save, styled
from moesim.reports.validation.kernels import VARIANTS, Kernels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAND = 0.1
_MOST_POINTS = 1500
"""Points drawn of a kernel: more hide one another."""
_MARKERS = ("o", "^", "s", "D")
_MARGIN = 1.4
_US = 1e6


def draw_kernels(kernels: Sequence[Kernels], path: Path) -> Path:
    """Draw one operator on one GPU; `kernels` are its frameworks and formats.

    Where refits have predicted rows without their shapes, these predictions are drawn.

    Raises:
        DataError: as `style.save`.
    """
    with styled():
        figure = new_figure(11.5, 4.7)
        panels: Sequence[Axes] = figure.subplots(1, len(VARIANTS), sharex=True, sharey=True)
        limits = _limits(kernels)
        for panel, variant in zip(panels, VARIANTS, strict=True):
            _draw_panel(panel, kernels, variant, limits)
        panels[0].set_ylabel("predicted, µs")
        first = kernels[0]
        figure.suptitle(plain(f"{first.op.replace('_', ' ')} on {first.gpu}"), x=0.01, ha="left", weight="bold")
        handles, labels = panels[0].get_legend_handles_labels()
        columns = 4 if len(labels) > 3 else len(labels)  # noqa: PLR2004
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, markerscale=2.2, handletextpad=0.3)
    return save(figure, path)


def _draw_panel(panel: "Axes", kernels: Sequence[Kernels], variant: str, limits: tuple[float, float]) -> None:
    line = np.array(limits)
    panel.fill_between(line, line * (1 - _BAND), line * (1 + _BAND), color=GRID, linewidth=0, zorder=1)
    panel.plot(line, line, color=SUBTLE, linewidth=0.8, zorder=1)
    for position, item in enumerate(kernels):
        rows = _drawn(len(item.measured))
        predicted_s = _predictions(item)[variant]
        style = _series(position)
        label = plain(f"{item.framework} {item.version}, {item.model}")
        panel.scatter(item.measured.time_s[rows] * _US, predicted_s[rows] * _US, label=label, **style)
    panel.set(xscale="log", yscale="log", xlim=limits, ylim=limits, xlabel="measured, µs")
    panel.set_box_aspect(1)
    panel.grid(visible=True, which="major")
    panel.set_title(_titles(kernels, variant), fontsize=9)
    panel.text(0.03, 0.97, _error_text(kernels, variant), transform=panel.transAxes, va="top", color=TEXT, fontsize=8)


def _titles(kernels: Sequence[Kernels], variant: str) -> str:
    refits = any(item.unseen_s for item in kernels)
    if variant == VARIANTS[0]:
        return variant
    return f"{variant}, {'unseen shapes where fitted' if refits else 'parameters as they are'}"


def _error_text(kernels: Sequence[Kernels], variant: str) -> str:
    predicted_s = np.concatenate([_predictions(item)[variant] for item in kernels])
    measured_s = np.concatenate([item.measured.time_s for item in kernels])
    summary = ErrorSummary.of(predicted_s, measured_s)
    return f"{summary.rows:,} rows\nmean |error| {summary.mean:.1%}\nmedian {summary.median:.1%}"


def _predictions(item: Kernels) -> dict[str, Any]:
    """Of refits where there are any."""
    return item.predicted_s | item.unseen_s


def _series(position: int) -> dict[str, Any]:
    colour, marker = OKABE_ITO[position % len(OKABE_ITO)], _MARKERS[position // len(OKABE_ITO) % len(_MARKERS)]
    return {"color": colour, "marker": marker, "s": 5, "linewidth": 0, "alpha": 0.35, "zorder": 2, "rasterized": True}


def _drawn(rows: int) -> Any:
    """Rows to draw: all of them, or so many at random."""
    return np.random.default_rng(0).permutation(rows)[:_MOST_POINTS]


def _limits(kernels: Sequence[Kernels]) -> tuple[float, float]:
    """Of both axes, µs: all measured times and nearly all predicted ones."""
    measured = np.concatenate([item.measured.time_s for item in kernels])
    predicted = np.concatenate([times for item in kernels for times in _predictions(item).values()])
    low = min(measured.min(), np.percentile(predicted, 1)) / _MARGIN
    high = max(measured.max(), np.percentile(predicted, 99.9)) * _MARGIN
    return float(low * _US), float(high * _US)
