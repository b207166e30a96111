"""The compiled price of collectives. Import it lazily: it pulls in numba.

Every kernel is a start-up and a transfer, `launch + steps * hop + bytes / rate`; where there is a choice between
kernels (protocols, algorithms), the fastest one runs, as the libraries choose by size too.
"""

from collections import namedtuple
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moesim.hw_models.collective_table import CollectiveTable

Floats = NDArray[np.float64]

# Kinds and bounds as numba constants; test_interconnect checks them against COLLECTIVES and processor.BOUNDS.
ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, CUSTOM_ALL_REDUCE, FIRST_DEEPEP = range(6)
LATENCY, NETWORK = 2, 3
INTRA, INTER = 0, 1
"""Links: inside a node, between nodes."""
LAUNCH_S, HOP_S, S_PER_BYTE, PROTOCOL_COLUMNS = range(4)
LL, LL128, SIMPLE, PROTOCOLS = range(4)
LOW_LATENCY_MODE = 1
"""Second of DeepEP's kinds of kernels."""
RING, EXCHANGE = 0, 1
"""Rows of `Links.usable`."""
MAX_MEMBERS = 64
"""Groups of more share the link as groups of so many do."""
SWITCH_ELEMENT_BYTES = 2.0
"""Narrower elements cannot be added up in the switch."""
(
    START_S,
    EXPERT_S,
    FILL_S_PER_BYTE,
    LINK_S_PER_BYTE,
    COPY_S,
    COPY_S_PER_BYTE,
    TOKEN_S,
    TOKEN_S_PER_BYTE,
    MULTIPROCESSORS,
    EXPERT_KERNEL_COLUMNS,
) = range(10)


_NAMES: Any = tuple(field.name for field in fields(CollectiveTable))
# The columns are those of the table, which is why they are not written out again.
_Columns = namedtuple("_Columns", _NAMES)  # type: ignore[misc]  # noqa: PYI024


def columns_of(table: CollectiveTable) -> Any:
    """`table` as compiled code takes it, under the same names."""
    return _Columns(*(getattr(table, name) for name in _NAMES))


class Links(NamedTuple):
    """Parameters of both links; an absent kernel has an infinite launch."""

    ring: Floats  # [link, protocol, column]
    exchange: Floats  # [link, protocol, column]
    usable: Floats  # [RING or EXCHANGE, link, members in a node], share of the rate
    own_block: Floats  # [link]
    in_switch: Floats  # [column], HOP_S holds the least number of members
    custom: Floats  # [one-shot or two-shot, column]
    custom_largest: Floats  # [members], bytes
    deepep: Floats  # [link, normal or low-latency, dispatch or combine, column]
    j_per_byte: Floats  # [link]
    valid: Floats  # [kind, 4], least and greatest number of members, least and greatest size, among the measurements


@njit(cache=True, error_model="numpy")
def price_rows(
    columns: CollectiveTable,
    links: Links,
    time_s: Floats,
    energy_j: Floats,
    bound: NDArray[np.int8],
    extrapolated: NDArray[np.bool_],
) -> None:
    """Write time, energy, bound and extrapolation of every row into the last four, which come as zeros.

    Args:
        columns: what to price, as `columns_of` gives it.
        links: on what.
        time_s: float64[row].
        energy_j: float64[row].
        bound: int8[row].
        extrapolated: bool[row].
    """
    ring, exchange, usable = links.ring, links.exchange, links.usable
    for row in range(columns.kind.size):
        ranks, nodes, payload = columns.ranks[row], columns.nodes[row], columns.payload_bytes[row]
        kind = _kind_in_use(columns.kind[row], ranks, nodes, payload, links.custom_largest)
        if kind == ALL_TO_ALL or kind >= FIRST_DEEPEP:
            sent, far_sent = columns.sent_bytes[row], columns.sent_internode_bytes[row]
            inner = max(sent, columns.received_bytes[row])
            outer = max(far_sent, columns.received_internode_bytes[row])
            size = columns.tokens[row] if kind >= FIRST_DEEPEP else inner + outer
        else:
            sent, far_sent = inner, outer = _ring_bytes(kind, ranks, nodes, payload)
            size = payload
        bound[row] = LATENCY
        if ranks == 1 or (inner + outer <= 0.0 and columns.copies[row] <= 0.0):
            continue
        if kind == ALL_TO_ALL:
            latency_s, transfer_s = _exchange(ranks, nodes, inner, outer, exchange, usable)
        elif kind >= FIRST_DEEPEP:
            latency_s, transfer_s = _deepep(columns, row, inner, outer, links.deepep)
        elif kind == CUSTOM_ALL_REDUCE:
            latency_s, transfer_s = _custom_all_reduce(ranks, payload, links.custom)
        else:
            latency_s, transfer_s = _ring(kind, ranks, nodes, payload, ring, usable, links.own_block)
            if kind == ALL_REDUCE and nodes == 1 and columns.element_bytes[row] >= SWITCH_ELEMENT_BYTES:
                latency_s, transfer_s = _in_switch(ranks, payload, latency_s, transfer_s, links.in_switch)
        time_s[row] = latency_s + transfer_s
        energy_j[row] = sent * links.j_per_byte[INTRA] + far_sent * links.j_per_byte[INTER]
        if transfer_s > latency_s:
            bound[row] = NETWORK
        least, most = links.valid[kind, 0], links.valid[kind, 1]
        smallest, largest = links.valid[kind, 2], links.valid[kind, 3]
        extrapolated[row] = nodes > 1 or not (least <= ranks <= most and smallest <= size <= largest)


