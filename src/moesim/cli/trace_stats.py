"""`moesim trace stats`: read, count, and show the statistics of a routing trace."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from moesim.cli.output import print_json, show, table
from moesim.cli.progress import progress_bar
from moesim.errors import ConfigError, InputError
from moesim.files import check_folder
from moesim.reports.routing_figures import FIGURES
from moesim.reports.routing_tables import summary
from moesim.reports.trace_report import key_lines, plain_tables, write_trace_report
from moesim.simulator.placement import load_placement
from moesim.workloads.importers.recorded import check_shipped
from moesim.workloads.models import load_model
from moesim.workloads.routing_files import read_routing_trace
from moesim.workloads.routing_trace import RoutingTrace
from moesim.workloads.trace_batches import Places, contiguous_places
from moesim.workloads.trace_statistics import TraceSettings, TraceStatistics, trace_statistics

_NONE = "none"
_KINDS = ("png", "svg", _NONE)
_COUNTS = re.compile(r"[1-9][0-9]{0,5}(,[1-9][0-9]{0,5})*")


def stats_command(
    path: Path,
    about: dict[str, Any],
    settings: dict[str, Any],
    places: dict[str, Any],
    *,
    out: Path | None,
    figures: str,
    as_json: bool,
) -> None:
    """Compute all statistics, print them, and write the report.

    Args:
        path: the trace.
        about: `model` and `experts`, where the file does not say them, and the `group` to take; None for all.
        settings: `windows`, `seed` and `threads`.
        places: `devices`, `placement` and `nodes` as they were typed.
        out: folder for the report.
        figures: kind of the figures.
        as_json: print JSON in place of the summary.
    """
    if figures not in _KINDS:
        raise ConfigError("--figures", f"must be one of {', '.join(_KINDS)}", figures)
    if out is not None:
        check_folder(out)
    whole = read_routing_trace(path, about["model"], about["experts"])
    check_shipped(whole)
    trace = _group(whole, about["group"])
    chosen = _settings(settings, tuple(_places(trace, **places)))
    with progress_bar("counting", trace.layers, "layers") as update:
        found = trace_statistics(trace, chosen, lambda done, _: update(done))
    if out is not None:
        suffix = None if figures == _NONE else f".{figures}"
        with progress_bar("drawing", len(FIGURES), "figures") as update:
            write_trace_report(found, out, suffix, lambda done, _: update(done))
    if as_json:
        asked = {"trace": str(path), **about, **settings, **places, "figures": figures}
        results = {"summary": summary(found), "tables": plain_tables(found)}
        print_json(asked, results, out=str(out) if out else None)
    else:
        _print(found, out)


def _settings(settings: dict[str, Any], places: tuple[Places, ...]) -> TraceSettings:
    try:
        return TraceSettings(**settings, places=places)
    except InputError as error:
        raise ConfigError(f"--{error.place}", error.rule, error.got) from None


def _group(trace: RoutingTrace, group: str | None) -> RoutingTrace:
    if group is None:
        return trace
    kept = np.flatnonzero(np.array(trace.groups) == group)
    if not kept.size:
        names = ", ".join(sorted(set(trace.groups) - {""}))
        raise ConfigError("--group", f"must be one of {names}" if names else "this trace does not say groups", group)
    return trace.select(kept)


def _places(trace: RoutingTrace, devices: str | None, placement: str | None, nodes: int | None) -> list[Places]:
    """Placements on every number of devices, and on the nodes that hold them."""
    if devices is None:
        if placement is not None or nodes is not None:
            raise ConfigError("--devices", "must be given with --placement and --nodes")
        return []
    if not _COUNTS.fullmatch(devices):
        raise ConfigError("--devices", "must be whole numbers above 0, separated by commas, such as 4,8", devices)
    counts = sorted({int(count) for count in devices.split(",")})
    if (placement is not None or nodes is not None) and len(counts) > 1:
        raise ConfigError("--devices", "must be one number with --placement or --nodes", devices)
    if counts[-1] > trace.experts:
        raise ConfigError("--devices", f"must be at most the {trace.experts} experts", counts[-1])
    if placement is None:
        on_devices = [contiguous_places(trace.layers, trace.experts, count) for count in counts]
    else:
        on_devices = [_placed(trace, placement, counts[0])]
    return on_devices if nodes is None else [*on_devices, _on_nodes(on_devices[0], nodes)]


def _placed(trace: RoutingTrace, placement: str, devices: int) -> Places:
    slots = load_placement(placement, load_model(trace.model), devices, place="--placement")
    where = np.arange(slots.slots.shape[1], dtype=np.int64) // slots.slots_per_rank
    return Places(f"{devices} devices, {Path(placement).name}", slots.slots.astype(np.int64), where, devices)


def _on_nodes(on_devices: Places, nodes: int) -> Places:
    if nodes < 1 or on_devices.count % nodes:
        raise ConfigError("--nodes", f"must divide the {on_devices.count} devices", nodes)
    name = on_devices.name.replace(f"{on_devices.count} devices", f"{nodes} nodes")
    return Places(name, on_devices.slots, on_devices.place // (on_devices.count // nodes), nodes)


def _print(found: TraceStatistics, out: Path | None) -> None:
    trace = found.trace
    head = [
        f"trace:  {trace.source}",
        f"model:  {trace.model}, {trace.layers} MoE layers, top {trace.top_k} of {trace.experts} experts",
        f"tokens: {trace.tokens:,} of {len(trace.names):,} requests in {len(found.groups)} groups",
    ]
    rows = table("mean over layers", "", "beside", right=("",))
    for line in key_lines(found):
        rows.add_row(*line)
    show("\n".join(head), rows)
    if out is not None:
        show(f"saved to {out}; begin with {out / 'summary.md'}")
