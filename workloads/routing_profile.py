"""Routing profiles: the statistics of a routing trace from which tokens can be drawn.

A profile has at least the popularity of every expert. What else a trace shows is in the optional fields: which experts
follow which, kinds of tokens, reuse between tokens of a request, and domains. `routing_fit.fit_profile` measures all of
them; `from_trace` those that can be counted in passing.

Popularity is the share of a layer's selections that go to each expert. A token selects top_k distinct experts, so an
expert's inclusion probability is top_k x popularity, and popularity is at most 1 / top_k.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError, InputError
from moesim.workloads.routing_states import Domains, Reuse, TokenStates
from moesim.workloads.routing_trace import RoutingTrace

Floats = NDArray[np.float64]

_SUM_TOLERANCE = 1e-6
"""How far the sum of a row of shares may be from 1: float32 rounding of some hundred shares."""
_AGREEMENT = 5e-3
"""How far the loads of states may be from the popularity, relative to the mean expert's."""


@dataclass(frozen=True, eq=False)
class RoutingProfile:
    """How often experts are used, and which experts follow which.

    Args:
        model: the model that was recorded, or a description of the distribution.
        source: where the numbers come from, and what was assumed on the way.
        top_k: experts per token and layer.
        popularity: float64[moe_layer, expert] share of the layer's selections; rows sum to 1.
        transitions: float64[moe_layer - 1, expert, expert] or None; row [l, a] is the share of layer l + 1's selections
            among tokens that used expert a in layer l; rows sum to 1.
        states: kinds of tokens, or None; where there are some, tokens are drawn from them.
        reuse: how tokens of a request resemble each other, or None if they are independent; needs `states`.
        domains: popularity by kind of request, or None.

    Raises:
        DataError: shapes that do not fit, or a row that is no distribution over distinct experts.
    """

    model: str
    source: str
    top_k: int
    popularity: Floats
    transitions: Floats | None = None
    states: TokenStates | None = None
    reuse: Reuse | None = None
    domains: Domains | None = None

    def __post_init__(self) -> None:
        if self.popularity.ndim != len(("moe_layer", "expert")) or self.popularity.size == 0:
            raise DataError(f"{self.source}: popularity", "must have axes [moe_layer, expert]", self.popularity.shape)
        if not 1 <= self.top_k <= self.experts:
            raise DataError(f"{self.source}: top_k", f"must be from 1 to {self.experts}, the experts", self.top_k)
        _check_rows(self, "popularity", self.popularity)
        _check_states(self)
        if self.domains is not None and self.domains.popularity.shape[1:] != self.popularity.shape:
            shape = self.domains.popularity.shape[1:]
            raise DataError(f"{self.source}: domains", f"must have shape {self.popularity.shape}", shape)
        if self.transitions is None:
            return
        expected = (self.layers - 1, self.experts, self.experts)
        if self.transitions.shape != expected:
            raise DataError(f"{self.source}: transitions", f"must have shape {expected}", self.transitions.shape)
        _check_rows(self, "transitions", self.transitions)

    @property
    def layers(self) -> int:
        """MoE layers."""
        return int(self.popularity.shape[0])

    @property
    def experts(self) -> int:
        """Routed experts per layer."""
        return int(self.popularity.shape[1])

    @classmethod
    def from_trace(cls, trace: RoutingTrace) -> Self:
        """Popularity and transitions of all tokens of `trace`; an expert without tokens hands on the popularity."""
        from moesim.workloads.trace_kernels import count_transitions  # numba loads slowly

        loads = trace.loads().astype(np.float64)
        counts = count_transitions(trace.expert, trace.experts)
        totals = counts.sum(axis=2, keepdims=True)
        popularity = loads / loads.sum(axis=1, keepdims=True)
        transitions = np.where(totals > 0, counts / np.maximum(totals, 1), popularity[1:, np.newaxis])
        source = f"{len(trace.names)} requests, {trace.tokens} tokens of {trace.source}"
        return cls(trace.model, source, trace.top_k, popularity, transitions)

    @classmethod
    def uniform(cls, layers: int, experts: int, top_k: int) -> Self:
        """Every expert equally often."""
        return cls("uniform", "uniform over experts", top_k, np.full((layers, experts), 1.0 / experts))

    @classmethod
    def zipf(cls, layers: int, experts: int, top_k: int, exponent: float, rng: np.random.Generator) -> Self:
        """Share of the expert of rank r ~ 1 / r^exponent, ranks given to experts at random in every layer.

        Experts whose share would exceed 1 / top_k get 1 / top_k, and the others share what is left.
        """
        ranked = limit_shares(np.arange(1, experts + 1, dtype=np.float64)[np.newaxis] ** -exponent, top_k)[0]
        popularity = np.stack([rng.permutation(ranked) for _ in range(layers)])
        return cls(f"zipf {exponent:g}", f"Zipf with exponent {exponent:g}, assumed", top_k, popularity)

    def adapt(self, layers: int, experts: int, top_k: int) -> "RoutingProfile":
        """This profile for a model with other dimensions, which is an assumption and says so in `source`.

        Layers are taken at equal distances. With another number of experts, a layer's sorted popularity is read as a
        curve over the relative rank, interpolated at the new ranks, and dealt to experts by a permutation that depends
        on the layer's number only. Shares above 1 / top_k are cut, and the others scaled up. States follow: one expert
        stands for those that share its part of the curve (`TokenStates.with_experts`). Reuse is kept as it is.
        Transitions between single experts are dropped, and with another number of experts so are domains.
        """
        if (layers, experts, top_k) == (self.layers, self.experts, self.top_k):
            return self
        taken = np.rint(np.linspace(0, self.layers - 1, layers)).astype(np.int64)
        popularity = self.popularity[taken]
        deals = np.tile(np.arange(experts), (layers, 1))
        if experts != self.experts:
            deals = np.stack([np.random.default_rng(layer).permutation(experts) for layer in range(layers)])
            popularity = np.stack([_stretched(row, experts)[deal] for row, deal in zip(popularity, deals, strict=True)])
        popularity, states = limit_shares(popularity, top_k), None
        if self.states is not None:
            states = self.states.take_layers(taken)
            if experts != self.experts:
                ranks = np.argsort(-self.popularity[taken], axis=1, kind="stable")
                states = states.with_experts(experts, ranks)
                dealt = np.take_along_axis(states.shares, deals[:, np.newaxis], axis=2)
                states = replace(states, shares=dealt)
        shape = f"{self.layers} MoE layers, top {self.top_k} of {self.experts}"
        source = f"{self.source}; assumed to hold for {layers} MoE layers, top {top_k} of {experts} (measured: {shape})"
        reuse = None if self.reuse is None or states is None else self.reuse.take_layers(taken)
        domains = None
        if self.domains is not None and experts == self.experts:
            domains = replace(self.domains, popularity=self.domains.popularity[:, taken])
        return _with_states(RoutingProfile(self.model, source, top_k, popularity, None, None, reuse, domains), states)

    def with_skew(self, exponent: float) -> "RoutingProfile":
        """This profile with every share of popularity raised to a power: 1 as it is, 0 uniform, more is sharper.

        States keep which experts each prefers to the average; transitions and domains are dropped.

        Args:
            exponent: >= 0.

        Raises:
            InputError: a negative exponent.
        """
        if not 0.0 <= exponent < np.inf:
            raise InputError("skew", "must be a finite number >= 0", exponent)
        if exponent == 1.0:
            return self
        source = f"{self.source}; popularity raised to the power {exponent:g}, assumed"
        return self._moved(self.popularity**exponent, source)

    def of_domain(self, name: str) -> "RoutingProfile":
        """This profile with the popularity of one of its domains; transitions and domains are dropped.

        Raises:
            InputError: the profile has no such domain.
        """
        names = () if self.domains is None else self.domains.names
        if self.domains is None or name not in names:
            raise InputError("domain", f"must be one of {', '.join(names) or 'none: the profile has no domains'}", name)
        source = f"{self.source}; domain {name}"
        return self._moved(self.domains.popularity[names.index(name)], source)

    def _moved(self, weights: Floats, source: str) -> "RoutingProfile":
        """This profile with loads in proportion to `weights` [layer, expert], as far as top_k allows."""
        popularity = limit_shares(weights, self.top_k)
        moved = RoutingProfile(self.model, source, self.top_k, popularity, None, None, self.reuse)
        return _with_states(moved, self.states)


