"""Drawn tokens have the probabilities of their profile, and depend on nothing but key, request and position."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.workloads.routing_draw import MAX_TOP_K, TokenRouter, TraceRouter
from moesim.workloads.routing_files import read_routing_profile, read_routing_trace
from moesim.workloads.routing_profile import RoutingProfile, limit_shares
from moesim.workloads.routing_trace import RoutingTrace
from moesim.workloads.routing_weights import sampling_tables, sampling_weights
from moesim.workloads.trace_kernels import count_transitions

SHIPPED = Path(__file__).resolve().parents[2] / "configs/routing/gpt-oss-20b.npz"
TRACE = "routing/gpt-oss-20b/gpt-oss-20b_decode_top4_ids.npz"
PINNED_UNIFORM = [[[25, 11, 1, 0], [15, 24, 20, 23]], [[10, 4, 17, 14], [1, 24, 0, 7]]]
PINNED = [[[18, 19, 22, 23], [0, 5, 7, 22]], [[5, 14, 16, 26], [5, 10, 20, 26]]]


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def profile_of(weights: list[float], k: int) -> RoutingProfile:
    return RoutingProfile("test", "test", k, limit_shares(np.array([weights]), k))


def tokens(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    index = np.arange(count)
    return index // 97, index % 97


def shares(experts: NDArray[np.uint16], n: int) -> NDArray[np.float64]:
    counts = [np.bincount(experts[:, layer].ravel(), minlength=n) for layer in range(experts.shape[1])]
    return np.stack(counts) / experts[:, 0].size


def z_scores(profile: RoutingProfile, count: int) -> NDArray[np.float64]:
    """Deviation of the inclusion frequencies of `count` tokens in standard errors, of uncertain experts only."""
    request, position = tokens(count)
    if profile.reuse is not None:  # tokens of a request are alike
        request = np.arange(count)
    drawn = shares(TokenRouter(profile, rng()).experts(request, position), profile.experts) * profile.top_k
    wanted = profile.popularity * profile.top_k
    uncertain = (wanted > 1e-4) & (wanted < 1 - 1e-6)
    np.testing.assert_allclose(drawn[wanted >= 1 - 1e-6], 1.0, atol=1e-4)
    error = np.sqrt(wanted[uncertain] * (1 - wanted[uncertain]) / count)
    return np.asarray((drawn[uncertain] - wanted[uncertain]) / error)


@given(
    weights=st.lists(st.floats(0.0, 1.0).map(lambda x: x**4), min_size=1, max_size=9),
    k=st.integers(1, 9),
)
def test_inclusion_probabilities_by_enumeration(weights: list[float], k: int) -> None:
    n = len(weights)
    k = min(k, n)
    inclusion = limit_shares(np.array([weights]), k) * k
    tables, _, _ = sampling_tables(inclusion, k)
    # weights from the polynomials: E[1, j] - E[1, j + 1]
    weight = -np.diff(tables[0, 0, :n], append=0.0)
    products = {chosen: np.prod(weight[list(chosen)]) for chosen in combinations(range(n), k)}
    total = sum(products.values())
    found = np.array([sum(p for chosen, p in products.items() if i in chosen) for i in range(n)]) / total
    np.testing.assert_allclose(found, np.minimum(inclusion[0], 1.0), atol=1.1e-5)


def test_draws_until_distinct_by_hand() -> None:
    inclusion = np.array([[0.5] * 4, [0.8, 0.4, 0.4, 0.4]])
    weights, draws, _ = sampling_weights(inclusion, 2)
    shares = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(draws, 2 / (1 - (shares**2).sum(axis=1)))  # two draws a try, and the chance of a pair
    assert draws[0] == pytest.approx(8 / 3)
    three = sampling_weights(np.full((1, 5), 0.6), 3)[1]
    assert three == pytest.approx((1 + 1 + 4 / 5) / (4 / 5 * 3 / 5))  # the third draw only where two are distinct


def test_sets_follow_the_maximum_entropy_distribution() -> None:
    k = 3
    profile = profile_of([4.0, 4.0, 3.0, 2.0, 1.0, 0.5], k)
    inclusion = profile.popularity[0] * k
    sets = list(combinations(range(6), k))
    member = np.array([[i in chosen for i in range(6)] for chosen in sets], dtype=float)
    theta = np.zeros(6)
    for _ in range(2000):  # the distribution ~ exp(theta . member) with the right means, by gradient ascent
        probability = np.exp(member @ theta)
        probability /= probability.sum()
        theta += inclusion - probability @ member
    drawn = TokenRouter(profile, rng()).experts(*tokens(200_000))[:, 0]
    code = {chosen: index for index, chosen in enumerate(sets)}
    counts = np.bincount([code[tuple(row)] for row in drawn.tolist()], minlength=len(sets))
    chi2 = ((counts - 200_000 * probability) ** 2 / (200_000 * probability)).sum()
    assert chi2 < 50  # 19 degrees of freedom: probability 1e-4


@pytest.mark.parametrize(
    "profile",
    [
        RoutingProfile.uniform(6, 32, 4),
        RoutingProfile.zipf(4, 8, 2, 1.0, rng()),  # Mixtral
        RoutingProfile.zipf(2, 256, 8, 1.0, rng()),  # DeepSeek
        RoutingProfile.zipf(2, 60, 4, 0.5, rng()),
        RoutingProfile.zipf(2, 8, 2, 3.0, rng()),  # one certain expert
        RoutingProfile.zipf(3, 16, 1, 1.0, rng()),  # Switch
        read_routing_profile(SHIPPED),
    ],
    ids=lambda profile: f"{profile.model}-{profile.experts}-{profile.top_k}",
)
def test_loads_are_those_of_the_profile(profile: RoutingProfile) -> None:
    z = z_scores(profile, 40_000)
    assert 0.6 < np.sqrt((z**2).mean()) < 1.3
    assert abs(z).max() < 5


def test_ids_are_distinct_ascending_and_of_experts_in_use() -> None:
    popularity = limit_shares(np.array([[0.0, 3.0, 0.0, 1.0, 1.0, 2.0, 0.0]]), 3)
    drawn = TokenRouter(RoutingProfile("", "", 3, popularity), rng()).experts(*tokens(5000))
    assert (np.diff(drawn.astype(int), axis=2) > 0).all()
    assert set(np.unique(drawn)) == {1, 3, 4, 5}
    assert drawn.dtype == np.uint16


def test_all_experts_when_top_k_is_all() -> None:
    drawn = TokenRouter(RoutingProfile.uniform(2, 5, 5), rng()).experts(*tokens(10))
    assert (drawn == np.arange(5)).all()


@pytest.mark.parametrize(
    "profile", [read_routing_profile(SHIPPED), RoutingProfile.uniform(4, 60, 6)], ids=["recorded", "uniform"]
)
def test_a_token_does_not_depend_on_its_batch(profile: RoutingProfile) -> None:
    router = TokenRouter(profile, rng())
    request, position = tokens(1000)
    whole = router.experts(request, position)
    order = rng(1).permutation(1000)
    np.testing.assert_array_equal(router.experts(request[order], position[order]), whole[order])
    for token in (0, 255, 256, 999):
        np.testing.assert_array_equal(router.experts(request[[token]], position[[token]])[0], whole[token])
    again = TokenRouter(profile, rng()).experts(request.astype(np.int32), position)
    np.testing.assert_array_equal(again, whole)
    assert (TokenRouter(router.profile, rng(8)).experts(request, position) != whole).any(axis=(1, 2)).mean() > 0.99


def test_the_stream_of_random_numbers_is_pinned() -> None:
    token = np.array([0, 3]), np.array([0, 5])
    assert TokenRouter(RoutingProfile.uniform(2, 32, 4), rng()).experts(*token).tolist() == PINNED_UNIFORM
    weights = np.array([np.arange(32) % 5 + 1.0, np.arange(32) % 3 + 1.0])
    profile = RoutingProfile("", "", 4, limit_shares(weights, 4))
    assert TokenRouter(profile, rng()).experts(*token).tolist() == PINNED


@pytest.mark.parametrize("experts", [7, 8])  # 7 does not divide 2^16
def test_uniform_sets_are_equally_likely_in_every_layer(experts: int) -> None:
    k, layers, count = 3, 4, 50_000
    drawn = TokenRouter(RoutingProfile.uniform(layers, experts, k), rng()).experts(*tokens(count))
    sets = {chosen: index for index, chosen in enumerate(combinations(range(experts), k))}
    expected = count / len(sets)
    for layer in range(layers):
        counts = np.bincount([sets[tuple(row)] for row in np.sort(drawn[:, layer]).tolist()], minlength=len(sets))
        assert ((counts - expected) ** 2 / expected).sum() < len(sets) + 5 * np.sqrt(2 * len(sets))
    same = (np.sort(drawn[:, 1:]) == np.sort(drawn[:, :-1])).all(axis=2).mean()
    assert abs(same - 1 / len(sets)) < 5 / np.sqrt(len(sets) * count * (layers - 1))


def test_neighbours_are_independent() -> None:
    profile = RoutingProfile.uniform(1, 32, 4)
    request, position = np.divmod(np.arange(60_000), 300)
    used = np.zeros((60_000, 32))
    np.put_along_axis(used, TokenRouter(profile, rng()).experts(request, position)[:, 0].astype(int), 1.0, axis=1)
    for lag in (1, 300):  # next position, next request
        overlap = (used[:-lag] * used[lag:]).sum(axis=1)
        assert abs(overlap.mean() - 4 * 4 / 32) < 5 * overlap.std() / np.sqrt(len(overlap))


def test_transitions_are_followed() -> None:
    successor = np.array([2, 0, 3, 1])
    transitions = np.eye(4)[successor][np.newaxis]
    popularity = np.array([[0.4, 0.3, 0.2, 0.1], [0.3, 0.1, 0.4, 0.2]])
    drawn = TokenRouter(RoutingProfile("", "", 1, popularity, transitions), rng()).experts(*tokens(2000))
    np.testing.assert_array_equal(drawn[:, 1, 0], successor[drawn[:, 0, 0]])


def test_nothing_to_draw() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert TokenRouter(RoutingProfile.uniform(3, 8, 2), rng()).experts(none, none).shape == (0, 3, 2)


def test_top_k_has_a_limit() -> None:
    with pytest.raises(InputError, match=f"at most {MAX_TOP_K}, got 40"):
        TokenRouter(RoutingProfile.uniform(1, 64, 40), rng())


def test_transition_counts_by_hand() -> None:
    expert = np.array([[[0, 1], [2, 0]], [[1, 2], [0, 1]]], dtype=np.uint8)
    counts = count_transitions(expert, 3)
    assert counts.tolist() == [[[1, 0, 1], [2, 1, 1], [1, 1, 0]]]


def small_trace() -> RoutingTrace:
    request = np.repeat(np.arange(2, dtype=np.int32), [3, 2])
    expert = rng().permuted(np.tile(np.arange(6, dtype=np.uint8), (5, 4, 1)), axis=2)[:, :, :2]
    return RoutingTrace(
        model="small",
        experts=6,
        source="hand",
        names=("a", "b"),
        groups=("", ""),
        first_decode_position=np.array([10, 4]),
        request=request,
        position=np.array([10, 11, 12, 4, 5], dtype=np.int32),
        phase=np.ones(5, np.uint8),
        expert=np.ascontiguousarray(expert),
    )


def test_replay_gives_recorded_tokens_and_draws_the_others() -> None:
    trace = small_trace()
    router = TraceRouter(trace, rng())
    request = np.array([1, 0, 0, 0, 1, 0, 5, 1])
    position = np.array([5, 10, 12, 13, 3, 9, 0, 4])
    experts = router.experts(request, position)
    recorded = {0: 4, 1: 0, 2: 2, 7: 3}
    drawn = TokenRouter(RoutingProfile.from_trace(trace), rng()).experts(request, position)
    for token in range(8):
        expected = trace.expert[recorded[token]] if token in recorded else drawn[token]
        np.testing.assert_array_equal(experts[token], expected)
    only_drawn = [3, 4, 5, 6]
    np.testing.assert_array_equal(router.experts(request[only_drawn], position[only_drawn]), drawn[only_drawn])


@pytest.mark.reference
def test_the_published_trace_is_replayed_exactly(reference_data: Path) -> None:
    trace = read_routing_trace(reference_data / TRACE)
    router = TraceRouter(trace, rng())
    order = rng().permutation(trace.tokens)[:50_000]
    experts = router.experts(trace.request[order].astype(np.int64), trace.position[order].astype(np.int64))
    np.testing.assert_array_equal(experts, trace.expert[order])
    prompt = router.experts(np.arange(703), np.zeros(703, dtype=np.int64))
    assert (np.diff(prompt.astype(int), axis=2) > 0).all()  # drawn: ascending


@pytest.mark.reference
def test_drawn_tokens_resemble_the_published_trace(reference_data: Path) -> None:
    trace = read_routing_trace(reference_data / TRACE)
    profile = RoutingProfile.from_trace(trace)
    drawn = TokenRouter(profile, rng()).experts(trace.request.astype(np.int64), trace.position.astype(np.int64))
    load = shares(drawn, 32)
    notable = profile.popularity > 0.25 / 32
    relative = abs(load / profile.popularity - 1)[notable]
    assert relative.mean() < 0.01
    assert relative.max() < 0.05  # one standard error of an expert at the lower end is 1.2 % here
    counts = count_transitions(drawn, 32)
    deviation = counts / np.maximum(counts.sum(axis=2, keepdims=True), 1) - profile.popularity[1:, np.newaxis]
    assert profile.transitions is not None
    wanted = profile.transitions - profile.popularity[1:, np.newaxis]
    weight = np.broadcast_to(profile.popularity[:-1, :, np.newaxis], wanted.shape)
    covariance = (weight * wanted * deviation).sum()
    correlation = covariance / np.sqrt((weight * wanted**2).sum() * (weight * deviation**2).sum())
    assert correlation > 0.9
    assert 0.3 < covariance / (weight * wanted**2).sum() < 1.0  # one predecessor of four decides


@pytest.mark.reference
def test_the_shipped_profile_is_that_of_the_published_trace(reference_data: Path) -> None:
    shipped = read_routing_profile(SHIPPED)
    profile = RoutingProfile.from_trace(read_routing_trace(reference_data / TRACE))
    np.testing.assert_allclose(shipped.popularity, profile.popularity, atol=1e-7)
    assert shipped.transitions is not None
    assert profile.transitions is not None
    np.testing.assert_allclose(shipped.transitions, profile.transitions, atol=1e-7)
