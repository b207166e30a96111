"""The tables of a result, from what the serving loop wrote down and what the stages summed up."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.metrics import request_latencies, sum_by
from moesim.simulator.pipeline import Pipeline
from moesim.simulator.result import Columns
from moesim.simulator.scenario import Setup
from moesim.simulator.serving_record import STEP_COLUMNS, ServingRecord
from moesim.simulator.step_graph import NETWORK
from moesim.simulator.step_simulator import StepSimulator
from moesim.workloads.steps import PHASES

_WHOLE = {"replica", "repeats"}


@dataclass(frozen=True)
class Served:
    """A simulation that has come to its end."""

    setup: Setup
    pipelines: Sequence[Pipeline]  # [replica]
    record: ServingRecord

    @property
    def stages(self) -> list[StepSimulator]:
        """Pipeline stages of all replicas."""
        return [stage for pipeline in self.pipelines for stage in pipeline.stages]

    @property
    def expert_tokens(self) -> NDArray[np.int64]:
        """int64[phase, moe_layer, expert] of all replicas."""
        total: NDArray[np.int64] = np.sum([pipeline.expert_tokens() for pipeline in self.pipelines], axis=0)
        return total


def result_tables(served: Served) -> dict[str, Columns]:
    """Columns by name of the table; see `Result`."""
    steps = served.record.steps
    return {
        "requests": _requests(served),
        "steps": {name: steps[name].astype(np.int64) if name in _WHOLE else steps[name] for name in STEP_COLUMNS},
        "experts": _experts(served),
        "operators": _operators(served.stages),
        "devices": _devices(served),
    }


def _requests(served: Served) -> Columns:
    requests, record, scenario = served.setup.requests, served.record, served.setup.scenario
    times = (record.arrival_s, record.first_received_s, record.last_received_s)
    return {
        "request": np.arange(len(requests.arrival_s)),
        "arrival_s": record.arrival_s,
        "queued_s": record.queued_s,
        "prompt_tokens": requests.prompt_tokens,
        "output_tokens": requests.output_tokens,
        "replica": record.replica,
        "rank": record.rank,
        "first_token_s": record.first_received_s,
        "last_token_s": record.last_received_s,
        **request_latencies(*times, requests.output_tokens),
        "largest_gap_s": record.largest_gap_s,
        "preemptions": record.preemptions,
        "warmup": np.arange(len(requests)) < scenario.warmup_requests,
        **({"prefix_hit_tokens": record.prefix_hits} if served.setup.caches_prefixes else {}),
        **(_transfers(record) if served.setup.is_disaggregated else {}),
    }


def _transfers(record: ServingRecord) -> Columns:
    """Where the prompt ran, and how its cache got to the rank that decoded it."""
    return {
        "prefill_replica": record.prefill_replica,
        "kv_transfer_bytes": record.kv_bytes,
        "kv_transfer_s": record.kv_arrival_s - record.first_token_s,
    }


def _experts(served: Served) -> Columns:
    tokens = served.expert_tokens
    phase, moe_layer, expert = (axis.ravel() for axis in np.indices(tokens.shape))
    layers = np.array([layer for layer, _ in served.setup.model.moe_layers], dtype=np.int64)
    return {
        "phase": np.array(PHASES)[phase].astype(object),
        "layer": layers[moe_layer] if len(layers) else moe_layer,
        "expert": expert,
        "tokens": tokens.ravel(),
    }


def _operators(stages: Sequence[StepSimulator]) -> Columns:
    """Sums over steps by operator, layer (-1 outside layers) and device (-1 for the hosts)."""
    names = sorted({name for stage in stages for name in stage.step_graph.graph.kinds})
    parts = [_stage_operators(stage, names) for stage in stages]
    keys = np.concatenate([key for key, _ in parts])
    values = {name: np.concatenate([columns[name] for _, columns in parts]) for name in parts[0][1]}
    sums = sum_by(keys, values)
    kind, layer, device = sums.pop("keys").T
    return {"operator": np.array(names, dtype=object)[kind], "layer": layer, "device": device, **sums}


def _stage_operators(
    stage: StepSimulator, names: Sequence[str]
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """(operator, layer, device) of each task of a stage, and the sums of its row."""
    graph, source, totals = stage.step_graph.graph, stage.step_graph.source, stage.totals
    real = graph.stream >= 0
    number = np.array([names.index(kind) for kind in graph.kinds])
    keys = np.stack([number[graph.kind], graph.layer, graph.device], axis=1)[real]
    sums_of = {"time_s": "elapsed_s", "energy_j": "energy_j", "flops": "flops", "bytes": "bytes"}
    return keys, {name: getattr(totals, total)[source][real] for name, total in sums_of.items()}


def _devices(served: Served) -> Columns:
    """Busy seconds of each device's network stream and of its processors (their mean, and each by name)."""
    stages, duration = served.stages, served.record.duration_s
    names = dict.fromkeys(name for stage in stages for name in stage.processors)
    parts = [_stage_devices(stage, list(names)) for stage in stages]
    busy = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    compute, network = busy.pop("compute"), busy.pop(NETWORK)
    return {
        "device": np.array([device for stage in stages for device in stage.devices]),
        "replica": np.repeat(np.arange(len(served.pipelines)), [len(p.devices) for p in served.pipelines]),
        "steps": np.concatenate([np.full(len(stage.devices), stage.totals.steps) for stage in stages]),
        "compute_busy_s": compute,
        "network_busy_s": network,
        "compute_utilization": compute / duration,
        "network_utilization": network / duration,
        **{f"{name}_busy_s": values for name, values in busy.items()},
    }


def _stage_devices(stage: StepSimulator, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """float64[device] busy seconds by stream; nothing for processors that the stage's devices lack."""
    graph = stage.step_graph.graph
    seconds = stage.totals.time_s[stage.step_graph.source]
    real = graph.stream >= 0
    busy = np.bincount(graph.stream[real], seconds[real], graph.streams)
    by_stream = dict(zip(graph.stream_names, busy, strict=True))

    def of(name: str) -> NDArray[np.float64]:
        return np.array([by_stream.get(f"device {device} {name}", 0.0) for device in stage.devices])

    compute = np.mean([of(name) for name in stage.processors], axis=0)
    return {"compute": compute, NETWORK: of(NETWORK), **{name: of(name) for name in names}}
