"""All statistics of a routing trace, layer by layer.

What the numbers mean stands where they are computed: `load_statistics` (imbalance, entropy, mutual information,
distances), `trace_segments` (reuse, SRP, CLS), `trace_batches` (experts touched by a batch, places reached by a token),
`expert_caches` (LRU, LFU, Belady, SCH).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.workloads import load_statistics as loads
from moesim.workloads.expert_caches import BELADY, LFU, LRU, SEGMENT, CacheHits, cache_hits
from moesim.workloads.routing_trace import RoutingTrace
from moesim.workloads.trace_batches import (
    DOMAIN,
    MIXED,
    Places,
    batch_sizes,
    common_counts,
    contiguous_places,
    domain_rows,
    mixed_rows,
)
from moesim.workloads.trace_segments import Reuse, Segments, reuse, segments

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Rule = tuple[str, int]
"""A rule of `expert_caches` and its horizon in tokens, 0 where it has none."""
Progress = Callable[[int, int], None]

_HALVES = 2


@dataclass(frozen=True)
class TraceSettings:
    """What to compute.

    Args:
        windows: equal parts of the trace, in the order of the recording, for imbalance over time.
        lags: distances of tokens for reuse.
        segment_lengths: tokens of segments, for SRP, CLS and the experts that consecutive tokens touch.
        horizons: tokens ahead that SCH knows.
        largest_batch: batches have 1, 2, 4, ... up to so many tokens.
        batches: batches of each size that are drawn.
        places: placements; empty for contiguous ones on 2, 4, 8, ... devices.
        seed: of the batches and of the random halves.
        threads: layers that are worked on at the same time.

    Raises:
        InputError: a number below 1.
    """

    windows: int = 32
    lags: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    segment_lengths: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256)
    horizons: tuple[int, ...] = (4, 16, 64)
    largest_batch: int = 1024
    batches: int = 256
    places: tuple[Places, ...] = ()
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        single = {name: getattr(self, name) for name in ("windows", "largest_batch", "batches", "threads")}
        lists = {name: min(getattr(self, name), default=1) for name in ("lags", "segment_lengths", "horizons")}
        for name, value in (single | lists).items():
            if value < 1:
                raise InputError(name, "must be at least 1", value)


@dataclass(frozen=True, eq=False)
class TraceStatistics:
    """Counts of a trace; the methods of the parts make rates of them.

    Args:
        trace: what was counted.
        settings: how.
        load: int64[layer, expert] tokens that use each expert.
        window_load: int64[layer, window, expert] the same in equal parts of the trace.
        half_load: int64[layer, 2, expert] of the first and second half of the requests.
        random_half_load: int64[layer, 2, expert] of two random halves, which differ by chance only.
        groups: names of the groups.
        group_load: int64[layer, group, expert].
        coactivation: int64[layer, expert, expert] tokens that use both; the diagonal is the load.
        transitions: int64[layer - 1, a, b] tokens that use a in a layer and b in the next.
        reuse: by lag; arrays [layer, request].
        segments: by length; arrays [layer, expert, uses].
        caches: by rule and horizon; arrays [layer, expert].
        sizes: int64[size] tokens of the batches in `touched`.
        touched: float64[layer, size] distinct experts, mean over batches, by the kind of batch.
        reached: int64[layer, places + 1] tokens by the number of distinct places of their experts, by placement.
        places: the placements.
    """

    trace: RoutingTrace
    settings: TraceSettings
    load: Ints
    window_load: Ints
    half_load: Ints
    random_half_load: Ints
    groups: tuple[str, ...]
    group_load: Ints
    coactivation: Ints
    transitions: Ints
    reuse: dict[int, Reuse]
    segments: dict[int, Segments]
    caches: dict[Rule, CacheHits]
    sizes: Ints
    touched: dict[str, Floats]
    reached: dict[str, Ints]
    places: tuple[Places, ...]

    def expected_touched(self) -> Floats:
        """`load_statistics.expected_touched` of the trace: float64[layer, size]."""
        return loads.expected_touched(self.load, self.trace.tokens, self.sizes)

    def mean_reached(self, name: str) -> Floats:
        """Distinct places of a token's experts, mean over tokens: float64[layer]."""
        counts = self.reached[name]
        return np.asarray(counts @ np.arange(counts.shape[1]) / self.trace.tokens, np.float64)

    def group_distance(self) -> Floats:
        """Total variation distance of the loads of every two groups, mean over layers: float64[group, group]."""
        every_two = self.group_load[:, :, np.newaxis], self.group_load[:, np.newaxis]
        return np.asarray(loads.total_variation(*every_two).mean(axis=0), np.float64)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is the same for all layers."""

    trace: RoutingTrace
    settings: TraceSettings
    window: NDArray[np.int32]
    part: NDArray[np.int32]
    parts: int
    rules: tuple[Rule, ...]
    sizes: Ints
    rows: dict[str, Ints]
    places: tuple[Places, ...]


@dataclass(eq=False)
class _Layer:
    """Counts of one layer; names as in `TraceStatistics`, without the axis of layers."""

    window_load: Ints
    part_load: Ints
    coactivation: Ints
    transitions: Ints | None
    reuse: list[Reuse] = field(default_factory=list)
    segments: list[Segments] = field(default_factory=list)
    caches: list[CacheHits] = field(default_factory=list)
    touched: list[Floats] = field(default_factory=list)
    reached: list[Ints] = field(default_factory=list)


def trace_statistics(
    trace: RoutingTrace, settings: TraceSettings | None = None, on_progress: Progress | None = None
) -> TraceStatistics:
    """Compute all statistics of `trace`.

    Args:
        trace: what to look at.
        settings: what to compute; None for the defaults.
        on_progress: called with the layers done and all layers.

    Raises:
        InputError: a placement of other layers or experts.
    """
    plan = _plan(trace, settings or TraceSettings())
    layers: list[_Layer] = []
    with ThreadPoolExecutor(plan.settings.threads) as pool:
        for layer in pool.map(lambda index: _count_layer(plan, index), range(trace.layers)):
            layers.append(layer)
            if on_progress is not None:
                on_progress(len(layers), trace.layers)
    return _collect(plan, layers)


def _plan(trace: RoutingTrace, settings: TraceSettings) -> _Plan:
    rng = np.random.default_rng(settings.seed)
    windows = min(settings.windows, trace.tokens)
    sizes = batch_sizes(min(settings.largest_batch, trace.tokens))
    rows = {MIXED: mixed_rows(trace, settings.batches, int(sizes[-1]), rng)}
    if len(set(trace.groups)) > 1:
        rows[DOMAIN] = domain_rows(trace, settings.batches, int(sizes[-1]), rng)
    part, parts = _parts(trace, rng)
    places = settings.places or tuple(
        contiguous_places(trace.layers, trace.experts, count) for count in common_counts(trace.experts)
    )
    for one in places:
        if len(one.slots) != trace.layers:
            raise InputError(one.name, f"must place the experts of {trace.layers} MoE layers", len(one.slots))
    return _Plan(
        trace=trace,
        settings=settings,
        window=(np.arange(trace.tokens, dtype=np.int64) * windows // trace.tokens).astype(np.int32),
        part=part,
        parts=parts,
        rules=((LRU, 0), (LFU, 0), (BELADY, 0), *((SEGMENT, horizon) for horizon in settings.horizons)),
        sizes=sizes,
        rows=rows,
        places=places,
    )


def _parts(trace: RoutingTrace, rng: np.random.Generator) -> tuple[NDArray[np.int32], int]:
    """Number of each token's part: (group, first or second half, random half), the last counting fastest."""
    count = len(trace.names)
    names, group = np.unique(np.array(trace.groups), return_inverse=True)
    half = np.arange(count) * _HALVES // count
    dealt = rng.permutation(count) * _HALVES // count
    of_request = (group.ravel() * _HALVES + half) * _HALVES + dealt
    return of_request[trace.request].astype(np.int32), len(names) * _HALVES**2


