"""A run as a Perfetto trace: every step and request, and the first steps task by task."""

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.graph import TaskGraph
from moesim.simulator.perfetto import TimelineWriter
from moesim.simulator.pipeline import Pipeline
from moesim.simulator.replica import Passage
from moesim.simulator.serving_record import ServingRecord

DETAILED_TASKS = 200_000
"""Tasks drawn, those of the first steps (at least one). All of a long run would make a file that no viewer opens."""

_COUNTERS = ("prefill_tokens", "decode_tokens", "waiting", "kv_used_fraction", "expert_imbalance")


class TimelineRecorder:
    """Watches a run and turns it into a trace."""

    def __init__(self, pipelines: Sequence[Pipeline]) -> None:
        self._stages = [pipeline.stages for pipeline in pipelines]
        tasks = max(sum(stage.step_graph.graph.tasks for stage in stages) for stages in self._stages)
        self._detailed_steps = max(1, DETAILED_TASKS // tasks)
        self._detailed: list[tuple[int, Passage]] = []

    def note_step(self, number: int, replica: int, passage: Passage) -> None:
        """Keep the tasks of the first steps."""
        if number < self._detailed_steps:
            self._detailed.append((replica, passage))

    def trace(self, record: ServingRecord) -> bytes:
        """The trace of the whole run."""
        writer = TimelineWriter()
        for replica in range(len(self._stages)):
            self._write_steps(writer, record, replica)
        for replica, stages in enumerate(self._stages):
            for stage in range(len(stages)):
                self._write_tasks(writer, replica, stage)
        _write_requests(writer, record)
        return writer.build()

    def _group(self, replica: int) -> str:
        """Group of tracks for what a replica has one of."""
        return f"replica {replica}" if len(self._stages) > 1 else "replica"

    def _write_steps(self, writer: TimelineWriter, record: ServingRecord, replica: int) -> None:
        """Steps of a replica; with a pipeline several overlap, each on a row of its own."""
        steps = record.steps
        mine = np.flatnonzero(steps["replica"] == replica)
        group = self._group(replica)
        depth = len(self._stages[replica])
        for row in range(depth):
            track = writer.track(group, "steps" if depth == 1 else f"steps {row}")
            shown = mine[row::depth]
            names = [f"step {number}" for number in shown]
            writer.slices(track, names, steps["start_s"][shown], steps["duration_s"][shown])
        for name in _COUNTERS:
            parent = group if len(self._stages) > 1 else None
            writer.counter(name, steps["start_s"][mine], steps[name][mine], parent=parent)

    def _write_tasks(self, writer: TimelineWriter, replica: int, stage: int) -> None:
        passages = [passage for number, passage in self._detailed if number == replica]
        if not passages:
            return
        graph = self._stages[replica][stage].step_graph.graph
        for stream, label in enumerate(graph.stream_names):
            tasks = np.flatnonzero(graph.stream == stream)
            if len(tasks):
                parent, _, name = label.rpartition(" ")
                _write_stream(writer, writer.track(parent or self._group(replica), name), tasks, passages, stage)


def _write_stream(
    writer: TimelineWriter, track: int, tasks: NDArray[np.int64], passages: Sequence[Passage], stage: int
) -> None:
    """The tasks of one stream over all detailed steps, in order of time; those that took no time are left out."""
    graph = passages[0].outcomes[stage].graph
    labels = np.array([_label(graph, int(task)) for task in tasks], dtype=object)
    for passage in passages:
        outcome = passage.outcomes[stage]
        start_s, duration_s = outcome.timeline.start_s[tasks], outcome.graph.duration_s[tasks]
        order = np.argsort(start_s, kind="stable")
        order = order[duration_s[order] > 0]
        writer.slices(track, labels[order].tolist(), passage.start_s[stage] + start_s[order], duration_s[order])


def _label(graph: TaskGraph, task: int) -> str:
    layer = int(graph.layer[task])
    kind = graph.kinds[graph.kind[task]]
    return kind if layer < 0 else f"{kind} (layer {layer})"


def _write_requests(writer: TimelineWriter, record: ServingRecord) -> None:
    """Each request until its client has the last token, on as few tracks as keep requests from overlapping."""
    busy: list[tuple[float, int]] = []  # heap of (end, row)
    free: list[int] = []  # heap of rows
    tracks: list[int] = []
    for request in np.argsort(record.arrival_s, kind="stable"):
        arrival_s, last_s = float(record.arrival_s[request]), float(record.last_received_s[request])
        while busy and busy[0][0] <= arrival_s:
            heappush(free, heappop(busy)[1])
        if not free:
            heappush(free, len(tracks))
            tracks.append(writer.track("requests", f"row {len(tracks)}"))
        row = heappop(free)
        heappush(busy, (last_s, row))
        first_s = float(record.first_received_s[request])
        names = [f"request {request} TTFT", f"request {request} decode"]
        starts, durations = np.array([arrival_s, first_s]), np.array([first_s - arrival_s, last_s - first_s])
        writer.slices(tracks[row], names, starts, durations)
