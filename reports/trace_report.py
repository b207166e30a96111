"""A folder with the statistics of a routing trace: a page to read, tables, matrices, figures."""

import csv
import io
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moesim.errors import DataError
from moesim.files import check_folder
from moesim.reports.routing_figures import FIGURES
from moesim.reports.routing_tables import CACHE_FACTOR, Table, rule_label, rule_name, summary, tables
from moesim.reports.style import FORMATS, save
from moesim.workloads.expert_caches import LRU
from moesim.workloads.trace_statistics import TraceStatistics

_SHOWN_LENGTHS = (8, 16)
PAGE, NUMBERS, MATRICES = "summary.md", "summary.json", "matrices.npz"

_CAPTIONS = {
    "load": "Load of every expert over the mean of its layer",
    "imbalance": "Busiest expert of each layer, and over time",
    "batches": "Experts that a batch touches; devices that hold the experts of a token",
    "layers": "What the experts of a layer say about those of the next; experts that tokens use together",
    "locality": "Reuse at a distance; segments; hit rates of expert caches",
    "drift": "Loads of two halves of the trace, and of every two domains",
}


class Line(NamedTuple):
    """A number for a person: what it is, its value, and what it is to be compared with."""

    what: str
    value: str
    beside: str = ""


def key_lines(found: TraceStatistics) -> list[Line]:
    """The numbers that say most about a trace, each beside what independent or balanced tokens would give."""
    facts, made = summary(found), tables(found)
    return [
        *_load_lines(facts),
        *(_overlap_line(lag, facts) for lag in found.settings.lags[:1]),
        *_segment_lines(made["segments"]),
        _cache_line(found, facts),
        Line("mutual information with the next layer, bits", _text(facts["mutual_information_with_next_bits_mean"])),
        Line(
            "load that moves, first to second half",
            _text(facts["halves_total_variation_mean"]),
            f"chance {_text(facts['random_halves_total_variation_mean'])}",
        ),
        *_place_lines(made["places"]),
    ]


def _load_lines(facts: dict[str, Any]) -> list[Line]:
    worst, balanced = _text(facts["worst_max_over_mean"]), _text(facts["balanced_entropy_bits"])
    return [
        Line("max / mean load", _text(facts["max_over_mean_mean"]), f"worst layer {worst}"),
        Line("max / mean load in parts of the trace", _text(facts["window_max_over_mean_mean"])),
        Line("entropy of the load, bits", _text(facts["entropy_bits_mean"]), f"balanced {balanced}"),
    ]


def _overlap_line(lag: int, facts: dict[str, Any]) -> Line:
    by_token, by_request = (_text(facts[f"overlap_lag_{lag}_by_{mean}_mean"]) for mean in ("token", "request"))
    chance = _text(facts["independent_overlap_mean"])
    beside = f"by request {by_request}, independent tokens {chance}"
    return Line(f"experts shared with the token {lag} before", by_token, beside)


def _segment_lines(rows: Table) -> list[Line]:
    """SRP and CLS of the lengths that papers print."""
    lines = []
    for index, length in enumerate(rows["length_tokens"]):
        if length in _SHOWN_LENGTHS and rows["segments"][index]:
            for name, column in (("SRP", "srp_of_all_layers"), ("CLS", "cls")):
                floor = _text(rows[f"{name.lower()}_independent_uniform"][index])
                beside = f"balanced and independent {floor}"
                lines.append(Line(f"{name} of {length} tokens", _text(rows[column][index]), beside))
    return lines


def _cache_line(found: TraceStatistics, facts: dict[str, Any]) -> Line:
    """Hit rates of the rules, of the cache that the summary has."""
    size = min(found.trace.experts, CACHE_FACTOR * found.trace.top_k)
    rates = {rule: _text(facts[f"{rule_name(rule)}_hit_rate_of_{size}_mean"]) for rule in found.caches}
    lru = rates.pop((LRU, 0))
    others = (f"{rule_label(rule)} {rate}" for rule, rate in rates.items())
    return Line(f"LRU hit rate, {size} experts cached", lru, ", ".join(others))


def _place_lines(rows: Table) -> list[Line]:
    columns = (rows["places"], rows["reached_mean"], rows["reached_independent_uniform"])
    return [
        Line(f"places of a token's experts, {name}", _text(reached), f"balanced {_text(expected)}")
        for name, reached, expected in zip(*columns, strict=True)
    ]


