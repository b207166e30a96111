"""Task graphs: what an engine plays, and the timeline it returns.

A task is a priced operator or transfer on a stream. A stream runs one task at a time, first come first served.
The whole meaning of a graph, the same for every engine:

    Time starts at 0, the tasks without predecessors are released, and time jumps to the earliest finish `t`.
    Finish phase:  every task that finishes at `t` completes. A freed stream starts the head of its queue at once;
                   if that task also finishes at `t`, it completes in this phase too.
    Release phase: the tasks whose last predecessor completed join the tail of their stream's queue in order of
                   their ids, and an idle stream starts its head. A task on no stream (a join) starts right away.
                   What then finishes at `t` is completed by another finish phase before time moves.

`finish = start + duration` is one float64 addition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.errors import GraphError

Scalar = TypeVar("Scalar", np.int16, np.int32)

JOIN = -1
"""The stream of a task that needs no resource."""

NO_LAYER = NO_DEVICE = -1
"""Layer and device of a task that belongs to none."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """When each task ran: `start_s: float64[task]`, `finish_s: float64[task]`, in seconds from the graph's start."""

    start_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]

    @property
    def makespan_s(self) -> float:
        """The time at which the last task finishes; 0.0 for a graph without tasks."""
        return float(self.finish_s.max(initial=0.0))


@dataclass(frozen=True, eq=False)
class TaskGraph:
    """Tasks, streams and precedence as a struct of read-only arrays; made by `build` or a `GraphBuilder`.

    `duration_s: float64[task]` finite and >= 0
    `stream: int32[task]` in [0, streams), or JOIN
    `successor_offset: int64[task + 1]`, `successor: int32[edge]`: the tasks that wait for task i are
        `successor[successor_offset[i]:successor_offset[i + 1]]`
    `predecessor_count: int32[task]`
    `kind: int16[task]` index into `kinds`; `layer: int32[task]`, `device: int32[task]`, -1 for none: descriptions
        that no engine reads
    `stream_names`: one label per stream, such as "device 0 compute"
    """

    duration_s: NDArray[np.float64]
    stream: NDArray[np.int32]
    successor_offset: NDArray[np.int64]
    successor: NDArray[np.int32]
    predecessor_count: NDArray[np.int32]
    kind: NDArray[np.int16]
    layer: NDArray[np.int32]
    device: NDArray[np.int32]
    kinds: tuple[str, ...]
    stream_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Freeze the arrays: graphs of one scenario share them."""
        for value in self.__dict__.values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle, and freeze again: numpy restores arrays as writable ones, another type to the compiled engine."""
        self.__dict__.update(state)
        self.__post_init__()

    @classmethod
    def build(
        cls,
        duration_s: ArrayLike,
        stream: ArrayLike,
        edges: ArrayLike,
        *,
        stream_names: Sequence[str],
        kind: ArrayLike | None = None,
        kinds: Sequence[str] = ("task",),
        layer: ArrayLike | None = None,
        device: ArrayLike | None = None,
    ) -> Self:
        """Check everything and build the graph.

        Args:
            duration_s: `[task]` seconds.
            stream: `[task]` stream ids, JOIN for none.
            edges: `[edge, 2]` pairs (task, a task that waits for it); a pair may be given twice.
            stream_names: the label of each stream.
            kind: `[task]` index into `kinds`; all 0 if left out.
            kinds: the names of the kinds.
            layer: `[task]` layer or -1; all -1 if left out.
            device: `[task]` device or -1; all -1 if left out.

        Raises:
            GraphError: a column has the wrong shape or a value out of range, or the edges contain a cycle; the
                message names a task.
        """
        duration = _durations(duration_s, None)
        tasks = duration.size
        pairs = _edges(edges, tasks)
        offset, successor, predecessor_count = _compress(pairs, tasks)
        graph = cls(
            duration_s=duration,
            stream=_column("stream", stream, tasks, JOIN, len(stream_names), np.int32),
            successor_offset=offset,
            successor=successor,
            predecessor_count=predecessor_count,
            kind=_column("kind", 0 if kind is None else kind, tasks, 0, len(kinds), np.int16),
            layer=_column("layer", NO_LAYER if layer is None else layer, tasks, NO_LAYER, None, np.int32),
            device=_column("device", NO_DEVICE if device is None else device, tasks, NO_DEVICE, None, np.int32),
            kinds=tuple(kinds),
            stream_names=tuple(stream_names),
        )
        forward_only = bool((pairs[:, 0] < pairs[:, 1]).all())
        if not forward_only and find_cycle(graph):
            raise cycle_error(graph)
        return graph

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return self.stream.size

    @property
    def streams(self) -> int:
        """Number of streams."""
        return len(self.stream_names)

    def with_durations(self, duration_s: ArrayLike) -> Self:
        """The same graph with other durations; every other array is shared, so a step costs a few microseconds.

        Only the durations are checked (shape, finite, >= 0): the structure was checked when it was built.
        `duration_s` is copied, so a buffer may be refilled afterwards.

        Raises:
            GraphError: the shape is wrong, or a duration is negative, infinite or NaN.
        """
        duration = _durations(duration_s, self.tasks)
        duration.setflags(write=False)
        # dataclasses.replace() would take longer than playing a small graph: it passes every field through __init__.
        graph = object.__new__(type(self))
        graph.__dict__.update(self.__dict__)
        graph.__dict__["duration_s"] = duration
        return graph

    def describe(self, task: int) -> str:
        """`task 7 (attention, layer 3, device 0 compute)`, for messages."""
        stream = int(self.stream[task])
        place = "no stream" if stream == JOIN else self.stream_names[stream]
        return f"task {task} ({self.kinds[self.kind[task]]}, layer {self.layer[task]}, {place})"