@njit(cache=True, error_model="numpy", inline="always")
def _kind_in_use(kind: int, ranks: int, nodes: int, payload_bytes: float, custom_largest: Floats) -> int:
    """The kind of a row; a custom all-reduce is NCCL's where the engine's kernels do not reach."""
    if kind == CUSTOM_ALL_REDUCE and (nodes > 1 or payload_bytes > custom_largest[min(ranks, MAX_MEMBERS)]):
        return ALL_REDUCE
    return kind


@njit(cache=True, error_model="numpy", inline="always")
def _ring_bytes(kind: int, ranks: int, nodes: int, payload_bytes: float) -> tuple[float, float]:
    """Bytes that one member sends on the link inside its node and on its link to other nodes.

    A ring of p members passes (p-1)/p of the payload for all-gather and reduce-scatter and twice that for all-reduce
    (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009). Over N nodes of g members, members with the
    same place in their nodes form N-rings on 1/g of the payload each, as in hierarchical all-reduce.
    """
    passes = _passes(kind)
    local = max(1.0, ranks / nodes)
    inner = passes * (local - 1.0) / local * payload_bytes
    outer = passes * (nodes - 1.0) / nodes * payload_bytes / local
    return inner, outer


@njit(cache=True, error_model="numpy", inline="always")
def _passes(kind: int) -> float:
    return 2.0 if kind in (ALL_REDUCE, CUSTOM_ALL_REDUCE) else 1.0


@njit(cache=True, error_model="numpy", inline="always")
def _ring(  # compiled code takes its arrays one by one
    kind: int, ranks: int, nodes: int, payload_bytes: float, ring: Floats, usable: Floats, own_block: Floats
) -> tuple[float, float]:
    """Start-up and transfer of a ring, in the protocol that is fastest; both links run at once."""
    inner, outer = _ring_bytes(kind, ranks, nodes, payload_bytes)
    passes, local = _passes(kind), max(1.0, ranks / nodes)
    if local > 1.0:
        inner += own_block[INTRA] * payload_bytes / ranks
    inner /= usable[RING, INTRA, int(min(local, MAX_MEMBERS))]
    best_latency_s, best_transfer_s = np.inf, 0.0
    for protocol in range(PROTOCOLS):
        launch_s = ring[INTRA, protocol, LAUNCH_S]
        latency_s = launch_s + passes * (local - 1.0) * ring[INTRA, protocol, HOP_S]
        transfer_s = inner * ring[INTRA, protocol, S_PER_BYTE]
        if nodes > 1:
            latency_s += max(0.0, ring[INTER, protocol, LAUNCH_S] - launch_s)
            latency_s += passes * (nodes - 1.0) * ring[INTER, protocol, HOP_S]
            transfer_s = max(transfer_s, outer * ring[INTER, protocol, S_PER_BYTE])
        if latency_s + transfer_s < best_latency_s + best_transfer_s:
            best_latency_s, best_transfer_s = latency_s, transfer_s
    return best_latency_s, best_transfer_s


@njit(cache=True, error_model="numpy", inline="always")
def _in_switch(
    ranks: int, payload_bytes: float, ring_latency_s: float, ring_transfer_s: float, in_switch: Floats
) -> tuple[float, float]:
    """The all-reduce in the switch where it is there and faster than the ring.

    A member sends its tensor to the switch once, and the sum of its block, 1/p of the tensor, to be multicast.
    """
    latency_s, transfer_s = in_switch[LAUNCH_S], (1.0 + 1.0 / ranks) * payload_bytes * in_switch[S_PER_BYTE]
    if ranks >= in_switch[HOP_S] and latency_s + transfer_s < ring_latency_s + ring_transfer_s:
        return latency_s, transfer_s
    return ring_latency_s, ring_transfer_s


