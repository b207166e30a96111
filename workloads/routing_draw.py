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

Which row a token takes in a layer:

- States (`routing_states.TokenStates`): the row of the token's state; the next state follows from this one by the alias
  method (Walker, ACM TOMS 3 (1977) 253-256). Where the profile has `Reuse`, the states are drawn with the random
  numbers of the token's run, which may be those of a habit of its request, and its experts with its own numbers, its
  run's or the habit's. Sharing numbers changes no probability of a single token.
- Transitions without states: one of the k experts of layer l-1 is picked at random and its row of the transition matrix
  takes the place of the popularity. A row is the share of layer l's selections among the tokens that used that expert,
  so the mean of the rows, weighted with the popularity of the experts, is the popularity of layer l, and loads stay
  exact. One predecessor of k decides, so drawn transitions point the right way but are weaker than recorded ones (0.35
  times on the gpt-oss trace), and tokens of a request are independent.
- Domains without states or transitions: the row of the request's domain, the same one for all its tokens.
- Else the popularity.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moesim.errors import DataError, InputError
from moesim.workloads.routing_profile import RoutingProfile, limit_shares
from moesim.workloads.routing_states import Reuse, TokenStates
from moesim.workloads.routing_trace import RoutingTrace
from moesim.workloads.routing_weights import STRIDE, TOLERANCE, sampling_tables, sampling_weights

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Experts = NDArray[np.uint16]

MAX_TOP_K = 32
"""Beyond it the polynomials of rows with many certain experts (weight 1e7 each) would leave the range of float64."""

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53
_BLOCK = 256
"""Tokens that go through the layers together."""
_LAYER_NUMBERS = np.uint64(1 << 32)
"""Random numbers that a layer has to itself; draws until ids are distinct may need any number of them."""
_RANK_DRAWS, _RANK_DRAWS_PER_EXPERT = 2.0, 0.05
"""Draws from an alias table in the time of one rank of a suffix table, as measured with 8, 32, 64 and 128 experts."""
_ALIAS_BITS = np.uint64(12)
_MAX_EXPERTS = 1 << 12
_LINE = 16
"""Entries of an alias table in a cache line."""
_MAX_RUN = 256
"""Tokens after which a run ends at the latest."""
_MAX_HABITS = 64
_HABIT, _PASSAGE, _RUN, _SETS = (np.uint64(number) for number in (0xA5A5, 0x5A5A5, 0x33CC3, 0xC3C3C3))
"""Mixed into keys that differ in nothing else."""


class TokenRouter:
    """Draws the experts of tokens from a routing profile.

    Args:
        profile: popularity and, where it has them, layer-to-layer transitions.
        rng: one draw is taken as the seed key.

    Raises:
        InputError: the profile's top_k is greater than `MAX_TOP_K`, or it has states and more than 4096 experts.
        DataError: inclusion probabilities that no weights reproduce.
    """

    def __init__(self, profile: RoutingProfile, rng: np.random.Generator) -> None:
        if profile.top_k > MAX_TOP_K:
            raise InputError(profile.source, f"`top_k` must be at most {MAX_TOP_K}", profile.top_k)
        if profile.states is not None and profile.experts > _MAX_EXPERTS:
            raise InputError(
                profile.source, f"with states there must be at most {_MAX_EXPERTS} experts", profile.experts
            )
        self.profile = profile
        self._key = rng.integers(0, 2**64, dtype=np.uint64)
        self._uniform = _is_uniform(profile)
        if not self._uniform:
            self._fit(profile)

    def _fit(self, profile: RoutingProfile) -> None:
        """Solve for the tables of every row."""
        self._states = None
        if profile.states is not None:
            self._states = _StateTables(profile.states, profile.reuse, profile.top_k)
            error = self._states.error
        else:
            rows, self._domains = [profile.popularity], np.zeros(0)
            if profile.transitions is not None:
                rows.append(profile.transitions.reshape(-1, profile.experts))
            elif profile.domains is not None:
                rows = [limit_shares(profile.domains.popularity.reshape(-1, profile.experts), profile.top_k)]
                self._domains = np.cumsum(profile.domains.weight)
            self._fine, self._coarse, error = sampling_tables(np.concatenate(rows) * profile.top_k, profile.top_k)
        if not error <= 100 * TOLERANCE:
            raise DataError(profile.source, "no sampling weights fit the popularity of a row", error)

    def experts(self, request: Ints, position: Ints) -> Experts:
        """Experts of tokens.

        Args:
            request: int64[token] index of the request.
            position: int64[token] position in the request, prompt included, from 0.

        Returns:
            uint16[token, moe_layer, k], distinct ids.
        """
        chosen = np.empty((len(request), self.profile.layers, self.profile.top_k), np.uint16)
        request, position = _as_ints(request), _as_ints(position)
        if self._uniform:
            _draw_uniform(self._key, request, position, self.profile.experts, chosen)
        elif self._states is not None:
            _draw_states(self._key, request, position, self._states.tables, chosen)
        else:
            _draw(self._key, request, position, self._domains, self._fine, self._coarse, chosen)
        return chosen


