"""From the experts of a step's tokens to the load of every expert slot and the traffic between devices.

numba kernel; import it where it is used, not at start-up.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

_BLOCK = 128
"""Tokens that are counted layer by layer together, so that a layer's counters and their experts stay in the cache."""


@njit(cache=True)
def count_tokens(  # noqa: PLR0913, PLR0917  # compiled code takes its arrays one by one
    experts: NDArray[np.uint16],
    phase: NDArray[np.int64],
    source: NDArray[np.int32],
    first: NDArray[np.int32],
    order: NDArray[np.int32],
    slots_per_rank: int,
    rank_nodes: NDArray[np.int32],
    expert_tokens: NDArray[np.int64],
    slot_tokens: NDArray[np.int64],
    traffic: NDArray[np.int64],
    node_traffic: NDArray[np.int64],
) -> None:
    """Deal each token to the slots of its experts and add up what devices send.

    Replicas take an expert's tokens in turn by the position of the choice in the step, as vLLM does. A token travels
    once to each expert-parallel rank, however many of its experts live there, and once to each other node, where it is
    handed on (duplicates are dropped before sending, as in DeepEP's normal kernels).

    Args:
        experts: uint16[token, moe_layer, k].
        phase: int64[token], index into `PHASES`.
        source: int32[token], the device that holds the token.
        first: int32[moe_layer, expert + 1], where each expert's slots stand in `order` (`Placement.replicas`).
        order: int32[moe_layer, slot], the slots sorted by expert.
        slots_per_rank: slots per expert-parallel rank.
        rank_nodes: int32[ep rank, 2], first and last node of each expert-parallel rank.
        expert_tokens: int64[phase, moe_layer, expert], added to.
        slot_tokens: int64[moe_layer, slot], added to.
        traffic: int64[moe_layer, source device, ep rank], added to.
        node_traffic: int64[moe_layer, source device, node], added to.
    """
    tokens, layers, _ = experts.shape
    rank_of_slot = np.arange(slot_tokens.shape[1]) // slots_per_rank
    replicated = slot_tokens.shape[1] > expert_tokens.shape[2]
    for start in range(0, tokens, _BLOCK):
        for layer in range(layers):
            _count_layer(
                experts[start : start + _BLOCK, layer],
                start,
                phase,
                source,
                first[layer],
                order[layer],
                replicated,
                rank_of_slot,
                rank_nodes,
                expert_tokens[:, layer],
                slot_tokens[layer],
                traffic[layer],
                node_traffic[layer],
            )


@njit(cache=True)
def _count_layer(  # noqa: PLR0913, PLR0917  # a call per token would take longer than all the rest
    experts: NDArray[np.uint16],
    start: int,
    phase: NDArray[np.int64],
    source: NDArray[np.int32],
    first: NDArray[np.int32],
    order: NDArray[np.int32],
    replicated: bool,  # noqa: FBT001
    rank_of_slot: NDArray[np.int64],
    rank_nodes: NDArray[np.int32],
    expert_tokens: NDArray[np.int64],
    slot_tokens: NDArray[np.int64],
    traffic: NDArray[np.int64],
    node_traffic: NDArray[np.int64],
) -> None:
    """Count the tokens from `start` on in one layer; the arrays are that layer's of `count_tokens`."""
    (tokens, k), ranks, nodes = experts.shape, traffic.shape[1], node_traffic.shape[1]
    # Flags instead of branches, which no processor could predict.
    reached, node_reached = np.zeros(ranks, np.int64), np.zeros(nodes, np.int64)
    for row in range(tokens):
        token = start + row
        kind, device = phase[token], source[token]
        for choice in range(k):
            expert = experts[row, choice]
            expert_tokens[kind, expert] += 1
            turn = first[expert]
            if replicated:
                turn += (token * k + choice) % (first[expert + 1] - turn)
            slot = order[turn]
            slot_tokens[slot] += 1
            reached[rank_of_slot[slot]] = 1
        if nodes == 1:
            node_traffic[device, 0] += 1
        else:
            for rank in range(ranks):
                for node in range(rank_nodes[rank, 0], rank_nodes[rank, 1] + 1):
                    node_reached[node] |= reached[rank]
            for node in range(nodes):
                node_traffic[device, node] += node_reached[node]
                node_reached[node] = 0
        for rank in range(ranks):
            traffic[device, rank] += reached[rank]
            reached[rank] = 0
