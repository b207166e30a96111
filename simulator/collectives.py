"""What devices send each other in one step, as rows that the interconnect prices.

Within each tensor-parallel group: sums and gathers of the group's tokens. Across the stage, with data-parallel
attention: dispatch and combine, each device's share from the real token traffic of each MoE layer. To the next pipeline
stage: the hidden states, each device of a tensor-parallel group a part of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.interconnect import COLLECTIVES, CollectiveTable
from moesim.workloads.operator_plan import OperatorPlan
from moesim.workloads.steps import SAMPLES, TOKENS

GROUP_KINDS = {
    "all_reduce": "all_reduce",
    "logits_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "all_gather": "all_gather",
}
"""Collectives of a tensor-parallel group: name in results -> primitive."""
EXCHANGES = ("dispatch", "combine")
SEND = "stage_send"
"""Hidden states on their way to the next pipeline stage."""


class Traffic(NamedTuple):
    """Tokens that devices have to send, each counted once per receiver."""

    to_ranks: NDArray[np.int64]  # [moe_layer, source device, ep rank]
    to_nodes: NDArray[np.int64]  # [moe_layer, source device, node]


class CollectivePlan:
    """The collectives of every step.

    Attributes:
        rank_nodes: int32[ep rank, 2], first and last node of each expert-parallel rank.

    Rows: each of `GROUP_KINDS` for each data-parallel rank (if tp > 1), then dispatch and combine for each MoE layer
    and device (if dp > 1), then a send for each data-parallel rank (if another stage follows).
    """

    def __init__(self, plan: OperatorPlan, devices_per_node: int, first_device: int = 0) -> None:
        """Build the plan for a stage on the devices from `first_device` on, `devices_per_node` of which are a node."""
        self.plan = plan
        self.devices = plan.dp * plan.tp
        self.node = np.arange(self.devices) // devices_per_node
        last = np.arange(plan.ep) * plan.moe_tp + plan.moe_tp - 1
        self.rank_nodes = np.stack([self.node[last - plan.moe_tp + 1], self.node[last]], axis=1).astype(np.int32)
        self.moe_layers = len(plan.experts.layers) if plan.experts and plan.dp > 1 else 0
        self.group_rows = len(GROUP_KINDS) * plan.dp if plan.tp > 1 else 0
        self.first_send = self.group_rows + len(EXCHANGES) * self.moe_layers * self.devices
        self.rows = self.first_send + (0 if plan.is_last else plan.dp)
        self.sends_far = first_device // devices_per_node != (first_device + self.devices) // devices_per_node
        self.names = self._names()
        self._kind = np.array([COLLECTIVES.index(GROUP_KINDS.get(name, "all_to_all")) for name in self.names], np.int8)
        self._ranks, self._nodes = self._spans()

    def _names(self) -> list[str]:
        groups = [name for name in GROUP_KINDS for _ in range(self.plan.dp)] if self.group_rows else []
        exchanges = [name for name in EXCHANGES for _ in range(self.moe_layers * self.devices)]
        return groups + exchanges + [SEND] * (self.rows - self.first_send)

    def _spans(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Devices and nodes that take part, per row."""
        tp = self.plan.tp
        nodes = [len(np.unique(self.node[rank * tp : (rank + 1) * tp])) for rank in range(self.plan.dp)]
        exchanges, sends = self.first_send - self.group_rows, self.rows - self.first_send
        groups = nodes * len(GROUP_KINDS) if self.group_rows else []
        ranks = [tp] * self.group_rows + [self.devices] * exchanges + [2] * sends
        spans = groups + [len(np.unique(self.node))] * exchanges + [1 + self.sends_far] * sends
        return np.array(ranks, np.int32), np.array(spans, np.int32)

    def group_row(self, kind: str, rank: int) -> int:
        """Row of a collective of the tensor-parallel group of data-parallel rank `rank`."""
        return list(GROUP_KINDS).index(kind) * self.plan.dp + rank

    def exchange_row(self, kind: str, moe_layer: int, device: int) -> int:
        """Row of `device`'s part in the dispatch or combine of the MoE layer number `moe_layer`."""
        return self.group_rows + (EXCHANGES.index(kind) * self.moe_layers + moe_layer) * self.devices + device

    def send_row(self, rank: int) -> int:
        """Row of the send of each device of data-parallel rank `rank`."""
        return self.first_send + rank

    def table(self, features: NDArray[np.float64], traffic: Traffic) -> CollectiveTable:
        """The rows of one step.

        Args:
            features: float64[dp rank, feature] (`steps.step_features`).
            traffic: tokens that devices send; nothing when dp = 1.
        """
        payload = np.zeros(self.rows)
        payload[: self.group_rows] = self._group_bytes(features)
        exchanged = np.zeros((4, self.rows))
        if self.moe_layers:
            exchanged[:, self.group_rows : self.first_send] = self._exchange_bytes(traffic)
        if self.first_send < self.rows:
            exchanged[2 * self.sends_far, self.first_send :] = self._hidden_bytes(features) / self.plan.tp
        return CollectiveTable(self._kind, self._ranks, self._nodes, payload, *exchanged)

    def _group_bytes(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bytes of the summed or gathered tensor, in the order of the group rows."""
        if not self.group_rows:
            return np.zeros(0)
        hidden = self._hidden_bytes(features)
        logits = features[:, SAMPLES] * (self.plan.model.vocabulary * self.plan.activation_bytes)
        columns: Sequence[NDArray[np.float64]] = [logits if name == "logits_gather" else hidden for name in GROUP_KINDS]
        return np.concatenate(columns)

    def _hidden_bytes(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64[dp rank]: the hidden states of a rank's tokens."""
        return features[:, TOKENS] * (self.plan.model.hidden * self.plan.activation_bytes)

    def _exchange_bytes(self, traffic: Traffic) -> NDArray[np.float64]:
        """float64[4, row]: bytes that each device sends and receives, in its node and between nodes.

        A combine is a dispatch in reverse, but for one thing: tokens need not be dispatched within their
        tensor-parallel group, which holds them already, while results must come back from there.
        """
        group = np.arange(self.devices) // self.plan.tp
        elsewhere = group[:, None] != group[None, :]
        dispatch = self._one_way(traffic, elsewhere)
        combine = self._one_way(traffic, ~np.eye(self.devices, dtype=np.bool_))[[1, 0, 3, 2]]
        bytes_per_token = self.plan.model.hidden * self.plan.activation_bytes
        both: NDArray[np.float64] = np.concatenate([dispatch, combine], axis=1) * bytes_per_token
        return both

    def _one_way(self, traffic: Traffic, sends: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Tokens (sent, received, sent between nodes, received between nodes): int64[4, moe_layer * device].

        A token goes to another node once, to the device there with the sender's position, which hands it on inside
        that node to every device that needs it. Every shard of an expert-parallel rank needs the whole token.

        Args:
            traffic: tokens by source.
            sends: bool[source, destination]: whether a token must travel between the two at all.
        """
        nodes, size = self.node[-1] + 1, self.devices // (self.node[-1] + 1)
        between = np.repeat(traffic.to_ranks, self.plan.moe_tp, axis=2) * sends
        if nodes == 1:
            one_way = np.zeros((4, between.shape[0] * self.devices), dtype=np.int64)
            one_way[0], one_way[1] = between.sum(axis=2).ravel(), between.sum(axis=1).ravel()
            return one_way
        # [layer, source node, source position, destination node, destination position]
        between = between.reshape(-1, nodes, size, nodes, size)
        inside = np.eye(nodes, dtype=np.bool_)[:, None, :, None]
        direct = (between * inside).reshape(-1, self.devices, self.devices)
        handed_on = between * ~inside * ~np.eye(size, dtype=np.bool_)[None, :, None, :]
        sent = direct.sum(axis=2) + handed_on.sum(axis=(1, 4)).transpose(0, 2, 1).reshape(-1, self.devices)
        received = direct.sum(axis=1) + handed_on.sum(axis=(1, 2)).reshape(-1, self.devices)
        far = traffic.to_nodes.reshape(-1, nodes, size, nodes) * ~np.eye(nodes, dtype=np.bool_)[:, None, :]
        far_received = far.sum(axis=1).transpose(0, 2, 1)
        return np.stack([column.ravel() for column in (sent, received, far.sum(axis=3), far_received)])
