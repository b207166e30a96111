"""From the experts of a step's tokens to the load of every expert slot and the traffic between devices.

numba kernel; import it where it is used, not at start-up.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True)
def count_tokens(  # noqa: PLR0913, PLR0917  # compiled code takes its arrays one by one
    experts: NDArray[np.uint16],
    source: NDArray[np.int32],
    first: NDArray[np.int32],
    order: NDArray[np.int32],
    slots_per_rank: int,
    rank_nodes: NDArray[np.int32],
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
        source: int32[token], the device that holds the token; ignored if `traffic` is empty.
        first: int32[moe_layer, expert + 1], where each expert's slots stand in `order` (`Placement.replicas`).
        order: int32[moe_layer, slot], the slots sorted by expert.
        slots_per_rank: slots per expert-parallel rank.
        rank_nodes: int32[ep rank, 2], first and last node of each expert-parallel rank.
        slot_tokens: int64[moe_layer, slot], added to.
        traffic: int64[moe_layer, source device, ep rank], added to; or empty.
        node_traffic: int64[moe_layer, source device, node], added to; or empty.
    """
    tokens, layers, k = experts.shape
    ranks = slot_tokens.shape[1] // slots_per_rank
    counts_traffic = traffic.size > 0
    reached = np.full(ranks, -1, dtype=np.int64)
    nodes_reached = np.full(max(1, node_traffic.shape[2]), -1, dtype=np.int64)
    for token in range(tokens):
        for layer in range(layers):
            stamp = token * layers + layer
            for choice in range(k):
                expert = experts[token, layer, choice]
                begin, end = first[layer, expert], first[layer, expert + 1]
                turn = begin if end - begin == 1 else begin + (token * k + choice) % (end - begin)
                slot = order[layer, turn]
                slot_tokens[layer, slot] += 1
                if not counts_traffic:
                    continue
                rank = slot // slots_per_rank
                if reached[rank] == stamp:
                    continue
                reached[rank] = stamp
                traffic[layer, source[token], rank] += 1
                for node in range(rank_nodes[rank, 0], rank_nodes[rank, 1] + 1):
                    if nodes_reached[node] != stamp:
                        nodes_reached[node] = stamp
                        node_traffic[layer, source[token], node] += 1


@njit(cache=True)
def count_by_phase(experts: NDArray[np.uint16], phase: NDArray[np.int64], totals: NDArray[np.int64]) -> None:
    """Add each token's experts to `totals: int64[phase, moe_layer, expert]`."""
    tokens, layers, k = experts.shape
    for token in range(tokens):
        for layer in range(layers):
            for choice in range(k):
                totals[phase[token], layer, experts[token, layer, choice]] += 1
