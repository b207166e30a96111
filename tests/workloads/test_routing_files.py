"""Routing on disk: what is written comes back, and what is broken is refused with its place."""

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moesim.errors import DataError
from moesim.workloads.routing_files import (
    is_profile,
    read_routing_profile,
    read_routing_trace,
    write_routing_profile,
    write_routing_trace,
)
from moesim.workloads.routing_profile import RoutingProfile

IDS = "gpt-oss-20b_decode_top4_ids.npz"
SAMPLES = "gpt-oss-20b_decode_samples.csv"
HEADER = "key,dataset,first_decode_pos,n_decode"
ROWS = ["s0,facts,10,3", "s1,code,4,2"]


def ids(steps: int) -> Any:
    rng = np.random.default_rng(steps)
    shuffled = rng.permuted(np.tile(np.arange(32, dtype=np.uint8), (steps, 3, 1)), axis=2)
    return np.ascontiguousarray(shuffled[:, :, :4])


def recording(folder: Path, rows: list[str] | None = None, **arrays: Any) -> Path:
    np.savez(folder / IDS, **(arrays or {"s0": ids(3), "s1": ids(2)}))
    (folder / SAMPLES).write_text("\n".join([HEADER, *(ROWS if rows is None else rows)]) + "\n")
    return folder / IDS


def test_recording_of_gpt_oss(tmp_path: Path) -> None:
    trace = read_routing_trace(recording(tmp_path))
    assert (trace.model, trace.experts, trace.names, trace.groups) == (
        "gpt-oss-20b",
        32,
        ("s0", "s1"),
        ("facts", "code"),
    )
    assert trace.position.tolist() == [10, 11, 12, 4, 5]
    assert trace.request.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(trace.expert, np.concatenate([ids(3), ids(2)]))


@pytest.mark.parametrize(
    ("rows", "arrays", "message"),
    [
        (["s0,facts,10,3"], {}, f"{SAMPLES}: must have a row for every request of the npz file, none for, got 's1'"),
        (["s0,facts,ten,3", ROWS[1]], {}, f"{SAMPLES}:2: first_decode_pos: must be a whole number >= 0, got 'ten'"),
        ([ROWS[0], "s1,code,4,9"], {}, f"{SAMPLES}:3: n_decode: must be 2, the steps in the npz file, got '9'"),
        ([ROWS[0], "s1,code"], {}, f"{SAMPLES}:3: first_decode_pos: must be a whole number"),
        (None, {"s0": ids(3), "s1": ids(2)[:, :2]}, f"{IDS}: s1: must be uint8"),
        (None, {"s0": ids(3), "s1": ids(2).astype(float)}, f"{IDS}: s1: must be uint8"),
        (None, {"s0": ids(3), "s1": ids(0)}, f"{IDS}: s1: must have at least one step"),
        (None, {"s0": ids(3) + np.uint8(9), "s1": ids(2)}, "request s0, row 0: expert ids must be below 32"),
        (None, {"s0": np.zeros((3, 3, 4), np.uint8), "s1": ids(2)}, "must use each expert once"),
        (None, {"s0": np.array([{}], dtype=object)}, "cannot be read"),
    ],
)
def test_broken_recordings(tmp_path: Path, rows: list[str] | None, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        read_routing_trace(recording(tmp_path, rows, **arrays))
    assert message in str(error.value)


def test_recording_without_its_table(tmp_path: Path) -> None:
    path = recording(tmp_path)
    (tmp_path / SAMPLES).unlink()
    with pytest.raises(DataError, match="no such file; it must stand beside"):
        read_routing_trace(path)


def test_recording_of_an_unknown_model(tmp_path: Path) -> None:
    recording(tmp_path)
    other = tmp_path / "mine_decode_top4_ids.npz"
    (tmp_path / IDS).rename(other)
    (tmp_path / SAMPLES).rename(tmp_path / "mine_decode_samples.csv")
    with pytest.raises(DataError, match="the number of `experts` must be given for this model, got 'mine'"):
        read_routing_trace(other)
    assert read_routing_trace(other, experts=64).experts == 64
    with pytest.raises(DataError, match="must be named <model>_decode_top"):
        read_routing_trace(other.rename(tmp_path / "mine.npz"))


def test_trace_comes_back_from_parquet(tmp_path: Path) -> None:
    trace = read_routing_trace(recording(tmp_path))
    write_routing_trace(trace, tmp_path / "t.parquet")
    again = read_routing_trace(tmp_path / "t.parquet")
    for name in ("model", "experts", "names", "groups"):
        assert getattr(again, name) == getattr(trace, name)
    for name in ("request", "position", "phase", "expert", "first_decode_position"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trace, name))
        assert getattr(again, name).dtype == getattr(trace, name).dtype
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_and_settings_come_back(tmp_path: Path, dtype: Any) -> None:
    trace = read_routing_trace(recording(tmp_path))
    weight = np.random.default_rng(0).random(trace.expert.shape).astype(dtype)
    capture: dict[str, str | int | float | bool] = {"dtype": "bf16", "seed": 3, "temperature": 0.5, "greedy": False}
    full = replace(trace, weight=weight, licence="Apache-2.0", capture=capture)
    write_routing_trace(full, tmp_path / "t.parquet")
    again = read_routing_trace(tmp_path / "t.parquet")
    assert again.weight is not None
    assert again.weight.dtype == dtype
    np.testing.assert_array_equal(again.weight, weight)
    assert (again.licence, again.capture) == ("Apache-2.0", {"source": trace.source} | capture)
    write_routing_trace(again, tmp_path / "again.parquet")
    assert read_routing_trace(tmp_path / "again.parquet").capture == again.capture
    part = again.select([1])
    assert part.weight is not None
    np.testing.assert_array_equal(part.weight, weight[3:])