def limit_shares(weights: Floats, top_k: int) -> Floats:
    """Rows of `weights` scaled to sum 1, entries above 1 / top_k cut to it and the rest scaled up to keep the sum.

    Args:
        weights: float64[row, expert], >= 0. Where fewer than top_k are positive, all others get an equal share.
        top_k: experts per token.
    """
    return np.stack([_limit_row(row, top_k) for row in weights])


def _limit_row(weight: Floats, top_k: int) -> Floats:
    """One row of `limit_shares`: go down the ranks and cut as long as the next one exceeds its part of the rest."""
    order = np.argsort(-weight, kind="stable")
    ranked = weight[order]
    rest = np.cumsum(ranked[::-1])[::-1]  # weight of this rank and all later ones
    cut = 0
    while cut < top_k and ranked[cut] * (top_k - cut) > rest[cut]:
        cut += 1
    shares = np.full(len(weight), 1.0 / top_k)
    if cut < len(weight):
        left = 1.0 - cut / top_k
        shares[order[cut:]] = ranked[cut:] / rest[cut] * left if rest[cut] > 0 else left / (len(weight) - cut)
    return shares


def _stretched(popularity: Floats, experts: int) -> Floats:
    """Popularity of `experts` experts, descending, whose curve has the shape of the sorted one of `popularity`."""
    known = (np.arange(len(popularity)) + 0.5) / len(popularity)
    wanted = (np.arange(experts) + 0.5) / experts
    curve = np.interp(wanted, known, np.sort(popularity)[::-1])
    return np.asarray(curve / curve.sum())


