"""Figures of the statistics of a routing trace: loads, time, batches, layers, locality, drift.

`FIGURES` has one function per file; each is made of panels that take data and an Axes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.reports import style
from moesim.reports.routing_tables import uniform_load
from moesim.reports.style import SUBTLE, TEXT, new_figure, ordered_colours, plain, series_line, shortened, styled
from moesim.workloads import load_statistics as loads
from moesim.workloads.expert_caches import SEGMENT
from moesim.workloads.trace_batches import DOMAIN, MIXED
from moesim.workloads.trace_segments import independent_routing
from moesim.workloads.trace_statistics import TraceStatistics

if TYPE_CHECKING:  # matplotlib loads slowly
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Panel = Callable[[Axes, TraceStatistics], Axes]

Floats = NDArray[np.float64]

_WIDTH_IN = 10.5
_HEAD_IN = 0.45
_SEQUENTIAL, _DIVERGING = "viridis", "PuOr_r"
_HEAT_LIMIT = 3.0  # loads beyond three times the mean have the darkest colour
_ODDS = 3  # powers of two that colours of ratios reach to
_LEGIBLE_GROUPS = 16
_LABEL_LETTERS = 24
_HEADROOM = 1.3  # for the legend above the curves
_BAND = (10, 90)
"""Percentiles between which the middle of layers or windows lies."""
_RULE_NAMES = {"lru": "LRU", "lfu": "LFU", "belady": "Belady (best possible)"}
_BATCH_NAMES = {MIXED: "tokens of all requests", DOMAIN: "tokens of one domain"}


def _figure(found: TraceStatistics, height_in: float, what: str) -> "Figure":
    """An empty figure under a line that says what was recorded."""
    trace = found.trace
    figure = new_figure(_WIDTH_IN, height_in + _HEAD_IN)
    about = (
        f"{plain(shortened(trace.model, 40))}, top {trace.top_k} of {trace.experts} experts, {trace.layers} MoE layers"
    )
    figure.suptitle(f"{what}: {about}, {trace.tokens:,} tokens", x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    return figure


def _panels(found: TraceStatistics, height_in: float, what: str, *panels: "tuple[Panel, float]") -> "Figure":
    """A figure of panels side by side, each with its share of the width."""
    with styled():
        figure = _figure(found, height_in, what)
        columns = figure.subplots(1, len(panels), width_ratios=[width for _, width in panels])
        for axes, (draw, _) in zip(columns, panels, strict=True):
            draw(axes, found)
    return figure


def load_figure(found: TraceStatistics) -> "Figure":
    """Load of every expert in every layer, and the busiest of each layer."""
    with styled():
        figure = _figure(found, 4.6, "Expert load")
        heat, ranked = figure.subplots(1, 2, width_ratios=[1.9, 1.0])
        draw_load_heat(heat, found.load)
        draw_ranked_load(ranked, found.load)
    return figure


def draw_load_heat(axes: "Axes", load: NDArray[np.int64]) -> "Axes":
    """Heat map of load over the mean of the layer.

    Args:
        axes: where.
        load: int64[layer, expert].
    """
    over_mean = loads.shares(load) * load.shape[1]
    image = axes.imshow(over_mean, aspect="auto", cmap=_SEQUENTIAL, vmin=0, vmax=_HEAT_LIMIT, interpolation="nearest")
    axes.set(xlabel="expert, as the model numbers them", ylabel="MoE layer", title="Load over the layer's mean")
    bar = axes.figure.colorbar(image, ax=axes, extend="max" if over_mean.max() > _HEAT_LIMIT else "neither", pad=0.02)
    bar.outline.set_visible(False)
    return axes


def draw_ranked_load(axes: "Axes", load: NDArray[np.int64]) -> "Axes":
    """Load over the mean by rank: the median of the layers, most of them, and all of them."""
    ranked = -np.sort(-loads.shares(load) * load.shape[1], axis=1)
    ranks = np.arange(1, ranked.shape[1] + 1)
    low, high = np.percentile(ranked, _BAND, axis=0)
    axes.fill_between(ranks, ranked.min(axis=0), ranked.max(axis=0), color="#cfe3f0", label="all layers", linewidth=0)
    axes.fill_between(ranks, low, high, color="#8fbfdd", label="80% of the layers", linewidth=0)
    axes.plot(ranks, np.median(ranked, axis=0), color=style.OKABE_ITO[0], label="median layer")
    axes.axhline(1, color=SUBTLE, linewidth=1, linestyle=":", label="balanced")
    axes.set(xlabel="rank of the expert in its layer", ylabel="load over mean", title="Busiest to least busy expert")
    axes.set(xlim=(1, max(2, len(ranks))), ylim=(0, None))
    axes.grid(visible=True)
    axes.legend(loc="upper right")
    return axes


def imbalance_figure(found: TraceStatistics) -> "Figure":
    """Max over mean load by layer, of the whole trace and of its windows; and over time."""
    with styled():
        figure = _figure(found, 3.6, "Load imbalance")
        layers, time = figure.subplots(1, 2)
        draw_imbalance_by_layer(layers, found)
        draw_imbalance_over_time(time, found)
        top = 1 + _HEADROOM * (max(layers.get_ylim()[1], time.get_ylim()[1]) - 1)
        layers.set_ylim(1, top)
        time.set_ylim(1, top)
    return figure


def draw_imbalance_by_layer(axes: "Axes", found: TraceStatistics) -> "Axes":
    """Load of the busiest expert over the mean; parts of the trace are less balanced than the whole."""
    windows = loads.max_over_mean(found.window_load)
    layers = np.arange(len(windows))
    low, high = np.nanpercentile(windows, _BAND, axis=1)
    count = windows.shape[1]
    axes.fill_between(layers, low, high, color="#8fbfdd", label=f"80% of {count} parts of the trace", linewidth=0)
    axes.plot(layers, np.nanmedian(windows, axis=1), color=style.OKABE_ITO[0], label="median part")
    axes.plot(layers, loads.max_over_mean(found.load), color=style.OKABE_ITO[1], label="whole trace")
    axes.set(xlabel="MoE layer", ylabel="max / mean load", title="Busiest expert of each layer")
    axes.set_xlim(0, max(1, len(layers) - 1))
    axes.grid(visible=True)
    axes.legend(loc="upper left")
    return axes


def draw_imbalance_over_time(axes: "Axes", found: TraceStatistics) -> "Axes":
    """Max over mean load of equal parts of the trace, in the order of the recording."""
    windows = loads.max_over_mean(found.window_load)
    part = (np.arange(windows.shape[1]) + 0.5) / windows.shape[1]
    axes.plot(part, windows.max(axis=0), **series_line(1), label="worst layer")
    axes.plot(part, windows.mean(axis=0), **series_line(0), label="mean of the layers")
    axes.axhline(
        loads.max_over_mean(found.load).mean(), color=SUBTLE, linewidth=1, linestyle=":", label="mean, whole trace"
    )
    axes.set(xlabel="part of the trace, in the order of the recording", ylabel="max / mean load")
    axes.set(title="Busiest expert over time", xlim=(0, 1))
    axes.grid(visible=True)
    axes.legend(loc="upper left", ncols=1)
    return axes


def batch_figure(found: TraceStatistics) -> "Figure":
    """Experts that batches touch, and places that tokens reach."""
    return _panels(found, 3.8, "Batches and placement", (draw_touched, 1.5), (draw_reached, 1.0))


def draw_touched(axes: "Axes", found: TraceStatistics) -> "Axes":
    """Distinct experts of a layer against the tokens of a batch: measured, independent, and if loads were balanced."""
    for index, (kind, touched) in enumerate(found.touched.items()):
        axes.plot(
            found.sizes, touched.mean(axis=0), marker="o", markersize=4, label=_BATCH_NAMES[kind], **series_line(index)
        )
    parts = [part for part in found.segments.values() if part.count]
    if parts:
        lengths = [1, *(part.length for part in parts)]
        means = [found.trace.top_k, *(float(part.touched().mean()) for part in parts)]
        axes.plot(lengths, means, marker="o", markersize=4, label="consecutive tokens of a request", **series_line(2))
    smooth = np.unique(np.round(np.logspace(0, np.log10(found.sizes[-1]), 60)).astype(np.int64))
    expected = loads.expected_touched(found.load, found.trace.tokens, smooth).mean(axis=0)
    balanced = loads.expected_touched(uniform_load(found), found.trace.tokens, smooth)
    axes.plot(smooth, expected, color=TEXT, linestyle="--", linewidth=1, label="independent tokens, same loads")
    axes.plot(smooth, balanced, color=SUBTLE, linestyle=":", linewidth=1.2, label="independent tokens, balanced loads")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(
        xlabel="tokens of the batch", ylabel="distinct experts, mean over layers", title="Experts touched by a batch"
    )
    axes.set_ylim(0, 1.03 * found.trace.experts)
    axes.grid(visible=True)
    axes.legend(loc="lower right")
    return axes


def draw_reached(axes: "Axes", found: TraceStatistics) -> "Axes":
    """Distinct devices that hold a token's experts, measured and if all sets of experts were equally likely."""
    trace, names = found.trace, [one.name for one in found.places]
    rows = np.arange(len(names))
    measured = np.array([found.mean_reached(name).mean() for name in names])
    spread = np.array([np.percentile(found.mean_reached(name), _BAND) for name in names]).reshape(-1, 2)
    expected = [loads.expected_reached(trace.experts, trace.top_k, one.count) for one in found.places]
    ends = np.abs(spread.T - measured)
    axes.barh(rows, measured, 0.6, color="#8fbfdd", xerr=ends, error_kw={"ecolor": SUBTLE, "elinewidth": 1})
    axes.plot(expected, rows, linestyle="", marker="d", color=style.OKABE_ITO[1], label="balanced, independent experts")
    axes.set_yticks(rows, [plain(shortened(name, _LABEL_LETTERS)) for name in names])
    axes.set(
        xlabel="distinct places (line: 80% of the layers)",
        title="Places reached by a token",
        ylim=(len(names) - 0.4, -1.0),
    )
    axes.set_xlim(0, 1.05 * trace.top_k)
    axes.grid(visible=True, axis="x")
    axes.legend(loc="upper left", borderpad=0)
    return axes


