"""`moesim validate serving`: replay measured servers and compare."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from moesim.cli.output import print_json, show, table
from moesim.cli.progress import progress_bar
from moesim.errors import DataError, InputError
from moesim.files import check_folder, make_folder, write_text
from moesim.reports.validation.serving import (
    Comparison,
    GroupError,
    as_csv,
    as_markdown,
    compare,
    named_broken,
    percent,
    rows_as_dicts,
    signed_percent,
    summarise,
    without_answer,
)
from moesim.reports.validation.serving_bench import read_benchmark
from moesim.reports.validation.serving_deployment import Deployment
from moesim.reports.validation.serving_figure import draw_predictions
from moesim.reports.validation.serving_fit import Calibration, Measured, calibrate, edits
from moesim.reports.validation.serving_recorded import SECTION as RECORDED
from moesim.reports.validation.serving_recorded import find_runs, read_run
from moesim.reports.validation.serving_replay import Outcome, replay_all
from moesim.reports.validation.serving_silicon import (
    AGGREGATED_DENSE,
    AGGREGATED_MOE,
    DISAGGREGATED,
    FILE,
    Replay,
    read_silicon,
)
from moesim.simulator.scenario import load_scenario

SECTIONS = {"recorded": RECORDED, "moe": AGGREGATED_MOE, "dense": AGGREGATED_DENSE, "apart": DISAGGREGATED}
"""Kinds of measured servers, in the order in which they are replayed."""
_RIGHT = ("rows", "n/a", "median", "mean", "P90", "bias")


def serving_command(
    data: Path | None,
    results: Sequence[Path],
    scenario: str | None,
    *,
    only: str | None,
    sample: int | None,
    waves: int | None,
    max_concurrency: int | None,
    fits: bool,
    workers: int,
    runs: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Replay what was measured, and print and save how far off the predictions are."""
    kinds = _kinds(only)
    deployments = _deployments(data, results, scenario, waves)
    if data is not None:
        deployments = _in_order(deployments, kinds)
    if max_concurrency is not None:
        deployments = [one for one in deployments if (one.concurrency or 0) <= max_concurrency]
    if sample is not None:
        deployments = _sample(deployments, sample)
    if not deployments:
        raise InputError("validate serving", "must leave something to replay after --max-concurrency and --sample")
    if out is not None:
        check_folder(out, "--out")
    if runs is not None:
        check_folder(runs, "--runs")
    outcomes = _replay(deployments, workers, runs)
    sections = _sections(deployments, outcomes)
    calibrations = _calibrate(deployments, outcomes) if fits else []
    sections |= _unseen(deployments, outcomes, calibrations, partial(_replay, workers=workers, runs=runs))
    if out is not None:
        _save(out, deployments, sections, calibrations)
    if as_json:
        groups = [row | {"section": name} for name, kept in sections.items() for row in rows_as_dicts(summarise(kept))]
        settings = {"data": None if data is None else str(data), "sample": sample, "waves": waves}
        settings |= {"only": only, "max_concurrency": max_concurrency, "fit": fits}
        fitted = [_calibration_dict(calibration) for calibration in calibrations]
        more = {"broken": named_broken(deployments), "unanswered": _reasons(sections), "calibrations": fitted}
        print_json(settings, {"groups": groups, **more}, output=str(out) if out else None)
    else:
        _print(deployments, sections, calibrations, out)


# --- what to replay --------------------------------------------------------------------------------------------------


def _deployments(
    data: Path | None, results: Sequence[Path], scenario: str | None, waves: int | None
) -> list[Deployment]:
    if (data is None) == (not results):
        raise InputError("validate serving", "needs either --data, or --result with --scenario")
    if results:
        if scenario is None:
            raise InputError("--scenario", "is needed with --result: model, system and engine of the server")
        return [deployment for path in results for deployment in read_benchmark(path, scenario)]
    assert data is not None  # else refused above
    if not data.is_dir():
        raise DataError(f"--data {data}", "must be a folder")
    found = [read_run(folder) for folder in find_runs(data)]
    for path in sorted(data.rglob(FILE)):
        found += read_silicon(path, Replay(waves=waves))
    if not found:
        raise DataError(f"--data {data}", f"must hold {FILE} or <gpu>/<model>/vllm/requests.jsonl")
    return found


def _kinds(only: str | None) -> list[str]:
    """Sections to replay."""
    if only is None:
        return list(SECTIONS.values())
    chosen = [name.strip() for name in only.split(",")]
    if unknown := [name for name in chosen if name not in SECTIONS]:
        raise InputError("--only", f"must be some of {', '.join(SECTIONS)}, separated by commas", unknown[0])
    return [section for name, section in SECTIONS.items() if name in chosen]


