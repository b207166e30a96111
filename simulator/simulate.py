"""The main flow: a scenario in, a result out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.configs.loader import Reference
from moesim.simulator.communication import Communication
from moesim.simulator.metrics import (
    counted_distribution,
    distribution,
    expert_load_imbalance,
    request_latencies,
    sum_by,
)
from moesim.simulator.result import Columns, Result
from moesim.simulator.scenario import Setup, load_scenario, prepare
from moesim.simulator.serving import STEP_COLUMNS, Observer, Progress, ServingLoop, ServingRecord
from moesim.simulator.step_graph import NETWORK
from moesim.simulator.step_simulator import StepSimulator
from moesim.workloads.steps import PHASES

if TYPE_CHECKING:
    from moesim.simulator.timeline import TimelineRecorder

QUICKSTART = "quickstart"


def simulate(
    scenario: Reference = QUICKSTART,
    assignments: Sequence[str] = (),
    *,
    timeline: bool = False,
    on_progress: Progress | None = None,
) -> Result:
    """Simulate a scenario.

    Args:
        scenario: name of a shipped scenario, path of a YAML file, or mapping.
        assignments: edits `key.subkey=value`, such as `parallelism.tp=4`.
        timeline: keep a Perfetto trace of the run.
        on_progress: called with the number of finished requests as it grows.

    Raises:
        InputError: the scenario, or a file it names, breaks a rule.
    """
    setup = prepare(*load_scenario(scenario, assignments))
    return run(setup, timeline=timeline, on_progress=on_progress)


def run(setup: Setup, *, timeline: bool = False, on_progress: Progress | None = None) -> Result:
    """Simulate what `prepare` loaded."""
    simulator = build_step_simulator(setup)
    recorder = _recorder(simulator) if timeline else None
    record = serve(setup, simulator, on_progress=on_progress, on_step=recorder.note_step if recorder else None)
    tables = _tables(setup, simulator, record)
    trace = recorder.trace(record) if recorder else None
    return Result(settings_of(setup), _summary(setup, simulator, record, tables), tables, trace)


def _recorder(simulator: StepSimulator) -> "TimelineRecorder":
    from moesim.simulator.timeline import TimelineRecorder  # protobuf loads slowly

    return TimelineRecorder(simulator)


def build_step_simulator(setup: Setup) -> StepSimulator:
    """The part that plays single steps."""
    scheduler = setup.scenario.scheduler
    return StepSimulator(
        setup.model,
        setup.system,
        setup.parallelism,
        setup.placement,
        setup.router,
        setup.scenario.engine,
        scheduler.host_overhead_s,
        scheduler.async_host,
        Communication(scheduler.all_reduce, scheduler.expert_exchange),
    )


def serve(
    setup: Setup,
    simulator: StepSimulator,
    *,
    on_progress: Progress | None = None,
    on_step: Observer | None = None,
) -> ServingRecord:
    """Play the serving loop to its end."""
    loop = ServingLoop(
        setup.requests,
        simulator,
        setup.scenario.scheduler,
        setup.cache,
        setup.memory.kv_bytes,
        on_progress,
        on_step,
        setup.scenario.warmup_requests,
    )
    return loop.run()


def settings_of(setup: Setup) -> dict[str, Any]:
    """Everything the run depended on, as plain data."""
    settings: dict[str, Any] = setup.scenario.model_dump(mode="json")
    settings["parallelism"] = setup.parallelism.model_dump(mode="json")
    resolved = {
        "model": setup.model.name,
        "system": setup.system.name,
        "devices": setup.system.device_count,
        "requests": setup.requests.source,
        "routing": setup.routing_source,
        "concurrency": setup.requests.concurrency,
    }
    return {**settings, "resolved": resolved}


# --- tables ------------------------------------------------------------------------------------------------------


def _tables(setup: Setup, simulator: StepSimulator, record: ServingRecord) -> dict[str, Columns]:
    return {
        "requests": _request_table(setup, record),
        "steps": {name: record.steps[name] for name in STEP_COLUMNS},
        "experts": _expert_table(setup, simulator),
        "operators": _operator_table(simulator),
        "devices": _device_table(setup, simulator, record),
    }


def _request_table(setup: Setup, record: ServingRecord) -> Columns:
    requests = setup.requests
    times = (record.arrival_s, record.first_token_s, record.last_token_s)
    return {
        "request": np.arange(len(requests.arrival_s)),
        "arrival_s": record.arrival_s,
        "prompt_tokens": requests.prompt_tokens,
        "output_tokens": requests.output_tokens,
        "rank": record.rank,
        "first_token_s": record.first_token_s,
        "last_token_s": record.last_token_s,
        **request_latencies(*times, requests.output_tokens),
        "largest_gap_s": record.largest_gap_s,
        "preemptions": record.preemptions,
        "warmup": np.arange(len(requests)) < setup.scenario.warmup_requests,
        **({"prefix_hit_tokens": record.prefix_hits} if setup.scenario.scheduler.prefix_caching else {}),
    }


def _expert_table(setup: Setup, simulator: StepSimulator) -> Columns:
    tokens = simulator.totals.expert_tokens
    phase, moe_layer, expert = (axis.ravel() for axis in np.indices(tokens.shape))
    layers = np.array([layer for layer, _ in setup.model.moe_layers], dtype=np.int64)
    return {
        "phase": np.array(PHASES)[phase].astype(object),
        "layer": layers[moe_layer] if len(layers) else moe_layer,
        "expert": expert,
        "tokens": tokens.ravel(),
    }


def _operator_table(simulator: StepSimulator) -> Columns:
    """Sums over steps by operator, layer (-1 outside layers) and device (-1 for the host)."""
    graph, source, totals = simulator.step_graph.graph, simulator.step_graph.source, simulator.totals
    real = graph.stream >= 0
    keys = np.stack([graph.kind, graph.layer, graph.device], axis=1)[real]
    sums_of = {"time_s": "elapsed_s", "energy_j": "energy_j", "flops": "flops", "bytes": "bytes"}
    columns = {name: getattr(totals, total)[source][real] for name, total in sums_of.items()}
    sums = sum_by(keys, columns)
    kind, layer, device = sums.pop("keys").T
    return {"operator": np.array(graph.kinds, dtype=object)[kind], "layer": layer, "device": device, **sums}


def _device_table(setup: Setup, simulator: StepSimulator, record: ServingRecord) -> Columns:
    """Busy seconds of each device's network stream and of its processors (their mean, and each by name)."""
    graph = simulator.step_graph.graph
    seconds = simulator.totals.time_s[simulator.step_graph.source]
    real = graph.stream >= 0
    busy = np.bincount(graph.stream[real], seconds[real], graph.streams)
    by_stream = dict(zip(graph.stream_names, busy, strict=True))
    devices, duration = range(setup.parallelism.devices), _duration_s(record)
    each = {name: np.array([by_stream[f"device {d} {name}"] for d in devices]) for name in simulator.processors}
    network = np.array([by_stream[f"device {d} {NETWORK}"] for d in devices])
    compute = np.mean(list(each.values()), axis=0)
    return {
        "device": np.arange(len(devices)),
        "compute_busy_s": compute,
        "network_busy_s": network,
        "compute_utilization": compute / duration,
        "network_utilization": network / duration,
        **{f"{name}_busy_s": values for name, values in each.items()},
    }