def find_cycle(graph: TaskGraph) -> list[int]:
    """Tasks of one cycle, each waiting for the one before it (and the first for the last); empty if there is none."""
    left = _unplayable(graph)
    if not left:
        return []
    # Every task that can never be released waits for another such task: walking back must enter a cycle.
    waits_for = {after: task for task in left for after in _successors(graph, task) if after in left}
    seen: dict[int, int] = {}
    task = min(left)
    while task not in seen:
        seen[task] = len(seen)
        task = waits_for[task]
    walked_back = list(seen)[seen[task] :]
    return walked_back[::-1]


def cycle_error(graph: TaskGraph) -> GraphError:
    """The error for a graph that cannot be played to its end; names a task of the cycle and the way around it."""
    cycle = find_cycle(graph)
    if not cycle:
        return GraphError("predecessor_count must be the number of edges into each task, and is not")
    first_tasks = 8
    path = [str(task) for task in cycle[:first_tasks]] + ["..."] * (len(cycle) > first_tasks) + [str(cycle[0])]
    return GraphError(f"{graph.describe(cycle[0])}: must not wait for itself, got {' -> '.join(path)}")


def _unplayable(graph: TaskGraph) -> set[int]:
    """Tasks on a cycle or behind one: what is left when tasks are taken away in topological order."""
    waiting = np.bincount(graph.successor, minlength=graph.tasks).tolist()
    free = [task for task, count in enumerate(waiting) if count == 0]
    left = set(range(graph.tasks))
    while free:
        task = free.pop()
        left.discard(task)
        for after in _successors(graph, task):
            waiting[after] -= 1
            if waiting[after] == 0:
                free.append(after)
    return left


def _successors(graph: TaskGraph, task: int) -> list[int]:
    """Tasks that wait for `task`."""
    successors: list[int] = graph.successor[graph.successor_offset[task] : graph.successor_offset[task + 1]].tolist()
    return successors


def _durations(duration_s: ArrayLike, tasks: int | None) -> NDArray[np.float64]:
    """A copy of the durations; `tasks` is the number there must be, None for any."""
    duration = np.array(duration_s, dtype=np.float64, order="C")
    if duration.ndim != 1 or (tasks is not None and duration.size != tasks):
        expected = "[task]" if tasks is None else f"({tasks},)"
        raise GraphError(f"duration_s: must have shape {expected}, got {duration.shape}")
    # min() and max() of a NaN are NaN, for which both comparisons are False.
    if duration.size and not (np.minimum.reduce(duration) >= 0.0 and np.maximum.reduce(duration) < np.inf):
        task = int(np.flatnonzero(~((duration >= 0.0) & (duration < np.inf)))[0])
        raise GraphError(f"task {task}: duration_s must be finite and >= 0, got {duration[task]}")
    return duration


def _edges(edges: ArrayLike, tasks: int) -> NDArray[np.int64]:
    """`int64[edge, 2]` with every end in [0, tasks)."""
    pairs = np.asarray(edges)
    if pairs.size == 0:
        return np.empty((0, 2), dtype=np.int64)
    if pairs.shape[1:] != (2,) or pairs.dtype.kind not in "iu":
        raise GraphError(f"edges: must be integers of shape [edge, 2], got {pairs.dtype} of shape {pairs.shape}")
    outside = (pairs < 0) | (pairs >= tasks)
    if outside.any():
        edge, end = np.argwhere(outside)[0]
        raise GraphError(f"edge {edge}: both ends must be tasks in [0, {tasks}), got {int(pairs[edge, end])}")
    return pairs.astype(np.int64)


def _compress(pairs: NDArray[np.int64], tasks: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """CSR of the edges: (successor_offset, successor, predecessor_count); successors in order of id."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    offset = np.zeros(tasks + 1, dtype=np.int64)
    np.cumsum(np.bincount(pairs[:, 0], minlength=tasks), out=offset[1:])
    successor = pairs[order, 1].astype(np.int32)
    predecessor_count = np.bincount(pairs[:, 1], minlength=tasks).astype(np.int32)
    return offset, successor, predecessor_count


def _column(
    name: str, values: ArrayLike, tasks: int, low: int, high: int | None, dtype: type[Scalar]
) -> NDArray[Scalar]:
    """A column of integers in [low, high), from one value per task or one for all."""
    given = np.asarray(values)
    if given.shape not in {(), (tasks,)} or (given.dtype.kind not in "iu" and given.size):
        raise GraphError(f"{name}: must be {tasks} integers, got {given.dtype} of shape {given.shape}")
    limit = int(np.iinfo(dtype).max) + 1 if high is None else high
    column = np.broadcast_to(given, (tasks,))
    outside = np.flatnonzero((column < low) | (column >= limit))
    if outside.size:
        task = int(outside[0])
        raise GraphError(f"task {task}: {name} must lie in [{low}, {limit}), got {int(column[task])}")
    return column.astype(dtype)