def layer_figure(found: TraceStatistics) -> "Figure":
    """What a layer's experts say about the next layer's, and which experts are used together."""
    panels = ((draw_mutual_information, 1.0), (draw_transitions, 1.0), (draw_coactivation, 1.0))
    return _panels(found, 3.7, "Experts used together", *panels)


def draw_mutual_information(axes: "Axes", found: TraceStatistics) -> "Axes":
    """Mutual information of an expert of a layer and one of the next, of the same token."""
    if not len(found.transitions):
        return _nothing(axes, "one MoE layer only")
    bits = loads.mutual_information_bits(found.transitions)
    axes.plot(np.arange(1, len(bits) + 1), bits, marker="o", markersize=3.5, **series_line(0))
    axes.set(xlabel="MoE layer", ylabel="bits about the layer before", title="Layer-to-layer information")
    axes.set_ylim(0, max(0.05, 1.1 * float(bits.max(initial=0))))
    axes.grid(visible=True)
    return axes


def draw_transitions(axes: "Axes", found: TraceStatistics) -> "Axes":
    """How the use of an expert changes the odds of the next layer's, where that tells most."""
    if not len(found.transitions):
        return _nothing(axes, "one MoE layer only")
    layer = int(np.argmax(loads.mutual_information_bits(found.transitions)))
    pairs = found.transitions[layer].astype(np.float64)
    usual = pairs.sum(axis=0) / pairs.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        change = pairs / pairs.sum(axis=1, keepdims=True) / usual
    title = f"Layer {layer} to {layer + 1}: use over usual use"
    return _odds(axes, change, title, f"experts of layer {layer + 1}, alike side by side", f"experts of layer {layer}")


