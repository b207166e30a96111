"""Writes timelines.json: graphs with their durations and the hash of each timeline, from the reference engine.

Run it only when the semantics of the task graph change on purpose: `python tests/golden/write_timelines.py`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from moesim.simulator.engines import get_engine
from moesim.simulator.graph import JOIN, TaskGraph, Timeline
from moesim.simulator.graph_builder import GraphBuilder

FILE = Path(__file__).with_name("timelines.json")


def timeline_hash(timeline: Timeline) -> str:
    """SHA-256 of the starts and finishes as little-endian float64."""
    columns = (timeline.start_s, timeline.finish_s)
    return hashlib.sha256(b"".join(column.astype("<f8").tobytes() for column in columns)).hexdigest()


def random_graph(seed: int) -> TaskGraph:
    """60 tasks in any order of ids on 1 to 6 streams; half of the durations are awkward."""
    rng = np.random.default_rng(seed)
    tasks, streams = 60, 1 + seed % 6
    awkward_s = rng.choice([0.0, 1e-300, 1e-17, 0.1, 0.25, 1.0], tasks)
    duration_s = np.where(rng.random(tasks) < 0.5, awkward_s, rng.exponential(1.0, tasks))
    stream = rng.integers(JOIN, streams, tasks)
    pairs = rng.integers(0, tasks, (2 * tasks, 2))
    forward = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    edges = rng.permutation(tasks)[forward]
    return TaskGraph.build(duration_s, stream, edges, stream_names=[f"stream {number}" for number in range(streams)])


def moe_layers(devices: int, layers: int, seed: int) -> TaskGraph:
    """Attention, dispatch, experts and combine on the compute and network streams of every device."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    compute = [builder.stream(f"device {device} compute") for device in range(devices)]
    network = [builder.stream(f"device {device} network") for device in range(devices)]
    after: list[int] = []
    for layer in range(layers):
        attention = builder.add_block(compute, "attention", layer, range(devices), after=after)
        shared = builder.add_block(compute, "shared experts", layer, range(devices), after_each=attention)
        dispatch = builder.add_block(network, "dispatch", layer, range(devices), after=[builder.join(attention)])
        experts = builder.add_block(compute, "experts", layer, range(devices), after=[builder.join(dispatch)])
        combine = builder.add_block(network, "combine", layer, range(devices), after=[builder.join(experts)])
        after = [builder.join([*combine, *shared])]
    graph = builder.build()
    return graph.with_durations(np.where(graph.stream == JOIN, 0.0, rng.lognormal(-10.0, 0.5, graph.tasks)))


def entry(name: str, graph: TaskGraph) -> dict[str, Any]:
    """What the file keeps of a graph."""
    before = np.repeat(np.arange(graph.tasks), np.diff(graph.successor_offset))
    return {
        "name": name,
        "sha256": timeline_hash(get_engine("simpy")(graph)),
        "streams": graph.streams,
        "stream": graph.stream.tolist(),
        "edges": np.column_stack([before, graph.successor]).tolist(),
        "duration_s": [duration.hex() for duration in graph.duration_s.tolist()],
    }


def main() -> None:
    """Write the file."""
    entries = [entry(f"random {seed}", random_graph(seed)) for seed in range(12)]
    entries += [entry(f"moe {devices} devices", moe_layers(devices, 3, devices)) for devices in (2, 8)]
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in entries)
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