def _text(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def write_trace_report(
    found: TraceStatistics,
    folder: Path,
    suffix: str | None = ".png",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write everything to `folder`, made if need be; files of an earlier report are replaced, others are left.

    `summary.md` to read, `summary.json`, a CSV per table, `matrices.npz` (load, coactivation, transitions), figures.

    Args:
        found: what to report.
        folder: where.
        suffix: of the figures, `.png` or `.svg`; None for no figures.
        on_progress: called with the figures drawn and all figures.

    Returns:
        The files. They are moved in when all are written.

    Raises:
        DataError: an unknown kind of figure, or the folder cannot be written.
    """
    if suffix is not None and suffix not in FORMATS:
        raise DataError("figures", f"must be {' or '.join(FORMATS)}", suffix)
    target = check_folder(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise DataError(str(folder), f"cannot be written ({error.strerror or error})") from error
    try:
        names = _write(found, work, suffix, on_progress)
        target.mkdir(exist_ok=True)
        return [(work / name).replace(target / name) for name in names]
    except OSError as error:
        raise DataError(str(folder), f"cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(
    found: TraceStatistics, work: Path, suffix: str | None, on_progress: Callable[[int, int], None] | None
) -> list[str]:
    figures = [] if suffix is None else [f"{name}{suffix}" for name in FIGURES]
    for done, (name, draw) in enumerate(zip(figures, FIGURES.values(), strict=False), start=1):
        save(draw(found), work / name)
        if on_progress is not None:
            on_progress(done, len(figures))
    made = tables(found)
    for name, table in made.items():
        (work / f"{name}.csv").write_text(_csv(table), encoding="utf-8")
    document = {"summary": summary(found), "layers": _plain(made["layers"])}
    (work / NUMBERS).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    arrays = {"load": found.load, "coactivation": found.coactivation, "transitions": found.transitions}
    with (work / MATRICES).open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    (work / PAGE).write_text(page(found, figures), encoding="utf-8")
    return [PAGE, NUMBERS, MATRICES, *(f"{name}.csv" for name in made), *figures]


def _csv(table: Table) -> str:
    with io.StringIO() as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table)
        columns = _plain(table).values()
        writer.writerows(["" if cell is None else cell for cell in row] for row in zip(*columns, strict=True))
        return file.getvalue()


def _plain(table: Table) -> dict[str, list[Any]]:
    """Columns as lists of plain Python values, None for NaN."""
    lists = {
        name: column.tolist() if isinstance(column, np.ndarray) else list(column) for name, column in table.items()
    }
    return {
        name: [None if isinstance(cell, float) and math.isnan(cell) else cell for cell in column]
        for name, column in lists.items()
    }


def plain_tables(found: TraceStatistics) -> dict[str, dict[str, list[Any]]]:
    """`routing_tables.tables` for JSON: lists, None where nothing is defined."""
    return {name: _plain(table) for name, table in tables(found).items()}


def page(found: TraceStatistics, figures: Sequence[str] = ()) -> str:
    """The page to read, in Markdown.

    Args:
        found: what to report.
        figures: files of figures that stand beside it.
    """
    trace = found.trace
    capture = "; ".join(f"{_escaped(name)} {_escaped(str(value))}" for name, value in trace.capture.items())
    about = [
        f"- {trace.tokens:,} tokens of {len(trace.names):,} requests in {len(found.groups)} groups",
        f"- {trace.layers} MoE layers, top {trace.top_k} of {trace.experts} experts",
        f"- source: {_escaped(trace.source)}; licence: {_escaped(trace.licence) or 'unknown'}",
        *([f"- recorded with: {capture}"] if capture else []),
    ]
    lines = ["| mean over layers | | beside |", "|---|---|---|"]
    lines += [f"| {_escaped(what)} | {value} | {_escaped(beside)} |" for what, value, beside in key_lines(found)]
    drawn = [text for name in figures for text in (f"## {_CAPTIONS[Path(name).stem]}", "", f"![{name}]({name})", "")]
    return "\n".join([f"# Routing of {_escaped(trace.model)}", "", *about, "", *lines, "", *drawn])


def _escaped(text: str) -> str:
    """`text` from outside without what Markdown or HTML would take for markup."""
    for letter, name in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "\\|"),
        ("`", "'"),
        ("[", "\\["),
        ("\n", " "),
    ):
        text = text.replace(letter, name)
    return text
