"""What must hold for the timeline of any graph, checked without an engine's own arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.simulator.engines import ENGINES, Engine, get_engine
from moesim.simulator.graph import JOIN, TaskGraph

MAX_TASKS = 30
MAX_STREAMS = 4
# A sum over a stream rounds once per task.
ROUNDING = MAX_TASKS * np.finfo(np.float64).eps

durations = st.one_of(
    st.sampled_from([0.0, 0.0, 1e-300, 1e-17, 0.5, 1.0, 1.0]),
    st.floats(0.0, 1e3, allow_subnormal=False),
)


@st.composite
def graphs(draw: st.DrawFn, streams: int = MAX_STREAMS, joins: bool = True) -> TaskGraph:
    """Graphs of up to MAX_TASKS tasks in any order of ids."""
    tasks = draw(st.integers(0, MAX_TASKS))
    duration_s = draw(st.lists(durations, min_size=tasks, max_size=tasks))
    stream = draw(st.lists(st.integers(JOIN if joins else 0, streams - 1), min_size=tasks, max_size=tasks))
    position = draw(st.permutations(range(tasks)))
    ends = st.integers(0, max(tasks - 1, 0))
    pairs = draw(st.lists(st.tuples(ends, ends), max_size=2 * tasks))
    edges = [(position[min(pair)], position[max(pair)]) for pair in pairs if pair[0] != pair[1]]
    return TaskGraph.build(duration_s, stream, edges, stream_names=[f"stream {number}" for number in range(streams)])


@pytest.fixture(params=ENGINES, scope="module")
def run(request: pytest.FixtureRequest) -> Engine:
    return get_engine(request.param)


def predecessors(graph: TaskGraph) -> list[list[int]]:
    """The tasks that each task waits for."""
    found: list[list[int]] = [[] for _ in range(graph.tasks)]
    before = np.repeat(np.arange(graph.tasks), np.diff(graph.successor_offset))
    for task, after in zip(before.tolist(), graph.successor.tolist(), strict=True):
        found[after].append(task)
    return found


def earliest_finish_s(graph: TaskGraph) -> list[float]:
    """When each task finishes if no stream is ever busy: the longest path that ends with it."""
    waits_for = predecessors(graph)
    finish_s: dict[int, float] = {}
    while len(finish_s) < graph.tasks:
        for task in range(graph.tasks):
            if task not in finish_s and all(before in finish_s for before in waits_for[task]):
                start_s = max((finish_s[before] for before in waits_for[task]), default=0.0)
                finish_s[task] = start_s + float(graph.duration_s[task])
    return [finish_s[task] for task in range(graph.tasks)]


def released_s(graph: TaskGraph, finish_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """When the last predecessor of each task finishes."""
    return np.array([max(finish_s[before], default=0.0) for before in predecessors(graph)], dtype=np.float64)


def tasks_in_order(
    graph: TaskGraph, stream: int, start_s: NDArray[np.float64], finish_s: NDArray[np.float64]
) -> list[int]:
    """Tasks of a stream in the order in which they ran; one that ends as it starts goes before one that does not."""
    tasks = np.flatnonzero(graph.stream == stream)
    order: list[int] = tasks[np.lexsort((finish_s[tasks], start_s[tasks]))].tolist()
    return order


@given(graph=graphs())
def test_a_task_takes_its_duration(run: Engine, graph: TaskGraph) -> None:
    timeline = run(graph)
    np.testing.assert_array_equal(timeline.finish_s, timeline.start_s + graph.duration_s)


@given(graph=graphs())
def test_a_task_starts_after_its_predecessors(run: Engine, graph: TaskGraph) -> None:
    timeline = run(graph)
    assert (timeline.start_s >= released_s(graph, timeline.finish_s)).all()


@given(graph=graphs())
def test_tasks_of_a_stream_never_overlap(run: Engine, graph: TaskGraph) -> None:
    timeline = run(graph)
    for stream in range(graph.streams):
        order = tasks_in_order(graph, stream, timeline.start_s, timeline.finish_s)
        assert (timeline.start_s[order[1:]] >= timeline.finish_s[order[:-1]]).all()


@given(graph=graphs())
def test_a_task_starts_when_it_is_released_or_when_its_stream_is_freed(run: Engine, graph: TaskGraph) -> None:
    timeline = run(graph)
    released = released_s(graph, timeline.finish_s)
    for task in range(graph.tasks):
        same_stream = (graph.stream == graph.stream[task]) & (graph.stream != JOIN)
        assert timeline.start_s[task] in {released[task], *timeline.finish_s[same_stream]}


@given(graph=graphs())
def test_who_is_released_earlier_starts_no_later(run: Engine, graph: TaskGraph) -> None:
    timeline = run(graph)
    released = released_s(graph, timeline.finish_s)
    for stream in range(graph.streams):
        tasks = np.flatnonzero(graph.stream == stream)
        earlier = released[tasks][:, None] < released[tasks][None, :]
        starts_later = timeline.start_s[tasks][:, None] > timeline.start_s[tasks][None, :]
        assert not (earlier & starts_later).any()


@given(graph=graphs())
def test_a_graph_takes_at_least_its_critical_path(run: Engine, graph: TaskGraph) -> None:
    timeline = run(graph)
    assert (timeline.finish_s >= earliest_finish_s(graph)).all()


@given(graph=graphs())
def test_a_graph_takes_at_least_its_busiest_stream(run: Engine, graph: TaskGraph) -> None:
    makespan_s = run(graph).makespan_s
    for stream in range(graph.streams):
        assert makespan_s >= graph.duration_s[graph.stream == stream].sum() * (1.0 - ROUNDING)


@given(graph=graphs())
def test_with_a_stream_for_each_task_the_critical_path_is_all_it_takes(run: Engine, graph: TaskGraph) -> None:
    before = np.repeat(np.arange(graph.tasks), np.diff(graph.successor_offset))
    names = [f"stream {task}" for task in range(graph.tasks)]
    edges = np.column_stack([before, graph.successor])
    wide = TaskGraph.build(graph.duration_s, np.arange(graph.tasks), edges, stream_names=names)
    assert run(wide).finish_s.tolist() == earliest_finish_s(graph)


@given(graph=graphs(streams=1, joins=False))
def test_one_stream_takes_the_sum_of_what_it_runs(run: Engine, graph: TaskGraph) -> None:
    timeline = run(graph)
    end_s = 0.0
    for task in tasks_in_order(graph, 0, timeline.start_s, timeline.finish_s):
        assert timeline.start_s[task] == end_s
        end_s += float(graph.duration_s[task])
    assert timeline.makespan_s == end_s


@given(graph=graphs())
def test_a_power_of_two_scales_the_timeline_exactly(run: Engine, graph: TaskGraph) -> None:
    slow = run(graph.with_durations(graph.duration_s * 1024.0))
    np.testing.assert_array_equal(slow.finish_s, run(graph).finish_s * 1024.0)


@given(graph=graphs())
def test_the_numbers_of_the_streams_mean_nothing(run: Engine, graph: TaskGraph) -> None:
    before = np.repeat(np.arange(graph.tasks), np.diff(graph.successor_offset))
    stream = np.where(graph.stream == JOIN, JOIN, graph.streams - 1 - graph.stream)
    edges = np.column_stack([before, graph.successor])
    renumbered = TaskGraph.build(graph.duration_s, stream, edges, stream_names=graph.stream_names)
    np.testing.assert_array_equal(run(renumbered).start_s, run(graph).start_s)