# --- summary -----------------------------------------------------------------------------------------------------


def _duration_s(record: ServingRecord) -> float:
    """First arrival to last token."""
    return float(record.last_token_s.max() - record.arrival_s.min())


def _summary(
    setup: Setup, simulator: StepSimulator, record: ServingRecord, tables: dict[str, Columns]
) -> dict[str, Any]:
    measured = slice(setup.scenario.warmup_requests, None)
    latencies = {name: column[measured] for name, column in tables["requests"].items()}
    return {
        **_throughput(setup, latencies),
        **distribution("ttft", latencies["ttft_s"]),
        **counted_distribution("itl", record.gaps["gap_s"], record.gaps["count"]),
        **distribution("tpot", latencies["tpot_s"]),
        **distribution("e2e", latencies["e2e_s"]),
        **_energy(setup, simulator, record),
        **_load(setup, simulator, record, tables),
        **_time_by_operator(setup, simulator, tables),
    }


def _throughput(setup: Setup, requests: Columns) -> dict[str, Any]:
    """Totals and rates of `requests`, the rows of the table that are no warm-up, from the first of them to arrive."""
    duration = float(requests["last_token_s"].max() - requests["arrival_s"].min())
    prompt, output = int(requests["prompt_tokens"].sum()), int(requests["output_tokens"].sum())
    hits = requests.get("prefix_hit_tokens")
    return {
        "requests": len(requests["request"]),
        "warmup_requests": setup.scenario.warmup_requests,
        "dropped_requests": setup.requests.dropped,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "duration_s": duration,
        "requests_per_s": len(requests["request"]) / duration,
        "total_tokens_per_s": (prompt + output) / duration,
        "output_tokens_per_s": output / duration,
        "output_tokens_per_s_per_device": output / duration / setup.system.device_count,
        **({} if hits is None else {"prefix_hit_rate": int(hits.sum()) / prompt}),
    }


