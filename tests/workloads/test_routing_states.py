"""States, reuse and domains: conservation, closed forms, and that drawn tokens have the stated statistics."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import DataError, InputError
from moesim.workloads.routing_draw import TokenRouter
from moesim.workloads.routing_fit import expert_pairs
from moesim.workloads.routing_profile import RoutingProfile, limit_shares
from moesim.workloads.routing_states import Domains, Reuse, TokenStates
from moesim.workloads.trace_kernels import count_transitions

PINNED = [[[3, 0], [1, 4], [7, 2], [5, 3]], [[4, 3], [1, 5], [3, 6], [0, 2]]]
PINNED_SHARP = [[[0, 4], [0, 4], [1, 7], [3, 5]], [[0, 2], [1, 3], [3, 6], [0, 2]]]


def random_states(
    layers: int = 4, states: int = 5, experts: int = 8, k: int = 2, *, sharp: float = 3.0, seed: int = 1
) -> TokenStates:
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.full(states, 0.5), (layers - 1, states))
    shares = limit_shares(rng.random((layers * states, experts)) ** sharp, k).reshape(layers, states, experts)
    return TokenStates(rng.dirichlet(np.ones(states)), transitions, shares)


def profile_of(states: TokenStates, k: int = 2, reuse: Reuse | None = None) -> RoutingProfile:
    return RoutingProfile("m", "test", k, states.popularity(), states=states, reuse=reuse)


def some_reuse(layers: int = 4) -> Reuse:
    return Reuse(0.3, 0.6, 0.4, 0.2, 16, np.linspace(0.4, 1.0, layers), np.linspace(0.0, 0.9, layers))


def drawn(profile: RoutingProfile, requests: int, positions: int, seed: int = 3) -> NDArray[np.uint16]:
    """[request, position, layer, k]."""
    request, position = np.divmod(np.arange(requests * positions), positions)
    experts = TokenRouter(profile, np.random.default_rng(seed)).experts(request, position + 5)
    return experts.reshape(requests, positions, *experts.shape[1:])


@pytest.mark.parametrize(("k", "sharp"), [(2, 3.0), (2, 20.0), (3, 1.0), (1, 3.0)])  # tables, and draws until distinct
def test_drawn_pairs_of_experts_are_those_of_the_states(k: int, sharp: float) -> None:
    states = random_states(k=k, sharp=sharp)
    experts = drawn(profile_of(states, k), 40_000, 1)[:, 0]
    assert (np.diff(np.sort(experts.astype(int), axis=2), axis=2) > 0).all()
    assert experts.max() < 8
    pairs = count_transitions(experts, 8) / (40_000 * k**2)
    np.testing.assert_allclose(pairs, expert_pairs(states), atol=5 * np.sqrt(0.06 / 40_000))
    loads = np.stack([np.bincount(experts[:, layer].ravel(), minlength=8) for layer in range(4)]) / (40_000 * k)
    np.testing.assert_allclose(loads, states.popularity(), atol=5 * np.sqrt(0.25 / 40_000))


@pytest.mark.parametrize(("experts", "exponent"), [(16, 0.0), (24, 0.5)])
def test_layers_share_no_random_numbers(experts: int, exponent: float) -> None:
    """It takes three tries on average until the top 6 are distinct: layers use many numbers, and not equally many."""
    k, layers, tokens = 6, 4, 40_000
    popularity = limit_shares(np.arange(1.0, experts + 1.0)[np.newaxis] ** -exponent, k)[0]
    states = TokenStates(np.ones(1), np.ones((layers - 1, 1, 1)), np.tile(popularity, (layers, 1, 1)))
    chosen = drawn(profile_of(states, k), tokens, 1)[:, 0]
    common = (chosen[:, 1:, :, None] == chosen[:, :-1, None, :]).sum(axis=(2, 3))
    expected = ((popularity * k) ** 2).sum()
    np.testing.assert_allclose(common.mean(axis=0), expected, atol=5 * common.std() / np.sqrt(tokens))


def test_reuse_changes_no_single_token() -> None:
    states = random_states()
    experts = drawn(profile_of(states, reuse=some_reuse()), 40_000, 1)[:, 0]
    pairs = count_transitions(experts, 8) / (40_000 * 4)
    np.testing.assert_allclose(pairs, expert_pairs(states), atol=5 * np.sqrt(0.06 / 40_000))


def test_overlap_of_drawn_tokens_is_the_closed_form() -> None:
    states, reuse = random_states(), some_reuse()
    experts = drawn(profile_of(states, reuse=reuse), 3000, 40)
    base, same = (states.popularity() ** 2).sum(axis=1) * 2, states.self_overlap(2)
    lags = np.array([1, 2, 4, 20])
    expected = reuse.overlap(lags, base, same)
    for lag, wanted in zip(lags, expected, strict=True):
        one, other = experts[:, :-lag, :, :, None], experts[:, lag:, :, None, :]
        found = (one == other).sum(axis=(3, 4)).mean(axis=(0, 1)) / 2
        np.testing.assert_allclose(found, wanted, atol=0.015)  # same_state holds for independent draws of the state
    assert (expected[0] > expected[-1] + 0.05).all()


def test_tokens_are_functions_of_request_and_position() -> None:
    profile = profile_of(random_states(), reuse=some_reuse())
    router = TokenRouter(profile, np.random.default_rng(3))
    request, position = np.divmod(np.arange(900), 300)
    whole = router.experts(request, position)
    order = np.random.default_rng(1).permutation(900)
    np.testing.assert_array_equal(router.experts(request[order], position[order]), whole[order])
    for token in (0, 255, 256, 899):
        np.testing.assert_array_equal(router.experts(request[[token]], position[[token]])[0], whole[token])
    other = TokenRouter(profile, np.random.default_rng(4)).experts(request, position)
    assert (other != whole).any(axis=(1, 2)).mean() > 0.9


@pytest.mark.parametrize(("sharp", "expected"), [(3.0, PINNED), (20.0, PINNED_SHARP)])
def test_the_stream_of_random_numbers_is_pinned(sharp: float, expected: list[list[list[int]]]) -> None:
    profile = profile_of(random_states(sharp=sharp), reuse=some_reuse())
    router = TokenRouter(profile, np.random.default_rng(7))
    assert router.experts(np.array([0, 3]), np.array([0, 5])).tolist() == expected


def test_tokens_of_other_requests_are_independent() -> None:
    states = random_states()
    experts = drawn(profile_of(states, reuse=some_reuse()), 20_000, 1)[:, 0]
    common = (experts[1:, :, :, None] == experts[:-1, :, None, :]).sum(axis=(2, 3)) / 2
    np.testing.assert_allclose(common.mean(axis=0), (states.popularity() ** 2).sum(axis=1) * 2, atol=0.015)


def test_a_request_that_is_one_run_repeats_itself() -> None:
    layers = np.ones(4)
    reuse = Reuse(1.0, 0.0, 0.0, 0.0, 1, layers, layers)
    experts = drawn(profile_of(random_states(), reuse=reuse), 5, 50)
    assert (experts == experts[:, :1]).all()


@pytest.mark.parametrize("taken", [[0, 1, 2, 3], [0, 0, 1, 2, 2, 3, 3], [0, 2], [3], [1, 1, 1]])
def test_taken_layers_keep_the_share_of_every_state(taken: list[int]) -> None:
    states = random_states()
    other = states.take_layers(np.array(taken))
    np.testing.assert_allclose(other.occupancy(), states.occupancy()[taken])
    np.testing.assert_allclose(other.popularity(), states.popularity()[taken])


def test_a_single_layer_can_be_repeated() -> None:
    states = random_states(layers=1)
    other = states.take_layers(np.zeros(3, np.int64))
    np.testing.assert_allclose(other.popularity(), np.tile(states.popularity(), (3, 1)))


@given(seed=st.integers(0, 50), k=st.integers(1, 3))
def test_states_are_scaled_to_a_popularity(seed: int, k: int) -> None:
    states = random_states(k=k, seed=seed, sharp=1.0)
    wanted = limit_shares(np.random.default_rng(seed).random((4, 8)) + 0.2, k)
    found = states.with_popularity(wanted, k)
    np.testing.assert_allclose(found.popularity(), wanted, atol=1e-3)
    assert found.shares.max() <= (1 + 1e-9) / k
    np.testing.assert_allclose(states.with_popularity(states.popularity(), k).shares, states.shares, atol=1e-6)


def test_finer_experts_share_what_theirs_had() -> None:
    states = random_states()
    order = np.argsort(-states.popularity(), axis=1)
    ranked = np.take_along_axis(states.shares, order[:, np.newaxis], axis=2)
    finer = states.with_experts(32, order).shares
    np.testing.assert_allclose(finer.reshape(4, 5, 8, 4).sum(axis=3), ranked)
    np.testing.assert_allclose(np.ptp(finer.reshape(4, 5, 8, 4), axis=3), 0, atol=1e-15)
    coarser = states.with_experts(4, order).shares
    np.testing.assert_allclose(coarser, ranked.reshape(4, 5, 4, 2).sum(axis=3))
    odd = states.with_experts(12, order).shares
    np.testing.assert_allclose(odd.reshape(4, 5, 4, 3).sum(axis=3), coarser)


@pytest.mark.parametrize(("layers", "experts", "top_k"), [(7, 32, 4), (2, 4, 1), (4, 8, 3), (9, 12, 2)])
def test_adapted_profiles_keep_states_and_reuse(layers: int, experts: int, top_k: int) -> None:
    profile = profile_of(random_states(sharp=1.0), reuse=some_reuse())
    other = profile.adapt(layers, experts, top_k)
    plain = RoutingProfile("m", "test", 2, profile.popularity).adapt(layers, experts, top_k)
    assert other.states is not None
    assert other.states.shares.shape == (layers, 5, experts)
    assert other.reuse is not None
    assert len(other.reuse.run_sets) == layers
    np.testing.assert_allclose(other.popularity, plain.popularity, atol=0.02 / experts)
    assert "assumed to hold" in other.source
    assert drawn(other, 10, 10).shape == (10, 10, layers, top_k)


def test_skew_sharpens_and_flattens() -> None:
    profile = profile_of(random_states(sharp=1.0, k=2))
    peaks = [profile.with_skew(power).popularity.max(axis=1).mean() for power in (0.0, 0.5, 1.0, 1.5, 2.0)]
    assert (np.diff(peaks) > 0).all()
    np.testing.assert_allclose(profile.with_skew(0.0).popularity, 1 / 8, atol=2e-3)
    assert profile.with_skew(1.0) is profile
    assert "raised to the power 2, assumed" in profile.with_skew(2.0).source
    with pytest.raises(InputError, match="skew: must be a finite number >= 0, got -1"):
        profile.with_skew(-1.0)


def with_domains(states: TokenStates | None = None) -> RoutingProfile:
    loads = limit_shares(np.random.default_rng(5).random((6, 8)) ** 2, 2).reshape(3, 2, 8)
    weight = np.array([0.5, 0.3, 0.2])
    popularity = np.einsum("d,dle->le", weight, loads)
    return RoutingProfile("m", "test", 2, popularity, states=states, domains=Domains(("a", "b", "c"), weight, loads))


def test_requests_keep_to_their_domain() -> None:
    profile = with_domains()
    assert profile.domains is not None
    experts = drawn(profile, 400, 200)
    loads = np.stack([np.bincount(x[:, 0].ravel(), minlength=8) for x in experts.astype(int)]) / 400
    distance = abs(loads[:, np.newaxis] - profile.domains.popularity[:, 0]).max(axis=2)
    assert distance.min(axis=1).max() < 0.12
    shares = np.bincount(distance.argmin(axis=1), minlength=3) / 400
    np.testing.assert_allclose(shares, profile.domains.weight, atol=0.1)
    single = drawn(profile, 40_000, 1)[:, 0]
    found = np.bincount(single[:, 1].ravel(), minlength=8) / 80_000
    np.testing.assert_allclose(found, profile.popularity[1], atol=5 * np.sqrt(0.25 / 40_000))


def test_one_domain_of_a_profile() -> None:
    profile = with_domains()
    assert profile.domains is not None
    one = profile.of_domain("b")
    np.testing.assert_allclose(one.popularity, profile.domains.popularity[1])
    assert one.source.endswith("; domain b")
    with pytest.raises(InputError, match="domain: must be one of a, b, c, got 'x'"):
        profile.of_domain("x")
    with pytest.raises(InputError, match="must be one of none"):
        one.of_domain("b")


def _states(**changes: Any) -> TokenStates:
    fields: dict[str, Any] = {
        "initial": np.full(2, 0.5),
        "transitions": np.full((1, 2, 2), 0.5),
        "shares": np.full((2, 2, 4), 0.25),
    }
    return TokenStates(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": np.full((2, 4), 0.25)}, "states: shares: must have axes"),
        ({"shares": np.full((2, 2, 4), 0.2)}, "states: shares: rows must sum to 1"),
        ({"initial": np.array([1.5, -0.5])}, "states: initial: must be finite and >= 0"),
        ({"initial": np.ones(1)}, r"states: initial: must have shape \(2,\)"),
        ({"transitions": np.full((2, 2, 2), 0.5)}, r"states: transitions: must have shape \(1, 2, 2\)"),
        ({"transitions": np.full((1, 2, 2), np.nan)}, "states: transitions: must be finite"),
    ],
)
def test_broken_states_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _states(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run_continues": 1.2}, "reuse: run_continues: must be from 0 to 1, got 1.2"),
        ({"request_share": 0.9, "passage_share": 0.2}, "must be at most 1"),
        ({"passage_tokens": 0}, "passage_tokens: must be at least 1"),
        ({"habit_sets": np.ones(3)}, "habit_sets: must be a number from 0 to 1 for every MoE layer"),
        ({"run_sets": np.full(2, 2.0)}, "run_sets: must be a number from 0 to 1"),
    ],
)
def test_broken_reuse_is_refused(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "run_continues": 0.1,
        "request_share": 0.1,
        "habit_decay": 0.1,
        "passage_share": 0.1,
        "passage_tokens": 8,
        "run_sets": np.ones(2),
        "habit_sets": np.ones(2),
    }
    with pytest.raises(DataError, match=message):
        Reuse(**(fields | changes))


def test_what_does_not_fit_the_profile_is_refused() -> None:
    states = _states()
    flat = np.full((2, 4), 0.25)
    RoutingProfile("m", "t", 2, flat, states=states)
    with pytest.raises(DataError, match="states: must have 3 layers"):
        RoutingProfile("m", "t", 2, np.full((3, 4), 0.25), states=states)
    with pytest.raises(DataError, match="states: must have the popularity as their loads"):
        RoutingProfile("m", "t", 2, np.array([[0.3, 0.2, 0.25, 0.25]] * 2), states=states)
    with pytest.raises(DataError, match="reuse: must have a number for each of 2 MoE layers"):
        RoutingProfile("m", "t", 2, flat, states=states, reuse=some_reuse(3))
    with pytest.raises(DataError, match="shares must be at most 1 / top_k"):
        RoutingProfile("m", "t", 2, flat, states=_states(shares=np.tile([[1.0, 0, 0, 0]], (2, 2, 1))))
    with pytest.raises(DataError, match="domains: must have shape"):
        RoutingProfile("m", "t", 2, flat, domains=Domains(("a",), np.ones(1), np.full((1, 1, 4), 0.25)))
    with pytest.raises(DataError, match="domains: weight: shares must be >= 0 and sum to 1"):
        Domains(("a",), np.full(1, 0.5), np.full((1, 1, 4), 0.25))
