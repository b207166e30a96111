"""A profile fitted to drawn tokens has the statistics of what they were drawn from."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.workloads.load_statistics import mutual_information_bits
from moesim.workloads.routing_fit import count_domains, expert_pairs, fit_profile, measure_overlap
from moesim.workloads.routing_profile import RoutingProfile, limit_shares
from moesim.workloads.routing_states import Reuse, TokenStates
from moesim.workloads.routing_synth import synthesize_trace
from moesim.workloads.routing_trace import RoutingTrace
from moesim.workloads.trace_kernels import count_transitions


def original() -> RoutingProfile:
    rng = np.random.default_rng(2)
    layers, states, experts, k = 3, 4, 8, 2
    shares = limit_shares(rng.random((layers * states, experts)) ** 6, k).reshape(layers, states, experts)
    chain = TokenStates(np.full(4, 0.25), rng.dirichlet(np.full(4, 0.3), (2, 4)), shares)
    reuse = Reuse(0.3, 0.7, 0.3, 0.0, 32, np.full(3, 0.9), np.full(3, 0.5))
    return RoutingProfile("m", "made up", k, chain.popularity(), states=chain, reuse=reuse)


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    lengths = np.full(150, 100)
    return synthesize_trace(original(), 0 * lengths + 3, lengths, np.random.default_rng(0), prefill=False)


def test_a_fitted_profile_draws_what_it_was_fitted_to(trace: RoutingTrace) -> None:
    stages: list[tuple[str, int, int]] = []
    fitted = fit_profile(trace, states=6, on_progress=lambda *stage: stages.append(stage))
    np.testing.assert_allclose(fitted.popularity, RoutingProfile.from_trace(trace).popularity)
    assert fitted.states is not None
    assert fitted.reuse is not None
    np.testing.assert_allclose(fitted.states.popularity(), fitted.popularity, atol=1e-3)
    recorded = count_transitions(trace.expert, 8).astype(float)
    recorded /= recorded.sum(axis=(1, 2), keepdims=True)
    found = expert_pairs(fitted.states)
    assert mutual_information_bits(found).mean() == pytest.approx(mutual_information_bits(recorded).mean(), rel=0.05)
    independent = np.einsum("la,lb->lab", fitted.popularity[:-1], fitted.popularity[1:])
    assert abs(found - recorded).sum() < 0.35 * abs(independent - recorded).sum()
    lengths = np.full(150, 100)
    again = synthesize_trace(fitted, 0 * lengths, lengths, np.random.default_rng(1))
    rng = np.random.default_rng(5)
    for lag in (1, 8, 64):
        wanted, got = (measure_overlap(each, lag, rng).mean() for each in (trace, again))
        assert got == pytest.approx(wanted, abs=0.03)
    assert {stage for stage, _, _ in stages} == {"clusters", "chains"}
    assert stages[-1][1] == stages[-1][2]


def test_the_same_seed_gives_the_same_profile(trace: RoutingTrace) -> None:
    short = trace.select(range(20))
    one, other = (fit_profile(short, states=3) for _ in range(2))
    assert one.states is not None
    assert other.states is not None
    np.testing.assert_array_equal(one.states.shares, other.states.shares)


def test_short_traces_get_few_states_and_no_reuse(trace: RoutingTrace) -> None:
    short = trace.select([0])
    single = replace(
        short,
        request=short.request[:1],
        position=short.position[:1],
        phase=short.phase[:1],
        expert=short.expert[:1],
    )
    fitted = fit_profile(single)
    assert fitted.states is not None
    assert fitted.states.states == 1
    assert fitted.reuse is None
    assert fitted.domains is None


def test_mutual_information_in_closed_form() -> None:
    assert mutual_information_bits(np.eye(4)[np.newaxis]).tolist() == [2.0]
    np.testing.assert_allclose(mutual_information_bits(np.ones((3, 4, 4))), 0.0, atol=1e-12)
    assert mutual_information_bits(np.ones((0, 4, 4))).shape == (0,)


def test_overlap_by_brute_force(trace: RoutingTrace) -> None:
    short = trace.select([0, 1])
    common = [
        len(set(short.expert[i, 1].tolist()) & set(short.expert[i + 2, 1].tolist())) / 2
        for i in range(short.tokens - 2)
        if short.request[i] == short.request[i + 2]
    ]
    assert measure_overlap(short, 2, np.random.default_rng(0))[1] == pytest.approx(np.mean(common))
    assert np.isnan(measure_overlap(short, 150, np.random.default_rng(0))).all()


def test_domains_are_groups(trace: RoutingTrace) -> None:
    assert count_domains(trace) is None
    grouped = replace(trace, groups=("x",) * 50 + ("y",) * 100)
    domains = count_domains(grouped)
    assert domains is not None
    assert domains.names == ("x", "y")
    np.testing.assert_allclose(domains.weight, [1 / 3, 2 / 3])
    part = RoutingProfile.from_trace(trace.select(range(50)))
    np.testing.assert_allclose(domains.popularity[0], part.popularity)
    together = np.einsum("d,dle->le", domains.weight, domains.popularity)
    np.testing.assert_allclose(together, RoutingProfile.from_trace(trace).popularity)


@pytest.mark.parametrize(
    ("layers", "experts", "top_k"),
    [
        (1, 8, 2),  # no layer follows another
        (2, 8, 8),  # every token uses all experts
        (2, 1024, 16),  # products of so many small shares are below single precision
        (2, 256, 32),
    ],
)
def test_traces_at_the_edge_of_what_there_is_are_fitted(layers: int, experts: int, top_k: int) -> None:
    even = RoutingProfile("m", "even", top_k, np.full((layers, experts), 1.0 / experts))
    lengths = np.full(4, 100)
    drawn = synthesize_trace(even, lengths, 0 * lengths, np.random.default_rng(1))
    fitted = fit_profile(drawn)
    assert fitted.states is not None
    np.testing.assert_allclose(fitted.states.popularity(), fitted.popularity, atol=0.02 / experts)
    again = synthesize_trace(fitted, lengths, 0 * lengths, np.random.default_rng(2))
    assert again.expert.shape == drawn.expert.shape
