"""What a captured trace says about its model in a few numbers: balance, specialisation, sparsity of attention."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.workloads.attention_trace import read_attention_trace
from moesim.workloads.routing_files import read_routing_trace
from moesim.workloads.routing_trace import RoutingTrace

Floats = NDArray[np.float64]


def summarize_capture(trace: Path, attention: Path | None = None) -> dict[str, Any]:
    """Statistics of the files of a capture, lists with a value per layer.

    Returns:
        `max_over_mean_load`: load of the busiest expert over the mean; `load_entropy`: entropy of the shares of load
        over log(experts), 1 when balanced; `token_hit_rate`, `popularity_hit_rate`: see `hit_rates`, None where there
        is but one request; `top_gate_share`: mean share of the largest gate weight in the sum of the token's; and of an
        attention trace `keys_95_share`: mean share of visible keys that hold 95 % of the attention, `sink_mass` and
        `local_mass`: means over tokens and heads.

    Raises:
        DataError: a file that is missing, cut off or broken.
    """
    routing = read_routing_trace(trace)
    token, gate = _column(trace, "token"), _column(trace, "gate").astype(np.float64)
    loads = routing.loads().astype(np.float64)
    shares = loads / loads.sum(axis=1, keepdims=True)
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    gate = gate.reshape(routing.expert.shape)
    by_token, by_popularity = hit_rates(routing, token)
    summary = {
        "max_over_mean_load": _rounded(shares.max(axis=1) * routing.experts),
        "load_entropy": _rounded(-(shares * logs).sum(axis=1) / np.log(routing.experts)),
        "token_hit_rate": _rounded(by_token),
        "popularity_hit_rate": _rounded(by_popularity),
        "top_gate_share": _rounded((gate[:, :, 0] / gate.sum(axis=2)).mean(axis=0)),
    }
    return summary if attention is None else summary | _attention(attention)


def hit_rates(trace: RoutingTrace, token: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """How well the experts of odd requests are foretold from what even requests did, float64[layer] each.

    The first foretells by the token's id: the `top_k` experts that the id used most often in even requests; ids that
    did not occur there are left out. The second by the layer's `top_k` most popular experts. Both are the share of
    selections that were foretold; chance is top_k / experts. The first is far above the second where experts follow the
    vocabulary (OLMoE, arXiv:2409.02060, section 5), which they do in an untrained model too.
    """
    known = trace.request % 2 == 0
    vocabulary = int(token.max()) + 1
    seen = np.zeros(vocabulary, bool)
    seen[token[known]] = True
    asked = ~known & seen[token]
    hits = np.full((2, trace.layers), np.nan)
    if not asked.any():
        return hits[0], hits[1]
    for layer in range(trace.layers):
        chosen = trace.expert[:, layer].astype(np.int64)
        pairs = (token[known, np.newaxis].astype(np.int64) * trace.experts + chosen[known]).reshape(-1)
        counts = np.bincount(pairs, minlength=vocabulary * trace.experts).reshape(vocabulary, trace.experts)
        for row, favourites in enumerate((_top(counts, trace.top_k), _top(counts.sum(axis=0), trace.top_k))):
            foretold = favourites[token[asked]] if row == 0 else favourites[np.newaxis]
            hits[row, layer] = np.take_along_axis(
                np.broadcast_to(foretold, (asked.sum(), trace.experts)), chosen[asked], 1
            ).mean()
    return hits[0], hits[1]


def _top(counts: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Marks the k largest of every row; of equal ones the first."""
    order = np.argsort(-counts, axis=-1, kind="stable")[..., :k]
    marked = np.zeros(counts.shape, bool)
    np.put_along_axis(marked, order, values=True, axis=-1)
    return marked


def _attention(path: Path) -> dict[str, Any]:
    trace = read_attention_trace(path)
    share = trace.keys["keys_95"] / trace.visible_keys()[:, :, np.newaxis]
    means = {name: trace.masses[name].astype(np.float64).mean(axis=(0, 2)) for name in ("sink_mass", "local_mass")}
    return {"keys_95_share": _rounded(share.mean(axis=(0, 2)))} | {name: _rounded(mean) for name, mean in means.items()}


def _column(path: Path, name: str) -> NDArray[Any]:
    import pyarrow as pa  # loads slowly
    import pyarrow.parquet as pq

    column = pq.read_table(path, columns=[name])[name].combine_chunks()
    values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    array: NDArray[Any] = values.to_numpy()
    return array


def _rounded(values: Floats) -> list[float | None]:
    """Four digits after the point; None where there is no value."""
    return [None if np.isnan(value) else round(float(value), 4) for value in values]
