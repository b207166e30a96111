"""A run as a Perfetto trace: every step and request, and the first steps task by task."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.graph import TaskGraph, Timeline
from moesim.simulator.perfetto import TimelineWriter
from moesim.simulator.serving import ServingRecord
from moesim.simulator.step_simulator import StepOutcome, StepSimulator

DETAILED_TASKS = 200_000
"""Tasks drawn, those of the first steps (at least one). All of a long run would make a file that no viewer opens."""

_COUNTERS = ("prefill_tokens", "decode_tokens", "waiting", "kv_used_fraction", "expert_imbalance")


@dataclass(frozen=True)
class _DetailedStep:
    start_s: float
    graph: TaskGraph
    timeline: Timeline


class TimelineRecorder:
    """Watches a run and turns it into a trace."""

    def __init__(self, simulator: StepSimulator) -> None:
        self._detailed: list[_DetailedStep] = []
        self._detailed_steps = max(1, DETAILED_TASKS // simulator.step_graph.graph.tasks)

    def note_step(self, number: int, start_s: float, outcome: StepOutcome) -> None:
        """Keep the tasks of the first steps."""
        if number < self._detailed_steps:
            self._detailed.append(_DetailedStep(start_s, outcome.graph, outcome.timeline))

    def trace(self, record: ServingRecord) -> bytes:
        """The trace of the whole run."""
        writer = TimelineWriter()
        self._write_steps(writer, record)
        self._write_tasks(writer)
        _write_requests(writer, record)
        return writer.build()

    def _write_steps(self, writer: TimelineWriter, record: ServingRecord) -> None:
        steps = record.steps
        track = writer.track("replica", "steps")
        names = [f"step {number}" for number in range(len(steps))]
        writer.slices(track, names, steps["start_s"], steps["duration_s"])
        for name in _COUNTERS:
            writer.counter(name, steps["start_s"], steps[name])

    def _write_tasks(self, writer: TimelineWriter) -> None:
        if not self._detailed:
            return
        graph = self._detailed[0].graph
        for stream, label in enumerate(graph.stream_names):
            tasks = np.flatnonzero(graph.stream == stream)
            if len(tasks):
                parent, _, name = label.rpartition(" ")
                self._write_stream(writer, writer.track(parent or label, name), tasks)

    def _write_stream(self, writer: TimelineWriter, track: int, tasks: NDArray[np.int64]) -> None:
        """The tasks of one stream over all detailed steps, in order of time; those that took no time are left out."""
        graph = self._detailed[0].graph
        labels = np.array([_label(graph, int(task)) for task in tasks], dtype=object)
        for step in self._detailed:
            start_s, duration_s = step.timeline.start_s[tasks], step.graph.duration_s[tasks]
            order = np.argsort(start_s, kind="stable")
            order = order[duration_s[order] > 0]
            writer.slices(track, labels[order].tolist(), step.start_s + start_s[order], duration_s[order])


def _label(graph: TaskGraph, task: int) -> str:
    layer = int(graph.layer[task])
    kind = graph.kinds[graph.kind[task]]
    return kind if layer < 0 else f"{kind} (layer {layer})"


def _write_requests(writer: TimelineWriter, record: ServingRecord) -> None:
    """Each request from arrival to last token, on as few tracks as keep requests from overlapping."""
    free_s: list[float] = []
    tracks: list[int] = []
    for request in np.argsort(record.arrival_s, kind="stable"):
        arrival_s, last_s = float(record.arrival_s[request]), float(record.last_token_s[request])
        row = next((index for index, until in enumerate(free_s) if until <= arrival_s), len(free_s))
        if row == len(free_s):
            free_s.append(0.0)
            tracks.append(writer.track("requests", f"row {row}"))
        free_s[row] = last_s
        first_s = float(record.first_token_s[request])
        names = [f"request {request} TTFT", f"request {request} decode"]
        starts, durations = np.array([arrival_s, first_s]), np.array([first_s - arrival_s, last_s - first_s])
        writer.slices(tracks[row], names, starts, durations)
