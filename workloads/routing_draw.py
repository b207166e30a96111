"""Which experts a token uses: drawn from a routing profile, or replayed from a routing trace.

The experts of a token are a function of (seed key, request, position) and of nothing else. Batching, scheduling,
recomputation after a preemption and the simulated hardware cannot change them.

The draw
--------
A layer's row of the profile gives every expert an inclusion probability p[i], the sum of which is k = top_k. Of all
ways to draw sets of k distinct experts with these probabilities, the one of maximum entropy is conditional Poisson
sampling, P(set) ~ product of w[i] over the set (Chen, Dempster and Liu, Biometrika 81 (1994) 457-469). With the
elementary symmetric polynomials of the suffixes, E[r, j] = e_r(w[j], ..., w[n-1]), the probability that r experts
still to be drawn from i, i+1, ... all lie at j or later is E[r, j] / E[r, i]. That is a decreasing function of j, so
one uniform number and one binary search give the next expert, and k of them a whole set, in ascending order of ids,
without rejection. The weights w are solved for once, so inclusion probabilities are exact (relative error 1e-5).

Where all experts are used equally often and there are no transitions, k distinct experts are drawn by rejection,
which gives the same distribution ten times as fast.

From layer to layer, one of the k experts of layer l-1 is picked at random and its row of the transition matrix takes
the place of the popularity. A row is the share of layer l's selections among the tokens that used that expert, so the
mean of the rows, weighted with the popularity of the experts, is the popularity of layer l, and loads stay exact.

Limits. One predecessor of k decides, so drawn transitions point the right way but are weaker than recorded ones: on
the gpt-oss trace the deviations from popularity correlate by 0.96 and are 0.35 times as large. Experts that a layer
likes to use together are known only through their predecessors: a drawn token touches 2 to 4 % fewer groups of 4 or 8
consecutive experts than a recorded one. Tokens of a request are independent; recorded neighbours resemble each other.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moesim.errors import DataError, InputError
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_trace import RoutingTrace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Experts = NDArray[np.uint16]

MAX_TOP_K = 32
"""Beyond it the polynomials of rows with many certain experts (weight 1e7 each) would leave the range of float64."""

_CERTAIN = 1e-7
"""Inclusion probabilities are kept this far from 1, where the weight would be infinite."""
_TOLERANCE = 1e-5
_RARE = 1e-3
"""Error allowed in inclusion probabilities: relative above `_RARE`, absolute (tolerance x rare) below."""
_MAX_ITERATIONS = 1000

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53
_STRIDE = 16
_BLOCK = 256
"""Tokens that go through the layers together."""


class TokenRouter:
    """Draws the experts of tokens from a routing profile.

    Args:
        profile: popularity and, where it has them, layer-to-layer transitions.
        rng: one draw is taken as the seed key.

    Raises:
        InputError: the profile's top_k is greater than `MAX_TOP_K`.
        DataError: inclusion probabilities that no weights reproduce.
    """

    def __init__(self, profile: RoutingProfile, rng: np.random.Generator) -> None:
        if profile.top_k > MAX_TOP_K:
            raise InputError(profile.source, f"`top_k` must be at most {MAX_TOP_K}", profile.top_k)
        self.profile = profile
        self._key = rng.integers(0, 2**64, dtype=np.uint64)
        self._uniform = _is_uniform(profile)
        if not self._uniform:
            self._fit(profile)

    def _fit(self, profile: RoutingProfile) -> None:
        """Solve for the tables of every row."""
        rows = [profile.popularity]
        if profile.transitions is not None:
            rows.append(profile.transitions.reshape(-1, profile.experts))
        self._fine, errors = _tables(np.concatenate(rows) * profile.top_k, profile.top_k)
        self._coarse = np.zeros((*self._fine.shape[:2], self._fine.shape[2] // _STRIDE))
        self._coarse[:, :, :-1] = self._fine[:, :, _STRIDE::_STRIDE]
        if not errors.max() <= 100 * _TOLERANCE:
            raise DataError(profile.source, "no sampling weights fit the popularity of a row", float(errors.max()))

    def experts(self, request: Ints, position: Ints) -> Experts:
        """Experts of tokens.

        Args:
            request: int64[token] index of the request.
            position: int64[token] position in the request, prompt included, from 0.

        Returns:
            uint16[token, moe_layer, k], distinct ids.
        """
        chosen = np.empty((len(request), self.profile.layers, self.profile.top_k), np.uint16)
        if self._uniform:
            _draw_uniform(self._key, _as_ints(request), _as_ints(position), self.profile.experts, chosen)
        else:
            _draw(self._key, _as_ints(request), _as_ints(position), self._fine, self._coarse, chosen)
        return chosen


class TraceRouter:
    """Replays a routing trace; tokens that were not recorded are drawn from a profile.

    Request i of the simulation is request i of the trace. A decode-only trace knows nothing of prompts, so prefill is
    drawn, and so are positions past the end of the recording.

    Args:
        trace: what to replay.
        rng: one draw is taken as the seed key of the drawn tokens.
        profile: what to draw from; by default the statistics of the trace itself.
    """

    def __init__(self, trace: RoutingTrace, rng: np.random.Generator, profile: RoutingProfile | None = None) -> None:
        self.trace = trace
        self._drawn = TokenRouter(RoutingProfile.from_trace(trace) if profile is None else profile, rng)
        self.profile = self._drawn.profile

    def experts(self, request: Ints, position: Ints) -> Experts:
        """Experts of tokens, as `TokenRouter.experts`; recorded ones in the order of the trace."""
        request, position = _as_ints(request), _as_ints(position)
        row = self.trace.rows(request, position)
        missing = row < 0
        if not missing.any():
            return self.trace.expert[row].astype(np.uint16)
        chosen = self._drawn.experts(request[missing], position[missing])
        if missing.all():
            return chosen
        mixed = np.empty((len(request), *chosen.shape[1:]), np.uint16)
        mixed[missing] = chosen
        mixed[~missing] = self.trace.expert[row[~missing]]
        return mixed


def _is_uniform(profile: RoutingProfile) -> bool:
    """Whether all experts are equal, and at least twice as many as a token uses, so that few draws are rejected."""
    equal = np.ptp(profile.popularity) < _TOLERANCE / profile.experts
    return bool(equal) and profile.transitions is None and 2 * profile.top_k <= profile.experts


def _as_ints(values: Ints) -> Ints:
    return np.ascontiguousarray(values, dtype=np.int64)


@njit(cache=True)
def count_transitions(expert: NDArray[np.uint8] | NDArray[np.uint16], experts: int) -> Ints:
    """How often a token that used expert a in a layer used b in the next: int64[layer-1, a, b].

    Args:
        expert: ids [token, layer, k], of any unsigned type.
        experts: experts per layer.
    """
    tokens, layers, k = expert.shape
    counts = np.zeros((layers - 1, experts, experts), np.int64)
    for token in range(tokens):
        for layer in range(layers - 1):
            for a in range(k):
                for b in range(k):
                    counts[layer, expert[token, layer, a], expert[token, layer + 1, b]] += 1
    return counts


@njit(cache=True)
def _tables(inclusion: Floats, k: int) -> tuple[Floats, Floats]:
    """Suffix polynomials E[r, j] of every row, as [row, r - 1, j], and the error of each row's probabilities.

    The axis j is filled with zeros up to a multiple of `_STRIDE`.

    Args:
        inclusion: [row, expert], in [0, 1], each row sums to k.
        k: size of the sets.
    """
    rows, n = inclusion.shape
    width = (n + _STRIDE - 1) // _STRIDE * _STRIDE
    tables = np.zeros((rows, k, width))
    errors = np.empty(rows)
    suffix = np.zeros((n + 1, k + 1))
    for row in range(rows):
        errors[row] = _solve_weights(inclusion[row], suffix)
        for r in range(k):
            for j in range(n):
                tables[row, r, j] = suffix[j, r + 1]
    return tables, errors


@njit(cache=True)
def _solve_weights(target: Floats, suffix: Floats) -> float:
    """Leave in `suffix` [expert + 1, r] the polynomials of the weights that give the `target` probabilities.

    The odds of each expert are corrected by the quotient of wanted and present odds. The full step converges in about
    five rounds; where it overshoots (k = 1, certain experts) its square root does not.
    """
    n = len(target)
    weight, present = np.empty(n), np.empty(n)
    for i in range(n):
        p = min(max(target[i], 0.0), 1.0 - _CERTAIN)
        weight[i] = p / (1.0 - p)
    power, last_error = 1.0, np.inf
    for _ in range(_MAX_ITERATIONS):
        _inclusion(weight, suffix, present)
        error = 0.0
        for i in range(n):
            error = max(error, abs(present[i] - min(target[i], 1.0)) / max(target[i], _RARE))
        if error < _TOLERANCE:
            break
        if error > 0.5 * last_error:
            power = 0.5
        last_error = error
        for i in range(n):
            if target[i] > 0.0:
                p, q = min(target[i], 1.0 - _CERTAIN), min(present[i], 1.0 - _CERTAIN)
                weight[i] *= (p * (1.0 - q) / (q * (1.0 - p))) ** power
    return error


@njit(cache=True)
def _inclusion(weight: Floats, suffix: Floats, present: Floats) -> None:
    """Inclusion probabilities of conditional Poisson sampling: w[i] e_{k-1}(without i) / e_k.

    The polynomial without i is a product of a prefix and a suffix: sums of positive terms, so nothing cancels.
    """
    n, k = len(weight), suffix.shape[1] - 1
    suffix[n, 0] = 1.0
    for j in range(n - 1, -1, -1):
        suffix[j, 0] = 1.0
        for r in range(1, k + 1):
            suffix[j, r] = suffix[j + 1, r] + weight[j] * suffix[j + 1, r - 1]
    prefix = np.zeros(k)
    prefix[0] = 1.0
    for i in range(n):
        without = 0.0
        for r in range(k):
            without += prefix[r] * suffix[i + 1, k - 1 - r]
        present[i] = weight[i] * without / suffix[0, k]
        for r in range(k - 1, 0, -1):
            prefix[r] += weight[i] * prefix[r - 1]


@njit(cache=True)
def _mix(z: np.uint64) -> np.uint64:
    """Finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection that scatters every bit."""
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


@njit(cache=True)
def _first_state(key: np.uint64, request: int, position: int) -> np.uint64:
    """Where a token's stream of random numbers begins."""
    return _mix(_mix(key + np.uint64(request) * _WEYL) + np.uint64(position) * _WEYL)


