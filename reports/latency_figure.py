"""Draws what `moesim.reports.latency` computes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moesim.reports import style
from moesim.reports.latency import (
    COMPUTE,
    IDLE,
    NETWORK,
    Run,
    device_shares,
    mean_step_s,
    request_ecdf,
    step_time_by_kind,
    step_time_by_layer,
    steps,
    waiting_s,
)
from moesim.reports.style import KINDS, OTHER, duration_text, in_two_lines, plain, series_line, shortened

if TYPE_CHECKING:  # matplotlib loads slowly
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Floats = NDArray[np.float64]

FIGURES = ("steps", "layers", "devices", "latency")
"""What `latency_figure` can show."""

_WIDTH_IN = 10.5
_HEADER_LINE_IN = 0.19
_PANEL_IN = 3.2
_BAR_IN = 0.5
_LEAST_STEPS_IN = 2.7  # room for the legend
_LABEL_LETTERS = 26
_SMALLEST_LABELLED = 0.045  # share of the longest bar
_LEGIBLE_DEVICES = 20  # with more bars than this, devices are not numbered
_HEADROOM = 1.2  # above the bars, for the legend
_CROWDED_RUNS = 3  # with more runs than this, their names under the bars stand upright, in this many inches
_UPRIGHT_NAMES_IN, _UPRIGHT_LETTERS = 0.8, 18
_SPREAD = 4.0  # times that differ by more than this factor are drawn on a logarithmic axis
_METRICS = {"ttft_s": "TTFT: arrival to first token", "tpot_s": "TPOT: time per output token after the first"}
_QUARTERS = ([0.0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])


def latency_figure(runs: Sequence[Run], figures: Sequence[str] = FIGURES) -> "Figure":
    """The chosen panels for all runs (one at least), under a header that says what each run is."""
    rows = _rows(runs, figures)
    heights_in = [_HEADER_LINE_IN * (len(runs) + 1.2), *(height for _, height in rows)]
    with style.styled():
        figure = style.new_figure(_WIDTH_IN, sum(heights_in))
        parts = figure.subfigures(len(heights_in), 1, height_ratios=heights_in, squeeze=False).ravel()
        _draw_header(parts[0], runs)
        for part, (names, _) in zip(parts[1:], rows, strict=True):
            _draw_row(part, runs, names)
    return figure


def _rows(runs: Sequence[Run], figures: Sequence[str]) -> list[tuple[list[str], float]]:
    """Panels that stand side by side, with the height of each row in inches."""
    steps_in = max(_LEAST_STEPS_IN, 1.0 + _BAR_IN * len(runs))
    middle = [name for name in ("layers", "devices") if name in figures]
    rows = [(["steps"], steps_in)] if "steps" in figures else []
    upright_in = _UPRIGHT_NAMES_IN if "devices" in middle and len(runs) > _CROWDED_RUNS else 0.0
    rows += [(middle, _PANEL_IN + upright_in)] if middle else []
    return [*rows, (list(_METRICS), _PANEL_IN)] if "latency" in figures else rows


def _draw_row(figure: "SubFigure", runs: Sequence[Run], names: Sequence[str]) -> None:
    axes = figure.subplots(1, len(names), squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=True):
        if name in _METRICS:
            draw_distribution(axis, runs, name)
        else:
            {"steps": draw_steps, "layers": draw_layers, "devices": draw_devices}[name](axis, runs)


def _draw_header(figure: "SubFigure", runs: Sequence[Run]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=_summary(run), **series_line(index)) for index, run in enumerate(runs)]
    legend = figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.004, 1.0), borderpad=0.6)
    legend.set_in_layout(False)


def _summary(run: Run) -> str:
    *_, outside_s = step_time_by_layer(run.result)
    count, mean_s = steps(run.result), mean_step_s(run.result)
    what = plain(shortened(f"{run.label}: {run.description}", 100))
    return f"{what}; {count:,} steps of {duration_text(mean_s)}, {duration_text(outside_s)} of it outside the layers"


# --- panels ------------------------------------------------------------------------------------------------------


def draw_steps(axes: "Axes", runs: Sequence[Run]) -> "Axes":
    """A stacked bar for each run: busy time of a device per step by kind of operator, and the mean step."""
    times = [step_time_by_kind(run.result) for run in runs]
    means_ms = np.array([1e3 * mean_step_s(run.result) for run in runs])
    longest_ms = max(means_ms.max(), *(1e3 * sum(time.values()) for time in times))
    positions, left_ms = np.arange(len(runs)), np.zeros(len(runs))
    for kind in (*KINDS, OTHER):
        width_ms = np.array([1e3 * time.get(kind, 0.0) for time in times])
        if width_ms.any():
            bars = axes.barh(positions, width_ms, 0.62, left_ms, color=kind.colour, label=kind.label, edgecolor="white")
            labels = [f"{width:.3g}" if width >= _SMALLEST_LABELLED * longest_ms else "" for width in width_ms]
            colour = style.text_colour_on(kind.colour)
            axes.bar_label(bars, labels, label_type="center", color=colour, fontsize=8)
        left_ms += width_ms
    waiting_ms = [1e3 * waiting_s(run.result) for run in runs]
    axes.barh(positions, waiting_ms, 0.62, left_ms, color=style.IDLE, label="waiting for others")
    axes.vlines(means_ms, positions - 0.4, positions + 0.4, color=style.TEXT, linewidth=2.2, label="mean step duration")
    axes.set_yticks(positions, [in_two_lines(run.label, _LABEL_LETTERS) for run in runs])
    axes.set(ylim=(len(runs) - 0.4, -0.6), xlim=(0, 1.04 * longest_ms))
    axes.set(xlabel="time per step (ms): mean over steps and devices", title="Step time by kind of operator")
    axes.grid(visible=True, axis="x")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.04), borderpad=0)
    return axes


def draw_layers(axes: "Axes", runs: Sequence[Run]) -> "Axes":
    """A line for each run: busy time of a device per step in each layer."""
    highest_ms = 0.0
    for index, run in enumerate(runs):
        layers, seconds, _ = step_time_by_layer(run.result)
        axes.plot(layers, 1e3 * seconds, drawstyle="steps-mid", **series_line(index))
        highest_ms = max(highest_ms, 1e3 * float(seconds.max(initial=0.0)))
    axes.set(xlabel="layer", ylabel="time per step (ms)", title="Step time by layer: mean over steps and devices")
    axes.set_ylim(0, 1.05 * highest_ms or 1.0)
    axes.grid(visible=True)
    return axes


def draw_devices(axes: "Axes", runs: Sequence[Run]) -> "Axes":
    """A stacked bar for each device of each run: computing, on the network, idle; as shares of the run."""
    shares = [device_shares(run.result) for run in runs]
    counts = np.array([len(share[IDLE]) for share in shares])
    first = np.cumsum(counts + 1) - counts
    positions = [start + np.arange(count) for start, count in zip(first, counts, strict=True)]
    crowded = counts.sum() > _LEGIBLE_DEVICES
    highest = max(_stack(axes, *bars, crowded=crowded) for bars in zip(positions, shares, strict=True))
    centres = {float(bars.mean()): run.label for bars, run in zip(positions, runs, strict=True)}
    _name_bars(axes, [] if crowded else positions, centres)
    axes.set(ylim=(0, _HEADROOM * highest), xlim=(0, positions[-1][-1] + 1), ylabel="share of the run")
    axes.set_title("Devices: busy and idle")
    axes.set_yticks(*_QUARTERS)
    axes.grid(visible=True, axis="y")
    _activity_legend(axes, shares)
    return axes


def draw_distribution(axes: "Axes", runs: Sequence[Run], metric: str) -> "Axes":
    """The share of requests of each run that were served within a time.

    Args:
        axes: where.
        runs: of what.
        metric: `ttft_s` or `tpot_s`.
    """
    drawn = []
    for index, run in enumerate(runs):
        times_s, fractions = request_ecdf(run.result, metric)
        if len(times_s):
            axes.plot([times_s[0], *times_s], [0, *fractions], drawstyle="steps-post", **series_line(index))
            drawn += [times_s[0], times_s[-1]]
    _scale_times(axes, drawn)
    axes.set(ylim=(0, 1.02), xlabel="time", ylabel="share of requests", title=_METRICS[metric])
    axes.set_yticks([*_QUARTERS[0], 0.9], [*_QUARTERS[1], "90%"])
    axes.grid(visible=True)
    return axes


# --- parts of panels ---------------------------------------------------------------------------------------------


def _stack(axes: "Axes", positions: NDArray[np.int64], shares: dict[str, Floats], *, crowded: bool) -> float:
    """Bars of one run; returns the height of the tallest, which is above 1 where activities overlap."""
    bottom = np.zeros(len(positions))
    line = {"edgecolor": "none"} if crowded else {"edgecolor": "white", "linewidth": 0.6}
    for activity, colour in _activity_colours(shares).items():
        axes.bar(positions, shares[activity], 1.0 if crowded else 0.82, bottom, color=colour, **line)
        bottom = bottom + shares[activity]
    return float(bottom.max())


def _activity_colours(shares: dict[str, Floats]) -> dict[str, str]:
    """Colour of each activity, from the bottom of the bars to the top."""
    processors = (name for name in shares if name not in {NETWORK, IDLE})
    return {**dict(zip(processors, style.PROCESSORS, strict=False)), NETWORK: style.NETWORK, IDLE: style.IDLE}


def _activity_legend(axes: "Axes", runs: Sequence[dict[str, Floats]]) -> None:
    """One entry per colour; processors of different devices can share one."""
    from matplotlib.patches import Patch

    names: dict[str, dict[str, None]] = {colour: {} for colour in (*style.PROCESSORS, style.NETWORK, style.IDLE)}
    for shares in runs:
        for activity, colour in _activity_colours(shares).items():
            names[colour]["computing" if activity == COMPUTE else plain(activity)] = None
    handles = [Patch(color=colour, label=" / ".join(labels)) for colour, labels in names.items() if labels]
    axes.legend(handles=handles, loc="upper left", ncols=len(handles), columnspacing=1.2, borderpad=0)


def _name_bars(axes: "Axes", numbered: Sequence[NDArray[np.int64]], centres: dict[float, str]) -> None:
    """Runs below their bars and, between both, the numbers of `numbered` devices."""
    axes.xaxis.remove_overlapping_locs = False
    upright = len(centres) > _CROWDED_RUNS
    names = [in_two_lines(name, _UPRIGHT_LETTERS if upright else _LABEL_LETTERS) for name in centres.values()]
    axes.set_xticks(list(centres), names, rotation=90 if upright else 0)
    axes.tick_params(axis="x", which="major", length=0, pad=15 if numbered else 4)
    axes.set_xticks(
        [float(bar) for bars in numbered for bar in bars],
        [str(device) for bars in numbered for device in range(len(bars))],
        minor=True,
    )
    axes.tick_params(axis="x", which="minor", length=0, labelsize=7.5, labelcolor=style.SUBTLE)
    axes.set_xlabel("device number, run" if numbered else "all devices of a run")


def _scale_times(axes: "Axes", drawn: Sequence[float]) -> None:
    """A time axis for values between the least and greatest of `drawn`; logarithmic if they are far apart."""
    axes.xaxis.set_major_formatter(lambda value, _: duration_text(value) if value > 0 else "0")
    if not drawn:
        axes.text(0.5, 0.5, "no request has a second token", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
    elif min(drawn) > 0 and max(drawn) > _SPREAD * min(drawn):
        axes.set_xscale("log", subs=[])
        ends = axes.get_xlim()
        ticks = [mantissa * 10.0**power for power in range(-9, 9) for mantissa in (1, 2, 5)]
        axes.set_xticks([tick for tick in ticks if ends[0] <= tick <= ends[1]])
        axes.xaxis.set_major_formatter(lambda value, _: duration_text(value))
        axes.tick_params(axis="x", labelsize=8)
    else:
        axes.set_xlim(left=0)
