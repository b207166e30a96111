"""Profiles with states, reuse and domains come back from their files."""

from pathlib import Path

import numpy as np
import pytest

from moesim.errors import DataError
from moesim.workloads.routing_files import read_routing_profile, write_routing_profile
from moesim.workloads.routing_profile import RoutingProfile, limit_shares
from moesim.workloads.routing_states import Domains, Reuse, TokenStates


def full_profile() -> RoutingProfile:
    rng = np.random.default_rng(0)
    shares = limit_shares(rng.random((6, 8)), 2).reshape(3, 2, 8)
    states = TokenStates(np.array([0.3, 0.7]), rng.dirichlet(np.ones(2), (2, 2)), shares)
    reuse = Reuse(0.1, 0.5, 0.25, 0.3, 24, np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0]))
    loads = limit_shares(rng.random((6, 8)), 2).reshape(2, 3, 8)
    domains = Domains(("law", "poésie"), np.array([0.25, 0.75]), loads)
    return RoutingProfile("m", "made up", 2, states.popularity(), None, states, reuse, domains)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 0.0), (np.float32, 1e-4)])
def test_everything_comes_back(tmp_path: Path, dtype: type, tolerance: float) -> None:
    profile = full_profile()
    write_routing_profile(profile, tmp_path / "p.npz", dtype)
    found = read_routing_profile(tmp_path / "p.npz")
    assert profile.states is not None
    assert found.states is not None
    for name in ("initial", "transitions", "shares"):
        wanted = getattr(profile.states, name)
        np.testing.assert_allclose(getattr(found.states, name), wanted, atol=tolerance, rtol=1e-12)
    assert profile.reuse is not None
    assert found.reuse is not None
    for name in ("run_continues", "request_share", "habit_decay", "passage_share", "passage_tokens"):
        assert getattr(found.reuse, name) == getattr(profile.reuse, name)
    np.testing.assert_array_equal(found.reuse.habit_sets, profile.reuse.habit_sets)
    np.testing.assert_array_equal(found.reuse.run_sets, profile.reuse.run_sets)
    assert found.domains is not None
    assert profile.domains is not None
    assert found.domains.names == ("law", "poésie")
    np.testing.assert_allclose(found.domains.popularity, profile.domains.popularity, atol=1e-7)
    np.testing.assert_allclose(found.states.popularity(), found.popularity, atol=1e-4 / 8)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("states_initial", None, "is no routing profile"),
        ("states_initial", np.ones(3), r"states: initial: must have shape \(2,\)"),
        ("reuse_numbers", np.ones(3), "is no routing profile"),
        ("reuse_numbers", np.array([2.0, 0.1, 0.1, 0.1, 8]), "reuse: run_continues: must be from 0 to 1, got 2"),
        ("domains_weight", np.ones(2), "domains: weight: shares must be >= 0 and sum to 1"),
    ],
)
def test_broken_members_are_refused(
    tmp_path: Path, name: str, array: np.ndarray[tuple[int], np.dtype[np.float64]] | None, message: str
) -> None:
    path = tmp_path / "p.npz"
    write_routing_profile(full_profile(), path)
    with np.load(path) as archive:
        members = {key: archive[key] for key in archive.files if key != name}
    np.savez(path, allow_pickle=False, **(members if array is None else members | {name: array}))
    with pytest.raises(DataError, match=message) as error:
        read_routing_profile(path)
    assert str(path) in str(error.value)
