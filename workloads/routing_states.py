"""What a routing profile knows beyond popularity: kinds of tokens, how long a request stays with them, and its domain.

Kinds of tokens (`TokenStates`)
    A hidden Markov model over the depth of the model: in every MoE layer a token is in one of some states, a state has
    its own shares of experts, and the next layer's state follows from this one's. States carry which experts are used
    together within a layer and which follow in the next (Rabiner, Proc. IEEE 77 (1989) 257-286, with layers for time).

Reuse (`Reuse`)
    Whose random numbers a token uses. Tokens that use the same ones take the same path through the states, whatever
    each one's distribution: reuse is added without changing a single token's statistics.

Domains (`Domains`)
    Popularity by kind of request, such as the data set or the subject.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError

Floats = NDArray[np.float64]

MAX_STATES = 256
"""Ids of states are packed into 8 bits where tokens are drawn."""

_SUM_TOLERANCE = 1e-6
_ROUNDS = 400
_CLOSE = 1e-4
"""Where the fit of shares to a popularity stops: error of a load, relative to the mean expert's."""


@dataclass(frozen=True, eq=False)
class TokenStates:
    """Hidden states of tokens.

    Args:
        initial: float64[state] shares of the states in the first MoE layer.
        transitions: float64[moe_layer - 1, state, state] shares of the next layer's states; rows sum to 1.
        shares: float64[moe_layer, state, expert] share of the selections of tokens in this state; rows sum to 1.

    Raises:
        DataError: shapes that do not fit, or rows that are no distributions.
    """

    initial: Floats
    transitions: Floats
    shares: Floats

    def __post_init__(self) -> None:
        if self.shares.ndim != len(("layer", "state", "expert")) or self.shares.size == 0:
            raise DataError("states: shares", "must have axes [moe_layer, state, expert]", self.shares.shape)
        layers, states, _ = self.shares.shape
        if states > MAX_STATES:
            raise DataError("states", f"must be at most {MAX_STATES}", states)
        for name, array, shape in (
            ("initial", self.initial, (states,)),
            ("transitions", self.transitions, (layers - 1, states, states)),
        ):
            if array.shape != shape:
                raise DataError(f"states: {name}", f"must have shape {shape}", array.shape)
        for name, array in (("initial", self.initial), ("transitions", self.transitions), ("shares", self.shares)):
            if not (np.isfinite(array).all() and (array >= 0).all()):
                raise DataError(f"states: {name}", "must be finite and >= 0")
            if abs(array.sum(axis=-1) - 1.0).max(initial=0.0) > _SUM_TOLERANCE:
                raise DataError(f"states: {name}", "rows must sum to 1")

    @property
    def states(self) -> int:
        """States per layer."""
        return int(self.shares.shape[1])

    def occupancy(self) -> Floats:
        """float64[moe_layer, state]: share of tokens in each state."""
        rows = [self.initial]
        for step in self.transitions:
            rows.append(rows[-1] @ step)
        return np.stack(rows)

    def popularity(self) -> Floats:
        """float64[moe_layer, expert] share of the layer's selections."""
        return np.asarray(np.einsum("ls,lse->le", self.occupancy(), self.shares))

    def self_overlap(self, top_k: int) -> Floats:
        """float64[moe_layer]: share of experts that two independent tokens in the same state have in common."""
        return np.asarray(np.einsum("ls,lse->l", self.occupancy(), self.shares**2) * top_k)

    def take_layers(self, taken: NDArray[np.int64]) -> Self:
        """States of layers `taken` (ascending, repetitions allowed) of this model.

        Over skipped layers transitions are multiplied. A layer that is taken twice is followed by itself as if by way
        of its neighbour: forth and back, which keeps the share of every state.
        """
        if np.array_equal(taken, np.arange(len(self.shares))):
            return self
        occupancy = self.occupancy()
        steps = [self._between(a, b, occupancy) for a, b in pairwise(taken.tolist())]
        states = self.states
        joined = np.stack(steps) if steps else np.zeros((0, states, states))
        return replace(self, initial=occupancy[taken[0]], transitions=joined, shares=self.shares[taken])

    def _between(self, a: int, b: int, occupancy: Floats) -> Floats:
        """float64[state, state]: where tokens in each state of layer `a` are in layer `b`."""
        if b > a:
            step = np.eye(self.states)
            for layer in range(a, b):
                step = step @ self.transitions[layer]
            return np.asarray(step)
        if len(self.transitions) == 0:
            return np.tile(self.initial, (self.states, 1))
        a = min(a, len(self.transitions) - 1)
        forth = self.transitions[a]
        joint = occupancy[a][:, np.newaxis] * forth
        back = _rows(joint.T, occupancy[a])
        return np.asarray(forth @ back if a == b else back @ forth)

    def with_popularity(self, popularity: Floats, top_k: int, rounds: int = _ROUNDS) -> Self:
        """These states with shares scaled per layer and expert until their mean is `popularity`.

        Iterative proportional fitting; shares above 1 / top_k are cut. What cannot be reached (an expert wanted in
        more tokens than there are tokens in states that may use it) is approached.

        Args:
            popularity: float64[moe_layer, expert], rows sum to 1, no share above 1 / top_k.
            top_k: experts per token.
            rounds: at most.
        """
        occupancy = self.occupancy()
        shares = _limited(np.maximum(self.shares, 1e-9), top_k)
        for _ in range(rounds):
            present = np.einsum("ls,lse->le", occupancy, shares)
            if abs(present - popularity).max() * popularity.shape[1] < _CLOSE:
                break
            factor = np.divide(popularity, present, out=np.ones_like(present), where=present > 0)
            shares = _limited(shares * factor[:, np.newaxis], top_k)
        return replace(self, shares=shares)

    def with_experts(self, experts: int, order: NDArray[np.int64]) -> Self:
        """These states for another number of experts, in descending order of popularity.

        Experts of the recording, sorted by popularity, share out a line; an expert of the other model stands for what
        is on its part of that line. With more experts, one of the recording is cut into several that its states like
        equally; with fewer, several are joined.

        Args:
            experts: of the other model.
            order: int64[moe_layer, expert] ids by descending popularity.
        """
        known = self.shares.shape[2]
        edges, wanted = np.linspace(0.0, 1.0, known + 1), np.linspace(0.0, 1.0, experts + 1)
        low = np.maximum(edges[:-1, np.newaxis], wanted[:-1])
        high = np.minimum(edges[1:, np.newaxis], wanted[1:])
        part = np.maximum(high - low, 0.0) * known  # [known, experts]: rows sum to 1
        ranked = np.take_along_axis(self.shares, order[:, np.newaxis], axis=2)
        return replace(self, shares=_rows(ranked @ part, np.full(experts, 1.0 / experts)))