@njit(cache=True, error_model="numpy", inline="always")
def _custom_all_reduce(ranks: int, payload_bytes: float, custom: Floats) -> tuple[float, float]:
    """One-shot: p - 1 tensors come in. Two-shot: as `_in_switch`."""
    peers = ranks - 1.0
    one_latency_s = custom[0, LAUNCH_S] + peers * custom[0, HOP_S]
    one_transfer_s = peers * payload_bytes * custom[0, S_PER_BYTE]
    two_latency_s = custom[1, LAUNCH_S] + peers * custom[1, HOP_S]
    two_transfer_s = (1.0 + 1.0 / ranks) * payload_bytes * custom[1, S_PER_BYTE]
    if one_latency_s + one_transfer_s <= two_latency_s + two_transfer_s:
        return one_latency_s, one_transfer_s
    return two_latency_s, two_transfer_s


@njit(cache=True, error_model="numpy", inline="always")
def _exchange(
    ranks: int, nodes: int, inner: float, outer: float, exchange: Floats, usable: Floats
) -> tuple[float, float]:
    """Start-up and transfer of an all-to-all, in the protocol that is fastest.

    In the low-latency protocol every peer has a channel of its own, whose rate binds.
    """
    local = max(1.0, ranks / nodes)
    peers = max(1.0, local - 1.0)
    usable_inner = inner / usable[EXCHANGE, INTRA, int(min(local, MAX_MEMBERS))]
    best_latency_s, best_transfer_s = np.inf, 0.0
    for protocol in range(PROTOCOLS):
        latency_s = transfer_s = 0.0
        if inner > 0.0:
            latency_s = exchange[INTRA, protocol, LAUNCH_S] + peers * exchange[INTRA, protocol, HOP_S]
            channels = peers if protocol == LL else 1.0
            transfer_s = usable_inner / channels * exchange[INTRA, protocol, S_PER_BYTE]
        if outer > 0.0:
            far_latency_s = exchange[INTER, protocol, LAUNCH_S] + (nodes - 1.0) * exchange[INTER, protocol, HOP_S]
            latency_s = max(latency_s, far_latency_s)
            transfer_s = max(transfer_s, outer * exchange[INTER, protocol, S_PER_BYTE])
        if latency_s + transfer_s < best_latency_s + best_transfer_s:
            best_latency_s, best_transfer_s = latency_s, transfer_s
    return best_latency_s, best_transfer_s


@njit(cache=True, error_model="numpy", inline="always")
def _deepep(columns: CollectiveTable, row: int, inner: float, outer: float, deepep: Floats) -> tuple[float, float]:
    """Start-up and transfer of a DeepEP kernel: link and multiprocessors work at once, the slower one binds."""
    which = columns.kind[row] - FIRST_DEEPEP
    mode, way = which // 2, which % 2
    copy_bytes, experts = columns.copy_bytes[row], columns.experts[row]
    latency_s = deepep[INTRA, mode, way, START_S] + experts * deepep[INTRA, mode, way, EXPERT_S]
    latency_s += columns.fan_out[row] * copy_bytes * deepep[INTRA, mode, way, FILL_S_PER_BYTE]
    workers = columns.multiprocessors[row]
    if workers <= 0.0:
        workers = deepep[INTRA, mode, way, MULTIPROCESSORS]
    if mode == LOW_LATENCY_MODE:
        workers = max(1.0, np.ceil(experts / np.ceil(experts / workers)))
    copy_s = deepep[INTRA, mode, way, COPY_S] + copy_bytes * deepep[INTRA, mode, way, COPY_S_PER_BYTE]
    token_s = deepep[INTRA, mode, way, TOKEN_S] + copy_bytes * deepep[INTRA, mode, way, TOKEN_S_PER_BYTE]
    busy_s = columns.copies[row] * copy_s + columns.tokens[row] * token_s
    transfer_s = max(inner * deepep[INTRA, mode, way, LINK_S_PER_BYTE], busy_s / workers)
    if columns.nodes[row] > 1:
        latency_s = max(latency_s, deepep[INTER, mode, way, START_S])
        transfer_s = max(transfer_s, outer * deepep[INTER, mode, way, LINK_S_PER_BYTE])
    return latency_s, transfer_s
