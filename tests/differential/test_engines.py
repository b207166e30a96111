"""The engines against each other, to the last bit, and both against schedules worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.random import Generator

from moesim.errors import ConfigError, GraphError
from moesim.simulator.engines import ENGINES, get_engine
from moesim.simulator.graph import JOIN, TaskGraph

RANDOM_GRAPHS = 3000
BATCHES = 10
# Zero, equal, and so short that they vanish when added to what went before.
AWKWARD_S = (0.0, 0.0, 5e-324, 1e-300, 1e-17, 1e-16, 0.1, 0.25, 0.25, 1.0, 1.0, 2.0)


def random_graph(rng: Generator) -> TaskGraph:
    """Up to 40 tasks, ids in any order, several components, few or many streams, joins with and without duration."""
    tasks = int(rng.integers(0, 41))
    streams = int(rng.choice([1, 2, 3, 8, 40]))
    awkward_s = rng.choice(AWKWARD_S, tasks)
    duration_s = np.where(rng.random(tasks) < rng.choice([0.3, 1.0]), awkward_s, rng.exponential(1.0, tasks))
    stream = np.where(rng.random(tasks) < rng.choice([0.0, 0.3]), JOIN, rng.integers(0, streams, tasks))
    position = rng.permutation(tasks) if rng.random() < 0.5 else np.arange(tasks)
    pairs = rng.integers(0, max(tasks, 1), (int(tasks * rng.choice([0.0, 0.5, 1.5, 4.0])), 2))
    forward = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    names = [f"stream {number}" for number in range(streams)]
    return TaskGraph.build(duration_s, stream, position[forward] if tasks else [], stream_names=names)


def test_there_are_two_engines() -> None:
    assert set(ENGINES) == {"compiled", "simpy"}


def test_an_unknown_engine_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        ConfigError, match=r"engine: must be one of compiled, simpy \(did you mean simpy\?\), got 'simpi'"
    ):
        get_engine("simpi")
    with pytest.raises(ConfigError, match=r"engine: must be one of compiled, simpy, got 'x'"):
        get_engine("x")


@pytest.mark.parametrize("batch", range(BATCHES))
def test_engines_agree_to_the_last_bit(batch: int) -> None:
    rng = np.random.default_rng([2024, batch])
    for number in range(RANDOM_GRAPHS // BATCHES):
        graph = random_graph(rng)
        compiled, simpy = get_engine("compiled")(graph), get_engine("simpy")(graph)
        assert compiled.start_s.tobytes() == simpy.start_s.tobytes(), f"graph {number}"
        assert compiled.finish_s.tobytes() == simpy.finish_s.tobytes(), f"graph {number}"


def test_engines_agree_where_many_tasks_become_ready_at_once_in_no_order() -> None:
    rng = np.random.default_rng(7)
    tasks = 600
    edges = np.column_stack([np.arange(tasks), tasks + rng.permutation(tasks)])
    stream = np.concatenate([np.full(tasks, JOIN), np.zeros(tasks, dtype=np.int64)])
    duration_s = np.concatenate([np.ones(tasks), rng.random(tasks)])
    graph = TaskGraph.build(duration_s, stream, edges, stream_names=("one",))
    compiled, simpy = get_engine("compiled")(graph), get_engine("simpy")(graph)
    assert compiled.start_s.tobytes() == simpy.start_s.tobytes()
    assert (np.diff(compiled.start_s[tasks:]) > 0).all()  # in order of id, whatever order they became ready in


A, B = 0, 1
# name: duration_s, stream, edges, start_s
BY_HAND: dict[str, tuple[list[float], list[int], list[tuple[int, int]], list[float]]] = {
    "no task": ([], [], [], []),
    "one task": ([2.0], [A], [], [0.0]),
    "sources queue in order of id": ([1.0, 2.0, 3.0], [A, A, A], [], [0.0, 1.0, 3.0]),
    "streams are independent": ([1.0, 2.0, 3.0], [A, B, A], [], [0.0, 0.0, 1.0]),
    # Tasks 2 and 4 ask for stream A at 0, tasks 0 and 3 at 1: a low id helps only among those released together.
    "who came first is served first": (
        [1.0, 1.0, 3.0, 1.0, 2.0],
        [A, B, A, A, A],
        [(1, 0), (1, 3)],
        [5.0, 0.0, 0.0, 6.0, 3.0],
    ),
    # At 1 stream A is freed and its queue head (task 3) starts before task 0, released at 1, asks for it.
    "a queue head goes before what is released at the same instant": (
        [1.0, 1.0, 1.0, 1.0],
        [A, B, A, A],
        [(1, 0)],
        [2.0, 0.0, 0.0, 1.0],
    ),
    # The zero-length queue heads 2 and 3 complete in the finish phase of t = 1, so 4 and 5 are released together.
    "a queue head without length completes in the same phase": (
        [0.0, 1.0, 0.0, 0.0, 1.0, 1.0],
        [JOIN, A, A, A, B, B],
        [(3, 4), (1, 5)],
        [0.0, 0.0, 1.0, 1.0, 1.0, 2.0],
    ),
    # 1 is released at t = 0 together with 0; what the join 0 releases comes one release phase later, despite its id.
    "each release phase is one place in the queue": (
        [1.0, 0.0, 1.0],
        [A, JOIN, A],
        [(1, 0)],
        [1.0, 0.0, 0.0],
    ),
    "a join needs no stream and may take time": ([2.0, 1.0, 1.0], [JOIN, A, A], [(0, 2)], [0.0, 0.0, 2.0]),
    "joins run side by side": ([2.0, 2.0, 1.0], [JOIN, JOIN, A], [(0, 2), (1, 2)], [0.0, 0.0, 2.0]),
    "a task waits for the last of its predecessors": (
        [1.0, 4.0, 1.0],
        [A, B, A],
        [(0, 2), (1, 2)],
        [0.0, 0.0, 4.0],
    ),
    "an edge may be given twice": ([1.0, 1.0], [A, B], [(0, 1), (0, 1)], [0.0, 1.0]),
    "a duration that vanishes frees its stream at once": (
        [1.0, 1e-17, 1.0],
        [A, A, A],
        [],
        [0.0, 1.0, 1.0],
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", BY_HAND)
def test_schedules_worked_out_by_hand(engine: str, case: str) -> None:
    duration_s, stream, edges, start_s = BY_HAND[case]
    timeline = get_engine(engine)(TaskGraph.build(duration_s, stream, edges, stream_names=("A", "B")))
    assert timeline.start_s.tolist() == start_s
    assert timeline.finish_s.tolist() == [start + duration for start, duration in zip(start_s, duration_s, strict=True)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cycle_that_was_not_checked_is_an_error_all_the_same(engine: str) -> None:
    graph = TaskGraph.build([1.0, 1.0, 1.0], [0, 0, 0], [(0, 1), (1, 2)], stream_names=("one",))
    cyclic = replace(graph, successor=np.array([1, 0], dtype=np.int32), predecessor_count=np.array([1, 1, 0], np.int32))
    with pytest.raises(GraphError, match=r"must not wait for itself, got (0 -> 1 -> 0|1 -> 0 -> 1)"):
        get_engine(engine)(cyclic)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_wrong_predecessor_count_that_was_not_checked_is_an_error(engine: str) -> None:
    graph = TaskGraph.build([1.0, 1.0], [0, 0], [(0, 1)], stream_names=("one",))
    with pytest.raises(GraphError, match="predecessor_count must be the number of edges"):
        get_engine(engine)(replace(graph, predecessor_count=np.array([0, 2], dtype=np.int32)))


@pytest.mark.parametrize("engine", ENGINES)
def test_playing_twice_gives_the_same_timeline_and_leaves_the_graph_alone(engine: str) -> None:
    graph = random_graph(np.random.default_rng(5))
    first, second = get_engine(engine)(graph), get_engine(engine)(graph)
    assert first.start_s.tobytes() == second.start_s.tobytes()
    assert first.finish_s.tobytes() == second.finish_s.tobytes()