def test_weights_without_a_number_are_refused_at_their_row(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    trace = read_routing_trace(recording(tmp_path))
    write_routing_trace(replace(trace, weight=np.ones(trace.expert.shape, np.float32)), path)
    table = pq.read_table(path)
    spoilt = np.ones(trace.expert.size, np.float32)
    spoilt[12 * 3 + 5] = np.nan
    lists = pa.FixedSizeListArray.from_arrays(pa.array(spoilt), 12)
    pq.write_table(table.set_column(4, "gate", lists), path)
    with pytest.raises(DataError) as error:
        read_routing_trace(path)
    rule = "gate weights must be finite and >= 0 (MoE layer 1), got nan"
    assert str(error.value) == f"{path}: request s1, row 3: {rule}"


@pytest.mark.parametrize("name", ["dump.pt", "dump.pkl", "dump.npz", "dump.parquet"])
def test_pickles_are_refused_unread(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match=r"is a pickle, which can run code.*weights_only=True"):
        read_routing_trace(path)


def test_archives_of_torch_are_refused_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "gpt-oss-20b_decode_top4_ids.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(DataError, match="is a pickle"):
        read_routing_trace(path)


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.npz"
    write_routing_profile(RoutingProfile.uniform(1, 4, 2), path)
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(DataError, match=r"p\.npz: cannot be written \(disk full\)"):
        write_routing_profile(RoutingProfile.uniform(1, 8, 2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def without_metadata(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None)


def with_format_9(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({"moesim.routing_trace": json.dumps({"format": 9})})


def without_names(table: pa.Table) -> pa.Table:
    about = json.loads(table.schema.metadata[b"moesim.routing_trace"])
    del about["names"]
    return table.replace_schema_metadata({"moesim.routing_trace": json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_metadata, "must be that of a routing trace"),
        (with_format_9, "format: must be 1, got 9"),
        (without_names, "names: required"),
        (lambda table: table.drop_columns(["phase"]), "lacks, got ['phase']"),
        (lambda table: table.slice(0, 3), "every one of the 2 requests must have tokens"),
        (lambda table: table.slice(0, 0), "must have tokens"),
        (
            lambda table: table.set_column(3, "expert", [table["request"]]),
            "expert: must be lists of layers x top_k values",
        ),
    ],
)
def test_broken_parquet(tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    path = tmp_path / "t.parquet"
    write_routing_trace(read_routing_trace(recording(tmp_path)), path)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(DataError) as error:
        read_routing_trace(path)
    assert message in str(error.value)


@pytest.mark.parametrize("name", [IDS, "t.parquet", "p.npz"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
def test_cut_off_files(tmp_path: Path, name: str, kept: float) -> None:
    trace = read_routing_trace(recording(tmp_path))
    write_routing_trace(trace, tmp_path / "t.parquet")
    write_routing_profile(RoutingProfile.from_trace(trace), tmp_path / "p.npz")
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match=name):
        (read_routing_profile if name == "p.npz" else read_routing_trace)(path)


@pytest.mark.parametrize("name", ["none.npz", "none.parquet", "none.csv"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_routing_trace(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_routing_profile(tmp_path / name)


def test_profile_comes_back(tmp_path: Path) -> None:
    profile = RoutingProfile.from_trace(read_routing_trace(recording(tmp_path)))
    assert profile.transitions is not None
    for dtype, tolerance in ((np.float64, 1e-15), (np.float32, 1e-7)):
        write_routing_profile(profile, tmp_path / "p.npz", dtype)
        again = read_routing_profile(tmp_path / "p.npz")
        assert (again.model, again.source, again.top_k) == (profile.model, profile.source, profile.top_k)
        np.testing.assert_allclose(again.popularity, profile.popularity, atol=tolerance)
        assert again.transitions is not None
        np.testing.assert_allclose(again.transitions, profile.transitions, atol=tolerance)
    assert is_profile(tmp_path / "p.npz")
    assert not is_profile(tmp_path / IDS)
    with pytest.raises(DataError, match="is no routing profile"):
        read_routing_profile(tmp_path / IDS)


def test_profile_of_pickles_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", about=np.array({"model": "x"}, dtype=object), popularity=np.ones((1, 1)))
    with pytest.raises(DataError, match="cannot be read"):
        read_routing_profile(tmp_path / "p.npz")
