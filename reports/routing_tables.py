"""Statistics of a routing trace as tables with a row per layer, batch size, cache size, ...; and one flat summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.workloads import load_statistics as loads
from moesim.workloads.expert_caches import BELADY, LFU, LRU, SEGMENT, cache_sizes
from moesim.workloads.trace_segments import independent_routing
from moesim.workloads.trace_statistics import Rule, TraceStatistics

Table = Mapping[str, Sequence[Any] | NDArray[Any]]
"""Columns by name, equally long."""

CACHE_FACTOR = 2
"""The summary has the cache of twice the experts of a token, which "most models" need (arXiv 2505.16056)."""


def rule_name(rule: Rule) -> str:
    """`lru`, `lfu`, `belady`, or `sch_16` for the rule that knows the next 16 tokens."""
    name, horizon = rule
    return f"sch_{horizon}" if name == SEGMENT else name


def rule_label(rule: Rule) -> str:
    """The same for people: LRU, LFU, Belady, SCH 16."""
    name, horizon = rule
    return {LRU: "LRU", LFU: "LFU", BELADY: "Belady"}.get(name, f"SCH {horizon}")


def tables(found: TraceStatistics) -> dict[str, Table]:
    """All tables by name; what the columns mean is in `docs/routing.md`."""
    made = {
        "layers": layer_table(found),
        "load": _load_table(found),
        "windows": _window_table(found),
        "reuse": _reuse_table(found),
        "segments": _segment_table(found),
        "caches": _cache_table(found),
        "batches": _batch_table(found),
        "places": _place_table(found),
        "domains": _domain_table(found),
    }
    return made if found.trace.weight is None else made | {"gates": _gate_table(found)}


def layer_table(found: TraceStatistics) -> Table:
    """A row per MoE layer."""
    trace, settings = found.trace, found.settings
    windows = loads.max_over_mean(found.window_load)
    size = min(trace.experts, CACHE_FACTOR * trace.top_k) - 1
    halves, random_halves = found.half_load, found.random_half_load
    columns: dict[str, Sequence[Any] | NDArray[Any]] = {
        "layer": np.arange(trace.layers),
        "max_over_mean": loads.max_over_mean(found.load),
        "window_max_over_mean": np.nanmean(windows, axis=1),
        "window_max_over_mean_max": np.nanmax(windows, axis=1),
        "coefficient_of_variation": loads.variation(found.load),
        "entropy_bits": loads.entropy_bits(found.load),
        "unused_experts": (found.load == 0).sum(axis=1),
        "independent_overlap": loads.independent_overlap(found.load, trace.tokens, trace.top_k),
    }
    for lag in settings.lags[:1]:
        columns[f"overlap_lag_{lag}_by_token"] = found.reuse[lag].by_token()
        columns[f"overlap_lag_{lag}_by_request"] = found.reuse[lag].by_request()
    for length, part in found.segments.items():
        columns[f"srp_{length}"], columns[f"cls_{length}"] = part.best_routing()[0], part.chunk_sparsity()
    for rule, hits in found.caches.items():
        columns[f"{rule_name(rule)}_hit_rate_of_{size + 1}"] = hits.rate()[:, size]
    information = loads.mutual_information_bits(found.transitions)
    columns["mutual_information_with_next_bits"] = np.append(information, np.nan)
    columns["halves_total_variation"] = loads.total_variation(halves[:, 0], halves[:, 1])
    columns["random_halves_total_variation"] = loads.total_variation(random_halves[:, 0], random_halves[:, 1])
    columns["halves_jensen_shannon_bits"] = loads.jensen_shannon_bits(halves[:, 0], halves[:, 1])
    return columns


def summary(found: TraceStatistics) -> dict[str, Any]:
    """The trace in one flat object: means over layers, with units in the keys; None where nothing is defined."""
    trace, layers = found.trace, layer_table(found)
    about = {
        "model": trace.model,
        "source": trace.source,
        "licence": trace.licence,
        "requests": len(trace.names),
        "groups": len(found.groups),
        "tokens": trace.tokens,
        "decode_tokens": int(trace.phase.sum(dtype=np.int64)),
        "moe_layers": trace.layers,
        "experts": trace.experts,
        "top_k": trace.top_k,
        "balanced_entropy_bits": float(np.log2(trace.experts)),
        "token_level_sparsity": 1 - trace.top_k / trace.experts,
        "worst_max_over_mean": float(np.max(layers["max_over_mean"])),
    }
    means = {f"{name}_mean": _mean(column) for name, column in layers.items()}
    del means["layer_mean"]
    pooled = {f"srp_{length}_of_all_layers": _number(part.pooled()[0]) for length, part in found.segments.items()}
    places = {
        f"reached_of_{one.name.replace(' ', '_')}_mean": _mean(found.mean_reached(one.name)) for one in found.places
    }
    return about | means | pooled | places


def _mean(column: Sequence[Any] | NDArray[Any]) -> float | None:
    values = np.asarray(column, np.float64)
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _load_table(found: TraceStatistics) -> Table:
    layers, experts = found.load.shape
    return {
        "layer": np.repeat(np.arange(layers), experts),
        "expert": np.tile(np.arange(experts), layers),
        "tokens": found.load.ravel(),
        "over_mean": (loads.shares(found.load) * experts).ravel(),
    }


def _window_table(found: TraceStatistics) -> Table:
    layers, windows, _ = found.window_load.shape
    return {
        "layer": np.repeat(np.arange(layers), windows),
        "window": np.tile(np.arange(windows), layers),
        "tokens": found.window_load.sum(axis=2).ravel() // found.trace.top_k,
        "max_over_mean": loads.max_over_mean(found.window_load).ravel(),
        "coefficient_of_variation": loads.variation(found.window_load).ravel(),
    }


def _reuse_table(found: TraceStatistics) -> Table:
    parts = found.reuse.values()
    return {
        "lag_tokens": [part.lag for part in parts],
        "pairs": [int(part.pairs.sum()) for part in parts],
        "overlap_by_token": [_mean(part.by_token()) for part in parts],
        "overlap_by_request": [_mean(part.by_request()) for part in parts],
        "independent_overlap": [_mean(layer_table(found)["independent_overlap"])] * len(found.reuse),
    }


def _segment_table(found: TraceStatistics) -> Table:
    trace, parts = found.trace, found.segments.values()
    floors = [independent_routing(trace.experts, trace.top_k, part.length) for part in parts]
    return {
        "length_tokens": [part.length for part in parts],
        "segments": [part.count for part in parts],
        "srp_mean_of_layers": [_mean(part.best_routing()[0]) for part in parts],
        "srp_of_all_layers": [_number(part.pooled()[0]) for part in parts],
        "srp_threshold_of_all_layers": [part.pooled()[1] for part in parts],
        "srp_expert_ratio_of_all_layers": [_number(part.pooled()[2]) for part in parts],
        "srp_independent_uniform": [floor[0] for floor in floors],
        "cls": [_mean(part.chunk_sparsity()) for part in parts],
        "cls_independent_uniform": [floor[1] for floor in floors],
        "touched_experts": [_mean(part.touched()) for part in parts],
    }


def _cache_table(found: TraceStatistics) -> Table:
    sizes = cache_sizes(found.trace.experts, found.trace.top_k)
    rows = [(rule_name(rule), size, hits) for rule, hits in found.caches.items() for size in sizes.tolist()]
    return {
        "rule": [name for name, _, _ in rows],
        "cache_experts": [size for _, size, _ in rows],
        "rho": [size / found.trace.top_k for _, size, _ in rows],
        "hit_rate": [float(hits.rate()[:, size - 1].mean()) for _, size, hits in rows],
        "hit_rate_with_cold_hits": [float(hits.rate(cold_hits=True)[:, size - 1].mean()) for _, size, hits in rows],
    }


def _batch_table(found: TraceStatistics) -> Table:
    kinds = {
        **{f"measured_{kind}": touched for kind, touched in found.touched.items()},
        "independent": found.expected_touched(),
        "independent_uniform": loads.expected_touched(uniform_load(found), found.trace.tokens, found.sizes)[np.newaxis],
    }
    rows = [(kind, size, means[:, index]) for kind, means in kinds.items() for index, size in enumerate(found.sizes)]
    rows += [("measured_consecutive", length, part.touched()) for length, part in found.segments.items() if part.count]
    return {
        "batch": [kind for kind, _, _ in rows],
        "tokens": [int(size) for _, size, _ in rows],
        "touched_experts": [float(means.mean()) for _, _, means in rows],
    }


def uniform_load(found: TraceStatistics) -> NDArray[np.float64]:
    """Load of each expert, if all were used equally often: float64[expert]."""
    trace = found.trace
    return np.full(trace.experts, trace.tokens * trace.top_k / trace.experts)


def _place_table(found: TraceStatistics) -> Table:
    trace = found.trace
    return {
        "places": [one.name for one in found.places],
        "count": [one.count for one in found.places],
        "reached_mean": [float(found.mean_reached(one.name).mean()) for one in found.places],
        "reached_independent_uniform": [
            loads.expected_reached(trace.experts, trace.top_k, one.count) for one in found.places
        ],
        "one_place_share": [float((found.reached[one.name][:, 1] / trace.tokens).mean()) for one in found.places],
    }


def _domain_table(found: TraceStatistics) -> Table:
    distance, names = found.group_distance(), found.groups
    pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
    return {
        "domain": [names[a] for a, _ in pairs],
        "other": [names[b] for _, b in pairs],
        "total_variation": [float(distance[a, b]) for a, b in pairs],
    }


def _gate_table(found: TraceStatistics) -> Table:
    assert found.trace.weight is not None
    gates = loads.mean_gates(found.trace.weight)
    layers, ranks = gates.shape
    return {
        "layer": np.repeat(np.arange(layers), ranks),
        "rank": np.tile(np.arange(ranks), layers),
        "mean_share": gates.ravel(),
    }
