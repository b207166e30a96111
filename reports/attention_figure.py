"""Draws the statistics of an attention trace: sparsity of heads, KV share by length, kinds of heads."""

from typing import TYPE_CHECKING

import numpy as np

from moesim.reports import style
from moesim.reports.style import SUBTLE, new_figure, plain, series_line, shortened, styled
from moesim.workloads.attention_trace import SHARES
from moesim.workloads.attention_trace_statistics import KINDS, AttentionStatistics

if TYPE_CHECKING:  # matplotlib loads slowly
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE_IN = (10.5, 4.2)
_KIND_COLOURS = (style.OKABE_ITO[0], style.OKABE_ITO[4], style.OKABE_ITO[5], "#c8c8c8")
_SHARE = "keys_95"


def attention_figure(found: AttentionStatistics) -> "Figure":
    """Three panels under a line that says what was recorded."""
    layers, heads = found.sink_mass.shape
    with styled():
        figure = new_figure(*_SIZE_IN)
        about = f"{plain(shortened(found.model, 40))}, {layers} layers of {heads} heads"
        context = f"{found.tokens:,} tokens with {found.shortest_context} keys or more"
        figure.suptitle(f"Attention: {about}, {context}", x=0.01, ha="left", fontsize=11.5, fontweight="bold")
        heat, length, kinds = figure.subplots(1, 3)
        draw_kept(heat, found)
        draw_kept_by_length(length, found)
        draw_kinds(kinds, found)
    return figure


def draw_kept(axes: "Axes", found: AttentionStatistics) -> "Axes":
    """Heat map of the share of the visible keys that holds 95% of a head's mass; heads sorted within their layer."""
    from matplotlib.ticker import MaxNLocator

    ordered = np.sort(found.kept[_SHARE], axis=1)
    image = axes.imshow(ordered, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="heads, from sparse to dense", ylabel="layer", title="Keys that hold 95% of the mass")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, label="share of the visible keys")
    bar.outline.set_visible(False)
    return axes


def draw_kept_by_length(axes: "Axes", found: AttentionStatistics) -> "Axes":
    """Share of the visible keys that holds 90, 95 and 99% of the mass, against the length of the context."""
    known = ~np.isnan(found.kept_by_length[_SHARE]).all(axis=1)
    for index, (name, share) in enumerate(SHARES.items()):
        means = np.nanmean(found.kept_by_length[name][known], axis=1)
        axes.plot(found.lengths[known], means, marker="o", markersize=4, label=f"{share:.0%}", **series_line(index))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(xlabel="visible keys, from a power of two on", ylabel="share of the keys, mean over heads", ylim=(0, 1.05))
    axes.set_title("KV cache that keeps a mass of")
    axes.grid(visible=True)
    axes.legend(loc="upper right")
    return axes


def draw_kinds(axes: "Axes", found: AttentionStatistics) -> "Axes":
    """Share of the heads of each layer by where 90% of their mass is."""
    kinds, layers = found.kinds(), np.arange(len(found.sink_mass))
    labels = (
        f"last {found.local_keys} keys",
        f"first {found.sink_keys} keys (sinks)",
        "both together",
        "elsewhere too",
    )
    left = np.zeros(len(layers))
    for index, label in enumerate(labels[: len(KINDS)]):
        width = (kinds == index).mean(axis=1)
        axes.barh(layers, width, 0.9, left, color=_KIND_COLOURS[index], label=label)
        left += width
    axes.set(xlabel="share of the heads", ylabel="layer", xlim=(0, 1), ylim=(len(layers) - 0.5, -0.5))
    axes.set_title("Where 90% of the mass is")
    axes.tick_params(axis="y", color=SUBTLE)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, borderpad=0)
    return axes
