"""Predicted against measured times of kernels: a figure per GPU and operator, a panel per variant."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.hw_models.calibration.errors import ErrorSummary
from moesim.hw_models.calibration.measured import Floats
from moesim.reports.style import OKABE_ITO, SUBTLE, TEXT, new_figure, plain, save, styled
from moesim.reports.validation.kernels import PHYSICS, RESIDUAL, VARIANTS, Kernels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAND = 0.1
_BAND_COLOUR = "#c9c9c9"
_MOST_POINTS = 1500
"""Points drawn of a kernel: more hide one another."""
_MARKERS = ("o", "^", "s", "D")
_MARGIN = 1.6
_RATIOS = (0.25, 4.0)
"""Predicted over measured, in the lower panels; points beyond stand at the edge."""
_RATIO_TICKS = (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)
_LEGEND_COLUMNS = 4
_US = 1e6


def draw_kernels(kernels: Sequence[Kernels], path: Path) -> Path:
    """Draw one operator on one GPU: predicted over measured times, and below their ratio.

    Args:
        kernels: its frameworks and formats. Where refits predicted rows without their shapes, these are drawn.
        path: the file.

    Raises:
        DataError: as `style.save`.
    """
    with styled():
        variants = _variants(kernels)
        columns = _LEGEND_COLUMNS if len(variants) == len(VARIANTS) else _LEGEND_COLUMNS // 2
        legend_rows = -(-len(kernels) // columns)
        figure = new_figure(3.85 * len(variants), 7.2 + 0.2 * legend_rows)
        panels: Any = figure.subplots(2, len(variants), sharex=True, sharey="row", height_ratios=(1.35, 1))
        limits = _limits(kernels)
        for column, variant in enumerate(variants):
            _draw_times(panels[0, column], kernels, variant, limits)
            _draw_ratios(panels[1, column], kernels, variant, limits)
        panels[0, 0].set_ylabel("predicted (µs)")
        panels[1, 0].set_ylabel("predicted / measured")
        title = f"{kernels[0].op.replace('_', ' ')} on {kernels[0].gpu}: predicted against measured, band of ±10 %"
        figure.suptitle(plain(title), x=0.01, ha="left", weight="bold", fontsize=11)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        legend = figure.legend(
            handles, labels, loc="outside lower left", ncols=columns, markerscale=2.5, handletextpad=0.2
        )
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)
    return save(figure, path)


def _variants(kernels: Sequence[Kernels]) -> Sequence[str]:
    """Without the last where nothing has a residual."""
    pairs = ((item.predicted_s[PHYSICS], item.predicted_s[RESIDUAL]) for item in kernels)
    return VARIANTS[:-1] if all(np.array_equal(*pair) for pair in pairs) else VARIANTS


def _draw_times(panel: "Axes", kernels: Sequence[Kernels], variant: str, limits: tuple[float, float]) -> None:
    line = np.array(limits)
    panel.fill_between(line, line * (1 - _BAND), line * (1 + _BAND), color=_BAND_COLOUR, linewidth=0, zorder=1)
    panel.plot(line, line, color=SUBTLE, linewidth=0.6, zorder=1)
    for position, item in enumerate(kernels):
        measured_us, predicted_us = _drawn(item, variant)
        label = plain(f"{item.framework} {item.version}, {item.model}")
        panel.scatter(measured_us, np.clip(predicted_us, *limits), label=label, **_series(item, position))
    panel.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    panel.grid(visible=True, which="major")
    panel.set_title(_titles(kernels, variant), fontsize=9)
    panel.text(0.03, 0.97, _error_text(kernels, variant), transform=panel.transAxes, va="top", color=TEXT, fontsize=8)


def _draw_ratios(panel: "Axes", kernels: Sequence[Kernels], variant: str, limits: tuple[float, float]) -> None:
    panel.fill_between(limits, 1 - _BAND, 1 + _BAND, color=_BAND_COLOUR, linewidth=0, zorder=1)
    for position, item in enumerate(kernels):
        measured_us, predicted_us = _drawn(item, variant)
        panel.scatter(measured_us, np.clip(predicted_us / measured_us, *_RATIOS), **_series(item, position))
    panel.set(xscale="log", yscale="log", xlim=limits, ylim=_RATIOS, xlabel="measured (µs)")
    panel.set_yticks(_RATIO_TICKS, [f"{tick:g}" for tick in _RATIO_TICKS])
    panel.set_yticks([], minor=True)
    panel.grid(visible=True, which="major")


def _titles(kernels: Sequence[Kernels], variant: str) -> str:
    refits = any(item.unseen_s for item in kernels)
    if variant == VARIANTS[0]:
        return variant
    return f"{variant}, {'unseen shapes where fitted' if refits else 'parameters as they are'}"


def _error_text(kernels: Sequence[Kernels], variant: str) -> str:
    """Of the kernels as they are meant, where there are any; the others are drawn in grey."""
    meant = [item for item in kernels if item.is_tuned] or kernels
    predicted_s = np.concatenate([_predictions(item)[variant] for item in meant])
    measured_s = np.concatenate([item.measured.time_s for item in meant])
    known = np.isfinite(predicted_s)
    summary = ErrorSummary.of(predicted_s[known], measured_s[known])
    rows = f"{summary.rows:,} rows" + ("" if len(meant) == len(kernels) else " (without the grey ones)")
    return f"{rows}\nmean |error| {summary.mean:.1%}\nmedian {summary.median:.1%}"


def _predictions(item: Kernels) -> dict[str, Any]:
    """Of refits where there are any."""
    return item.predicted_s | item.unseen_s


def _series(item: Kernels, position: int) -> dict[str, Any]:
    colour, marker = OKABE_ITO[position % len(OKABE_ITO)], _MARKERS[position // len(OKABE_ITO) % len(_MARKERS)]
    colour = colour if item.is_tuned else SUBTLE
    return {"color": colour, "marker": marker, "s": 5, "linewidth": 0, "alpha": 0.35, "zorder": 2, "rasterized": True}


def _drawn(item: Kernels, variant: str) -> tuple[Floats, Floats]:
    """Measured and predicted times to draw, µs: of all rows, or of so many at random."""
    rows = np.random.default_rng(0).permutation(len(item.measured))[:_MOST_POINTS]
    return item.measured.time_s[rows] * _US, _predictions(item)[variant][rows] * _US


def _limits(kernels: Sequence[Kernels]) -> tuple[float, float]:
    """Of times, µs."""
    measured = np.concatenate([item.measured.time_s for item in kernels])
    return float(measured.min() * _US / _MARGIN), float(measured.max() * _US * _MARGIN)