class _StateTables:
    """States and reuse as the compiled draw wants them.

    Sets of a row are drawn from its alias table, again until all ids are distinct, which is conditional Poisson
    sampling as well (Chen, Dempster and Liu 1994). Rows where that would take long get suffix tables instead.

    `tables` holds, in this order:
        chain: alias tables [1 + (layers - 1) x states, state]: of the first layer, then (layer - 1, state).
        reuse: run_continues, request_share, habit_decay, passage_share, passage_tokens.
        sets: [layer, 2] run_sets, habit_sets.
        draws: alias tables of rows (layer, state).
        slot: [row] which of the suffix tables is the row's, -1 if none.
        fine, coarse: suffix tables.
    """

    def __init__(self, states: TokenStates, reuse: Reuse | None, top_k: int) -> None:
        layers, _, experts = states.shares.shape
        inclusion = states.shares.reshape(-1, experts) * top_k
        weights, draws_needed, self.error = sampling_weights(inclusion, top_k)
        slow = draws_needed > top_k * (_RANK_DRAWS + _RANK_DRAWS_PER_EXPERT * experts)
        slot = np.where(slow, np.cumsum(slow) - 1, -1)
        fine, coarse, _ = sampling_tables(inclusion[slow], top_k)
        sets = np.zeros((layers, 2))
        numbers = np.array([0.0, 0.0, 0.0, 0.0, 1.0])
        if reuse is not None:
            shares = (reuse.run_continues, reuse.request_share, reuse.habit_decay, reuse.passage_share)
            numbers = np.array([*shares, reuse.passage_tokens], dtype=np.float64)
            sets = np.stack([reuse.run_sets, reuse.habit_sets], axis=1)
        rows = np.concatenate([states.initial[np.newaxis], states.transitions.reshape(-1, states.states)])
        draws = _alias_tables(weights / weights.sum(axis=1, keepdims=True))
        chain = _alias_tables(np.ascontiguousarray(rows))
        self.tables = chain, numbers, sets, draws, slot, _singles(fine, fine), _singles(coarse, fine)


def _singles(table: Floats, fine: Floats) -> NDArray[np.float32]:
    """Suffix tables [row, r, j] in single precision, every (row, r) relative to its first entry in `fine`.

    Only quotients within (row, r) matter. Positive entries stay positive, so that a search never runs past the end.
    """
    relative = table / fine[:, :, :1]
    return np.where(table > 0, np.maximum(relative, np.finfo(np.float32).tiny), 0.0).astype(np.float32)


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
    equal = np.ptp(profile.popularity) < TOLERANCE / profile.experts
    plain = profile.transitions is None and profile.states is None and profile.domains is None
    return bool(equal) and plain and 2 * profile.top_k <= profile.experts


