"""Columns of routing traces: rules, look-ups, sums, parts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import DataError
from moesim.workloads.routing_files import read_routing_trace
from moesim.workloads.routing_trace import DECODE, PREFILL, RoutingTrace


def trace(**changes: Any) -> RoutingTrace:
    """Request a: one prompt token recorded and two steps; request b: two steps."""
    whole = RoutingTrace(
        model="small",
        experts=4,
        source="hand",
        names=("a", "b"),
        groups=("x", "y"),
        first_decode_position=np.array([3, 7]),
        request=np.array([0, 0, 0, 1, 1], dtype=np.int32),
        position=np.array([2, 3, 4, 7, 8], dtype=np.int32),
        phase=np.array([PREFILL, DECODE, DECODE, DECODE, DECODE], dtype=np.uint8),
        expert=np.array([[[0, 1]], [[1, 2]], [[3, 1]], [[0, 3]], [[1, 0]]], dtype=np.uint8),
    )
    return replace(whole, **changes)


def test_shape_and_offsets() -> None:
    assert (trace().layers, trace().top_k, trace().tokens) == (1, 2, 5)
    assert trace().offset.tolist() == [0, 3, 5]


def test_loads_count_every_selection() -> None:
    assert trace().loads().tolist() == [[3, 4, 1, 2]]
    assert trace().loads(PREFILL).tolist() == [[1, 1, 0, 0]]
    np.testing.assert_array_equal(trace().loads(PREFILL) + trace().loads(DECODE), trace().loads())


def test_rows_of_recorded_and_other_tokens() -> None:
    request = np.array([0, 0, 0, 0, 1, 1, 1, 2, -1])
    position = np.array([1, 2, 4, 5, 6, 7, 8, 2, 2])
    assert trace().rows(request, position).tolist() == [-1, 0, 2, -1, -1, 3, 4, -1, -1]


def test_select_reorders_requests() -> None:
    part = trace().select([1, 0])
    assert part.names == ("b", "a")
    assert part.groups == ("y", "x")
    assert part.first_decode_position.tolist() == [7, 3]
    assert part.request.tolist() == [0, 0, 1, 1, 1]
    assert part.position.tolist() == [7, 8, 2, 3, 4]
    np.testing.assert_array_equal(part.expert, trace().expert[[3, 4, 0, 1, 2]])


def test_split_takes_its_share_of_every_group() -> None:
    groups = ("x",) * 8 + ("y",) * 4
    many = replace(
        trace(),
        names=tuple(f"r{index}" for index in range(12)),
        groups=groups,
        first_decode_position=np.ones(12, dtype=np.int64),
        request=np.arange(12, dtype=np.int32),
        position=np.ones(12, np.int32),
        phase=np.ones(12, np.uint8),
        expert=np.tile(np.array([[[0, 1]]], dtype=np.uint8), (12, 1, 1)),
    )
    first, rest = many.split(0.25, np.random.default_rng(0))
    assert sorted(first.groups) == ["x", "x", "y"]
    assert sorted(first.names + rest.names) == sorted(many.names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 3}, "hand: request a, row 2: expert ids must be below 3, got 3"),
        ({"expert": np.zeros((5, 2, 2), np.uint8)}, "request a, row 0: a token must use each expert once per layer"),
        ({"expert": np.zeros((0, 1, 2), np.uint8)}, "must have tokens"),
        ({"expert": np.zeros((5, 1, 2), np.int64)}, "must be uint8 or uint16"),
        (
            {"position": np.array([2, 3, 5, 7, 8])},
            "request a, row 2: positions of a request must be consecutive, got 5",
        ),
        ({"position": np.array([-1, 0, 1, 7, 8])}, "hand: request a, row 0: positions must be >= 0, got -1"),
        ({"request": np.array([0, 0, 1, 0, 0])}, "hand: row 3: tokens must be sorted by request"),
        ({"request": np.array([0, 0, 0, 2, 2])}, "hand: row 3: tokens must be sorted by request, and requests counted"),
        ({"request": np.array([1, 1, 1, 1, 1])}, "hand: row 0: tokens must be sorted by request"),
        ({"request": np.array([-1, 0, 0, 1, 1])}, "hand: row 0: tokens must be sorted by request"),
        ({"request": np.array([0, 0, 0, 1, 2])}, "every one of the 2 requests must have tokens, and no other, got 3"),
        ({"request": np.zeros(5, np.uint32)}, "every one of the 2 requests must have tokens, and no other, got 1"),
        ({"first_decode_position": np.array([3, -7])}, "hand: first_decode_position: must be >= 0, got -7"),
        (
            {"phase": np.array([0, 1, 1, 1, 2])},
            "request b, row 4: the phase must be 0 (prefill) or 1 (decode), got 2",
        ),
        ({"phase": np.zeros(4)}, "phase: must have one value for each of 5 tokens"),
        ({"names": ("a",)}, "must be equally long"),
        ({"weight": np.ones((5, 1, 2))}, "weight: must be float16 or float32"),
        ({"weight": np.ones((5, 1, 1), np.float32)}, "weight: must be float16 or float32 (5, 1, 2)"),
        ({"weight": np.full((5, 1, 2), -0.5, np.float32)}, "request a, row 0: gate weights must be finite and >= 0"),
    ],
)
def test_broken_traces_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        trace(**changes)
    assert message in str(error.value)


@pytest.mark.reference
def test_published_trace(reference_data: Path) -> None:
    published = read_routing_trace(reference_data / "routing/gpt-oss-20b/gpt-oss-20b_decode_top4_ids.npz")
    assert (len(published.names), published.tokens, published.layers, published.top_k) == (703, 215_438, 24, 4)
    assert (published.model, published.experts) == ("gpt-oss-20b", 32)
    load = published.loads()
    assert load.sum() == 215_438 * 24 * 4
    assert abs((load.max(axis=1) / load.mean(axis=1)).mean() - 2.62) < 0.01
    assert (published.position[published.offset[:-1]] == published.first_decode_position).all()
    assert "Polyglot-or-Not_Fact-Completion" in published.groups
