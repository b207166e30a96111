"""The compiled price of collectives. Import it lazily: it pulls in numba."""

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
    J_PER_BYTE,
    LINK_COLUMNS,
) = range(8)


@njit(cache=True)  # type: ignore[untyped-decorator]
def price_rows(
    kind: NDArray[np.int8],
    ranks: NDArray[np.int32],
    nodes: NDArray[np.int32],
    payload_bytes: Floats,
    sent_bytes: Floats,
    received_bytes: Floats,
    sent_internode_bytes: Floats,
    received_internode_bytes: Floats,
    links: Floats,
    valid: Floats,
) -> tuple[Floats, Floats, NDArray[np.int8], NDArray[np.bool_]]:
    """Time, energy, bound and extrapolation of every row.

    Args:
        kind: and the other columns of a collective table.
        links: float64[2, LINK_COLUMNS].
        valid: float64[4]: least and greatest number of ranks, least and greatest payload in bytes, among the
            measurements.
    """
    rows = kind.size
    time_s = np.zeros(rows)
    energy_j = np.zeros(rows)
    bound = np.full(rows, LATENCY, np.int8)
    extrapolated = np.zeros(rows, np.bool_)
    for row in range(rows):
        inner, outer = 0.0, 0.0
        if kind[row] == ALL_TO_ALL:
            inner = max(sent_bytes[row], received_bytes[row])
            outer = max(sent_internode_bytes[row], received_internode_bytes[row])
            sent = (sent_bytes[row], sent_internode_bytes[row])
        elif ranks[row] > 1:
            sent = _ring_bytes(kind[row], ranks[row], nodes[row], payload_bytes[row])
            inner, outer = sent
        if inner + outer <= 0.0:
            continue
        latency_s, transfer_s = _times(kind[row], ranks[row], nodes[row], inner, outer, links)
        time_s[row] = latency_s + transfer_s
        energy_j[row] = sent[0] * links[0, J_PER_BYTE] + sent[1] * links[1, J_PER_BYTE]
        bound[row] = NETWORK if transfer_s > latency_s else LATENCY
        size = inner + outer if kind[row] == ALL_TO_ALL else payload_bytes[row]
        measured = valid[0] <= ranks[row] <= valid[1] and valid[2] <= size <= valid[3]
        extrapolated[row] = nodes[row] > 1 or not measured
    return time_s, energy_j, bound, extrapolated


@njit(cache=True)  # type: ignore[untyped-decorator]
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


@njit(cache=True)  # type: ignore[untyped-decorator]
def _times(kind: int, ranks: int, nodes: int, inner: float, outer: float, links: Floats) -> tuple[float, float]:
    """Latency and transfer time. Both links work at once, so the slower one counts."""
    if kind == ALL_TO_ALL:
        latency_s = max(
            links[0, EXCHANGE_LAUNCH_S] if inner > 0.0 else 0.0, links[1, EXCHANGE_LAUNCH_S] if outer > 0.0 else 0.0
        )
    else:
        passes = 2.0 if kind == ALL_REDUCE else 1.0
        local = max(1.0, ranks / nodes)
        hops_s = (local - 1.0) * links[0, HOP_S] + (nodes - 1.0) * links[1, HOP_S]
        latency_s = links[0, LAUNCH_S] + passes * hops_s
    return latency_s, max(_transfer_s(inner, links[0]), _transfer_s(outer, links[1]))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _transfer_s(nbytes: float, link: Floats) -> float:
    """The better of two protocols: one with a low start-up and flags beside the data, one at full bandwidth."""
    return min(nbytes * link[QUICK_S_PER_BYTE], link[BULK_S] + nbytes * link[S_PER_BYTE])