def _in_order(deployments: Sequence[Deployment], kinds: Sequence[str]) -> list[Deployment]:
    """Those of some sections, section by section, few requests in flight first: they are replayed fastest."""
    chosen = [one for one in deployments if one.section in kinds]
    if not chosen:
        raise InputError("--only", "nothing of that kind is in the data")
    return sorted(chosen, key=lambda one: (kinds.index(one.section), one.concurrency or 0))


def _sample(deployments: Sequence[Deployment], count: int) -> list[Deployment]:
    """As many deployments that can be replayed, spread evenly over the data."""
    answered = [one for one in deployments if one.scenario is not None and one.broken is None]
    places = np.unique(np.linspace(0, len(answered) - 1, min(count, len(answered))).astype(np.int64))
    return [answered[place] for place in places]


def _replay(deployments: Sequence[Deployment], workers: int, runs: Path | None) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    with progress_bar("replaying", len(deployments), "measurements") as update:
        for position, outcome in replay_all(deployments, workers=workers, runs=runs):
            outcomes[position] = outcome
            update(len(outcomes))
    return [outcomes[position] for position in range(len(deployments))]


# --- what comes of it ------------------------------------------------------------------------------------------------


def _sections(deployments: Sequence[Deployment], outcomes: Sequence[Outcome]) -> dict[str, list[Comparison]]:
    sections: dict[str, list[Comparison]] = {}
    for deployment, outcome in zip(deployments, outcomes, strict=True):
        sections.setdefault(deployment.section, []).extend(compare([deployment], [outcome]))
    return sections


def _calibrate(deployments: Sequence[Deployment], outcomes: Sequence[Outcome]) -> list[Calibration]:
    """Constants of every framework and model that has profiles of at least two deployments."""
    rows: dict[tuple[str, str], list[int]] = {}
    for position, (deployment, outcome) in enumerate(zip(deployments, outcomes, strict=True)):
        if outcome.profile is not None and deployment.broken is None:
            rows.setdefault(deployment.calibration, []).append(position)
    groups = {key: {deployments[row].group for row in members} for key, members in rows.items()}
    kept = {key: members for key, members in sorted(rows.items()) if len(groups[key]) > 1}
    calibrations = []
    with progress_bar("fitting", len(kept), "models") as update:
        for members in kept.values():
            calibrations.append(calibrate(_measured(deployments, outcomes, members)))
            update(len(calibrations))
    return calibrations


def _measured(deployments: Sequence[Deployment], outcomes: Sequence[Outcome], rows: Sequence[int]) -> Measured:
    chosen = [deployments[row] for row in rows]
    profiles = [profile for row in rows if (profile := outcomes[row].profile) is not None]
    settings = [load_scenario(one.scenario, one.assignments)[0].scheduler for one in chosen if one.scenario is not None]
    seconds = [[one.measured_s[op]["mean"] for op in ("ttft", "tpot")] for one in chosen]
    return Measured(chosen, profiles, settings, np.array(seconds))


def _unseen(
    deployments: Sequence[Deployment],
    outcomes: Sequence[Outcome],
    calibrations: Sequence[Calibration],
    simulate: Callable[[Sequence[Deployment]], list[Outcome]],
) -> dict[str, list[Comparison]]:
    """Comparisons of what was calibrated, each simulated again with constants fitted without its deployment.

    With speculation, tokens per step are no setting of a scenario, so there the prediction is the profile's.
    """
    chosen, predicted = _promised(deployments, outcomes, calibrations)
    again = [place for place, row in enumerate(chosen) if row.tokens_per_step == 1.0]
    for place, outcome in zip(again, simulate([chosen[place] for place in again]) if again else [], strict=True):
        predicted[place] = outcome
    sections: dict[str, list[Comparison]] = {}
    for row, outcome in zip(chosen, predicted, strict=True):
        sections.setdefault(f"{row.section}, calibrated, on unseen deployments", []).extend(compare([row], [outcome]))
    return sections


def _promised(
    deployments: Sequence[Deployment], outcomes: Sequence[Outcome], calibrations: Sequence[Calibration]
) -> tuple[list[Deployment], list[Outcome]]:
    """What was calibrated with constants fitted without it, and what its profile says of that."""
    chosen, promised = [], []
    for calibration in calibrations:
        key = calibration.framework, calibration.model
        rows = [
            deployment
            for deployment, outcome in zip(deployments, outcomes, strict=True)
            if deployment.calibration == key and outcome.profile is not None and deployment.broken is None
        ]
        for row, values, (ttft_s, tpot_s) in zip(rows, calibration.unseen, calibration.unseen_s.tolist(), strict=True):
            chosen.append(replace(row, assignments=(*row.assignments, *edits(values))))
            promised.append(Outcome({"ttft": {"mean": ttft_s}, "tpot": {"mean": tpot_s}}))
    return chosen, promised