def _energy(setup: Setup, simulator: StepSimulator, record: ServingRecord) -> dict[str, Any]:
    """Energy of operators and links, of devices that communicate or wait, and what all draw even when idle.

    Idle power counts from first arrival to last token; requests of the warm-up are part of all of it.
    """
    totals = simulator.totals
    dynamic = float(totals.energy_j @ simulator.tasks_per_row) + totals.waiting_j
    idle = setup.system.idle_w * setup.system.device_count * _duration_s(record)
    tokens = int(setup.requests.output_tokens.sum())
    return {
        "energy_j": dynamic + idle,
        "idle_energy_j": idle,
        "waiting_energy_j": totals.waiting_j,
        "energy_per_output_token_j": (dynamic + idle) / tokens,
        "mean_power_per_device_w": (dynamic + idle) / _duration_s(record) / setup.system.device_count,
    }


def _load(setup: Setup, simulator: StepSimulator, record: ServingRecord, tables: dict[str, Columns]) -> dict[str, Any]:
    steps, devices = tables["steps"], tables["devices"]
    tokens = simulator.totals.expert_tokens
    return {
        "steps": simulator.totals.steps,
        "step_mean_s": float(steps["duration_s"].mean()),
        "sequences_per_step_mean": float(steps["sequences"].mean()),
        "compute_utilization": float(devices["compute_utilization"].mean()),
        "network_utilization": float(devices["network_utilization"].mean()),
        "kv_capacity_bytes_per_device": setup.memory.kv_bytes,
        "kv_used_fraction_peak": float(steps["kv_used_fraction"].max()),
        "preemptions": int(record.preemptions.sum()),
        "expert_load_imbalance": expert_load_imbalance(tokens.sum(axis=0)),
        "rank_load_imbalance_mean": float(steps["expert_imbalance"].mean()) if tokens.size else None,
    }


def _time_by_operator(setup: Setup, simulator: StepSimulator, tables: dict[str, Columns]) -> dict[str, Any]:
    """Busy seconds per device of each operator, and the share priced outside a fitted range."""
    operators = tables["operators"]
    names, inverse = np.unique(operators["operator"].astype(str), return_inverse=True)
    sharing = np.where(operators["device"] >= 0, setup.parallelism.devices, 1)  # all devices wait for the one host
    seconds = np.bincount(inverse, operators["time_s"] / sharing)
    order = np.argsort(-seconds)
    totals, tasks = simulator.totals, simulator.tasks_per_row
    priced = float((totals.time_s @ tasks) - totals.time_s[simulator.host_row])
    share = float(totals.extrapolated_s @ tasks) / priced if priced else 0.0
    return {"extrapolated_time_fraction": share} | {f"time_{names[i]}_s": float(seconds[i]) for i in order}