def _with_states(profile: RoutingProfile, states: TokenStates | None) -> RoutingProfile:
    """`profile` with `states` scaled to its popularity, and the popularity that they reach."""
    if states is None:
        return profile
    states = states.with_popularity(profile.popularity, profile.top_k)
    return replace(profile, popularity=states.popularity(), states=states)


def _check_states(profile: RoutingProfile) -> None:
    """States and reuse must be of the same layers and experts, and states must have the popularity as loads."""
    if profile.states is not None:
        layers, _, experts = profile.states.shares.shape
        if (layers, experts) != profile.popularity.shape:
            rule = f"must have {profile.layers} layers and {profile.experts} experts"
            raise DataError(f"{profile.source}: states", rule, (layers, experts))
        limit = (1.0 + _SUM_TOLERANCE) / profile.top_k
        if profile.states.shares.max() > limit:
            rule = f"shares must be at most 1 / top_k = {1 / profile.top_k:g}"
            raise DataError(f"{profile.source}: states", rule, float(profile.states.shares.max()))
        error = float(abs(profile.states.popularity() - profile.popularity).max() * profile.experts)
        if error > _AGREEMENT:
            raise DataError(f"{profile.source}: states", "must have the popularity as their loads, differ by", error)
    if profile.reuse is not None and profile.reuse.run_sets.shape != (profile.layers,):
        rule = f"must have a number for each of {profile.layers} MoE layers"
        raise DataError(f"{profile.source}: reuse", rule, profile.reuse.run_sets.shape)


def _check_rows(profile: RoutingProfile, name: str, rows: Floats) -> None:
    """Each row must be a distribution of which no share exceeds 1 / top_k."""
    limit = 1.0 / profile.top_k
    sums = rows.sum(axis=-1)
    rules = (
        ("shares must be finite and >= 0", rows, ~(np.isfinite(rows) & (rows >= 0))),
        (f"shares must be at most 1 / top_k = {limit:g}", rows, rows > limit * (1.0 + _SUM_TOLERANCE)),
        ("shares must sum to 1", sums, abs(sums - 1.0) > _SUM_TOLERANCE),
    )
    for rule, values, broken in rules:
        bad = np.argwhere(broken)
        if bad.size:
            where = [int(index) for index in bad[0]]
            raise DataError(f"{profile.source}: {name}{where}", rule, float(values[tuple(where)]))


def check_dimensions(place: str, found: tuple[int, int, int], wanted: tuple[int, int, int]) -> None:
    """Refuse routing of another model.

    Args:
        place: what errors name.
        found: MoE layers, experts, top_k of the routing.
        wanted: the same of the model.

    Raises:
        InputError: they differ.
    """
    if found != wanted:
        shown = [f"{layers} MoE layers, top {top_k} of {experts} experts" for layers, experts, top_k in (found, wanted)]
        raise InputError(place, f"is routing of another model: it has {shown[0]}, the model has {shown[1]}")
