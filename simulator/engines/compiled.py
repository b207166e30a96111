"""The compiled engine: the semantics of `moesim.simulator.graph` in one numba module.

At any time at most one task per stream runs, besides joins that take time, so the heap of finish times stays small.
The queue of a stream is a chain that begins with the task that runs: `behind[task]` is the next one, `last[stream]`
the end of the chain, and a stream without a last task is idle.

Everything that is compiled lives in this file: numba's cache does not notice a change in another one. The helpers are
inlined because a call between compiled functions counts references to every array it passes, which costs as much as
the work itself.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moesim.simulator.graph import JOIN, TaskGraph, Timeline, cycle_error

_NONE = -1
"""No task."""


def run(graph: TaskGraph) -> Timeline:
    """Play `graph`, in O(tasks * log(running tasks) + edges).

    Raises:
        GraphError: the graph has a cycle.
    """
    start_s = np.empty(graph.tasks)
    finish_s = np.empty(graph.tasks)
    completed = _play(
        graph.duration_s,
        graph.stream,
        graph.successor_offset,
        graph.successor,
        graph.predecessor_count,
        graph.streams,
        start_s,
        finish_s,
    )
    if completed < graph.tasks:
        raise cycle_error(graph)
    return Timeline(start_s, finish_s)


@njit(cache=True, nogil=True)
def _play(  # noqa: C901  # in pieces it is half as fast (see above)
    duration_s: NDArray[np.float64],
    stream: NDArray[np.int32],
    successor_offset: NDArray[np.int64],
    successor: NDArray[np.int32],
    predecessor_count: NDArray[np.int32],
    streams: int,
    start_s: NDArray[np.float64],
    finish_s: NDArray[np.float64],
) -> int:
    """Fill `start_s` and `finish_s`; returns how many tasks completed: all of them unless there is a cycle."""
    tasks = stream.size
    waiting_for = predecessor_count.copy()
    ready = np.empty(tasks, np.int32)
    ready_count = 0
    for task in range(tasks):
        if waiting_for[task] == 0:
            ready[ready_count] = task
            ready_count += 1
    behind = np.full(tasks, _NONE, np.int32)
    last = np.full(streams, _NONE, np.int32)
    heap_s = np.empty(tasks, np.float64)
    heap_task = np.empty(tasks, np.int32)
    running = completed = 0
    now_s = 0.0
    while True:
        _sort(ready, ready_count)
        for i in range(ready_count):  # release phase
            task = ready[i]
            if stream[task] != JOIN:
                ahead = last[stream[task]]
                last[stream[task]] = task
                if ahead != _NONE:
                    behind[ahead] = task
                    continue
            start_s[task] = now_s
            finish_s[task] = now_s + duration_s[task]
            running = _push(heap_s, heap_task, running, finish_s[task], task)
        if running == 0:
            return completed
        now_s = heap_s[0]
        ready_count = 0
        while running > 0 and heap_s[0] == now_s:  # finish phase
            task = heap_task[0]
            running = _pop(heap_s, heap_task, running)
            completed += 1
            for edge in range(successor_offset[task], successor_offset[task + 1]):
                waiting_for[successor[edge]] -= 1
                if waiting_for[successor[edge]] == 0:
                    ready[ready_count] = successor[edge]
                    ready_count += 1
            head = behind[task]
            if head != _NONE:
                start_s[head] = now_s
                finish_s[head] = now_s + duration_s[head]
                running = _push(heap_s, heap_task, running, finish_s[head], head)
            elif stream[task] != JOIN:
                last[stream[task]] = _NONE


@njit(cache=True, inline="always")
def _push(heap_s: NDArray[np.float64], heap_task: NDArray[np.int32], size: int, finish_s: float, task: int) -> int:
    """Add a task to the binary heap of `size` running tasks, the earliest finish first; returns the new size."""
    hole = size
    while hole > 0:
        parent = (hole - 1) >> 1
        if heap_s[parent] <= finish_s:
            break
        heap_s[hole] = heap_s[parent]
        heap_task[hole] = heap_task[parent]
        hole = parent
    heap_s[hole] = finish_s
    heap_task[hole] = task
    return size + 1


@njit(cache=True, inline="always")
def _pop(heap_s: NDArray[np.float64], heap_task: NDArray[np.int32], size: int) -> int:
    """Remove the task with the earliest finish from the heap: the last entry takes its place; returns the new size."""
    size -= 1
    finish_s = heap_s[size]
    hole = 0
    child = 1
    while child < size:
        if child + 1 < size and heap_s[child + 1] < heap_s[child]:
            child += 1
        if heap_s[child] >= finish_s:
            break
        heap_s[hole] = heap_s[child]
        heap_task[hole] = heap_task[child]
        hole = child
        child = 2 * hole + 1
    heap_s[hole] = finish_s
    heap_task[hole] = heap_task[size]
    return size


@njit(cache=True, inline="always")
def _sort(ids: NDArray[np.int32], count: int) -> None:
    """Sort the first `count` ids, nearly always in order already (shell sort, as np.sort takes long to compile)."""
    in_order = True
    for i in range(1, count):
        in_order = in_order and ids[i - 1] <= ids[i]
    if in_order:
        return
    gap = 1
    while 3 * gap + 1 < count:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, count):
            task = ids[i]
            hole = i
            while hole >= gap and ids[hole - gap] > task:
                ids[hole] = ids[hole - gap]
                hole -= gap
            ids[hole] = task
        gap //= 3
