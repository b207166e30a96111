"""Bytes of dispatch and combine, for each way in which engines bring tokens to their experts and back.

Every function returns columns of a `CollectiveTable` by name, each float64[way, moe_layer, device] with the ways
dispatch and combine.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.collective_table import COMBINED_ELEMENT_BYTES, DISPATCHED_ELEMENT_BYTES
from moesim.workloads.operator_plan import OperatorPlan

Floats = NDArray[np.float64]
Columns = Mapping[str, Floats]

SENT = ("sent_bytes", "received_bytes", "sent_internode_bytes", "received_internode_bytes")


class Traffic(NamedTuple):
    """Tokens that devices have to send, each counted once per receiver."""

    to_ranks: NDArray[np.int64]  # [moe_layer, source device, ep rank]
    to_nodes: NDArray[np.int64]  # [moe_layer, source device, node]


def all_to_all(plan: OperatorPlan, node: NDArray[np.int64], traffic: Traffic) -> Columns:
    """Each token goes to the devices that need it; see `_one_way`.

    A combine is a dispatch in reverse, but for one thing: tokens need not be dispatched within their tensor-parallel
    group, which holds them already, while results must come back from there.

    Args:
        plan: the operators.
        node: int64[device], its node.
        traffic: tokens by source.
    """
    devices = len(node)
    group = np.arange(devices) // plan.tp
    elsewhere = group[:, None] != group[None, :]
    dispatch = _one_way(plan, node, traffic, elsewhere)
    combine = _one_way(plan, node, traffic, ~np.eye(devices, dtype=np.bool_))[[1, 0, 3, 2]]
    both = np.stack([dispatch, combine], axis=1) * (plan.model.hidden * plan.activation_bytes)
    return dict(zip(SENT, both.reshape(4, 2, -1, devices), strict=True))


def gathered(plan: OperatorPlan, devices: int, tokens: Floats) -> Columns:
    """All tokens of all data-parallel ranks, among the devices with the same place in their tensor-parallel groups.

    Args:
        plan: the operators.
        devices: of the replica.
        tokens: float64[dp rank].
    """
    shape = (2, len(plan.experts.layers) if plan.experts else 0, devices)
    nbytes = float(tokens.sum()) * plan.model.hidden * plan.activation_bytes
    return {"payload_bytes": np.full(shape, nbytes)}


def deepep(plan: OperatorPlan, node: NDArray[np.int64], tokens: Floats, traffic: Traffic) -> Columns:
    """As `all_to_all`, with eight-bit tokens on the way to the experts, and what keeps the multiprocessors busy.

    Args:
        plan: the operators.
        node: int64[device].
        tokens: float64[dp rank].
        traffic: tokens by source.
    """
    columns = dict(all_to_all(plan, node, traffic))
    element_bytes = np.array([DISPATCHED_ELEMENT_BYTES, COMBINED_ELEMENT_BYTES])[:, None, None]
    for name in SENT:
        columns[name] = columns[name] * element_bytes / plan.activation_bytes
    sent = traffic.to_ranks.sum(axis=2) * plan.moe_tp
    received = np.repeat(traffic.to_ranks.sum(axis=1), plan.moe_tp, axis=1)
    return columns | _kernel_columns(plan, tokens, np.maximum(sent, received), sent)


def deepep_low_latency(
    plan: OperatorPlan, node: NDArray[np.int64], tokens: Floats, slot_tokens: NDArray[np.int64]
) -> Columns:
    """Each token goes to every expert of its own, once per expert, directly.

    How many of a device's copies go to which device follows from their sums: a device's share of the tokens times
    another one's share of the experts' load.

    Args:
        plan: the operators.
        node: int64[device].
        tokens: float64[dp rank].
        slot_tokens: int64[moe_layer, slot].
    """
    layers, devices = len(slot_tokens), len(node)
    load = np.repeat(slot_tokens.reshape(layers, plan.ep, -1).sum(axis=2), plan.moe_tp, axis=1).astype(np.float64)
    share = np.repeat(tokens / plan.tp, plan.tp) / max(1.0, float(tokens.sum()))
    copies = share[None, :, None] * load[:, None, :]  # [layer, source, destination]
    other = ~np.eye(devices, dtype=np.bool_)
    same = node[:, None] == node[None, :]
    near, far = copies * (other & same), copies * ~same
    dispatch = np.stack([near.sum(axis=2), near.sum(axis=1), far.sum(axis=2), far.sum(axis=1)])
    element_bytes = np.array([DISPATCHED_ELEMENT_BYTES, COMBINED_ELEMENT_BYTES])[None, :, None, None]
    both = np.stack([dispatch, dispatch[[1, 0, 3, 2]]], axis=1) * (plan.model.hidden * element_bytes)
    sent = copies.sum(axis=2)
    return dict(zip(SENT, both, strict=True)) | _kernel_columns(plan, tokens, np.maximum(sent, load), sent)


def _kernel_columns(
    plan: OperatorPlan, tokens: Floats, copies: NDArray[np.float64] | NDArray[np.int64], sent: NDArray[np.number]
) -> dict[str, Floats]:
    """What DeepEP's kernels work on; copies, sent: [moe_layer, device]."""
    shape = (2, *copies.shape)
    own = np.repeat(tokens / plan.tp, plan.tp)
    fan_out = sent.sum(axis=1, keepdims=True) / max(1.0, float(tokens.sum()))
    copy_bytes = plan.model.hidden * np.array([DISPATCHED_ELEMENT_BYTES, COMBINED_ELEMENT_BYTES])[:, None, None]
    experts = plan.experts.block.experts if plan.experts else 0
    values = {"tokens": own, "copies": copies, "copy_bytes": copy_bytes, "fan_out": fan_out, "experts": experts}
    return {name: np.broadcast_to(np.asarray(value, np.float64), shape) for name, value in values.items()}