def draw_coactivation(axes: "Axes", found: TraceStatistics) -> "Axes":
    """Which experts of a layer tokens use together, where that is furthest from chance."""
    lift = loads.lift(found.coactivation, found.trace.tokens)
    known = np.where(np.isfinite(lift), lift, 1.0)
    layer = int(np.argmax(abs(np.log2(np.maximum(known, 2.0**-6))).mean(axis=(1, 2))))
    title = f"Layer {layer}: both over chance"
    return _odds(axes, lift[layer], title, "experts, alike side by side", "experts of the same token")


def _odds(axes: "Axes", ratio: Floats, title: str, across: str, down: str) -> "Axes":
    """Heat map of a ratio: white is 1 or unknown, colours reach from an eighth to eight times."""
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.clip(np.log2(ratio), -_ODDS, _ODDS)
    rows, columns = _alike(np.nan_to_num(logs))
    image = axes.imshow(logs[rows][:, columns], cmap=_DIVERGING, vmin=-_ODDS, vmax=_ODDS, interpolation="nearest")
    axes.set(xlabel=across, ylabel=down, title=title, xticks=[], yticks=[])
    axes.title.set_fontsize(9)
    bar = axes.figure.colorbar(image, ax=axes, ticks=range(-_ODDS, _ODDS + 1), pad=0.02, shrink=0.75, extend="both")
    bar.ax.set_yticklabels([f"1/{2**-power}" if power < 0 else f"{2**power}" for power in range(-_ODDS, _ODDS + 1)])
    bar.outline.set_visible(False)
    return axes


