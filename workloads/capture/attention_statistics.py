"""Statistics of attention weights: how few keys hold the mass, and where they are."""

from typing import Any

from moesim.workloads.attention_trace import SHARES

_ROUNDING = 1e-6
"""Sums of float32 weights are this exact."""


def attention_statistics(
    weights: Any, query_position: Any, key_position: Any, *, sink_keys: int, local_keys: int, off_mass: bool
) -> dict[str, Any]:
    """Statistics of every query and head, as tensors [request, head, query].

    Args:
        weights: float[request, head, query, key], attention after softmax, 0 where a key is not visible.
        query_position: int64[query] positions in the request.
        key_position: int64[key] positions in the request.
        sink_keys: first positions of a request.
        local_keys: last positions before the query, its own included.
        off_mass: whether rows sum to less than 1 because a learned sink takes the rest.

    Returns:
        `keys_90`, `keys_95`, `keys_99`: fewest keys that together hold that share of the mass on keys; `sink_mass`,
        `local_mass`: share of the mass on keys; `entropy`: nats, of the distribution over keys; `off_mass`: 1 less the
        mass on keys, 0 without learned sinks.
    """
    import torch

    weights = weights.float()
    mass = weights.sum(-1, keepdim=True)
    share = weights / mass
    ordered = share.sort(dim=-1, descending=True).values.cumsum(-1)
    statistics = {name: (ordered < part - _ROUNDING).sum(-1) + 1 for name, part in SHARES.items()}
    sink = (key_position < sink_keys).float()
    local = (key_position[None, :] > query_position[:, None] - local_keys).float()
    statistics["sink_mass"] = share @ sink
    statistics["local_mass"] = (share * local).sum(-1)
    statistics["entropy"] = torch.special.entr(share).sum(-1)
    lost = (1.0 - mass.squeeze(-1)).clamp(min=0)
    statistics["off_mass"] = lost if off_mass else torch.zeros_like(lost)
    return statistics