def _as_ints(values: Ints) -> Ints:
    return np.ascontiguousarray(values, dtype=np.int64)


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
def _draw(
    key: np.uint64,
    request: Ints,
    position: Ints,
    domains: Floats,
    fine: Floats,
    coarse: Floats,
    chosen: Experts,
) -> None:
    """Fill `chosen` [token, layer, k].

    Rows of tables: those of each domain, if `domains` has the cumulated weights of some; else the popularity of every
    layer, and behind it (layer - 1, expert) transitions, if any.

    Blocks of tokens go through the layers together, so that a layer's tables stay in the nearest cache.
    """
    tokens, layers, k = chosen.shape
    chained = len(domains) == 0 and len(fine) > layers
    experts = (len(fine) - layers) // max(layers - 1, 1)
    states, first_row = np.empty(_BLOCK, np.uint64), np.zeros(_BLOCK, np.int64)
    for start in range(0, tokens, _BLOCK):
        size = min(_BLOCK, tokens - start)
        for i in range(size):
            states[i] = _first_state(key, request[start + i], position[start + i])
            if len(domains) > 0:
                own = _unit(_mix(_mix(key + np.uint64(request[start + i]) * _WEYL) ^ _HABIT))
                first_row[i] = min(np.searchsorted(domains, own), len(domains) - 1) * layers
        for layer in range(layers):
            for i in range(size):
                token, state, row = start + i, states[i], first_row[i] + layer
                if chained and layer > 0:
                    state += _WEYL
                    pick = ((_mix(state) >> np.uint64(32)) * np.uint64(k)) >> np.uint64(32)
                    row = layers + (layer - 1) * experts + np.int64(chosen[token, layer - 1, np.int64(pick)])
                states[i] = _draw_set(state, fine[row], coarse[row], chosen[token, layer])


@njit(cache=True)
def _draw_states(
    key: np.uint64,
    request: Ints,
    position: Ints,
    tables: tuple[NDArray[np.uint32], Floats, Floats, NDArray[np.uint32], Ints, Singles, Singles],
    chosen: Experts,
) -> np.uint64:
    """Fill `chosen` [token, layer, k] by way of states; `tables` are those of `_StateTables`.

    What it returns means nothing, and only keeps the compiler from dropping the loads that fill the cache.

    Tokens go through the layers in blocks, as in `_draw`.
    """
    chain, reuse, sets, draws, slot, fine, coarse = tables
    tokens, layers, _ = chosen.shape
    states = np.int64(chain.shape[1])
    streams, at = np.empty((_BLOCK, 3), np.uint64), np.empty(_BLOCK, np.int64)
    fetched, stamp = np.uint64(0), 0
    seen = np.zeros(draws.shape[1], np.int64)
    for start in range(0, tokens, _BLOCK):
        size = min(_BLOCK, tokens - start)
        for i in range(size):
            _streams(key, request[start + i], position[start + i], reuse, streams[i])
        offset = np.uint64(0)
        for layer in range(layers):
            run_sets, habit_sets = sets[layer, 0], sets[layer, 1]
            for i in range(size):
                row = 0 if layer == 0 else 1 + (layer - 1) * states + at[i]
                at[i] = _next(chain[row], _mix(streams[i, 2] + offset))
            for i in range(size):  # without branches, so that the rows' cache lines are fetched side by side
                for entry in range(0, draws.shape[1], _LINE):
                    fetched += np.uint64(draws[layer * states + at[i], entry])
            for i in range(size):
                own_run = np.int64(_unit(_mix(streams[i, 0] + offset)) < run_sets)
                which = own_run + own_run * np.int64(_unit(_mix(streams[i, 1] + offset)) < habit_sets)
                state, row = (streams[i, which] ^ _SETS) + offset, layer * states + at[i]
                if slot[row] < 0:
                    stamp = _draw_distinct(state, draws[row], seen, stamp, chosen[start + i, layer])
                else:
                    _draw_set(state, fine[slot[row]], coarse[slot[row]], chosen[start + i, layer])
            offset += _LAYER_NUMBERS * _WEYL
    return fetched