def _alike(values: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Orders of rows and of columns that bring alike ones together: those of the strongest singular vectors."""
    left, _, right = np.linalg.svd(values - values.mean(), full_matrices=False)
    sign = 1.0 if left[0, 0] >= 0 else -1.0  # LAPACK may return either
    return np.argsort(sign * left[:, 0], kind="stable"), np.argsort(sign * right[0], kind="stable")


def locality_figure(found: TraceStatistics) -> "Figure":
    """Reuse, segments and caches: what a token's predecessors say about its experts."""
    return _panels(found, 3.7, "Locality", (draw_reuse, 1.0), (draw_segments, 1.0), (draw_caches, 1.0))


def draw_reuse(axes: "Axes", found: TraceStatistics) -> "Axes":
    """Share of a token's experts that an earlier token used, against the distance."""
    lags = [lag for lag, part in found.reuse.items() if part.pairs.any()]
    if not lags:
        return _nothing(axes, "no request has a second token")
    for index, (name, means) in enumerate((("by token", "by_token"), ("by request", "by_request"))):
        values = [float(getattr(found.reuse[lag], means)().mean()) for lag in lags]
        axes.plot(lags, values, marker="o", markersize=3.5, label=name, **series_line(index))
    chance = loads.independent_overlap(found.load, found.trace.tokens, found.trace.top_k).mean()
    axes.axhline(chance, color=TEXT, linestyle="--", linewidth=1, label="independent tokens")
    axes.axhline(
        found.trace.top_k / found.trace.experts, color=SUBTLE, linestyle=":", linewidth=1.2, label="and balanced"
    )
    _tokens_axis(axes, "distance in tokens")
    axes.set(ylabel="share of experts in common", title="Reuse", ylim=(0, 1.4 * axes.get_ylim()[1]))
    axes.legend(loc="upper right")
    return axes


def draw_segments(axes: "Axes", found: TraceStatistics) -> "Axes":
    """SRP and chunk-level sparsity against the length of segments, beside those of independent balanced tokens."""
    parts = [part for part in found.segments.values() if part.count]
    lengths = [part.length for part in parts]
    if not parts:
        return _nothing(axes, "no request is long enough for a segment")
    floors = np.array([independent_routing(found.trace.experts, found.trace.top_k, length) for length in lengths])
    curves = {
        "SRP": [part.pooled()[0] for part in parts],
        "CLS": [float(part.chunk_sparsity().mean()) for part in parts],
    }
    for index, (name, values) in enumerate(curves.items()):
        line = series_line(index)
        axes.plot(lengths, values, marker="o", markersize=3.5, label=name, **line)
        label = f"{name}, balanced, independent"
        axes.plot(lengths, floors[:, index], color=line["color"], linestyle=":", label=label)
    _tokens_axis(axes, "consecutive tokens")
    axes.set(title="Segments: SRP and sparsity (CLS)", ylim=(0, 1), ylabel="best F1; share of experts unused")
    axes.legend(loc="upper right")
    return axes


def draw_caches(axes: "Axes", found: TraceStatistics) -> "Axes":
    """Hit rate against the size of the cache, by rule."""
    sizes = np.arange(found.trace.top_k, found.trace.experts + 1)
    horizons = [horizon for rule, horizon in found.caches if rule == SEGMENT]
    shades = dict(zip(horizons, ordered_colours(len(horizons) + 1)[1:], strict=True))
    for index, ((rule, horizon), hits) in enumerate(found.caches.items()):
        rate = hits.rate().mean(axis=0)[sizes - 1]
        line: dict[str, Any] = series_line(index)
        label = _RULE_NAMES.get(rule, f"SCH, {horizon} tokens ahead")
        if rule == SEGMENT:
            line = {"color": shades[horizon], "linestyle": "--", "linewidth": 1.2}
        axes.plot(sizes, rate, label=label, **line)
    axes.plot(
        sizes, sizes / found.trace.experts, color=SUBTLE, linestyle=":", linewidth=1.2, label="no locality, balanced"
    )
    axes.set(xlabel="experts in the cache of a layer", ylabel="hit rate", title="Expert caches", ylim=(0, 1.02))
    axes.set_xlim(found.trace.top_k, max(found.trace.experts, found.trace.top_k + 1))
    axes.grid(visible=True)
    axes.legend(loc="lower right")
    return axes


def _tokens_axis(axes: "Axes", label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(label)
    axes.grid(visible=True)


def drift_figure(found: TraceStatistics) -> "Figure":
    """How far loads move from the first to the second half of the trace, and between domains."""
    return _panels(found, 4.4, "Drift", (draw_halves, 1.0), (draw_domains, 1.25))


def draw_halves(axes: "Axes", found: TraceStatistics) -> "Axes":
    """Distance of the loads of two halves of the requests, in order and at random."""
    for index, (name, load) in enumerate(
        (("first and second half", found.half_load), ("two random halves: chance", found.random_half_load))
    ):
        axes.plot(
            loads.total_variation(load[:, 0], load[:, 1]), label=name, marker="o", markersize=3, **series_line(index)
        )
    axes.set(
        xlabel="MoE layer", ylabel="share of the load that moves (total variation)", title="Halves of the requests"
    )
    axes.set_ylim(0, None)
    axes.grid(visible=True)
    axes.legend(loc="best")
    return axes


def draw_domains(axes: "Axes", found: TraceStatistics) -> "Axes":
    """Distance of the loads of every two domains, the largest ones if there are many."""
    if len(found.groups) < len(("one", "other")):
        return _nothing(axes, "requests are of one domain, or it is unknown")
    size = found.group_load[0].sum(axis=1)
    shown = np.sort(np.argsort(-size, kind="stable")[:_LEGIBLE_GROUPS])
    distance = found.group_distance()[np.ix_(shown, shown)]
    image = axes.imshow(distance, cmap=_SEQUENTIAL, vmin=0, interpolation="nearest")
    for (row, column), value in np.ndenumerate(distance):
        colour = style.text_colour_on(_hex(image, value))
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=7)
    names = [plain(shortened(found.groups[index], _LABEL_LETTERS)) for index in shown]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_title("Domains: % of the load that moves")
    return axes


def _hex(image: Any, value: float) -> str:
    from matplotlib.colors import to_hex

    return to_hex(image.cmap(image.norm(value)))


def _nothing(axes: "Axes", why: str) -> "Axes":
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=SUBTLE)
    axes.set_axis_off()
    return axes


FIGURES: dict[str, Callable[[TraceStatistics], "Figure"]] = {
    "load": load_figure,
    "imbalance": imbalance_figure,
    "batches": batch_figure,
    "layers": layer_figure,
    "locality": locality_figure,
    "drift": drift_figure,
}
"""Figures by the name of their file."""