@njit(cache=True)
def _draw_uniform(key: np.uint64, request: Ints, position: Ints, experts: int, chosen: Experts) -> None:
    """Fill `chosen` [token, layer, k] with k distinct experts, all equally likely, in the order they are drawn.

    A random number serves for four draws of 16 bits. Multiplied by the number of experts, the upper half is an expert;
    lower halves under 2^16 mod experts are drawn again, so no expert is favoured (Lemire, TOMACS 29 (2019) 3).
    """
    tokens, layers, k = chosen.shape
    low, bits = np.uint64(0xFFFF), np.uint64(16)
    redrawn = np.uint64(65536) % np.uint64(experts)
    used_by = np.full(experts, -1, np.int64)
    for token in range(tokens):
        state = _first_state(key, request[token], position[token])
        number, draws = np.uint64(0), 0
        for layer in range(layers):
            rank = 0
            while rank < k:
                if draws == 0:
                    state += _WEYL
                    number, draws = _mix(state), 4
                scaled = (number & low) * np.uint64(experts)
                number >>= bits
                draws -= 1
                expert = scaled >> bits
                if (scaled & low) >= redrawn and used_by[expert] != token * layers + layer:
                    used_by[expert] = token * layers + layer
                    chosen[token, layer, rank] = expert
                    rank += 1


