"""Replaying deployments on several processes; what is there already is not simulated again."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import whole_file
from moesim.reports.validation.serving_deployment import OPS, STATISTICS, Deployment, request_weights, statistics
from moesim.reports.validation.serving_profile import Profile, ProfileRecorder
from moesim.search.processes import as_they_finish
from moesim.search.runs import setup_key
from moesim.simulator.metrics import request_latencies
from moesim.simulator.scenario import Setup, load_scenario, prepare
from moesim.simulator.serving_record import ServingRecord
from moesim.simulator.simulate import build_pipelines, serve
from moesim.workloads.npz_files import npz_members

_PROFILE = ("weights", "seconds", "sequences", "prompts", "between_s")


@dataclass(frozen=True)
class Outcome:
    """What a replay gave.

    Attributes:
        predicted_s: seconds by op and statistic; None if the deployment cannot be simulated.
        refusal: why it cannot.
        profile: for calibration; None where one does not describe the run (several replicas, or an open loop).
    """

    predicted_s: dict[str, dict[str, float]] | None
    refusal: str | None = None
    profile: Profile | None = None


def replay_all(
    deployments: Sequence[Deployment], *, workers: int = 1, runs: Path | None = None
) -> Iterator[tuple[int, Outcome]]:
    """(position, outcome) of every deployment, as they finish.

    Args:
        deployments: what to replay.
        workers: processes; 1 simulates in this one.
        runs: folder in which outcomes are kept, and from which those that are there already are taken.
    """
    yield from as_they_finish(partial(replay, runs=runs), deployments, workers=workers)


def replay(deployment: Deployment, runs: Path | None = None) -> Outcome:
    """Simulate one deployment, or take what a former run of it gave."""
    if deployment.scenario is None:
        return Outcome(None, deployment.unanswered)
    try:
        setup = prepare(*load_scenario(deployment.scenario, deployment.assignments))
    except InputError as error:
        return Outcome(None, str(error))
    kept = None if runs is None else runs / f"{_key(deployment, setup)}.npz"
    if kept is not None and kept.exists():
        return _load(kept)
    outcome = _simulate(deployment, setup)
    if kept is not None:
        _save(kept, outcome)
    return outcome


def _key(deployment: Deployment, setup: Setup) -> str:
    """Hash of all that an outcome depends on: the simulation, and how its requests are counted."""
    counted = deployment.concurrency, deployment.prompts_per_slot, deployment.tokens_per_step, deployment.from_queue
    return hashlib.sha256(f"{setup_key(setup)} {counted}".encode()).hexdigest()[:16]


def request_times(deployment: Deployment) -> dict[str, NDArray[np.float64]]:
    """Latencies of every request of a deployment that can be simulated, as `request_latencies` names them.

    Raises:
        InputError: it cannot.
    """
    setup = prepare(*load_scenario(deployment.scenario or {}, deployment.assignments))
    return _latencies(deployment, setup, serve(setup, build_pipelines(setup)))


def _latencies(deployment: Deployment, setup: Setup, record: ServingRecord) -> dict[str, NDArray[np.float64]]:
    """By the client's clock, or by the engine's where that is what was recorded."""
    times_s = record.arrival_s, record.first_received_s, record.last_received_s
    if deployment.from_queue:
        times_s = record.queued_s, record.first_token_s, record.last_token_s
    return request_latencies(*times_s, setup.requests.output_tokens)


def _simulate(deployment: Deployment, setup: Setup) -> Outcome:
    pipelines = build_pipelines(setup)
    profiled = len(pipelines) == 1 and len(pipelines[0].stages) == 1 and setup.requests.concurrency is not None
    recorder = ProfileRecorder(pipelines[0].stages[0]) if profiled else None
    record = serve(setup, pipelines, on_step=recorder.note_step if recorder else None)
    outputs = setup.requests.output_tokens
    table = _latencies(deployment, setup, record)
    weights = request_weights(deployment, len(outputs))
    predicted_s = statistics(table, weights, deployment.tokens_per_step)
    if recorder is None:
        return Outcome(predicted_s)
    later = (outputs - 1).astype(np.float64) * deployment.tokens_per_step
    return Outcome(predicted_s, profile=Profile.of(recorder, record, weights, later))


def _save(path: Path, outcome: Outcome) -> None:
    """Write the outcome whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = outcome.predicted_s or {}
    numbers = np.array([[held.get(op, {}).get(name, np.nan) for name in STATISTICS] for op in OPS])
    profile = outcome.profile
    parts = {} if profile is None else {name: getattr(profile, name).astype(np.float32) for name in _PROFILE}
    if profile is not None:
        parts["launches"] = np.array(profile.launches)
    with whole_file(path) as unfinished:
        np.savez_compressed(unfinished, predicted_s=numbers, **parts)


def _load(path: Path) -> Outcome:
    held = npz_members(path)
    predicted_s = {
        op: {name: float(value) for name, value in zip(STATISTICS, row, strict=True) if not np.isnan(value)}
        for op, row in zip(OPS, held["predicted_s"], strict=True)
    }
    if "launches" not in held:
        return Outcome(predicted_s)
    weights, seconds, sequences, prompts, between_s = (held[name].astype(np.float64) for name in _PROFILE)
    profile = Profile(weights, seconds, sequences, prompts, int(held["launches"]), between_s)
    return Outcome(predicted_s, profile=profile)
