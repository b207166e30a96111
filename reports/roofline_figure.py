"""Draws what `moesim.reports.roofline` computes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from moesim.reports.roofline import PlottedStep, Point, Roof, Roofline
from moesim.reports.style import KINDS, OTHER, PREFILL, SUBTLE, TEXT, new_figure, ordered_colours, plain, styled

if TYPE_CHECKING:  # matplotlib loads slowly
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

_COLUMNS = 3
_PANEL_IN = (5.2, 4.3)
_LEGEND_IN = 1.9
_NARROWEST_IN = 9.0  # so that the legends fit side by side
_LEGENDS_AT_IN = (0.1, 4.55, 6.35)
_MARKER_POINTS = 6.5
_ROOM = 2.0  # the limits lie this factor beyond the data
_MOSTLY = 0.5  # an operator counts as extrapolated from this share of its time on
_ROOF_COLOURS = (TEXT, "#8a5a00")
"""Roofs of a device's first and second processor."""
_FORMAT_LABELS = {"fp8_block": "fp8 block-scaled"}
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


class Limits(NamedTuple):
    """Ends of the axes: FLOP/byte, FLOP/s."""

    intensity: tuple[float, float]
    rate: tuple[float, float]


def roofline_figure(panels: Sequence[Roofline]) -> "Figure":
    """A panel for each of `panels` (one at least, all of one model and of the same steps), with shared axes."""
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width_in, height_in = max(_NARROWEST_IN, _PANEL_IN[0] * columns), _PANEL_IN[1] * rows
    with styled():
        figure = new_figure(width_in, height_in + _LEGEND_IN)
        top, bottom = figure.subfigures(2, 1, height_ratios=[height_in, _LEGEND_IN])
        _draw_panels(top, panels, (rows, columns))
        top.suptitle(_title(panels[0]), fontsize=11.5, fontweight="bold", x=0.1 / width_in, ha="left")
        _draw_legends(bottom, panels, width_in)
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
    axes.set(xlabel="arithmetic intensity (FLOP/byte)", ylabel="attained rate (FLOP/s)")
    axes.set_title(_panel_title(panel))
    axes.grid(visible=True)
    axes.xaxis.set_major_formatter(_tick)
    axes.yaxis.set_major_formatter(_tick)
    axes.minorticks_off()
    processors = list(dict.fromkeys(roof.processor for roof in panel.roofs))
    for processor, colour in zip(processors, _ROOF_COLOURS, strict=False):
        own = [roof for roof in panel.roofs if roof.processor == processor]
        _draw_roofs(axes, own, colour, f"{plain(processor)}: " if len(processors) > 1 else "")
    shown = colours or step_colours(panel)
    for point in panel.points:
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
    right = axes.get_xlim()[1]
    for roof in roofs:
        for rate, bandwidth, style, width in (
            (roof.peak_flops_per_s, roof.peak_bytes_per_s, "-", 1.3),
            (roof.sustained_flops_per_s, roof.sustained_bytes_per_s, (0, (4, 3)), 0.9),
        ):
            corner = rate / bandwidth
            left = axes.get_xlim()[0]
            xs, ys = [left, corner, right], [left * bandwidth, rate, rate]
            axes.plot(xs, ys, color=colour, linestyle=style, linewidth=width, zorder=1.5)
        name = _FORMAT_LABELS.get(roof.format, roof.format)
        label = f"{prefix}{name} {_si(roof.peak_flops_per_s)}FLOP/s".strip()
        _write(axes, label, (right, roof.peak_flops_per_s), (-2, 2), colour, "right")
    low, high = axes.get_ylim()
    height = low * (high / low) ** 0.62
    bandwidth = roofs[0].peak_bytes_per_s
    _write(axes, f"{prefix}{_si(bandwidth)}B/s", (height / bandwidth, height), (-5, 2), colour, "right")


def _write(
    axes: "Axes", text: str, at: tuple[float, float], offset_points: tuple[float, float], colour: str, align: str
) -> None:
    axes.annotate(
        text,
        at,
        offset_points,
        textcoords="offset points",
        color=colour,
        fontsize=8,
        horizontalalignment=align,
        verticalalignment="bottom",
        zorder=4,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )


def _draw_point(axes: "Axes", point: Point, colour: str) -> None:
    hollow = point.extrapolated_fraction >= _MOSTLY
    axes.plot(
        [point.intensity_flops_per_byte],
        [point.attained_flops_per_s],
        linestyle="none",
        marker=point.kind.marker,
        markersize=_MARKER_POINTS,
        markerfacecolor="white" if hollow else colour,
        markeredgecolor=colour if hollow else "white",
        markeredgewidth=1.3 if hollow else 0.6,
        alpha=0.9,
        zorder=3,
    )


def _panel_title(panel: Roofline) -> str:
    shard = f", one of {panel.tp} tensor-parallel shards" if panel.tp > 1 else ""
    return plain(panel.title) + shard


def _tick(value: float, _: object = None) -> str:
    return _si(value).rstrip() if value >= 1 else f"{value:g}"


def _si(value: float) -> str:
    """`value` with an SI prefix, to stand before a unit."""
    factor, prefix = next((pair for pair in _PREFIXES if value >= pair[0] * 0.9995), _PREFIXES[-1])
    return f"{value / factor:.3g} {prefix}"


# --- title and legends -------------------------------------------------------------------------------------------


def _title(panel: Roofline) -> str:
    return f"{plain(panel.model)}: the operators of one step under the roofs of the hardware"


def _draw_legends(figure: "SubFigure", panels: Sequence[Roofline], width_in: float) -> None:
    points = [point for panel in panels for point in panel.points]
    used = {point.kind for point in points}
    kinds = [_marker(kind.label, kind.marker, SUBTLE) for kind in (*KINDS, OTHER) if kind in used]
    steps = [_marker(step.label, "o", colour) for step, colour in step_colours(panels[0]).items()]
    groups = (("operator", kinds, 2), ("step", steps, 1), ("roofs, prices", _line_handles(points), 1))
    for (title, handles, columns), left_in in zip(groups, _LEGENDS_AT_IN, strict=True):
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
    figure.text(0.1 / width_in, 0.04, _note(panels), fontsize=8, color=SUBTLE, va="bottom", in_layout=False)


def _line_handles(points: Sequence[Point]) -> list["Line2D"]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=TEXT, linewidth=1.3, label="data sheet"),
        Line2D([], [], color=TEXT, linewidth=0.9, linestyle=(0, (4, 3)), label="sustained by large dense products"),
    ]
    if any(point.extrapolated_fraction >= _MOSTLY for point in points):
        handles.append(_marker("hollow: priced outside the fitted range", "o", SUBTLE, hollow=True))
    return handles


def _marker(label: str, marker: str, colour: str, *, hollow: bool = False) -> "Line2D":
    from matplotlib.lines import Line2D

    face = "white" if hollow else colour
    style = {"markerfacecolor": face, "markeredgecolor": colour, "markersize": _MARKER_POINTS}
    return Line2D([], [], linestyle="none", marker=marker, label=label, **style)


def _note(panels: Sequence[Roofline]) -> str:
    steps = {point.step.phase: point.step for panel in panels for point in panel.points}
    lines = [
        f"Decode: one token of each sequence at {steps['decode'].context_tokens:,} tokens of context. "
        f"Prefill: one prompt of {steps['prefill'].tokens:,} tokens. Experts drawn uniformly.",
        "A point is one operator, all layers together: FLOPs / priced time over FLOPs / bytes moved. "
        "Operators without FLOPs (norms, rotary embedding, activations, sampling) are left out.",
    ]
    crowded = [panel for panel in panels if panel.weight_bytes > panel.memory_bytes]
    if crowded:
        names = ", ".join(f"{plain(panel.device)} ({_si(panel.memory_bytes)}B)" for panel in crowded)
        weights = f"{_si(crowded[0].weight_bytes)}B of weights"
        lines.append(f"The {weights} do not fit the memory of {names}; the figure is about operators, not deployment.")
    return "\n".join(lines)