@njit(cache=True)
def _draw(key: np.uint64, request: Ints, position: Ints, fine: Floats, coarse: Floats, chosen: Experts) -> None:
    """Fill `chosen` [token, layer, k]; rows of tables: a popularity per layer, then (layer - 1, expert) transitions.

    Blocks of tokens go through the layers together, so that a layer's tables stay in the nearest cache.
    """
    tokens, layers, k = chosen.shape
    chained = len(fine) > layers
    experts = (len(fine) - layers) // max(layers - 1, 1)
    states = np.empty(_BLOCK, np.uint64)
    for start in range(0, tokens, _BLOCK):
        size = min(_BLOCK, tokens - start)
        for i in range(size):
            states[i] = _first_state(key, request[start + i], position[start + i])
        for layer in range(layers):
            for i in range(size):
                token, state, row = start + i, states[i], layer
                if chained and layer > 0:
                    state += _WEYL
                    pick = ((_mix(state) >> np.uint64(32)) * np.uint64(k)) >> np.uint64(32)
                    row = layers + (layer - 1) * experts + np.int64(chosen[token, layer - 1, np.int64(pick)])
                states[i] = _draw_set(state, fine[row], coarse[row], chosen[token, layer])


@njit(cache=True)
def _draw_set(state: np.uint64, fine: Floats, coarse: Floats, chosen: Experts) -> np.uint64:
    """Fill `chosen` [k] from the tables of one row; returns the state of the random numbers afterwards.

    The last j with E[r, j] >= wanted is found by counting, first every 16th entry and then 16 neighbours: no branch
    can be mispredicted, and the processor compares several entries at once (2.5 times as fast as a binary search).
    """
    k = len(chosen)
    first = np.uint64(0)
    for rank in range(k):
        r = k - 1 - rank
        state += _WEYL
        unit = np.float64((_mix(state) >> np.uint64(11)) + np.uint64(1)) * _TO_UNIT  # in (0, 1]
        wanted = unit * fine[r, first]
        block = np.uint64(0)
        for j in range(coarse.shape[1]):
            block += np.uint64(coarse[r, j] >= wanted)
        first = block * np.uint64(_STRIDE)
        for j in range(_STRIDE):
            first += np.uint64(fine[r, block * np.uint64(_STRIDE) + np.uint64(j)] >= wanted)
        chosen[rank] = first - np.uint64(1)
    return state
