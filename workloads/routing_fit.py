"""Fits a routing profile to a routing trace: states of tokens, and the reuse of a request.

States: layer by layer, windows of neighbouring layers are clustered (a mixture whose components have shares of experts,
fitted by expectation maximisation); counts of these clusters start Baum and Welch's algorithm on the whole depth
(Rabiner, Proc. IEEE 77 (1989) 257-286). A layer's k selections are taken as k draws from the state's shares.
A hidden state passes on less than what was recorded, so rows are then raised to a power, the same for all, at which the
mutual information of adjacent layers is the recorded one.

Reuse: in closed form from the share of experts that tokens of a request, some positions apart, have in common.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.workloads import routing_fit_kernels as kernels
from moesim.workloads.load_statistics import mutual_information_bits
from moesim.workloads.routing_profile import RoutingProfile, limit_shares
from moesim.workloads.routing_states import MAX_STATES, Domains, Reuse, TokenStates
from moesim.workloads.routing_trace import RoutingTrace
from moesim.workloads.trace_kernels import count_transitions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Progress = Callable[[str, int, int], None]

DEFAULT_STATES = 128
_TOKENS_PER_STATE = 100
"""A state of fewer tokens says more about them than about the model."""
_SAMPLE_TOKENS = 60_000
_CLUSTER_ROUNDS, _CHAIN_ROUNDS = 8, 5
_SHARES_PRIOR = 1.0
"""Weight of the layer's popularity in the shares of a state, in tokens."""
_TRANSITIONS_PRIOR = 3.0
"""Weight of the next layer's states in a row of transitions, in tokens."""
_MAX_SHARPENING = 2.0
_TRIAL_ROUNDS = 20
"""Rounds of proportional fitting while the power is searched for."""

LAGS = np.array([1, 2, 3, 4, 8, 16, 32, 64])
"""Distances at which reuse is measured; at the longest, tokens share nothing but the habits of their request."""
_PASSAGE_TOKENS = 32
_MAX_DECAY = 0.9
"""Of habits; beyond it a request has so many that none comes back."""
_PAIRS = 40_000
"""Pairs of tokens by which an overlap is measured: standard error under 0.002 for the mean of layers."""


