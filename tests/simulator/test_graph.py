import copy
import pickle
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from moesim.errors import GraphError
from moesim.simulator.graph import JOIN, TaskGraph, Timeline, find_cycle
from moesim.simulator.graph_builder import GraphBuilder

DIAMOND = [(0, 2), (0, 1), (1, 3), (2, 3)]
ONE_STREAM = ("device 0 compute",)


def diamond() -> TaskGraph:
    return TaskGraph.build([1.0, 2.0, 3.0, 0.0], [0, 0, 1, JOIN], DIAMOND, stream_names=("compute", "network"))


def test_successors_are_compressed_rows_in_order_of_id() -> None:
    graph = diamond()
    assert graph.successor_offset.tolist() == [0, 2, 3, 4, 4]
    assert graph.successor.tolist() == [1, 2, 3, 3]
    assert graph.predecessor_count.tolist() == [0, 1, 1, 2]


def test_columns_have_the_documented_types() -> None:
    graph = diamond()
    types = {name: str(value.dtype) for name, value in vars(graph).items() if isinstance(value, np.ndarray)}
    assert types == {
        "duration_s": "float64",
        "stream": "int32",
        "successor_offset": "int64",
        "successor": "int32",
        "predecessor_count": "int32",
        "kind": "int16",
        "layer": "int32",
        "device": "int32",
    }
    assert (graph.tasks, graph.streams) == (4, 2)


def test_a_graph_without_tasks_is_a_graph() -> None:
    graph = TaskGraph.build([], [], [], stream_names=())
    assert graph.tasks == 0
    assert graph.successor_offset.tolist() == [0]


def test_an_edge_given_twice_counts_twice() -> None:
    graph = TaskGraph.build([1.0, 1.0], [0, 0], [(0, 1), (0, 1)], stream_names=ONE_STREAM)
    assert graph.predecessor_count.tolist() == [0, 2]


@pytest.mark.parametrize("bad", [-1.0, np.inf, np.nan, -5e-324])
def test_durations_must_be_finite_and_not_negative(bad: float) -> None:
    with pytest.raises(GraphError, match=r"task 1: duration_s must be finite and >= 0, got"):
        TaskGraph.build([0.0, bad], [0, 0], [], stream_names=ONE_STREAM)
    graph = TaskGraph.build([0.0, 0.0], [0, 0], [], stream_names=ONE_STREAM)
    with pytest.raises(GraphError, match=r"task 1: duration_s must be finite and >= 0, got"):
        graph.with_durations([0.0, bad])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"duration_s": [[1.0, 2.0]]}, r"duration_s: must have shape \[task\], got \(1, 2\)"),
        ({"stream": [0]}, r"stream: must be 2 integers, got int64 of shape \(1,\)"),
        ({"stream": [0.0, 1.0]}, r"stream: must be 2 integers, got float64"),
        ({"stream": [0, 1]}, r"task 1: stream must lie in \[-1, 1\), got 1"),
        ({"stream": [-2, 0]}, r"task 0: stream must lie in \[-1, 1\), got -2"),
        ({"kind": [0, 1]}, r"task 1: kind must lie in \[0, 1\), got 1"),
        ({"layer": [-2, 0]}, r"task 0: layer must lie in"),
        ({"device": [0, 2**31]}, r"task 1: device must lie in"),
        ({"edges": [(0, 2)]}, r"edge 0: both ends must be tasks in \[0, 2\), got 2"),
        ({"edges": [(0, 1), (-1, 0)]}, r"edge 1: both ends must be tasks in \[0, 2\), got -1"),
        ({"edges": [0, 1]}, r"edges: must be integers of shape \[edge, 2\]"),
        ({"edges": [(0.0, 1.0)]}, r"edges: must be integers of shape \[edge, 2\]"),
    ],
)
def test_a_wrong_column_is_named_with_the_task_and_the_value(columns: dict[str, object], message: str) -> None:
    right: dict[str, Any] = {"duration_s": [1.0, 2.0], "stream": [0, 0], "edges": [(0, 1)], "stream_names": ONE_STREAM}
    with pytest.raises(GraphError, match=message):
        TaskGraph.build(**{**right, **columns})


