"""The compiled price of collectives. Import it lazily: it pulls in numba."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Kinds and bounds as numba constants; test_interconnect checks them against COLLECTIVES and processor.BOUNDS.
ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL = range(4)
LATENCY, NETWORK = 2, 3

# Columns of the link table, one row per link: inside a node, between nodes.
(
    LAUNCH_S,
    HOP_S,
    EXCHANGE_LAUNCH_S,
    S_PER_BYTE,
    QUICK_S_PER_BYTE,
    BULK_S,
    PEER_SHARE,
    J_PER_BYTE,
    LINK_COLUMNS,
) = range(9)


class Columns(NamedTuple):
    """The columns of a collective table; see `CollectiveTable`."""

    kind: NDArray[np.int8]
    ranks: NDArray[np.int32]
    nodes: NDArray[np.int32]
    payload_bytes: Floats
    sent_bytes: Floats
    received_bytes: Floats
    sent_internode_bytes: Floats
    received_internode_bytes: Floats


@njit(cache=True)
def price_rows(
    columns: Columns,
    links: Floats,
    valid: Floats,
    time_s: Floats,
    energy_j: Floats,
    bound: NDArray[np.int8],
    extrapolated: NDArray[np.bool_],
) -> None:
    """Write time, energy, bound and extrapolation of every row into the last four, which come as zeros.

    Args:
        columns: what to price.
        links: float64[2, LINK_COLUMNS].
        valid: float64[4], least and greatest number of ranks, least and greatest bytes, among the measurements.
        time_s: float64[row].
        energy_j: float64[row].
        bound: int8[row].
        extrapolated: bool[row].
    """
    for row in range(columns.kind.size):
        kind, ranks, nodes = columns.kind[row], columns.ranks[row], columns.nodes[row]
        bound[row] = LATENCY
        if kind == ALL_TO_ALL:
            sent = (columns.sent_bytes[row], columns.sent_internode_bytes[row])
            inner_bytes = max(sent[0], columns.received_bytes[row])
            outer_bytes = max(sent[1], columns.received_internode_bytes[row])
            size_bytes = inner_bytes + outer_bytes
        else:
            sent = _ring_bytes(kind, ranks, nodes, columns.payload_bytes[row])
            inner_bytes, outer_bytes = sent
            size_bytes = columns.payload_bytes[row]
        if inner_bytes + outer_bytes <= 0.0:
            continue
        latency_s = _latency_s(kind, ranks, nodes, inner_bytes, outer_bytes, links)
        inner_s = _transfer_s(inner_bytes / _usable_share(ranks, nodes, links[0]), links[0])
        transfer_s = max(inner_s, _transfer_s(outer_bytes, links[1]))
        time_s[row] = latency_s + transfer_s
        energy_j[row] = sent[0] * links[0, J_PER_BYTE] + sent[1] * links[1, J_PER_BYTE]
        if transfer_s > latency_s:
            bound[row] = NETWORK
        measured = valid[0] <= ranks <= valid[1] and valid[2] <= size_bytes <= valid[3]
        extrapolated[row] = nodes > 1 or not measured


@njit(cache=True)
def _ring_bytes(kind: int, ranks: int, nodes: int, payload_bytes: float) -> tuple[float, float]:
    """Bytes that one member sends on the link inside its node and on its link to other nodes.

    A ring of p members passes (p-1)/p of the payload for all-gather and reduce-scatter and twice that for all-reduce
    (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009). Over N nodes of g members, members with the
    same place in their nodes form N-rings on 1/g of the payload each, as in hierarchical all-reduce.
    """
    passes = 2.0 if kind == ALL_REDUCE else 1.0
    local = max(1.0, ranks / nodes)
    inner = passes * (local - 1.0) / local * payload_bytes
    outer = passes * (nodes - 1.0) / nodes * payload_bytes / local
    return inner, outer


@njit(cache=True)
def _latency_s(kind: int, ranks: int, nodes: int, inner_bytes: float, outer_bytes: float, links: Floats) -> float:
    """Start-up: of each ring hop for the ring collectives, of the slower link in use for an all-to-all."""
    if kind == ALL_TO_ALL:
        inner_s = links[0, EXCHANGE_LAUNCH_S] if inner_bytes > 0.0 else 0.0
        return max(inner_s, links[1, EXCHANGE_LAUNCH_S] if outer_bytes > 0.0 else 0.0)
    passes = 2.0 if kind == ALL_REDUCE else 1.0
    inner_hops = max(1.0, ranks / nodes) - 1.0
    latency_s: float = links[0, LAUNCH_S] + passes * (inner_hops * links[0, HOP_S] + (nodes - 1.0) * links[1, HOP_S])
    return latency_s


@njit(cache=True)
def _usable_share(ranks: int, nodes: int, link: Floats) -> float:
    """Share of a device's bandwidth that leads to the other members in its node; all of it behind a switch."""
    peers = max(1.0, ranks / nodes - 1.0)
    usable_share: float = min(1.0, peers * link[PEER_SHARE])
    return usable_share


@njit(cache=True)
def _transfer_s(nbytes: float, link: Floats) -> float:
    """The better of two protocols: one with a low start-up and flags beside the data, one at full bandwidth."""
    transfer_s: float = min(nbytes * link[QUICK_S_PER_BYTE], link[BULK_S] + nbytes * link[S_PER_BYTE])
    return transfer_s