@dataclass(frozen=True, eq=False)
class Reuse:
    """How long tokens of a request stay with the same random numbers.

    A request falls into runs; a token continues the run of the token before it with probability `run_continues`. With
    probability `request_share` a run follows one of the request's habits: paths through the states that the request
    comes back to, the m-th with probability (1 - habit_decay) habit_decay^m. With `passage_share` it follows the path
    of its passage, a block of `passage_tokens` positions; else one of its own. All tokens of a run take the run's path.
    In layer l a token uses the very experts of its run with probability `run_sets[l]`, and a run those of the path it
    follows with probability `habit_sets[l]`; else experts are drawn anew for the states of the path.

    Raises:
        DataError: a number that is no probability.
    """

    run_continues: float
    request_share: float
    habit_decay: float
    passage_share: float
    passage_tokens: int
    run_sets: Floats
    habit_sets: Floats

    def __post_init__(self) -> None:
        for name in ("run_continues", "request_share", "habit_decay", "passage_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise DataError(f"reuse: {name}", "must be from 0 to 1", getattr(self, name))
        if self.request_share + self.passage_share > 1.0 + _SUM_TOLERANCE:
            raise DataError("reuse: request_share + passage_share", "must be at most 1")
        if self.passage_tokens < 1:
            raise DataError("reuse: passage_tokens", "must be at least 1", self.passage_tokens)
        for name in ("run_sets", "habit_sets"):
            array = getattr(self, name)
            if array.shape != self.run_sets.shape or not ((array >= 0) & (array <= 1)).all():
                raise DataError(f"reuse: {name}", "must be a number from 0 to 1 for every MoE layer")

    @property
    def habit_agreement(self) -> float:
        """Probability that two runs of a request follow the same habit."""
        same = (1.0 - self.habit_decay) / (1.0 + self.habit_decay)
        return self.request_share**2 * same

    def overlap(self, lags: NDArray[np.int64], base: Floats, same_state: Floats) -> Floats:
        """float64[lag, moe_layer]: expected share of experts in common between tokens of a request, `lags` apart.

        Args:
            lags: int64[lag].
            base: float64[moe_layer] the same of independent tokens.
            same_state: float64[moe_layer] the same of independent tokens in the same state.
        """
        run = same_state + (1.0 - same_state) * self.run_sets**2
        habit = same_state + (1.0 - same_state) * (self.run_sets * self.habit_sets) ** 2
        in_run = self.run_continues ** lags[:, np.newaxis]
        passage = self.passage_share**2 * np.maximum(1.0 - lags / self.passage_tokens, 0.0)[:, np.newaxis]
        return base + in_run * (run - base) + (1.0 - in_run) * (self.habit_agreement + passage) * (habit - base)

    def take_layers(self, taken: NDArray[np.int64]) -> Self:
        """The reuse of layers `taken`."""
        return replace(self, run_sets=self.run_sets[taken], habit_sets=self.habit_sets[taken])


@dataclass(frozen=True, eq=False)
class Domains:
    """Popularity by domain, which is a kind of request.

    Args:
        names: of the domains.
        weight: float64[domain] share of tokens; sums to 1.
        popularity: float64[domain, moe_layer, expert] share of the layer's selections.

    Raises:
        DataError: shapes that do not fit, or rows that are no distributions.
    """

    names: tuple[str, ...]
    weight: Floats
    popularity: Floats

    def __post_init__(self) -> None:
        count = len(self.names)
        if self.weight.shape != (count,) or len(self.popularity) != count or self.popularity.ndim != len("dle"):
            shapes = (count, self.weight.shape, self.popularity.shape)
            raise DataError("domains", "must have a weight and a popularity [moe_layer, expert] each", shapes)
        for name, array in (("weight", self.weight), ("popularity", self.popularity)):
            if not ((array >= 0).all() and (abs(array.sum(axis=-1) - 1.0) <= _SUM_TOLERANCE).all()):
                raise DataError(f"domains: {name}", "shares must be >= 0 and sum to 1")


def _rows(weights: Floats, empty: Floats) -> Floats:
    """`weights` with rows scaled to sum 1; rows without weight become `empty`."""
    sums = weights.sum(axis=-1, keepdims=True)
    return np.where(sums > 0, weights / np.where(sums > 0, sums, 1.0), empty)


def _limited(shares: Floats, top_k: int) -> Floats:
    """Rows scaled to sum 1 with no entry above 1 / top_k; like `limit_shares`, but on all rows at once."""
    limit = 1.0 / top_k
    shares = shares / shares.sum(axis=-1, keepdims=True)
    fixed = np.zeros(shares.shape, bool)
    for _ in range(top_k):
        over = shares > limit * (1.0 + 1e-12)
        if not over.any():
            break
        fixed |= over
        free = np.where(fixed, 0.0, shares)
        left = 1.0 - limit * fixed.sum(axis=-1, keepdims=True)
        total = free.sum(axis=-1, keepdims=True)
        shares = np.where(fixed, limit, free * np.divide(left, total, out=np.zeros_like(total), where=total > 0))
    return shares
