"""Hit rates of caches: simulated one by one, bounded by the best schedule, and in closed form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.workloads.expert_caches import BELADY, LFU, LRU, POLICIES, SEGMENT, cache_hits, cache_sizes
from tests.workloads import plain_statistics as plain

RULES = {LRU: plain.lru, LFU: plain.lfu, BELADY: plain.belady, SEGMENT: plain.segment(3)}


@st.composite
def requests(draw, most_tokens=14, most_experts=7):
    """Lists of tokens, each a tuple of k distinct experts; and the number of experts."""
    experts = draw(st.integers(2, most_experts))
    k = draw(st.integers(1, min(3, experts)))
    token = st.permutations(range(experts)).map(lambda order: tuple(order[:k]))
    return draw(st.lists(st.lists(token, min_size=1, max_size=most_tokens), min_size=1, max_size=3)), experts


def hits(lists, experts, policy, horizon=3):
    """Hits of caches of 1, 2, ... experts."""
    ids = np.array([token for tokens in lists for token in tokens], np.uint8)
    offset = np.cumsum([0, *map(len, lists)])
    return cache_hits(ids, offset, experts, policy, horizon).hits.cumsum()


@pytest.mark.parametrize("policy", POLICIES)
@given(drawn=requests())
def test_every_size_at_once_equals_one_cache_at_a_time(policy, drawn):
    lists, experts = drawn
    counted, k = hits(lists, experts, policy), len(lists[0][0])
    if policy == BELADY:  # ties between experts that are never needed again are free, and so are the hits
        assert counted[k - 1 :].tolist() == [
            sum(plain.most_hits(tokens, size) for tokens in lists) for size in range(k, experts + 1)
        ]
    for size in range(k, experts + 1):
        assert counted[size - 1] == plain.hit_count(lists, size, RULES[policy])


@given(drawn=requests(most_tokens=40), horizon=st.integers(1, 50))
def test_no_rule_beats_belady(drawn, horizon):
    lists, experts = drawn
    k = len(lists[0][0])
    best = hits(lists, experts, BELADY)[k - 1 :]
    for policy in (LRU, LFU, SEGMENT):
        assert (hits(lists, experts, policy, horizon)[k - 1 :] <= best).all()


@given(drawn=requests())
def test_larger_caches_hit_no_less_and_uses_are_conserved(drawn):
    lists, experts = drawn
    ids = np.array([token for tokens in lists for token in tokens], np.uint8)
    offset = np.cumsum([0, *map(len, lists)])
    first_uses = sum(len({expert for token in tokens for expert in token}) for tokens in lists)
    for policy in POLICIES:
        counted = cache_hits(ids, offset, experts, policy)
        assert counted.uses == ids.size
        assert counted.cold.sum() == first_uses
        assert (np.diff(counted.rate()) >= 0).all()
        assert counted.rate(cold_hits=True)[-1] == 1.0


def uniform(tokens, experts, k, seed=0):
    keys = np.random.default_rng(seed).random((tokens, experts))
    return np.ascontiguousarray(np.argsort(keys, axis=1)[:, :k].astype(np.uint8))


@pytest.mark.parametrize("policy", [LRU, LFU])
@pytest.mark.parametrize(("experts", "k"), [(16, 1), (32, 4)])
def test_memory_of_the_past_is_worthless_for_independent_uniform_tokens(policy, experts, k):
    """Whatever C experts are held, the next token finds k C / E of its experts there."""
    ids = uniform(40_000, experts, k)
    rate = cache_hits(ids, np.array([0, len(ids)]), experts, policy).rate()
    expected = np.arange(1, experts + 1) / experts
    np.testing.assert_allclose(rate[k - 1 :], expected[k - 1 :], atol=0.006)


def test_one_token_ahead_in_closed_form():
    """One of 3 experts a token, and a rule that knows the next token.

    With C = 1 a hit is a repetition: 1/3. With C = 2 a miss puts out the expert that the next token does not need, so
    the next token always hits; every other one needs the expert that is missing with 1/3. Misses p = (1 - p) / 3 = 1/4.
    """
    ids = uniform(60_000, 3, 1, seed=4)
    rate = cache_hits(ids, np.array([0, len(ids)]), 3, SEGMENT, 1).rate()
    np.testing.assert_allclose(rate, [1 / 3, 3 / 4, 1.0], atol=0.006)


def test_caches_start_empty_with_every_request():
    ids = np.array([[0], [0], [0], [0]], np.uint8)
    one, two = np.array([0, 4]), np.array([0, 2, 4])
    assert cache_hits(ids, one, 2, LRU).rate().tolist() == [0.75, 0.75]
    assert cache_hits(ids, two, 2, LRU).rate().tolist() == [0.5, 0.5]
    assert cache_hits(ids, two, 2, LRU).rate(cold_hits=True).tolist() == [1.0, 1.0]


def test_sizes_to_show():
    assert cache_sizes(32, 4).tolist() == [4, 6, 8, 12, 16, 24, 32]
    assert cache_sizes(8, 8).tolist() == [8]


@pytest.mark.parametrize(("policy", "horizon", "place"), [("fifo", 1, "policy"), (SEGMENT, 0, "horizon")])
def test_wrong_settings(policy, horizon, place):
    with pytest.raises(InputError, match=place):
        cache_hits(np.zeros((1, 1), np.uint8), np.array([0, 1]), 1, policy, horizon)