@pytest.mark.parametrize(
    ("edges", "cycle"),
    [
        ([(1, 1)], [1]),
        ([(0, 1), (1, 0)], [0, 1]),
        ([(0, 3), (3, 2), (2, 4), (4, 3), (4, 1)], [2, 4, 3]),  # task 1 waits behind the cycle, and is not on it
    ],
)
def test_a_cycle_is_refused_and_shown(edges: list[tuple[int, int]], cycle: list[int]) -> None:
    with pytest.raises(GraphError, match="must not wait for itself") as caught:
        TaskGraph.build(np.ones(5), np.zeros(5, np.int32), edges, stream_names=ONE_STREAM, layer=[9, 8, 7, 6, 5])
    path = [int(task) for task in str(caught.value).rpartition("got ")[2].split(" -> ")]
    assert path[0] == path[-1]
    assert set(path) == set(cycle)
    assert set(pairwise(path)) <= set(edges)
    assert f"task {path[0]} (task, layer {[9, 8, 7, 6, 5][path[0]]}, device 0 compute)" in str(caught.value)


def test_ids_need_not_be_in_topological_order() -> None:
    graph = TaskGraph.build(np.ones(3), [0, 0, 0], [(2, 0), (0, 1)], stream_names=ONE_STREAM)
    assert find_cycle(graph) == []


def test_new_durations_share_the_structure_and_are_a_copy() -> None:
    graph = diamond()
    duration_s = np.array([4.0, 3.0, 2.0, 1.0])
    other = graph.with_durations(duration_s)
    duration_s[:] = -1.0
    assert other.duration_s.tolist() == [4.0, 3.0, 2.0, 1.0]
    assert graph.duration_s.tolist() == [1.0, 2.0, 3.0, 0.0]
    shared = set(vars(graph)) - {"duration_s"}
    assert all(getattr(graph, name) is getattr(other, name) for name in shared)


def test_new_durations_must_be_one_per_task() -> None:
    with pytest.raises(GraphError, match=r"duration_s: must have shape \(4,\), got \(3,\)"):
        diamond().with_durations([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    "remade",
    [
        diamond(),
        diamond().with_durations(np.ones(4)),
        pickle.loads(pickle.dumps(diamond())),
        copy.deepcopy(diamond()),
        replace(diamond(), duration_s=np.ones(4)),
    ],
)
def test_arrays_are_read_only_however_a_graph_came_about(remade: TaskGraph) -> None:
    arrays = [value for value in vars(remade).values() if isinstance(value, np.ndarray)]
    assert len(arrays) == 8
    assert not any(array.flags.writeable for array in arrays)


def test_makespan_is_the_last_finish_and_zero_without_tasks() -> None:
    assert Timeline(np.array([0.0, 1.0]), np.array([5.0, 2.0])).makespan_s == 5.0
    assert Timeline(np.empty(0), np.empty(0)).makespan_s == 0.0


def test_builder_counts_ids_and_collects_edges() -> None:
    builder = GraphBuilder()
    compute, network = builder.stream("device 0 compute"), builder.stream("device 0 network")
    first = builder.add(compute, "attention", 3, 0, duration_s=2.0)
    block = builder.add_block([compute, network], "send", 3, [0, 1], after=[first])
    each = builder.add_block([compute, network], "receive", after_each=block)
    end = builder.join(each, layer=3)
    graph = builder.build()
    assert (first, list(block), list(each), end) == (0, [1, 2], [3, 4], 5)
    assert graph.stream.tolist() == [0, 0, 1, 0, 1, JOIN]
    assert [graph.kinds[kind] for kind in graph.kind] == ["attention", "send", "send", "receive", "receive", "join"]
    assert graph.layer.tolist() == [3, 3, 3, -1, -1, 3]
    assert graph.device.tolist() == [0, 0, 1, -1, -1, -1]
    assert graph.duration_s.tolist() == [2.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert graph.successor_offset.tolist() == [0, 2, 3, 4, 5, 6, 6]
    assert graph.successor.tolist() == [1, 2, 3, 4, 5, 5]


def test_builder_names_a_stream_once() -> None:
    builder = GraphBuilder()
    assert [builder.stream(name) for name in ("a", "b", "a")] == [0, 1, 0]
    assert builder.build().stream_names == ("a", "b")


def test_builder_refuses_blocks_of_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="zip"):
        GraphBuilder().add_block([0, 0], "send", devices=[0])
    with pytest.raises(ValueError, match="zip"):
        GraphBuilder().add_block([0, 0], "send", after_each=[0])
