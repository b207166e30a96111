"""The comparison of runs as one self-contained file, HTML or Markdown."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from moesim.reports.comparison import ComparedRun, Metric, MetricRow, OperatorRow, metric_rows, operator_rows
from moesim.reports.latency_figure import latency_figure
from moesim.reports.style import styled
from moesim.simulator.result import describe_pools

if TYPE_CHECKING:  # matplotlib loads slowly
    from matplotlib.figure import Figure

TEMPLATES = {".html": "compare.html.j2", ".md": "compare.md.j2"}
_SAME = 0.005  # ratios nearer to 1 than this are neither better nor worse
_MICRO = 1e6
_ALL_DIGITS = 1000
DESCRIBED = ("model", "systems", "load", "routing", "extrapolated")


@dataclass(frozen=True)
class PageFigure:
    """A figure as SVG text."""

    title: str
    svg: Markup  # drawn by us, so it goes into the page as it is

    @property
    def base64(self) -> str:
        """The SVG for a data URI."""
        return base64.b64encode(self.svg.encode()).decode()


def comparison_figures(runs: Sequence[ComparedRun]) -> list[PageFigure]:
    """Step time by operator, and the latencies that requests saw."""
    titles = {"steps": "Step time by operator", "latency": "Latency of requests"}
    return [PageFigure(title, _svg(latency_figure(runs, [name]))) for name, title in titles.items()]


def _svg(figure: "Figure") -> Markup:
    """The `svg` element of a figure, without the lines that make it a file of its own."""
    text = io.StringIO()
    with styled():
        figure.savefig(text, format="svg", metadata={"Date": None})
    return Markup(text.getvalue()[text.getvalue().index("<svg") :])  # noqa: S704  # see PageFigure.svg


def comparison_page(runs: Sequence[ComparedRun], figures: Sequence[PageFigure], suffix: str) -> str:
    """The whole page.

    Args:
        runs: at least one.
        figures: drawn below the tables.
        suffix: `.html` or `.md`.
    """
    html = suffix == ".html"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=html,  # noqa: S701  # every label and name is text; a Markdown file escapes what would break its tables
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.finalize = None if html else _escape_markdown
    return environment.get_template(TEMPLATES[suffix]).render(
        title=_title(runs),
        runs=runs,
        base_note=_base_note(runs),
        metrics=[_metric_cells(row, runs) for row in metric_rows(runs)],
        operators=[_operator_cells(row, runs) for row in operator_rows(runs)],
        figures=figures,
        described=DESCRIBED,
        descriptions=[{"label": run.label, "facts": _facts(run)} for run in runs],
    )


def _base_note(runs: Sequence[ComparedRun]) -> str:
    """What ratios and differences refer to."""
    bases = [run.label for position, run in enumerate(runs) if run.base == position]
    if len(bases) == 1:
        return f"Ratios and differences are to {bases[0]}."
    return f"Ratios and differences are to the run of the first scenario with the same settings: {', '.join(bases)}."


def _escape_markdown(value: Any) -> Any:
    return value.replace("|", "\\|").replace("<", "&lt;") if isinstance(value, str) else value


def _title(runs: Sequence[ComparedRun]) -> str:
    models = dict.fromkeys(run.result.settings["resolved"]["model"] for run in runs)
    systems = dict.fromkeys(run.result.settings["resolved"]["system"] for run in runs)
    return f"{', '.join(models)} on {', '.join(systems)}"


def _compared(runs: Sequence[ComparedRun]) -> list[bool]:
    """Which runs are compared with another."""
    return [run.base != position for position, run in enumerate(runs)]


def _metric_cells(row: MetricRow, runs: Sequence[ComparedRun]) -> dict[str, Any]:
    cells = [
        {
            "value": "-" if value is None else _number(value),
            "ratio": f"{ratio:.2f}x" if compared and ratio is not None else "",
            "verdict": _verdict(row.metric, ratio) if compared else "",
        }
        for value, ratio, compared in zip(row.values, row.ratios, _compared(runs), strict=True)
    ]
    return {"metric": row.metric, "cells": cells}


def _number(value: float) -> str:
    """Four significant digits, and all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= _ALL_DIGITS else f"{value:.4g}"


def _verdict(metric: Metric, ratio: float | None) -> str:
    if ratio is None or abs(ratio - 1) < _SAME:
        return ""
    return "better" if (ratio > 1) == metric.higher_is_better else "worse"


def _operator_cells(row: OperatorRow, runs: Sequence[ComparedRun]) -> dict[str, Any]:
    cells = []
    for seconds, difference, compared in zip(row.seconds, row.differences, _compared(runs), strict=True):
        verdict = "" if difference == 0 else "better" if difference < 0 else "worse"
        shown = f"{difference * _MICRO:+.3g}" if compared else ""
        cells.append({"value": _number(seconds * _MICRO), "difference": shown, "verdict": verdict})
    return {"operator": row.operator, "cells": cells}


def _facts(run: ComparedRun) -> list[str]:
    settings, summary = run.result.settings, run.result.summary
    what = settings["resolved"]
    loop = f"{what['concurrency']} in flight" if what["concurrency"] else "open loop"
    load = f"{summary['requests']} requests, {loop}"
    return [
        what["model"],
        describe_pools(settings),
        load,
        what["routing"],
        f"{summary['extrapolated_time_fraction']:.0%}",
    ]