@njit(cache=True)
def _streams(key: np.uint64, request: int, position: int, reuse: Floats, streams: NDArray[np.uint64]) -> None:
    """Fill `streams` [3] with the keys of the token, of its run, and of the path its run follows."""
    owner = _mix(key + np.uint64(request) * _WEYL)
    first = position
    if reuse[0] > 0.0:
        while first > 0 and position - first < _MAX_RUN:
            if _unit(_mix((owner ^ _RUN) + np.uint64(first) * _WEYL)) >= reuse[0]:
                break
            first -= 1
    run = _mix((owner ^ _SETS) + np.uint64(first) * _WEYL)
    streams[0] = _mix(owner + np.uint64(position) * _WEYL)
    streams[1] = run
    streams[2] = run
    choice = _unit(_mix(run + _WEYL))
    if choice < reuse[1]:
        left, habit = choice / reuse[1], 0
        while left < reuse[2] and habit < _MAX_HABITS:
            left /= reuse[2]
            habit += 1
        streams[2] = _mix((owner ^ _HABIT) + np.uint64(habit) * _WEYL)
    elif choice < reuse[1] + reuse[3]:
        streams[2] = _mix((owner ^ _PASSAGE) + np.uint64(first // np.int64(reuse[4])) * _WEYL)


@njit(cache=True)
def _unit(number: np.uint64) -> float:
    """A number in [0, 1)."""
    return np.float64(number >> np.uint64(11)) * _TO_UNIT


@njit(cache=True)
def _next(row: NDArray[np.uint32], number: np.uint64) -> np.uint64:
    """The index that a random number picks from a row of `_alias_tables`."""
    scaled = (number >> np.uint64(32)) * np.uint64(len(row))
    entry, index = np.uint64(row[scaled >> np.uint64(32)]), scaled >> np.uint64(32)
    low = (scaled & np.uint64(0xFFFFFFFF)) >> _ALIAS_BITS
    return index if low < (entry >> _ALIAS_BITS) else entry & np.uint64(0xFFF)


@njit(cache=True)
def _draw_distinct(state: np.uint64, row: NDArray[np.uint32], seen: Ints, stamp: int, chosen: Experts) -> int:
    """Fill `chosen` [k] with draws from an alias table, from the start again whenever an id comes twice.

    `seen` [expert] says in which try an id was drawn last; tries are numbered on from `stamp`, and the last number is
    returned.
    """
    k, rank = len(chosen), 0
    stamp += 1
    while rank < k:
        state += _WEYL
        expert = _next(row, _mix(state))
        if seen[expert] == stamp:
            stamp += 1
            rank = 0
        else:
            seen[expert] = stamp
            chosen[rank] = expert
            rank += 1
    return stamp


@njit(cache=True)
def _alias_tables(shares: Floats) -> NDArray[np.uint32]:
    """Walker's tables of rows of shares: [row, index], the upper 20 bits the threshold, the lower 12 the alias.

    Built with Vose's two stacks (IEEE Trans. Software Eng. 17 (1991) 972-975).
    """
    rows, n = shares.shape
    tables = np.empty((rows, n), np.uint32)
    whole = np.uint64(1 << 20) - np.uint64(1)
    stack, left = np.empty(n, np.int64), np.empty(n)
    for row in range(rows):
        small, large = 0, n
        for i in range(n):
            left[i] = shares[row, i] * n
            if left[i] < 1.0:
                stack[small] = i
                small += 1
            else:
                large -= 1
                stack[large] = i
        while small > 0 and large < n:
            small -= 1
            i, j = stack[small], stack[large]
            threshold = min(np.uint64(left[i] * 2.0**20 + 0.5), whole)
            tables[row, i] = (threshold << _ALIAS_BITS) | np.uint64(j)
            left[j] -= 1.0 - left[i]
            if left[j] < 1.0:
                large += 1
                stack[small] = j
                small += 1
        for index in range(small):
            i = stack[index]
            tables[row, i] = (whole << _ALIAS_BITS) | np.uint64(i)
        for index in range(large, n):
            i = stack[index]
            tables[row, i] = (whole << _ALIAS_BITS) | np.uint64(i)
    return tables


@njit(cache=True)
def _draw_set(state: np.uint64, fine: Floats | Singles, coarse: Floats | Singles, chosen: Experts) -> np.uint64:
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
        first = block * np.uint64(STRIDE)
        for j in range(STRIDE):
            first += np.uint64(fine[r, block * np.uint64(STRIDE) + np.uint64(j)] >= wanted)
        chosen[rank] = first - np.uint64(1)
    return state
