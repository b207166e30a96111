"""From the experts of a step's tokens to the load of every expert slot and the traffic between devices.

numba kernel; import it where it is used, not at start-up.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

_BLOCK = 128
"""Tokens that are counted layer by layer together, so that a layer's counters and their experts stay in the cache."""


@njit(cache=True)
def count_tokens(  # noqa: C901, PLR0913, PLR0917  # compiled code takes its arrays one by one
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
    tokens, layers, k = experts.shape
    ranks, nodes = slot_tokens.shape[1] // slots_per_rank, node_traffic.shape[2]
    rank_of_slot = np.arange(slot_tokens.shape[1]) // slots_per_rank
    replicated = slot_tokens.shape[1] > expert_tokens.shape[2]
    # Flags instead of branches, which no processor could predict.
    reached, node_reached = np.zeros(ranks, np.int64), np.zeros(nodes, np.int64)
    for start in range(0, tokens, _BLOCK):
        for layer in range(layers):
            counts, loads = expert_tokens[:, layer], slot_tokens[layer]
            first_turn, slot_of_turn = first[layer], order[layer]
            sent, sent_to_nodes = traffic[layer], node_traffic[layer]
            for token in range(start, min(start + _BLOCK, tokens)):
                kind, device = phase[token], source[token]
                for choice in range(k):
                    expert = experts[token, layer, choice]
                    counts[kind, expert] += 1
                    turn = first_turn[expert]
                    if replicated:
                        turn += (token * k + choice) % (first_turn[expert + 1] - turn)
                    slot = slot_of_turn[turn]
                    loads[slot] += 1
                    reached[rank_of_slot[slot]] = 1
                if nodes == 1:
                    sent_to_nodes[device, 0] += 1
                else:
                    for rank in range(ranks):
                        for node in range(rank_nodes[rank, 0], rank_nodes[rank, 1] + 1):
                            node_reached[node] |= reached[rank]
                    for node in range(nodes):
                        sent_to_nodes[device, node] += node_reached[node]
                        node_reached[node] = 0
                for rank in range(ranks):
                    sent[device, rank] += reached[rank]
                    reached[rank] = 0
