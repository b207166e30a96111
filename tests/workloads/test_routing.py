"""What scenarios say about routing."""

from pathlib import Path

import numpy as np
import pytest

from moesim.configs.loader import Document
from moesim.errors import ConfigError, DataError, InputError, MoeSimError
from moesim.workloads.routing import (
    UniformRouting,
    ZipfRouting,
    load_routing,
    make_router,
    resolve_profile,
)
from moesim.workloads.routing_files import write_routing_profile, write_routing_trace
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_trace import RoutingTrace


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def trace(requests: int = 5) -> RoutingTrace:
    return RoutingTrace(
        model="small",
        experts=4,
        source="hand",
        names=tuple(f"r{index}" for index in range(requests)),
        groups=("",) * requests,
        first_decode_position=np.full(requests, 2),
        request=np.arange(requests, dtype=np.int32),
        position=np.full(requests, 2, np.int32),
        phase=np.ones(requests, np.uint8),
        expert=np.tile(np.array([[[3, 1]]], np.uint8), (requests, 2, 1)),
    )


def test_distributions() -> None:
    assert isinstance(load_routing("uniform"), UniformRouting)
    zipf = load_routing("zipf:1.5")
    assert isinstance(zipf, ZipfRouting)
    assert zipf.exponent == 1.5
    assert load_routing({"kind": "zipf", "exponent": 1.5}) == zipf
    assert load_routing(Document("scenario.yaml", "zipf:1.5")) == zipf


def test_shipped_profile() -> None:
    profile = load_routing("gpt-oss-20b")
    assert isinstance(profile, RoutingProfile)
    assert (profile.layers, profile.experts, profile.top_k) == (24, 32, 4)
    assert profile.transitions is not None
    assert "Apache-2.0" in profile.source
    assert (profile.popularity.max(axis=1) * 32).mean() == pytest.approx(2.62, abs=0.01)


def test_profile_of_a_trace_file(tmp_path: Path) -> None:
    write_routing_trace(trace(), tmp_path / "t.parquet")
    profile = load_routing({"kind": "profile", "path": str(tmp_path / "t.parquet")})
    assert isinstance(profile, RoutingProfile)
    assert profile.popularity.tolist() == [[0, 0.5, 0, 0.5]] * 2


def test_files_by_path(tmp_path: Path) -> None:
    write_routing_trace(trace(), tmp_path / "t.parquet")
    write_routing_profile(RoutingProfile.uniform(2, 4, 2), tmp_path / "p.npz")
    (tmp_path / "r.yaml").write_text("kind: profile\npath: p.npz\n")
    assert isinstance(load_routing("t.parquet", tmp_path), RoutingTrace)
    assert isinstance(load_routing("p.npz", tmp_path), RoutingProfile)
    assert isinstance(load_routing(tmp_path / "p.npz"), RoutingProfile)
    assert isinstance(load_routing(tmp_path / "r.yaml"), RoutingProfile)
    assert isinstance(load_routing("r.yaml", tmp_path), RoutingProfile)
    assert isinstance(load_routing({"kind": "trace", "path": str(tmp_path / "t.parquet")}), RoutingTrace)
    scenario = Document(str(tmp_path / "scenario.yaml"), {"routing": {"kind": "trace", "path": "t.parquet"}})
    assert isinstance(load_routing(scenario.child("routing")), RoutingTrace)


def test_shuffled_trace(tmp_path: Path) -> None:
    write_routing_trace(trace(40), tmp_path / "t.parquet")
    loaded = [load_routing({"kind": "trace", "path": "t.parquet", "shuffle_seed": 1}, tmp_path) for _ in range(2)]
    assert isinstance(loaded[0], RoutingTrace)
    assert isinstance(loaded[1], RoutingTrace)
    assert loaded[0].names == loaded[1].names != trace(40).names
    assert sorted(loaded[0].names) == sorted(trace(40).names)


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("gpt-oss-2b", ConfigError, "did you mean `gpt-oss-20b`?"),
        ("zipf:steep", ConfigError, "must be a number, got 'steep'"),
        ("zipf:-1", ConfigError, "must be >= 0"),
        ({"kind": "zip", "exponent": 1}, ConfigError, "did you mean `zipf`?"),
        ({"kind": "uniform", "exponent": 1}, ConfigError, "unknown key"),
        ("none.npz", DataError, "none.npz: no such file"),
        ("none.parquet", DataError, "none.parquet: no such file"),
        ({"kind": "profile", "path": "none.npz"}, DataError, "none.npz: no such file"),
    ],
)
def test_wrong_references(reference: str, error: type[MoeSimError], message: str, tmp_path: Path) -> None:
    with pytest.raises(error) as found:
        load_routing(reference, tmp_path)
    assert message in str(found.value)


def test_profiles_for_a_model() -> None:
    assert resolve_profile(load_routing("uniform"), 3, 8, 2, rng()).popularity.tolist() == [[1 / 8] * 8] * 3
    assert resolve_profile(load_routing("zipf:0"), 3, 8, 2, rng()).popularity.tolist() == [[1 / 8] * 8] * 3
    assert "assumed" in resolve_profile(load_routing("gpt-oss-20b"), 32, 8, 2, rng()).source
    assert resolve_profile(trace(), 2, 4, 2, rng()).popularity.tolist() == [[0, 0.5, 0, 0.5]] * 2


def test_routers() -> None:
    one, first = np.zeros(1, dtype=np.int64), np.full(1, 2)
    replayed = make_router(trace(), 2, 4, 2, rng())
    assert replayed.experts(one, first).tolist() == [[[3, 1], [3, 1]]]
    drawn = make_router(trace(), 2, 4, 2, rng(), replay=False)
    assert drawn.experts(one, first).tolist() == [[[1, 3], [1, 3]]]
    assert make_router(load_routing("uniform"), 6, 8, 3, rng()).experts(one, first).shape == (1, 6, 3)
    with pytest.raises(InputError, match="is routing of another model"):
        make_router(trace(), 2, 8, 2, rng())