# --- output ----------------------------------------------------------------------------------------------------------


def _save(
    out: Path,
    deployments: Sequence[Deployment],
    sections: Mapping[str, Sequence[Comparison]],
    calibrations: Sequence[Calibration],
) -> None:
    """Tables and a figure per section."""
    make_folder("--out", out)
    page, groups = [], {}
    for name, compared in sections.items():
        slug = "-".join(name.replace(",", "").split())
        write_text(out / f"serving-{slug}.csv", as_csv(compared))
        draw_predictions(compared, out / f"serving-{slug}.png")
        groups[name] = rows_as_dicts(summarise(compared))
        page += [f"## {name[0].upper()}{name[1:]}\n", as_markdown(summarise(compared))]
    page += [*_unanswered_lines(sections), *_broken_lines(deployments, sections)]
    page += ["", *(f"- {_calibration_text(calibration)}" for calibration in calibrations)]
    write_text(out / "serving.md", "\n".join(page) + "\n")
    fitted = [_calibration_dict(calibration) for calibration in calibrations]
    held = {"groups": groups, "calibrations": fitted, "broken": named_broken(deployments)}
    held["unanswered"] = _reasons(sections)
    write_text(out / "serving.json", json.dumps(held, indent=2) + "\n")


def _print(
    deployments: Sequence[Deployment],
    sections: Mapping[str, Sequence[Comparison]],
    calibrations: Sequence[Calibration],
    out: Path | None,
) -> None:
    parts: list[RenderableType] = []
    for name, compared in sections.items():
        parts += [f"{name[0].upper()}{name[1:]}", _table(summarise(compared))]
    lines = [*_unanswered_lines(sections), *_broken_lines(deployments, sections)]
    lines += map(_calibration_text, calibrations)
    show(*parts, *lines, *([f"saved to {out}"] if out else []))


def _table(rows: Sequence[GroupError]) -> Table:
    shown = table("framework", "model", "GPU", "op", *_RIGHT, right=_RIGHT)
    for row in rows:
        errors = map(percent, (row.median_abs_error, row.mean_abs_error, row.p90_abs_error))
        counts = str(row.rows), str(row.unanswered)
        shown.add_row(row.framework, row.model, row.gpu, row.op.upper(), *counts, *errors, signed_percent(row.bias))
    return shown


def _reasons(sections: Mapping[str, Sequence[Comparison]]) -> Mapping[str, Sequence[str]]:
    """Why measurements were not replayed, and their ids."""
    return without_answer(one for compared in sections.values() for one in compared)


def _unanswered_lines(sections: Mapping[str, Sequence[Comparison]]) -> list[str]:
    reasons = _reasons(sections)
    if not reasons:
        return []
    lines = ["Without an answer, which counts as 100 % off:", ""]
    return [*lines, *(f"- {len(ids)} x {reason.splitlines()[0]}" for reason, ids in reasons.items()), ""]


def _broken_lines(deployments: Sequence[Deployment], sections: Mapping[str, Sequence[Comparison]]) -> list[str]:
    """Measurements that are left out, and the errors with them."""
    broken = named_broken(deployments)
    if not broken:
        return []
    lines = ["Left out, as these measurements contradict themselves:", ""]
    lines += [f"- {name}: {reason}" for name, reason in broken.items()]
    for name, compared in sections.items():
        if any(one.broken for one in compared):
            with_them = {row.op: row for row in summarise(compared, broken=True) if row.framework == "all"}
            errors = [f"{op.upper()} {percent(row.median_abs_error)}" for op, row in with_them.items()]
            lines.append(f"- medians with them, {name}: {', '.join(errors)}")
    return lines


def _calibration_text(calibration: Calibration) -> str:
    head = f"{calibration.framework}, {calibration.model} ({calibration.groups} deployments):"
    speculation = calibration.values.get("tokens_per_step")
    tail = "" if speculation is None else f"; with speculation, {speculation:.4g} tokens per step of a sequence"
    return f"{head} {' '.join(calibration.assignments)}{tail}"


def _calibration_dict(calibration: Calibration) -> dict[str, object]:
    names = {"framework": calibration.framework, "model": calibration.model, "deployments": calibration.groups}
    return {**names, "constants": dict(calibration.values)}
