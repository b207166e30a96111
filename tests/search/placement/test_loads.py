"""Tables of loads: what is written comes back, and what is broken is refused with its place."""

import json

import numpy as np
import pytest

from moesim.errors import ConfigError, DataError, InputError
from moesim.search.placement.loads import recorded_loads, tabled_loads
from moesim.workloads.models import load_model
from moesim.workloads.routing_files import write_routing_profile, write_routing_trace
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_trace import RoutingTrace

TABLE = [[1.5, 2, 3], [4, 0, 6]]


def write(path, content):
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "1.5,2,3\n4,0,6\n"),
        ("t.csv", "\ufeffe0, e1, e2\r\n1.5, 2, 3\r\n\r\n4, 0, 6\r\n"),
        ("t.json", TABLE),
        ("t.json", {"loads": TABLE}),
        ("t.npz", {"anything": np.array(TABLE)}),
        ("t.npz", {"loads": np.array(TABLE, np.float32), "other": np.zeros(3)}),
    ],
)
def test_tables(tmp_path, name, content):
    found = tabled_loads(write(tmp_path / name, content))
    assert found.loads.tolist() == TABLE
    assert found.loads.dtype == np.float64
    assert found.model is None


@pytest.mark.parametrize(
    ("name", "content"), [("t.csv", "1,2,3"), ("t.json", [1, 2, 3]), ("t.npz", {"a": np.array([1, 2, 3])})]
)
def test_one_row_alone(tmp_path, name, content):
    assert tabled_loads(write(tmp_path / name, content)).loads.tolist() == [[1, 2, 3]]


def test_a_table_can_name_its_model(tmp_path):
    assert tabled_loads(write(tmp_path / "t.json", {"model": "mine", "loads": TABLE})).model == "mine"


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("t.csv", "1,2\n3,nan\n", "t.csv:2: column 2 must be a finite number >= 0, got nan"),
        ("t.csv", "1,2\n\n3,-4\n", "t.csv:3: column 2 must be a finite number >= 0, got -4.0"),
        ("t.csv", "1,2\n3,inf\n", "t.csv:2: column 2 must be a finite number >= 0, got inf"),
        ("t.csv", "1,2\n3,x\n", "t.csv:2: column 2 must be a finite number >= 0, got 'x'"),
        ("t.csv", "1,2\n3,\n", "t.csv:2: column 2 must be a finite number >= 0, got ''"),
        ("t.csv", "1,2\n3,4,5\n", "t.csv:2: must have 2 loads, as the first row has, got 3"),
        ("t.csv", "1,2\n0,0\n", "t.csv:2: a layer must have load"),
        ("t.csv", "", "t.csv: must have a row per layer"),
        ("t.csv", "e0,e1\n", "t.csv: must have a row per layer"),
        ("t.csv", b"\xff\xfe1", "t.csv: cannot be read"),
        ("t.json", "[[1, 2", "t.json: cannot be read"),
        ("t.json", "[" * 100_000, "t.json: cannot be read"),
        ("t.json", [], "t.json: must have a row per layer"),
        ("t.json", [[]], "t.json: must have a row per layer"),
        ("t.json", [[1, 2], 3], "t.json: layer 1: must be a list of loads, got 3"),
        ("t.json", [[1, None]], "t.json: layer 0: column 2 must be a finite number >= 0, got 'null'"),
        ("t.json", [[1, True]], "t.json: layer 0: column 2 must be a finite number >= 0, got True"),
        ("t.json", [[1, 10**400]], "t.json: layer 0: column 2 must be a finite number >= 0, got inf"),
        ("t.json", {"experts": TABLE}, "t.json: must be a list of rows, or an object with one under `loads`"),
        ("t.json", "7", "t.json: must be a list of rows"),
        ("t.npz", b"no archive", "t.npz: cannot be read"),
        ("t.npz", {"a": np.ones(2), "b": np.ones(2)}, "t.npz: must hold one array, or one called `loads`"),
        ("t.npz", {"a": np.ones((1, 1, 1))}, "t.npz: must hold numbers with axes"),
        ("t.npz", {"a": np.array(["x"])}, "t.npz: must hold numbers with axes"),
        ("t.npz", {"a": np.array([1, None])}, "t.npz: cannot be read"),
        ("t.npz", {"a": np.zeros((0, 4))}, "t.npz: must have a row per layer"),
        ("t.npz", {"a": np.array([[1.0, np.nan]])}, "t.npz: layer 0: column 2 must be a finite number >= 0, got nan"),
        ("t.txt", "1,2", "t.txt: a table of loads must be a .csv, .json or .npz file"),
    ],
)
def test_broken_tables_are_refused_with_their_place(tmp_path, name, content, rule):
    with pytest.raises(DataError) as caught:
        tabled_loads(write(tmp_path / name, content))
    assert rule in str(caught.value)


def test_missing_files_are_refused(tmp_path):
    for name in ("none.csv", "none.json", "none.npz"):
        with pytest.raises(DataError, match="no such file"):
            tabled_loads(tmp_path / name)
    for name in ("none.npz", "none.parquet"):
        with pytest.raises(DataError, match="no such file"):
            recorded_loads(str(tmp_path / name))
    with pytest.raises(InputError, match="none"):
        recorded_loads("none")


@pytest.fixture
def trace(tmp_path):
    """Two requests with two tokens each, in two layers with four experts."""
    expert = np.array([[[0, 1], [2, 3]], [[0, 2], [2, 1]], [[0, 3], [2, 0]], [[1, 0], [2, 3]]], np.uint8)
    trace = RoutingTrace(
        model="small",
        experts=4,
        source="made",
        names=("a", "b"),
        groups=("", ""),
        first_decode_position=np.array([0, 0]),
        request=np.array([0, 0, 1, 1], np.int32),
        position=np.array([0, 1, 0, 1], np.int32),
        phase=np.ones(4, np.uint8),
        expert=expert,
    )
    path = tmp_path / "trace.parquet"
    write_routing_trace(trace, path)
    return trace, path


def test_a_trace_is_counted(trace):
    found = recorded_loads(str(trace[1]))
    assert found.loads.tolist() == [[4, 2, 1, 1], [1, 1, 4, 2]]
    assert found.model == "small"


def test_a_profile_gives_tokens_per_token(trace, tmp_path):
    profile = RoutingProfile.from_trace(trace[0])
    write_routing_profile(profile, tmp_path / "profile.npz")
    found = recorded_loads(str(tmp_path / "profile.npz"))
    np.testing.assert_allclose(found.loads, trace[0].loads() / 4)
    assert recorded_loads("gpt-oss-20b").loads.sum(axis=1) == pytest.approx(4)


def test_routing_that_was_not_recorded_is_refused():
    with pytest.raises(ConfigError, match="must be a recorded trace or profile"):
        recorded_loads("uniform")


def test_loads_must_fit_the_model(trace, tmp_path):
    mixtral = load_model("mixtral-8x7b")
    with pytest.raises(InputError, match="8"):
        recorded_loads(str(trace[1]), mixtral)
    with pytest.raises(DataError, match=r"must have 32 layers with 8 experts, as mixtral-8x7b has, got \(2, 3\)"):
        tabled_loads(write(tmp_path / "t.json", TABLE), mixtral)
    assert tabled_loads(write(tmp_path / "u.json", [[1] * 8] * 32), mixtral).model == "mixtral-8x7b"
    with pytest.raises(ConfigError, match="has no layers with routed experts"):
        tabled_loads(write(tmp_path / "t.json", TABLE), load_model("llama-3.1-8b"))
