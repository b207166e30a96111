"""Draws what `moesim.reports.roofline` computes."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from moesim.reports.roofline import PlottedStep, Point, Roof, Roofline
from moesim.reports.style import KINDS, OTHER, PREFILL, SUBTLE, TEXT, new_figure, ordered_colours, plain, styled
from moesim.workloads.operator_plan import EXPERTS

if TYPE_CHECKING:  # matplotlib loads slowly
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

_Legend = tuple[str, "list[Line2D]", int]
"""Title, entries, columns."""

_COLUMNS = 3
_PANEL_IN = (5.2, 4.3)
_NARROWEST_IN = 10.4  # so that the legends fit side by side
_LEGENDS_AT_IN = (0.1, 3.75, 5.6, 8.4)
_LINE_IN = 0.175  # of the legends and the note
_MARKER_POINTS, _LARGEST_POINTS = 5.5, 16.0
"""Diameter of an operator that takes no time, and of one that takes all of its step; in between the area counts."""
_NOTE_LETTERS_PER_IN = 15.5
_TITLE_LETTERS = 52
_EXAMPLE_SHARES = (0.01, 0.1, 0.5)
_ROOM = 2.0  # the limits lie this factor beyond the data
_MOSTLY = 0.5  # an operator counts as extrapolated from this share of its time on
_ROOF_COLOURS = (TEXT, "#8a5a00")
"""Roofs of a device's first and second processor."""
_FORMAT_LABELS = {"fp8_block": "fp8"}  # of one peak, as far as data sheets go
_PEAK_LINE: dict[str, Any] = {"linestyle": "-", "linewidth": 1.3}
_SUSTAINED_LINE: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 0.9}
_SLOPE_LABEL_AT = 0.5  # of the lowest peak: above the slope and left of the corner there are neither points nor lines
_ROUNDS_UP = 0.9995  # 999.6 is written as 1 of the next prefix
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


class Limits(NamedTuple):
    """Ends of the axes: FLOP/byte, FLOP/s."""

    intensity: tuple[float, float]
    rate: tuple[float, float]