def _count_layer(plan: _Plan, layer: int) -> _Layer:
    from moesim.workloads import trace_kernels as kernels  # numba loads slowly

    trace, experts, offset = plan.trace, plan.trace.experts, plan.trace.offset
    ids = np.ascontiguousarray(trace.expert[:, layer])
    following = np.ascontiguousarray(trace.expert[:, layer + 1]) if layer + 1 < trace.layers else None
    counted = _Layer(
        window_load=kernels.count_parts(ids, plan.window, int(plan.window[-1]) + 1, experts),
        part_load=kernels.count_parts(ids, plan.part, plan.parts, experts),
        coactivation=kernels.count_pairs(ids, ids, experts),
        transitions=None if following is None else kernels.count_pairs(ids, following, experts),
    )
    counted.reuse += [reuse(ids, offset, lag) for lag in plan.settings.lags]
    counted.segments += [segments(ids, offset, experts, length) for length in plan.settings.segment_lengths]
    counted.caches += [cache_hits(ids, offset, experts, rule, max(1, horizon)) for rule, horizon in plan.rules]
    counted.touched += [
        kernels.count_touched(ids, rows, plan.sizes, experts) / len(rows) for rows in plan.rows.values()
    ]
    for places in plan.places:
        first, order = places.replicas(layer, experts)
        counted.reached.append(kernels.count_reached(ids, first, order, places.place, places.count))
    return counted


