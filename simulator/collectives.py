"""What devices send each other in one step, as rows that the interconnect prices.

Within each tensor-parallel group: sums and gathers of the group's tokens. Across the replica, with data-parallel
attention: dispatch and combine, each device's share from the real token traffic of each MoE layer.
"""

from collections.abc import Sequence

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


class CollectivePlan:
    """The collectives of every step.

    Rows: each of `GROUP_KINDS` for each data-parallel rank (if tp > 1), then dispatch and combine for each MoE layer
    and device (if dp > 1).
    """

    def __init__(self, plan: OperatorPlan, devices_per_node: int) -> None:
        """Build the plan for a replica whose device `d` is in node `d // devices_per_node`."""
        self.plan = plan
        self.devices = plan.dp * plan.tp
        self.node = np.arange(self.devices) // devices_per_node
        self.moe_layers = len(plan.experts.layers) if plan.experts and plan.dp > 1 else 0
        self.group_rows = len(GROUP_KINDS) * plan.dp if plan.tp > 1 else 0
        self.rows = self.group_rows + len(EXCHANGES) * self.moe_layers * self.devices
        self.names = self._names()
        self._kind = np.array([COLLECTIVES.index(GROUP_KINDS.get(name, "all_to_all")) for name in self.names], np.int8)
        self._ranks, self._nodes = self._spans()

    def _names(self) -> list[str]:
        groups = [name for name in GROUP_KINDS for _ in range(self.plan.dp)] if self.group_rows else []
        return groups + [name for name in EXCHANGES for _ in range(self.moe_layers * self.devices)]

    def _spans(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Devices and nodes that take part, per row."""
        tp = self.plan.tp
        nodes = [len(np.unique(self.node[rank * tp : (rank + 1) * tp])) for rank in range(self.plan.dp)]
        exchanges = self.rows - self.group_rows
        groups = nodes * len(GROUP_KINDS) if self.group_rows else []
        ranks = [tp] * self.group_rows + [self.devices] * exchanges
        spans = groups + [len(np.unique(self.node))] * exchanges
        return np.array(ranks, np.int32), np.array(spans, np.int32)

    def group_row(self, kind: str, rank: int) -> int:
        """Row of a collective of the tensor-parallel group of data-parallel rank `rank`."""
        return list(GROUP_KINDS).index(kind) * self.plan.dp + rank

    def exchange_row(self, kind: str, moe_layer: int, device: int) -> int:
        """Row of `device`'s part in the dispatch or combine of the MoE layer number `moe_layer`."""
        return self.group_rows + (EXCHANGES.index(kind) * self.moe_layers + moe_layer) * self.devices + device

    def table(self, features: NDArray[np.float64], traffic: NDArray[np.int64]) -> CollectiveTable:
        """The rows of one step.

        Args:
            features: float64[dp rank, feature] (`steps.step_features`).
            traffic: int64[moe_layer, source device, ep rank], tokens sent; empty when dp = 1.
        """
        payload = np.zeros(self.rows)
        payload[: self.group_rows] = self._group_bytes(features)
        sent, received = self._exchange_bytes(traffic) if self.moe_layers else (np.zeros((2, 0)), np.zeros((2, 0)))
        groups = np.zeros(self.group_rows)
        return CollectiveTable(
            kind=self._kind,
            ranks=self._ranks,
            nodes=self._nodes,
            payload_bytes=payload,
            sent_bytes=np.concatenate([groups, sent[0], received[0]]),
            received_bytes=np.concatenate([groups, received[0], sent[0]]),
            sent_internode_bytes=np.concatenate([groups, sent[1], received[1]]),
            received_internode_bytes=np.concatenate([groups, received[1], sent[1]]),
        )

    def _group_bytes(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bytes of the summed or gathered tensor, in the order of the group rows."""
        if not self.group_rows:
            return np.zeros(0)
        hidden = features[:, TOKENS] * (self.plan.model.hidden * self.plan.activation_bytes)
        logits = features[:, SAMPLES] * (self.plan.model.vocabulary * self.plan.activation_bytes)
        columns: Sequence[NDArray[np.float64]] = [logits if name == "logits_gather" else hidden for name in GROUP_KINDS]
        return np.concatenate(columns)

    def _exchange_bytes(self, traffic: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bytes that each device sends and receives in a dispatch; a combine is the reverse.

        Every tensor-parallel shard of an expert group gets the whole token. What a device sends itself is free.

        Returns:
            (sent, received): float64[2, moe_layer * device]; first within the node, then between nodes.
        """
        between = np.repeat(traffic, self.plan.moe_tp, axis=2) * (self.plan.model.hidden * self.plan.activation_bytes)
        same_node = self.node[:, None] == self.node[None, :]
        near = between * (same_node & ~np.eye(self.devices, dtype=np.bool_))
        far = between * ~same_node
        sent = np.stack([near.sum(axis=2).ravel(), far.sum(axis=2).ravel()])
        received = np.stack([near.sum(axis=1).ravel(), far.sum(axis=1).ravel()])
        return sent, received