def roofline_figure(panels: Sequence[Roofline]) -> "Figure":
    """A panel for each of `panels` (one at least, all of one model and of the same steps), with shared axes."""
    rows = -(-len(panels) // _COLUMNS)
    columns = -(-len(panels) // rows)
    width_in, height_in = max(_NARROWEST_IN, _PANEL_IN[0] * columns), _PANEL_IN[1] * rows
    with styled():
        legends, note = _legend_groups(panels), _note(panels, width_in)
        lines = 3 + max(-(-len(handles) // per_row) for _, handles, per_row in legends) + note.count("\n")
        figure = new_figure(width_in, height_in + lines * _LINE_IN)
        top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[height_in, lines * _LINE_IN]).ravel()
        _draw_panels(top, panels, (rows, columns))
        top.suptitle(_title(panels[0]), fontsize=11.5, fontweight="bold", x=0.1 / width_in, ha="left")
        _draw_legends(bottom, legends, width_in)
        bottom.text(0.1 / width_in, 0.04, note, fontsize=8, color=SUBTLE, va="bottom", in_layout=False)
    return figure


def _draw_panels(figure: "SubFigure", panels: Sequence[Roofline], shape: tuple[int, int]) -> None:
    axes = figure.subplots(*shape, squeeze=False).ravel()
    shared, colours = limits_of(panels), step_colours(panels[0])
    for index, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        draw_roofline(axis, panel, colours=colours, limits=shared)
        if index % shape[1]:
            axis.set_ylabel("")
    for axis in axes[len(panels) :]:
        axis.remove()


def draw_roofline(
    axes: "Axes", panel: Roofline, *, colours: Mapping[PlottedStep, str] | None = None, limits: Limits | None = None
) -> "Axes":
    """Roofs and operators of one device on logarithmic axes.

    Args:
        axes: where.
        panel: what.
        colours: of each step; by default those of `step_colours`.
        limits: of the axes; by default those of `limits_of`.
    """
    intensity, rate = limits or limits_of([panel])
    axes.set(xscale="log", yscale="log", xlim=intensity, ylim=rate)
    axes.set_xlabel("arithmetic intensity: FLOPs / bytes moved (FLOP/byte)")
    axes.set_ylabel("attained rate: FLOPs / priced time (FLOP/s)")
    axes.set_title(_panel_title(panel))
    axes.grid(visible=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: _si(value))
    axes.minorticks_off()
    processors = list(dict.fromkeys(roof.processor for roof in panel.roofs))
    for processor, colour in zip(processors, _ROOF_COLOURS, strict=False):
        own = [roof for roof in panel.roofs if roof.processor == processor]
        _draw_roofs(axes, own, colour, f"{plain(processor)}: " if len(processors) > 1 else "")
    shown = colours or step_colours(panel)
    for point in sorted(panel.points, key=lambda point: -point.time_fraction):  # small ones on top of large ones
        _draw_point(axes, point, shown[point.step])
    return axes


def limits_of(panels: Sequence[Roofline]) -> Limits:
    """Axes that hold all points of all panels, and the corners of their roofs."""
    points = [point for panel in panels for point in panel.points]
    every = [roof for panel in panels for roof in panel.roofs]
    corners = [roof.peak_flops_per_s / roof.peak_bytes_per_s for roof in every]
    intensities = [point.intensity_flops_per_byte for point in points]
    slowest = min(point.attained_flops_per_s for point in points)
    fastest = max(roof.peak_flops_per_s for roof in every)
    wide = (min(intensities) / _ROOM**2, max(*intensities, *corners) * _ROOM**2)
    return Limits(wide, (slowest / _ROOM, fastest * _ROOM))


def step_colours(panel: Roofline) -> dict[PlottedStep, str]:
    """Decode steps from light to dark by batch size; prefill in a colour of its own."""
    steps = list(dict.fromkeys(point.step for point in panel.points))
    decodes = [step for step in steps if step.phase == "decode"]
    colours = dict(zip(decodes, ordered_colours(len(decodes)), strict=True))
    return {step: colours.get(step, PREFILL) for step in steps}


# --- parts of a panel --------------------------------------------------------------------------------------------


def _draw_roofs(axes: "Axes", roofs: Sequence[Roof], colour: str, prefix: str) -> None:
    """The roofs of one processor: data sheet solid, sustained dashed; the slope is common to all number formats."""
    left, right = axes.get_xlim()
    labels = {}
    for roof in roofs:
        for rate, bandwidth, line in (
            (roof.peak_flops_per_s, roof.peak_bytes_per_s, _PEAK_LINE),
            (roof.sustained_flops_per_s, roof.sustained_bytes_per_s, _SUSTAINED_LINE),
        ):
            xs, ys = [left, rate / bandwidth, right], [left * bandwidth, rate, rate]
            axes.plot(xs, ys, color=colour, zorder=3.5, **line)
        name = f"{prefix}{_FORMAT_LABELS.get(roof.format, roof.format)}".strip()
        labels[f"{name} {_si(roof.peak_flops_per_s)}FLOP/s"] = roof.peak_flops_per_s
    for label, rate in labels.items():
        _write(axes, label, (right, rate), (4, 0), colour, ("left", "center"))
    bandwidth = roofs[0].peak_bytes_per_s
    height = _SLOPE_LABEL_AT * min(roof.peak_flops_per_s for roof in roofs)
    label = f"{prefix}memory\n{_si(bandwidth)}B/s"
    _write(axes, label, (height / bandwidth, height), (-6, 2), colour, ("right", "bottom"))


def _write(
    axes: "Axes",
    text: str,
    at: tuple[float, float],
    offset_points: tuple[float, float],
    colour: str,
    align: tuple[str, str],
) -> None:
    axes.annotate(
        text,
        at,
        offset_points,
        textcoords="offset points",
        color=colour,
        fontsize=8,
        linespacing=1.05,
        horizontalalignment=align[0],
        verticalalignment=align[1],
        annotation_clip=False,
    )


def _draw_point(axes: "Axes", point: Point, colour: str) -> None:
    hollow = point.extrapolated_fraction >= _MOSTLY
    axes.plot(
        [point.intensity_flops_per_byte],
        [point.attained_flops_per_s],
        linestyle="none",
        marker=point.kind.marker,
        markersize=_diameter_points(point.time_fraction),
        markerfacecolor="white" if hollow else colour,
        markeredgecolor=colour if hollow else "white",
        markeredgewidth=1.1 if hollow else 0.4,
        alpha=0.9,
        zorder=3,
    )


def _diameter_points(fraction: float) -> float:
    """Area grows in proportion to the fraction of the step's time."""
    small, large = _MARKER_POINTS**2, _LARGEST_POINTS**2
    return float((small + (large - small) * fraction) ** 0.5)


def _panel_title(panel: Roofline) -> str:
    shard = f", one of {panel.tp} shards (tp)" if panel.tp > 1 else ""
    return textwrap.fill(plain(panel.title) + shard, _TITLE_LETTERS)


def _si(value: float) -> str:
    """`value` with an SI prefix, to stand before a unit."""
    factor, prefix = next((pair for pair in _PREFIXES if value >= pair[0] * _ROUNDS_UP), _PREFIXES[-1])
    return f"{value / factor:.3g} {prefix}"


# --- title and legends -------------------------------------------------------------------------------------------


def _title(panel: Roofline) -> str:
    return f"{plain(panel.model)}: the operators of one step under the roofs of the hardware"


def _legend_groups(panels: Sequence[Roofline]) -> list[_Legend]:
    points = [point for panel in panels for point in panel.points]
    used = {point.kind for point in points}
    kinds = [_marker(kind.label, kind.marker, SUBTLE) for kind in (*KINDS, OTHER) if kind in used]
    steps = [_marker(step.label, "o", colour) for step, colour in step_colours(panels[0]).items()]
    shares = [_marker(f"{share:.0%}", "o", SUBTLE, _diameter_points(share)) for share in _EXAMPLE_SHARES]
    return [
        ("operators", kinds, 2),
        ("step", steps, 1),
        ("roofs and prices", _line_handles(points), 1),
        ("share of step time", shares, 1),
    ]


def _draw_legends(figure: "SubFigure", legends: Sequence[_Legend], width_in: float) -> None:
    for (title, handles, columns), left_in in zip(legends, _LEGENDS_AT_IN, strict=True):
        legend = figure.legend(
            handles=handles,
            title=title,
            ncols=columns,
            loc="upper left",
            bbox_to_anchor=(left_in / width_in, 1.0),
            alignment="left",
            borderpad=0,
            borderaxespad=0,
        )
        legend.get_title().set_fontweight("bold")
        legend.set_in_layout(False)


def _line_handles(points: Sequence[Point]) -> "list[Line2D]":
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=TEXT, label="data sheet", **_PEAK_LINE),
        Line2D([], [], color=TEXT, label="sustained by large products", **_SUSTAINED_LINE),
    ]
    if any(point.extrapolated_fraction >= _MOSTLY for point in points):
        handles.append(_marker("hollow: outside measured range", "o", SUBTLE, hollow=True))
    return handles


def _marker(label: str, marker: str, colour: str, diameter_points: float = 7.0, *, hollow: bool = False) -> "Line2D":
    from matplotlib.lines import Line2D

    handle = Line2D([], [], linestyle="none", marker=marker, label=label, color=colour, markersize=diameter_points)
    if hollow:
        handle.set(markerfacecolor="white", markeredgewidth=1.1)
    return handle


def _note(panels: Sequence[Roofline], width_in: float) -> str:
    points = [point for panel in panels for point in panel.points]
    steps = {point.step.phase: point.step for point in points}
    routing = " Experts drawn uniformly." if any(EXPERTS in point.operators for point in points) else ""
    context, prompt = steps["decode"].context_tokens, steps["prefill"].tokens
    lines = [
        f"Decode: one token of each sequence, {context:,} tokens cached. Prefill: {prompt:,} tokens.{routing}",
        "A point is the operators of one kind in all layers; its area grows with its share of the step's time.",
        "Operators without FLOPs (norms, rotary embedding, activation functions, sampling) are left out.",
    ]
    if any(len(point.roofs) > 1 for point in points):
        lines[2] += " A point above the roofs of both processors runs on both at once."
    crowded = [panel for panel in panels if panel.weight_bytes > panel.memory_bytes]
    if crowded:
        names = ", ".join(f"{plain(panel.device)} ({_si(panel.memory_bytes)}B)" for panel in crowded)
        weights = f"{_si(crowded[0].weight_bytes)}B of weights"
        lines.append(f"The {weights} exceed the memory of {names}.")
    return "\n".join(textwrap.fill(line, int(width_in * _NOTE_LETTERS_PER_IN)) for line in lines)
