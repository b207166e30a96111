"""What devices send each other in one step, as rows that the interconnect prices.

Within each tensor-parallel group: sums and gathers of the group's tokens. Across the stage, with data-parallel
attention: dispatch and combine, each device's share from the real token traffic of each MoE layer. To the next pipeline
stage: the hidden states, each device of a tensor-parallel group a part of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.collective_table import COLLECTIVES, CollectiveTable
from moesim.simulator import expert_exchange
from moesim.simulator.communication import DEFAULT, EXCHANGE_KINDS, Communication
from moesim.simulator.expert_exchange import Traffic
from moesim.workloads.operator_plan import OperatorPlan
from moesim.workloads.steps import DECODE_TOKENS, SAMPLES, TOKENS

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


class CollectivePlan:
    """The collectives of every step.

    Attributes:
        rank_nodes: int32[ep rank, 2], first and last node of each expert-parallel rank.

    Rows: each of `GROUP_KINDS` for each data-parallel rank (if tp > 1), then dispatch and combine for each MoE layer
    and device (if dp > 1), then a send for each data-parallel rank (if another stage follows).
    """

    def __init__(
        self,
        plan: OperatorPlan,
        devices_per_node: int,
        communication: Communication = DEFAULT,
        first_device: int = 0,
    ) -> None:
        """Build the plan for a stage on the devices from `first_device` on, `devices_per_node` of which are a node."""
        self.plan = plan
        self.communication = communication
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
        kinds = [self._kind(only_decodes=only_decodes) for only_decodes in (False, True)]
        self._templates = [CollectiveTable.of(kind, *self._spans()) for kind in kinds]

    def _names(self) -> list[str]:
        groups = [name for name in GROUP_KINDS for _ in range(self.plan.dp)] if self.group_rows else []
        exchanges = [name for name in EXCHANGES for _ in range(self.moe_layers * self.devices)]
        return groups + exchanges + [SEND] * (self.rows - self.first_send)

    def _kind(self, *, only_decodes: bool) -> NDArray[np.int8]:
        """Primitive of each row, in a step with or without prompts."""
        exchange = EXCHANGE_KINDS[self.communication.exchange(only_decodes=only_decodes)]
        primitives = GROUP_KINDS | dict(zip(EXCHANGES, exchange, strict=True)) | {SEND: "all_to_all"}
        if self.communication.all_reduce == "custom":
            primitives["all_reduce"] = "custom_all_reduce"
        return np.array([COLLECTIVES.index(primitives[name]) for name in self.names], np.int8)

    def _spans(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Devices and nodes that take part, per row."""
        tp = self.plan.tp
        nodes = [len(np.unique(self.node[rank * tp : (rank + 1) * tp])) for rank in range(self.plan.dp)]
        exchanges, sends = self.first_send - self.group_rows, self.rows - self.first_send
        groups = nodes * len(GROUP_KINDS) if self.group_rows else []
        members = self.node[::tp] if self.communication.gathers else self.node
        ranks = [tp] * self.group_rows + [len(members)] * exchanges + [2] * sends
        spans = groups + [len(np.unique(members))] * exchanges + [1 + self.sends_far] * sends
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

    def table(
        self, features: NDArray[np.float64], traffic: Traffic, slot_tokens: NDArray[np.int64] | None = None
    ) -> CollectiveTable:
        """The rows of one step.

        Args:
            features: float64[dp rank, feature] (`steps.step_features`).
            traffic: tokens that devices send; nothing when dp = 1.
            slot_tokens: int64[moe_layer, slot], tokens of every expert slot; for low-latency kernels.
        """
        if not self.rows:
            return self._templates[0]
        columns: dict[str, Any] = {"payload_bytes": np.zeros(self.rows)}
        columns["payload_bytes"][: self.group_rows] = self._group_bytes(features)
        only_decodes = bool(np.array_equal(features[:, TOKENS], features[:, DECODE_TOKENS]))
        if self.moe_layers:
            exchange = self.communication.exchange(only_decodes=only_decodes)
            for name, values in self._exchange_columns(exchange, features[:, TOKENS], traffic, slot_tokens).items():
                columns.setdefault(name, np.zeros(self.rows))[self.group_rows : self.first_send] = values.ravel()
        if self.first_send < self.rows:
            name = "sent_internode_bytes" if self.sends_far else "sent_bytes"
            parts = self._hidden_bytes(features) / self.plan.tp
            columns.setdefault(name, np.zeros(self.rows))[self.first_send :] = parts
        return replace(self._templates[only_decodes], **columns)

    def _exchange_columns(
        self,
        exchange: str,
        tokens: NDArray[np.float64],
        traffic: Traffic,
        slot_tokens: NDArray[np.int64] | None,
    ) -> expert_exchange.Columns:
        """Columns of dispatch and combine, each float64[way, moe_layer, device]."""
        if self.communication.gathers:
            return expert_exchange.gathered(self.plan, self.devices, tokens)
        if exchange == "deepep_normal":
            return expert_exchange.deepep(self.plan, self.node, tokens, traffic)
        if exchange == "deepep_low_latency":
            assert slot_tokens is not None
            return expert_exchange.deepep_low_latency(self.plan, self.node, tokens, slot_tokens)
        return expert_exchange.all_to_all(self.plan, self.node, traffic)

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
        hidden: NDArray[np.float64] = features[:, TOKENS] * (self.plan.model.hidden * self.plan.activation_bytes)
        return hidden