def fit_profile(
    trace: RoutingTrace, states: int = DEFAULT_STATES, seed: int = 0, on_progress: Progress | None = None
) -> RoutingProfile:
    """The statistics of `trace` with states, reuse and domains.

    Args:
        trace: what to describe.
        states: per layer, at most; small traces get fewer.
        seed: of the sample of tokens and of the starts of the clusters.
        on_progress: called with the stage, rounds done and rounds in all.
    """
    counted = RoutingProfile.from_trace(trace)
    rng = np.random.default_rng(seed)
    states = max(1, min(states, MAX_STATES, trace.tokens // _TOKENS_PER_STATE))
    chosen = np.sort(rng.permutation(trace.tokens)[:_SAMPLE_TOKENS])
    found = _fit_states(trace.expert[chosen], trace.experts, states, rng, on_progress)
    if trace.layers > 1:
        wanted = mutual_information_bits(count_transitions(trace.expert, trace.experts)).mean()
        found = _sharpened(found, counted.popularity, trace.top_k, float(wanted))
    else:
        found = found.with_popularity(counted.popularity, trace.top_k)
    return replace(
        counted,
        states=found,
        reuse=_fit_reuse(trace, found, rng),
        domains=count_domains(trace),
    )


def expert_pairs(states: TokenStates) -> Floats:
    """float64[layer - 1, a, b]: probability that tokens of `states` use a and then b, for random ranks."""
    joint = states.occupancy()[:-1, :, np.newaxis] * states.transitions
    return np.asarray(np.einsum("lsa,lst,ltb->lab", states.shares[:-1], joint, states.shares[1:], optimize=True))


def count_domains(trace: RoutingTrace) -> Domains | None:
    """Popularity by group of requests, or None where the trace knows of fewer than two."""
    names = sorted(set(trace.groups) - {""})
    if len(names) < 2 or "" in trace.groups:  # noqa: PLR2004 - one domain is no distinction
        return None
    group = np.array([names.index(name) for name in trace.groups])[trace.request]
    counts = np.zeros((len(names), trace.layers, trace.experts))
    for layer in range(trace.layers):
        key = group[:, np.newaxis] * trace.experts + trace.expert[:, layer]
        flat = np.bincount(key.ravel(), minlength=len(names) * trace.experts)
        counts[:, layer] = flat.reshape(len(names), trace.experts)
    weight = np.bincount(group, minlength=len(names)) / trace.tokens
    return Domains(tuple(names), weight, counts / counts.sum(axis=2, keepdims=True))


def _fit_states(
    expert: NDArray[np.uint8] | NDArray[np.uint16],
    experts: int,
    states: int,
    rng: np.random.Generator,
    on_progress: Progress | None,
) -> TokenStates:
    """Clusters of each layer, then Baum and Welch's rounds."""
    layers = expert.shape[1]
    label = np.empty((len(expert), layers), np.int64)
    for layer in range(layers):
        label[:, layer] = _cluster(expert[:, max(0, layer - 1) : layer + 2], experts, states, rng)
        if on_progress:
            on_progress("clusters", layer + 1, layers)
    counts = _Counts.of_labels(expert, label, experts, states)
    for step in range(_CHAIN_ROUNDS):
        found = counts.estimate(expert.shape[2])
        counts = _Counts.empty(layers, states, experts)
        transitions, shares = found.transitions.astype(np.float32), found.shares.transpose(0, 2, 1).astype(np.float32)
        arrays = (np.ascontiguousarray(shares), transitions, found.initial.astype(np.float32))
        kernels.count_chains(expert, *arrays, counts.initial, counts.transitions, counts.shares)
        if on_progress:
            on_progress("chains", step + 1, _CHAIN_ROUNDS)
    return counts.estimate(expert.shape[2])


def _cluster(
    window: NDArray[np.uint8] | NDArray[np.uint16], experts: int, clusters: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """int64[token]: cluster of each token by its experts in a window [token, layer, k] of layers."""
    tokens, width, k = window.shape
    ids = (window.astype(np.int64) + np.arange(width)[:, np.newaxis] * experts).reshape(tokens, -1)
    mean = np.bincount(ids.ravel(), minlength=width * experts) / tokens
    counts = np.tile(2.0 * mean, (clusters, 1))
    seeds = rng.choice(tokens, clusters, replace=False)
    counts[np.arange(clusters)[:, np.newaxis], ids[seeds]] += 2.0
    share, label = np.full(clusters, 1.0 / clusters), np.empty(tokens, np.int64)
    for _ in range(_CLUSTER_ROUNDS):
        shares = (counts + _SHARES_PRIOR * mean + 1e-3).reshape(clusters, width, experts)
        logs = np.log(shares / shares.sum(axis=2, keepdims=True)).reshape(clusters, -1).T
        counts = np.zeros((clusters, width * experts))
        kernels.count_clusters(
            ids, np.ascontiguousarray(logs, np.float32), np.log(share).astype(np.float32), counts, label
        )
        share = (counts.sum(axis=1) / (width * k) + 1.0) / (tokens + clusters)
    return label


@dataclass
class _Counts:
    """How often states began, followed each other, and used experts."""

    initial: Floats
    transitions: Floats
    shares: Floats

    @classmethod
    def empty(cls, layers: int, states: int, experts: int) -> "_Counts":
        shape = (layers - 1, states, states)
        return cls(np.zeros(states), np.zeros(shape), np.zeros((layers, states, experts)))

    @classmethod
    def of_labels(cls, expert: NDArray[np.integer], label: Ints, experts: int, states: int) -> "_Counts":
        """Counts of tokens whose states are known, `label` [token, layer]."""
        layers = expert.shape[1]
        counts = cls.empty(layers, states, experts)
        counts.initial[:] = np.bincount(label[:, 0], minlength=states)
        for layer in range(layers):
            used = label[:, layer, np.newaxis] * experts + expert[:, layer]
            counts.shares[layer] = np.bincount(used.ravel(), minlength=states * experts).reshape(states, experts)
            if layer:
                pair = label[:, layer - 1] * states + label[:, layer]
                counts.transitions[layer - 1] = np.bincount(pair, minlength=states**2).reshape(states, states)
        return counts

    def estimate(self, top_k: int) -> TokenStates:
        """States with these counts, drawn a little towards the mean."""
        popularity = self.shares.sum(axis=1)
        popularity /= popularity.sum(axis=1, keepdims=True)
        shares = self.shares + _SHARES_PRIOR * top_k * popularity[:, np.newaxis]
        following = self.transitions.sum(axis=1)
        following /= following.sum(axis=1, keepdims=True)
        transitions = self.transitions + _TRANSITIONS_PRIOR * following[:, np.newaxis]
        initial = self.initial / self.initial.sum()
        sums = [array.sum(axis=2, keepdims=True) for array in (transitions, shares)]
        return TokenStates(initial, transitions / sums[0], shares / sums[1])


def _sharpened(states: TokenStates, popularity: Floats, top_k: int, wanted_bits: float) -> TokenStates:
    """`states` with rows raised to the power at which adjacent layers share `wanted_bits`, and loads as recorded."""
    low, high = 1.0, _MAX_SHARPENING
    found = states
    for _ in range(7):
        power = 0.5 * (low + high)
        found = _raised(states, popularity, top_k, power)
        bits = mutual_information_bits(expert_pairs(found)).mean()
        low, high = (power, high) if bits < wanted_bits else (low, power)
    return found.with_popularity(popularity, top_k)


def _raised(states: TokenStates, popularity: Floats, top_k: int, power: float) -> TokenStates:
    """`states` with rows raised to `power`, and loads close to `popularity`."""
    rows = [array**power for array in (states.transitions, states.shares)]
    transitions, shares = (array / array.sum(axis=2, keepdims=True) for array in rows)
    flat = limit_shares(shares.reshape(-1, shares.shape[2]), top_k).reshape(shares.shape)
    return replace(states, transitions=transitions, shares=flat).with_popularity(popularity, top_k, _TRIAL_ROUNDS)


def measure_overlap(trace: RoutingTrace, lag: int, rng: np.random.Generator) -> Floats:
    """float64[moe_layer]: share of experts that tokens of a request `lag` positions apart have in common.

    NaN where no request is that long.
    """
    first = np.flatnonzero(trace.request[:-lag] == trace.request[lag:])
    if len(first) == 0:
        return np.full(trace.layers, np.nan)
    first = first if len(first) <= _PAIRS else rng.choice(first, _PAIRS, replace=False)
    one, other = trace.expert[first], trace.expert[first + lag]
    common = sum((one == np.roll(other, shift, axis=2)).sum(axis=(0, 2)) for shift in range(trace.top_k))
    return np.asarray(common / (len(first) * trace.top_k), dtype=np.float64)


def _fit_reuse(trace: RoutingTrace, states: TokenStates, rng: np.random.Generator) -> Reuse | None:
    """Reuse with the overlaps of the trace; None for requests that are too short to show any."""
    longest = int(np.diff(trace.offset).max()) - 1
    lags = LAGS[longest >= LAGS]
    if len(lags) == 0:
        return None
    recorded = np.stack([measure_overlap(trace, int(lag), rng) for lag in lags])
    base = (states.popularity() ** 2).sum(axis=1) * trace.top_k
    same = states.self_overlap(trace.top_k)
    best, least = None, np.inf  # by layer, and twice as much by the mean of layers
    for agreement in np.linspace(0.0, 0.5, 51):
        for continues in np.linspace(0.0, 0.6, 31):
            reuse = _solve_sets(lags, recorded, base, same, (agreement, continues))
            error = reuse.overlap(lags, base, same) - recorded
            score = abs(error).mean() + 2.0 * abs(error.mean(axis=1)).mean()
            if score < least:
                best, least = reuse, score
    return best


def _solve_sets(lags: Ints, recorded: Floats, base: Floats, same: Floats, chances: tuple[float, float]) -> Reuse:
    """The passages, `run_sets` and `habit_sets` of the recorded overlaps at a middle, the first and the last lag.

    Args:
        lags: int64[lag].
        recorded: float64[lag, moe_layer].
        base: float64[moe_layer] overlap of independent tokens.
        same: float64[moe_layer] that of independent tokens in the same state.
        chances: that two runs of a request follow the same habit, and that a run continues.
    """
    agreement, continues = chances
    far = (recorded[-1] - base).clip(0.0)
    habit = base + far / max(agreement, 1e-9)
    other = np.maximum(1.0 - same, 1e-9)  # is 0 where every token uses all experts
    shared = np.clip((habit - same) / other, 0.0, 1.0)  # (run_sets x habit_sets)^2
    middle = len(lags) // 2
    passage = (recorded[middle] - recorded[-1]).mean() / max((habit.clip(same, 1.0) - base).mean(), 1e-9)
    passage /= max(1.0 - lags[middle] / _PASSAGE_TOKENS, 0.5)
    passage_share = min(np.sqrt(max(passage, 0.0)), 1.0 - np.sqrt(agreement))
    request_share, decay = _habits(agreement, 1.0 - passage_share)
    broken = (1.0 - continues) * (agreement + passage_share**2) * (same + (1.0 - same) * shared - base)
    run = base + (recorded[0] - base - broken) / max(continues, 1e-9)
    run_sets = np.sqrt(np.clip((run - same) / other, shared, 1.0))
    habit_sets = np.sqrt(np.divide(shared, run_sets**2, out=np.zeros_like(shared), where=run_sets > 0)).clip(0.0, 1.0)
    return Reuse(
        run_continues=float(continues),
        request_share=request_share,
        habit_decay=decay,
        passage_share=float(passage_share),
        passage_tokens=_PASSAGE_TOKENS,
        run_sets=run_sets,
        habit_sets=habit_sets,
    )


def _habits(agreement: float, most: float) -> tuple[float, float]:
    """Share of runs that follow habits, and the decay of habits, at which two runs agree with probability `agreement`.

    Of all such pairs the one with the largest share, at most `most`: runs that follow nothing would make a request use
    more experts than recorded ones do.
    """
    same = agreement / most**2
    decay = min((1.0 - same) / (1.0 + same), _MAX_DECAY)
    return float(min(np.sqrt(agreement * (1.0 + decay) / (1.0 - decay)), most)), float(max(decay, 0.0))
