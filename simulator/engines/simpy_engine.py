"""The reference engine: the semantics of `moesim.simulator.graph` spelled out in SimPy, to be read rather than raced.

Each stream is a resource that serves one task at a time, first come first served; each task is a process that waits
for its turn, takes its time and completes. The two phases of an instant come from SimPy's priorities: completions,
and the starts of queue heads that follow from them, are ordinary events, while one barrier event of the lowest
priority releases what became ready in the meantime.
"""

from collections.abc import Generator

import numpy as np
from simpy import Environment, Event, Resource
from simpy.events import EventPriority

from moesim.simulator.graph import JOIN, TaskGraph, Timeline, cycle_error

AFTER_ALL_ELSE = EventPriority(2)
"""The priority of the barrier: lower than SimPy's URGENT (0) and NORMAL (1)."""


def run(graph: TaskGraph) -> Timeline:
    """Play `graph`.

    Raises:
        GraphError: the graph has a cycle.
    """
    player = _Player(graph)
    player.environment.run()
    if player.completed < graph.tasks:
        raise cycle_error(graph)
    return Timeline(np.array(player.start_s), np.array(player.finish_s))


class _Player:
    """The state of one run of one graph, and the few things that happen in it."""

    def __init__(self, graph: TaskGraph) -> None:
        # Python lists, because reading one element of a numpy array takes several times as long.
        self.duration_s: list[float] = graph.duration_s.tolist()
        self.stream: list[int] = graph.stream.tolist()
        self.successor: list[int] = graph.successor.tolist()
        self.successor_offset: list[int] = graph.successor_offset.tolist()
        self.waiting_for: list[int] = graph.predecessor_count.tolist()
        self.start_s = [0.0] * graph.tasks
        self.finish_s = [0.0] * graph.tasks
        self.completed = 0
        self.environment = Environment()
        self.streams = [Resource(self.environment, capacity=1) for _ in range(graph.streams)]
        self.ready: list[int] = []
        for task in range(graph.tasks):
            if self.waiting_for[task] == 0:
                self.make_ready(task)

    def make_ready(self, task: int) -> None:
        """Have `task` released by the barrier at the end of this instant, which the first ready task sets up."""
        if not self.ready:
            barrier = _Barrier(self.environment)
            barrier.callbacks.append(self.release)
        self.ready.append(task)

    def release(self, _barrier: Event) -> None:
        """Release phase: what is ready asks for its stream in order of id."""
        ready, self.ready = self.ready, []
        for task in sorted(ready):
            self.environment.process(self.perform(task))

    def perform(self, task: int) -> Generator[Event, None, None]:
        """The life of a task after its release."""
        if self.stream[task] == JOIN:
            yield from self.work(task)
        else:
            with self.streams[self.stream[task]].request() as turn:
                yield turn
                yield from self.work(task)
        self.complete(task)

    def work(self, task: int) -> Generator[Event, None, None]:
        """Let the duration of `task` pass."""
        self.start_s[task] = self.environment.now
        yield self.environment.timeout(self.duration_s[task])
        self.finish_s[task] = self.environment.now

    def complete(self, task: int) -> None:
        """Finish phase, for one task: its successors have one task less to wait for."""
        self.completed += 1
        for after in self.successor[self.successor_offset[task] : self.successor_offset[task + 1]]:
            self.waiting_for[after] -= 1
            if self.waiting_for[after] == 0:
                self.make_ready(after)


class _Barrier(Event):
    """Fires at the current time, after every other event of that time."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._ok = True
        self._value = None
        environment.schedule(self, priority=AFTER_ALL_ELSE)