def _one_way(
    plan: OperatorPlan, node: NDArray[np.int64], traffic: Traffic, sends: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Tokens (sent, received, sent between nodes, received between nodes): int64[4, moe_layer * device].

    A token goes to another node once, to the device there with the sender's position, which hands it on inside
    that node to every device that needs it. Every shard of an expert-parallel rank needs the whole token.

    Args:
        plan: the operators.
        node: int64[device].
        traffic: tokens by source.
        sends: bool[source, destination]: whether a token must travel between the two at all.
    """
    devices = len(node)
    nodes, size = int(node[-1]) + 1, devices // (int(node[-1]) + 1)
    between = np.repeat(traffic.to_ranks, plan.moe_tp, axis=2) * sends
    if nodes == 1:
        one_way = np.zeros((4, between.shape[0] * devices), dtype=np.int64)
        one_way[0], one_way[1] = between.sum(axis=2).ravel(), between.sum(axis=1).ravel()
        return one_way
    # [layer, source node, source position, destination node, destination position]
    between = between.reshape(-1, nodes, size, nodes, size)
    inside = np.eye(nodes, dtype=np.bool_)[:, None, :, None]
    direct = (between * inside).reshape(-1, devices, devices)
    handed_on = between * ~inside * ~np.eye(size, dtype=np.bool_)[None, :, None, :]
    sent = direct.sum(axis=2) + handed_on.sum(axis=(1, 4)).transpose(0, 2, 1).reshape(-1, devices)
    received = direct.sum(axis=1) + handed_on.sum(axis=(1, 2)).reshape(-1, devices)
    far = traffic.to_nodes.reshape(-1, nodes, size, nodes) * ~np.eye(nodes, dtype=np.bool_)[:, None, :]
    far_received = far.sum(axis=1).transpose(0, 2, 1)
    return np.stack([column.ravel() for column in (sent, received, far.sum(axis=3), far_received)])