def _collect(plan: _Plan, layers: Sequence[_Layer]) -> TraceStatistics:
    """Layers stacked, in the order of the plan."""
    trace, settings = plan.trace, plan.settings
    names = sorted(set(trace.groups))
    part_load = np.stack([layer.part_load for layer in layers])
    part_load = part_load.reshape(len(layers), len(names), _HALVES, _HALVES, trace.experts)
    hops = [layer.transitions for layer in layers if layer.transitions is not None]
    none = np.zeros((0, trace.experts, trace.experts), np.int64)
    return TraceStatistics(
        trace=trace,
        settings=settings,
        load=part_load.sum(axis=(1, 2, 3)),
        window_load=np.stack([layer.window_load for layer in layers]),
        half_load=part_load.sum(axis=(1, 3)),
        random_half_load=part_load.sum(axis=(1, 2)),
        groups=tuple(names),
        group_load=part_load.sum(axis=(2, 3)),
        coactivation=np.stack([layer.coactivation for layer in layers]),
        transitions=np.stack(hops) if hops else none,
        reuse={lag: _stacked_reuse(lag, [layer.reuse[i] for layer in layers]) for i, lag in enumerate(settings.lags)},
        segments={
            length: Segments(length, np.stack([layer.segments[i].seen for layer in layers]))
            for i, length in enumerate(settings.segment_lengths)
        },
        caches={rule: _stacked_hits([layer.caches[i] for layer in layers]) for i, rule in enumerate(plan.rules)},
        sizes=plan.sizes,
        touched={kind: np.stack([layer.touched[i] for layer in layers]) for i, kind in enumerate(plan.rows)},
        reached={one.name: np.stack([layer.reached[i] for layer in layers]) for i, one in enumerate(plan.places)},
        places=plan.places,
    )


def _stacked_reuse(lag: int, parts: Sequence[Reuse]) -> Reuse:
    return Reuse(lag, np.stack([part.shared for part in parts]), parts[0].pairs)


def _stacked_hits(parts: Sequence[CacheHits]) -> CacheHits:
    return CacheHits(np.stack([part.hits for part in parts]), np.stack([part.cold for part in parts]))
