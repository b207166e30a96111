"""`moesim search`: what to search, a progress bar, and what was found beside what is common."""

import math
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from moesim.cli.output import print_json, seconds, show, table
from moesim.cli.progress import StageBars
from moesim.errors import ConfigError, InputError
from moesim.files import check_place, write_text
from moesim.search.placement import BalancedPlacement, search_placement
from moesim.search.placement.document import layer_rows, placement_document
from moesim.search.placement.loads import ExpertLoads, recorded_loads, tabled_loads
from moesim.search.solution import Solution, Status
from moesim.workloads.models import load_model

_BASELINES = ("contiguous", "eplb")
_FLAGS = {
    "devices": "--devices",
    "slots": "--slots",
    "method": "--method",
    "time_limit_s": "--time-limit",
    "gap": "--gap",
    "seed": "--seed",
}
_NEWS = {
    Status.OPTIMAL: "optimal",
    Status.WITHIN_GAP: "within the gap",
    Status.HEURISTIC: "heuristic, not proven",
    Status.TOO_LARGE: "heuristic; the exact model is too large",
    Status.TIME_LIMIT: "not proven when the time was up",
    Status.TIME_LIMIT_HEURISTIC: "heuristic; the solver had no time",
    Status.SOLVER_FAILED: "heuristic; the solver failed",
}

Found = Solution[BalancedPlacement]


def placement_command(
    trace: str | None,
    loads: Path | None,
    model: str | None,
    settings: dict[str, Any],
    *,
    output: Path | None,
    as_json: bool,
) -> None:
    """Search a placement, print how good it is, and write it.

    Args:
        trace: routing trace or profile.
        loads: table of loads; this or `trace`.
        model: the model of the placement, if the file does not name it or another is meant.
        settings: arguments of `search_placement` but the loads.
        output: file for the placement.
        as_json: print JSON in place of the summary.
    """
    if output is not None:
        check_place(output)
    expert_loads = _load(trace, loads, model)
    if output is not None and expert_loads.model is None:
        raise ConfigError("--model", "must be given, because a placement file names its model and the table does not")
    found = _search_all(expert_loads, settings)
    if output is not None:
        write_text(output, placement_document(str(expert_loads.model), found[settings["method"]]))
    if as_json:
        asked = {"loads": expert_loads.source, "model": expert_loads.model, **settings}
        print_json(asked, _results(found, settings["method"]), output=str(output) if output else None)
    else:
        _print(expert_loads, found, settings["method"], output)


def _load(trace: str | None, loads: Path | None, model: str | None) -> ExpertLoads:
    if (trace is None) == (loads is None):
        raise ConfigError("--trace, --loads", "one of them must be given, and only one")
    known = None if model is None else load_model(model)
    if loads is not None:
        return tabled_loads(loads, known)
    assert trace is not None
    return recorded_loads(trace, known, "--trace")


def _search_all(expert_loads: ExpertLoads, settings: dict[str, Any]) -> dict[str, Found]:
    """What the chosen method found, after the baselines."""
    try:
        with closing(StageBars()) as bars:
            chosen = search_placement(expert_loads.loads, **settings, on_progress=bars.show)
        plain = {name: settings[name] for name in ("devices", "slots")}
        found = {name: search_placement(expert_loads.loads, method=name, **plain) for name in _BASELINES}
    except InputError as error:
        if error.place in _FLAGS:
            raise ConfigError(_FLAGS[error.place], error.rule, error.got) from None
        raise
    return found | {settings["method"]: chosen}


def _results(found: dict[str, Found], method: str) -> dict[str, Any]:
    chosen = found[method]
    value, slots = chosen.value, chosen.value.placement.slots
    rows = layer_rows(value)
    for layer, row in enumerate(rows):
        row |= {f"{name}_max_load_tokens": float(found[name].value.max_load_tokens[layer]) for name in _BASELINES}
        row["experts"] = slots[layer].tolist()
    return {
        "method": method,
        "status": str(chosen.status),
        "layers_by_status": {str(status): count for status, count in Counter(value.status).items()},
        "objective_tokens": chosen.objective,
        "bound_tokens": chosen.bound,
        "gap_fraction": chosen.gap,
        "imbalance_mean": float(value.imbalance.mean()),
        "imbalance_max": float(value.imbalance.max()),
        "layers": len(slots),
        "slots": slots.shape[1],
        "slots_per_device": value.placement.slots_per_rank,
        "wall_s": chosen.wall_s,
        "note": value.note or None,
        **{f"{name}_objective_tokens": found[name].objective for name in _BASELINES},
        **{f"{name}_imbalance_mean": float(found[name].value.imbalance.mean()) for name in _BASELINES},
        "per_layer": rows,
    }


def _print(expert_loads: ExpertLoads, found: dict[str, Found], method: str, output: Path | None) -> None:
    chosen = found[method]
    value = chosen.value
    layers, slots = value.placement.slots.shape
    experts = expert_loads.loads.shape[1]
    lines = [
        f"{expert_loads.model or 'experts'} on {value.placement.ep} devices",
        f"loads:  {expert_loads.source}, {_plural(layers, 'MoE layer')} with {experts} experts",
        f"slots:  {slots} per layer, {value.placement.slots_per_rank} per device, {slots - experts} for replicas",
    ]
    show("\n".join(lines), _methods_table(found, chosen), _verdict(chosen))
    if output is not None:
        ep = value.placement.ep
        show(f"saved to {output}; use it with --ep {ep} --placement {output}")


def _methods_table(found: dict[str, Found], chosen: Found) -> Any:
    """A row per method; all gaps against the best bound that is known."""
    columns = ("max/mean", "worst layer", "sum of maxima", "gap", "time")
    rows = table("method", *columns, right=columns)
    for name, solution in found.items():
        gap = 1 - min(1.0, chosen.bound / solution.objective)
        ratio = solution.value.imbalance
        facts = (f"{ratio.mean():.4f}", f"{ratio.max():.4f}", _tokens(solution.objective), f"{gap:.3%}")
        rows.add_row(name, *facts, seconds(solution.wall_s))
    ratio = chosen.value.bound_tokens / chosen.value.mean_load_tokens
    rows.add_row("bound", f"{ratio.mean():.4f}", f"{ratio.max():.4f}", _tokens(chosen.bound), "", "")
    return rows


def _verdict(chosen: Found) -> str:
    counts = Counter(chosen.value.status)
    news = "\n".join(f"  {_plural(counts[status], 'layer')}: {_NEWS[status]}" for status in Status if counts[status])
    note = f"\n{chosen.value.note}" if chosen.value.note else ""
    return f"status: {chosen.status}, gap {chosen.gap:.4%}\n{news}{note}\n"


def _tokens(value: float) -> str:
    """Six significant digits, and all digits before the point."""
    return f"{value:,.{max(0, 5 - math.floor(math.log10(value)))}f}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
