"""Routing profiles: conservation, limits, and what is assumed for other models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import DataError, InputError
from moesim.workloads.routing_files import read_routing_profile
from moesim.workloads.routing_profile import RoutingProfile, check_dimensions, limit_shares
from moesim.workloads.routing_trace import RoutingTrace

SHIPPED = read_routing_profile(Path(__file__).resolve().parents[2] / "configs/routing/gpt-oss-20b.npz")


def random_trace(tokens: int = 200, layers: int = 4, experts: int = 8, k: int = 3) -> RoutingTrace:
    rng = np.random.default_rng(5)
    skewed = rng.random((tokens, layers, experts)) ** np.linspace(0.2, 3.0, experts)
    return RoutingTrace(
        model="random",
        experts=experts,
        source="made up",
        names=("r",),
        groups=("",),
        first_decode_position=np.array([1]),
        request=np.zeros(tokens, np.int32),
        position=np.arange(tokens, dtype=np.int32) + 1,
        phase=np.ones(tokens, np.uint8),
        expert=np.argsort(skewed, axis=2)[:, :, -k:].astype(np.uint8),
    )


def test_statistics_by_brute_force() -> None:
    trace = random_trace()
    profile = RoutingProfile.from_trace(trace)
    assert profile.transitions is not None
    for layer in range(4):
        for a in range(8):
            users = trace.expert[(trace.expert[:, layer] == a).any(axis=1)]
            assert profile.popularity[layer, a] == pytest.approx(len(users) / (200 * 3))
            if layer < 3 and len(users):
                following = np.bincount(users[:, layer + 1].ravel(), minlength=8) / (3 * len(users))
                np.testing.assert_allclose(profile.transitions[layer, a], following)


def test_transitions_keep_popularity() -> None:
    for profile in (RoutingProfile.from_trace(random_trace()), SHIPPED):
        assert profile.transitions is not None
        carried = np.einsum("la,lab->lb", profile.popularity[:-1], profile.transitions)
        np.testing.assert_allclose(carried, profile.popularity[1:], atol=1e-7)


def test_unused_expert_hands_on_the_popularity() -> None:
    trace = random_trace(tokens=1, layers=2)
    profile = RoutingProfile.from_trace(trace)
    assert profile.transitions is not None
    unused = np.setdiff1d(np.arange(8), trace.expert[0, 0])
    np.testing.assert_array_equal(profile.transitions[0, unused], np.tile(profile.popularity[1], (len(unused), 1)))


def test_uniform_and_zipf() -> None:
    assert (RoutingProfile.uniform(3, 8, 2).popularity == 1 / 8).all()
    zipf = RoutingProfile.zipf(5, 8, 2, 1.0, np.random.default_rng(0))
    expected = 1 / np.arange(1, 9) / (1 / np.arange(1, 9)).sum()
    for row in zipf.popularity:
        np.testing.assert_allclose(np.sort(row)[::-1], expected)
    assert len({tuple(row) for row in zipf.popularity}) > 1
    again = RoutingProfile.zipf(5, 8, 2, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(again.popularity, zipf.popularity)


@given(weights=st.lists(st.floats(1e-6, 1e6) | st.just(0.0), min_size=1, max_size=20), k=st.integers(1, 20))
def test_limited_shares_are_a_distribution_over_distinct_experts(weights: list[float], k: int) -> None:
    k = min(k, len(weights))
    given_weights = np.array(weights)
    shares = limit_shares(given_weights[np.newaxis], k)[0]
    assert shares.sum() == pytest.approx(1.0)
    assert shares.min() >= 0
    assert shares.max() <= (1 + 1e-9) / k
    free = (shares < (1 - 1e-9) / k) & (given_weights > 1e-9 * given_weights.max())
    if free.any():  # those that are not cut keep their proportions
        ratio = shares[free] / given_weights[free]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    order = np.argsort(given_weights, kind="stable")
    assert (np.diff(shares[order]) >= -1e-12).all()


def test_the_same_dimensions_need_no_adapting() -> None:
    assert SHIPPED.adapt(24, 32, 4) is SHIPPED


@pytest.mark.parametrize(
    ("layers", "experts", "top_k"), [(58, 256, 8), (32, 8, 2), (36, 128, 4), (24, 32, 2), (1, 16, 1)]
)
def test_adapting_keeps_the_skew_and_says_so(layers: int, experts: int, top_k: int) -> None:
    other = SHIPPED.adapt(layers, experts, top_k)
    assert other.popularity.shape == (layers, experts)
    assert other.transitions is None
    assert f"assumed to hold for {layers} MoE layers, top {top_k} of {experts}" in other.source
    assert SHIPPED.source in other.source
    peak = (other.popularity.max(axis=1) * experts).mean()
    assert 0.75 * 2.62 < peak < 1.15 * 2.62 or layers == 1
    np.testing.assert_array_equal(SHIPPED.adapt(layers, experts, top_k).popularity, other.popularity)


def test_adapted_hot_experts_are_scattered() -> None:
    hottest = SHIPPED.adapt(24, 256, 8).popularity.argmax(axis=1)
    assert len(set(hottest.tolist())) > 18  # of 24 layers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"popularity": np.full((2, 4), 0.3)}, "test: popularity[0]: shares must sum to 1, got 1.2"),
        ({"popularity": np.array([[0.5, 0.5, 0.5, -0.5]] * 2)}, "popularity[0, 3]: shares must be finite and >= 0"),
        ({"popularity": np.array([[0.5, 0.5, np.nan, 0.0]] * 2)}, "popularity[0, 2]: shares must be finite"),
        (
            {"popularity": np.array([[0.6, 0.4, 0.0, 0.0]] * 2)},
            "popularity[0, 0]: shares must be at most 1 / top_k = 0.5",
        ),
        ({"popularity": np.ones(4) / 4}, "must have axes [moe_layer, expert]"),
        ({"transitions": np.full((2, 4, 4), 0.25)}, "transitions: must have shape (1, 4, 4), got (2, 4, 4)"),
        ({"transitions": np.full((1, 4, 4), 0.2)}, "transitions[0, 0]: shares must sum to 1"),
        ({"top_k": 5}, "top_k: must be from 1 to 4, the experts, got 5"),
    ],
)
def test_broken_profiles_are_refused(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"model": "m", "source": "test", "top_k": 2, "popularity": np.full((2, 4), 0.25)}
    with pytest.raises(DataError) as error:
        RoutingProfile(**(fields | changes))
    assert message in str(error.value)


def test_routing_of_another_model() -> None:
    check_dimensions("t.npz", (24, 32, 4), (24, 32, 4))
    with pytest.raises(InputError) as error:
        check_dimensions("t.npz", (24, 32, 4), (32, 8, 2))
    assert "24 MoE layers, top 4 of 32 experts, the model has 32 MoE layers, top 2 of 8 experts" in str(error.value)
