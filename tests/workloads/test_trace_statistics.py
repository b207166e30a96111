"""Every statistic of a trace against plain Python on a small one, against closed forms, and on the published one."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.workloads import load_statistics as loads
from moesim.workloads.routing_files import read_routing_trace
from moesim.workloads.trace_batches import Places, contiguous_places, domain_rows
from moesim.workloads.trace_segments import segments
from moesim.workloads.trace_statistics import TraceSettings, trace_statistics
from tests.workloads import plain_statistics as plain
from tests.workloads.random_traces import random_trace

SETTINGS = TraceSettings(windows=4, lags=(1, 3), segment_lengths=(1, 2, 5), horizons=(2,), largest_batch=8, batches=9)
GROUPS = ("code", "facts", "code", "maths")


@pytest.fixture(scope="module")
def trace():
    return random_trace(groups=GROUPS)


@pytest.fixture(scope="module")
def found(trace):
    return trace_statistics(trace, SETTINGS)


@pytest.fixture(scope="module")
def layers(trace):
    """Of every layer a list of requests, each a list of tokens, each a tuple of experts."""
    spans = list(pairwise(trace.offset.tolist()))
    return [
        [[tuple(token) for token in trace.expert[begin:end, layer].tolist()] for begin, end in spans]
        for layer in range(trace.layers)
    ]


def flat(requests):
    return [token for tokens in requests for token in tokens]


def test_loads_of_everything_windows_halves_and_groups(found, layers, trace):
    for layer, requests in enumerate(layers):
        counts = Counter(expert for token in flat(requests) for expert in token)
        assert found.load[layer].tolist() == [counts[expert] for expert in range(6)]
        for half, some in enumerate((requests[:2], requests[2:])):
            counts = Counter(expert for token in flat(some) for expert in token)
            assert found.half_load[layer, half].tolist() == [counts[expert] for expert in range(6)]
        for index, group in enumerate(found.groups):
            some = [tokens for tokens, name in zip(requests, GROUPS, strict=True) if name == group]
            counts = Counter(expert for token in flat(some) for expert in token)
            assert found.group_load[layer, index].tolist() == [counts[expert] for expert in range(6)]
    assert found.groups == ("code", "facts", "maths")
    assert found.window_load.shape == (3, 4, 6)
    for parts in (found.window_load, found.half_load, found.random_half_load, found.group_load):
        np.testing.assert_array_equal(parts.sum(axis=1), trace.loads())
    sizes = found.window_load[0].sum(axis=1)
    assert sizes.max() - sizes.min() <= trace.top_k


def test_pairs_within_and_between_layers(found, layers):
    for layer, requests in enumerate(layers):
        tokens = flat(requests)
        for a in range(6):
            for b in range(6):
                assert found.coactivation[layer, a, b] == sum(a in token and b in token for token in tokens)
                if layer:
                    both = zip(flat(layers[layer - 1]), tokens, strict=True)
                    assert found.transitions[layer - 1, a, b] == sum(a in one and b in next_ for one, next_ in both)


def test_mutual_information_by_its_definition(found):
    for pairs, value in zip(found.transitions, loads.mutual_information_bits(found.transitions), strict=True):
        p = pairs / pairs.sum()
        terms = (
            p[a, b] * math.log2(p[a, b] / (p[a].sum() * p[:, b].sum())) for a in range(6) for b in range(6) if p[a, b]
        )
        assert value == pytest.approx(sum(terms))


@pytest.mark.parametrize("lag", [1, 3])
def test_reuse(found, layers, lag):
    for layer, requests in enumerate(layers):
        shares = [[len({*now} & {*then}) / 2 for now, then in zip(r[lag:], r, strict=False)] for r in requests]
        pairs = [share for request in shares for share in request]
        assert found.reuse[lag].by_token()[layer] == pytest.approx(sum(pairs) / len(pairs))
        means = [sum(request) / len(request) for request in shares if request]
        assert found.reuse[lag].by_request()[layer] == pytest.approx(sum(means) / len(means))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_segments(found, layers, length):
    counted = found.segments[length]
    assert counted.count == len(list(plain.windows(layers[0], length)))
    for layer, requests in enumerate(layers):
        assert counted.chunk_sparsity()[layer] == pytest.approx(plain.sparsity(requests, 6, length))
        assert counted.best_routing()[0][layer] == pytest.approx(plain.best_f1([requests], 6, length))


def test_sparsity_of_a_token_is_one_minus_k_over_experts(found):
    np.testing.assert_allclose(found.segments[1].chunk_sparsity(), 1 - 2 / 6)
    srp, alpha, ratio = found.segments[1].best_routing()
    assert (srp.tolist(), alpha.tolist(), ratio.tolist()) == ([1.0] * 3, [1] * 3, [1.0] * 3)


def test_caches_of_all_layers(found, layers):
    rules = {
        ("lru", 0): plain.lru,
        ("lfu", 0): plain.lfu,
        ("belady", 0): plain.belady,
        ("segment", 2): plain.segment(2),
    }
    assert found.caches.keys() == rules.keys()
    for rule, cache in found.caches.items():
        for layer, requests in enumerate(layers):
            counted = cache.hits[layer].cumsum()[1:].tolist()
            assert counted == [plain.hit_count(requests, size, rules[rule]) for size in range(2, 7)]


def test_places_reached(trace, layers):
    slots = np.tile(np.array([0, 1, 2, 3, 4, 5, 0, 3]), (3, 1))
    replicated = Places("two replicas", slots, np.arange(8) // 2, 4)
    found = trace_statistics(trace, TraceSettings(places=(contiguous_places(3, 6, 3), replicated)))
    for layer, requests in enumerate(layers):
        tokens = flat(requests)
        counts = Counter(len({expert // 2 for expert in token}) for token in tokens)
        assert found.reached["3 devices"][layer].tolist() == [counts[count] for count in range(4)]
        counts = Counter()
        for index, token in enumerate(tokens):
            homes = {0: (0, 6), 3: (3, 7)}
            choices = ((2 * index + rank, homes.get(expert, (expert,))) for rank, expert in enumerate(token))
            counts[len({home[turn % len(home)] // 2 for turn, home in choices})] += 1
        assert found.reached["two replicas"][layer].tolist() == [counts[count] for count in range(5)]
    assert found.mean_reached("3 devices").max() <= 2


def test_batches_touch_what_independent_tokens_would():
    trace = random_trace(lengths=(400, 300), experts=12, k=3)
    found = trace_statistics(trace, TraceSettings(batches=3000, largest_batch=32))
    assert found.sizes.tolist() == [1, 2, 4, 8, 16, 32]
    np.testing.assert_allclose(found.touched["mixed"], found.expected_touched(), rtol=0.02)
    assert (found.touched["mixed"][:, 0] == 3).all()
    assert list(found.touched) == ["mixed"]


def test_batches_of_a_domain_are_of_one_group(trace):
    rows = domain_rows(trace, 200, 16, np.random.default_rng(0))
    groups = np.array([GROUPS[request] for request in trace.request])[rows]
    assert (groups == groups[:, :1]).all()
    assert set(groups[:, 0]) == set(GROUPS)
    assert set(rows.ravel()) == set(range(trace.tokens))


def test_uniform_routing_has_the_segments_of_its_closed_form():
    """Uses of an expert in m independent tokens are binomial(m, k / E), so N(u), SRP and CLS follow."""
    experts, k, m = 16, 3, 8
    keys = np.random.default_rng(1).random((40_000, experts))
    ids = np.argsort(keys, axis=1)[:, :k].astype(np.uint8)
    counted = segments(ids, np.array([0, len(ids)]), experts, m)
    q = k / experts
    share = [math.comb(m, u) * q**u * (1 - q) ** (m - u) for u in range(m + 1)]
    assert counted.chunk_sparsity() == pytest.approx(share[0], abs=0.004)
    assert counted.touched() == pytest.approx(experts * (1 - (1 - q) ** m), abs=0.05)
    scores = [2 * sum(u * share[u] for u in range(a, m + 1)) / (m * sum(share[a:]) + m * q) for a in range(m + 1)]
    srp, alpha, _ = counted.best_routing()
    assert srp == pytest.approx(max(scores), abs=0.004)
    assert alpha == scores.index(max(scores))


def test_segments_longer_than_every_request(trace):
    none = trace_statistics(trace, TraceSettings(segment_lengths=(50,), lags=(50,)))
    assert none.segments[50].count == 0
    assert np.isnan(none.segments[50].best_routing()[0]).all()
    assert np.isnan(none.segments[50].chunk_sparsity()).all()
    assert np.isnan(none.reuse[50].by_token()).all()


def test_a_trace_of_one_token_and_one_layer():
    found = trace_statistics(random_trace(lengths=(1,), layers=1))
    assert found.transitions.shape == (0, 6, 6)
    assert found.sizes.tolist() == [1]
    assert (found.caches["lru", 0].rate() == 0).all()


def test_threads_and_seeds_change_nothing_else(trace, found):
    again = trace_statistics(trace, replace(SETTINGS, threads=3))
    for kind, touched in found.touched.items():
        np.testing.assert_array_equal(again.touched[kind], touched)
    np.testing.assert_array_equal(again.random_half_load, found.random_half_load)
    np.testing.assert_array_equal(again.coactivation, found.coactivation)


def test_wide_ids_change_nothing(trace, found):
    wide = trace_statistics(replace(trace, expert=trace.expert.astype(np.uint16)), SETTINGS)
    np.testing.assert_array_equal(wide.transitions, found.transitions)
    for rule, hits in found.caches.items():
        np.testing.assert_array_equal(wide.caches[rule].hits, hits.hits)
    for length, part in found.segments.items():
        np.testing.assert_array_equal(wide.segments[length].seen, part.seen)


def test_progress_counts_layers(trace):
    seen: list[tuple[int, int]] = []
    trace_statistics(trace, SETTINGS, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "name", ["windows", "lags", "segment_lengths", "horizons", "largest_batch", "batches", "threads"]
)
def test_settings_below_one_are_refused(name):
    value: Any = (1, 0) if name in {"lags", "segment_lengths", "horizons"} else 0
    with pytest.raises(InputError, match=f"{name}: must be at least 1, got 0"):
        replace(SETTINGS, **{name: value})


def test_placements_of_another_model_are_refused(trace):
    with pytest.raises(InputError, match="must place the experts of 3 MoE layers, got 2"):
        trace_statistics(trace, TraceSettings(places=(contiguous_places(2, 6, 2),)))
    with pytest.raises(InputError, match=r"every one of 6 experts must have a slot, and no other \(MoE layer 0\)"):
        trace_statistics(trace, TraceSettings(places=(contiguous_places(3, 8, 2),)))


# --- numbers from loads alone --------------------------------------------------------------------------------------


def test_imbalance_of_known_loads():
    load = np.array([[4, 2, 1, 1], [2, 2, 2, 2], [8, 0, 0, 0]])
    np.testing.assert_allclose(loads.max_over_mean(load), [2, 1, 4])
    np.testing.assert_allclose(loads.variation(load), [math.sqrt(1.5) / 2, 0, math.sqrt(3)])
    np.testing.assert_allclose(loads.entropy_bits(load), [1.75, 2, 0])


def test_distances_of_known_shares():
    one, other = np.array([[1, 1, 0], [3, 1, 0]]), np.array([[0, 0, 5], [6, 2, 0]])
    np.testing.assert_allclose(loads.total_variation(one, other), [1, 0])
    np.testing.assert_allclose(loads.jensen_shannon_bits(one, other), [1, 0], atol=1e-12)


def test_lift_of_independent_and_bound_experts():
    """Experts 0 and 1 always together; 2 and 3 always together; half of the tokens each."""
    together = np.array([[[5, 5, 0, 0], [5, 5, 0, 0], [0, 0, 5, 5], [0, 0, 5, 5]]])
    lift = loads.lift(together, 10)[0]
    assert (lift[0, 1], lift[0, 2]) == (2.0, 0.0)
    assert np.isnan(lift.diagonal()).all()


def test_mutual_information_of_extremes():
    assert loads.mutual_information_bits(np.eye(8)) == pytest.approx(3.0)
    assert loads.mutual_information_bits(np.ones((8, 8))) == pytest.approx(0.0)


@pytest.mark.parametrize(("experts", "k", "places"), [(8, 2, 4), (12, 3, 3), (6, 6, 2), (6, 1, 6)])
def test_expected_places_by_counting_sets(experts, k, places):
    from itertools import combinations

    sets = [len({expert * places // experts for expert in chosen}) for chosen in combinations(range(experts), k)]
    assert loads.expected_reached(experts, k, places) == pytest.approx(sum(sets) / len(sets))


@pytest.mark.reference
def test_published_trace(reference_data: Path):
    trace = read_routing_trace(reference_data / "routing/gpt-oss-20b/gpt-oss-20b_decode_top4_ids.npz")
    settings = TraceSettings(lags=(1,), segment_lengths=(16,), horizons=(16,), largest_batch=64)
    found = trace_statistics(trace, settings)
    assert loads.max_over_mean(found.load).mean() == pytest.approx(2.62, abs=0.005)
    assert found.reuse[1].by_token().mean() == pytest.approx(0.437, abs=0.005)
    assert found.reuse[1].by_request().mean() == pytest.approx(0.430, abs=0.005)
    rates = {rule: cache.rate().mean(axis=0) for (rule, _), cache in found.caches.items()}
    for rule in ("lru", "lfu", "segment"):
        assert (rates[rule][3:] <= rates["belady"][3:] + 1e-12).all()
    drift = loads.total_variation(found.half_load[:, 0], found.half_load[:, 1]).mean()
    chance = loads.total_variation(found.random_half_load[:, 0], found.random_half_load[:, 1]).mean()
    assert drift > 4 * chance


@pytest.mark.reference
def test_a_slice_of_the_published_trace_counted_by_hand(reference_data: Path):
    """The first 60 tokens of three requests in three layers, all statistics in plain Python."""
    whole = read_routing_trace(reference_data / "routing/gpt-oss-20b/gpt-oss-20b_decode_top4_ids.npz")
    some = whole.select([5, 300, 650])
    rows = np.flatnonzero(some.position - some.position[some.offset[some.request]] < 60)
    columns: dict[str, Any] = {name: getattr(some, name)[rows] for name in ("request", "position", "phase")}
    columns["expert"] = np.ascontiguousarray(some.expert[rows, 10:13])
    trace = replace(some, **columns)
    found = trace_statistics(trace, TraceSettings(lags=(1, 4), segment_lengths=(16,), horizons=(16,)))
    policies = {("lru", 0): plain.lru, ("lfu", 0): plain.lfu, ("belady", 0): plain.belady}
    policies["segment", 16] = plain.segment(16)
    for layer in range(trace.layers):
        spans = pairwise(trace.offset.tolist())
        requests = [[tuple(token) for token in trace.expert[begin:end, layer].tolist()] for begin, end in spans]
        counts = Counter(expert for token in flat(requests) for expert in token)
        busiest = max(counts.values()) / (4 * trace.tokens / 32)
        assert loads.max_over_mean(found.load)[layer] == pytest.approx(busiest)
        entropy = -sum(c / (4 * trace.tokens) * math.log2(c / (4 * trace.tokens)) for c in counts.values())
        assert loads.entropy_bits(found.load)[layer] == pytest.approx(entropy)
        for lag in (1, 4):
            shared = [len({*now} & {*then}) / 4 for r in requests for now, then in zip(r[lag:], r, strict=False)]
            assert found.reuse[lag].by_token()[layer] == pytest.approx(sum(shared) / len(shared))
        assert found.segments[16].chunk_sparsity()[layer] == pytest.approx(plain.sparsity(requests, 32, 16))
        assert found.segments[16].best_routing()[0][layer] == pytest.approx(plain.best_f1([requests], 32, 16))
        for rule, policy in policies.items():
            for size in (4, 8, 16):
                counted = found.caches[rule].hits[layer, :size].sum()
                assert counted == plain.hit_count(requests, size, policy)
        reached = Counter(len({expert // 8 for expert in token}) for token in flat(requests))
        assert found.reached["4 devices"][layer].tolist() == [reached[count] for count in range(5)]
