"""The task graph of one step: who computes what, who talks to whom, in which order.

The graph keeps its shape from step to step, so it is built once; a step only refills durations. A task's duration is
an entry of one cost vector: operator rows, then collective rows, then the host's overhead, then zero for joins.

    attention_norm  qkv  rope  attention  attention_out  [all_reduce over tp]
    ffn_norm  router  top_k  [dispatch]  shared experts  experts  [combine]       dp > 1: all-to-all over the replica
    ffn_norm  router  top_k  shared experts  experts  [all_reduce over tp]        dp = 1: tokens are everywhere already
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.collectives import CollectivePlan
from moesim.simulator.graph import JOIN, NO_DEVICE, NO_LAYER, TaskGraph
from moesim.workloads.models import MoE
from moesim.workloads.operator_plan import EXPERTS, OperatorPlan

HOST = "host"
_JOIN_KIND = "join"


@dataclass(frozen=True)
class StepGraph:
    """A graph without durations, and where each task's duration comes from."""

    graph: TaskGraph
    source: NDArray[np.int64]  # [task] position in the cost vector


def build_step_graph(plan: OperatorPlan, collectives: CollectivePlan, *, async_host: bool) -> StepGraph:
    """The graph of every step of `plan`.

    Args:
        plan: the operators.
        collectives: the communication rows.
        async_host: the engine prepares the next step while the devices run this one; otherwise devices wait.
    """
    builder = _Builder(plan, collectives)
    builder.host(blocking=not async_host)
    builder.operators(plan.before, NO_LAYER)
    builder.all_reduce(NO_LAYER)
    for layer in range(len(plan.layers)):
        builder.layer(layer)
    *first, sampling = plan.after
    builder.operators(first, NO_LAYER)
    builder.group_collective("logits_gather", NO_LAYER)
    builder.operators([sampling], NO_LAYER)
    return builder.build()


class _Builder:
    """Collects tasks; `last[device]` holds the tasks that the device's next one waits for."""

    def __init__(self, plan: OperatorPlan, collectives: CollectivePlan) -> None:
        self.plan, self.collectives = plan, collectives
        self.devices = plan.dp * plan.tp
        self.kinds: dict[str, int] = {}
        self.tasks: list[tuple[int, int, int, int, int]] = []  # stream, source, kind, layer, device
        self.edges: list[tuple[int, int]] = []
        self.last: list[list[int]] = [[] for _ in range(self.devices)]
        self.host_source = plan.rows + collectives.rows
        self.zero_source = self.host_source + 1
        self.moe_layer = 0

    def build(self) -> StepGraph:
        stream, source, kind, layer, device = np.array(self.tasks).T
        names = [f"device {d} {what}" for d in range(self.devices) for what in ("compute", "network")]
        graph = TaskGraph.build(
            np.zeros(len(self.tasks)),
            stream,
            np.array(self.edges),
            stream_names=[*names, HOST],
            kind=kind,
            kinds=tuple(self.kinds),
            layer=layer,
            device=device,
        )
        return StepGraph(graph, source)

    def _task(self, stream: int, source: int, kind: str, layer: int, device: int, after: Iterable[int]) -> int:
        task = len(self.tasks)
        self.tasks.append((stream, source, self.kinds.setdefault(kind, len(self.kinds)), layer, device))
        self.edges.extend((before, task) for before in after)
        return task

    def _join(self, layer: int, after: Iterable[int]) -> int:
        return self._task(JOIN, self.zero_source, _JOIN_KIND, layer, NO_DEVICE, after)

    def _compute(self, device: int, row: int, kind: str, layer: int) -> None:
        task = self._task(2 * device, row, kind, layer, device, self.last[device])
        self.last[device] = [task]

    def host(self, *, blocking: bool) -> None:
        """Work of the host before a step: the devices wait for it, or it runs beside them."""
        task = self._task(2 * self.devices, self.host_source, HOST, NO_LAYER, NO_DEVICE, ())
        if blocking:
            self.last = [[task] for _ in range(self.devices)]

    def operators(self, positions: Sequence[int], layer: int) -> None:
        """The given operators in order, on every device."""
        for position in positions:
            for device in range(self.devices):
                row = self.plan.row(position, device // self.plan.tp)
                self._compute(device, row, self.plan.operators[position].name, layer)

    def layer(self, layer: int) -> None:
        """One decoder layer."""
        names = [self.plan.operators[position].name for position in self.plan.layers[layer]]
        ffn = names.index("ffn_norm")
        attention, feed_forward = self.plan.layers[layer][:ffn], self.plan.layers[layer][ffn:]
        self.operators(attention, layer)
        self.all_reduce(layer)
        if isinstance(self.plan.model.layers[layer].ffn, MoE):
            self._moe(feed_forward, layer)
        else:
            self.operators(feed_forward, layer)
            self.all_reduce(layer)

    def _moe(self, positions: Sequence[int], layer: int) -> None:
        routing, shared = positions[:3], positions[3:]  # norm, router and top_k come before anything is sent
        self.operators(routing, layer)
        if self.plan.dp == 1:
            self.operators(shared, layer)
            self._experts(layer)
            self.all_reduce(layer)
        else:
            self._exchange_tokens(shared, layer)
        self.moe_layer += 1

    def _exchange_tokens(self, shared: Sequence[int], layer: int) -> None:
        """Dispatch, experts and combine, with the shared experts beside the dispatch."""
        routed = [list(last) for last in self.last]
        self.operators(shared, layer)
        shared_done = [list(last) for last in self.last]
        self.last = routed
        arrived = self._all_to_all("dispatch", layer)
        self.last = [[arrived, *done] for done in shared_done]
        self._experts(layer)
        combined = self._all_to_all("combine", layer)
        self.last = [[combined] for _ in range(self.devices)]
        if shared:
            self.group_collective("reduce_scatter", layer)
        self.group_collective("all_gather", layer)

    def _experts(self, layer: int) -> None:
        for device in range(self.devices):
            row = self.plan.expert_row(self.moe_layer, device // self.plan.moe_tp)
            self._compute(device, row, EXPERTS, layer)

    def all_reduce(self, layer: int) -> None:
        """Sum of the partial results within each tensor-parallel group."""
        self.group_collective("all_reduce", layer)

    def group_collective(self, kind: str, layer: int) -> None:
        """A collective within each tensor-parallel group; nothing for groups of one."""
        tp = self.plan.tp
        if tp == 1:
            return
        for rank in range(self.plan.dp):
            members = range(rank * tp, (rank + 1) * tp)
            row = self.plan.rows + self.collectives.group_row(kind, rank)
            done = self._collective(members, [row] * tp, kind, layer)
            for device in members:
                self.last[device] = [done]

    def _all_to_all(self, kind: str, layer: int) -> int:
        members = range(self.devices)
        rows = [self.plan.rows + self.collectives.exchange_row(kind, self.moe_layer, device) for device in members]
        return self._collective(members, rows, kind, layer)

    def _collective(self, members: Sequence[int], rows: Sequence[int], kind: str, layer: int) -> int:
        """A join on all members' producers, one task per member on its network stream, a second join."""
        ready = self._join(layer, dict.fromkeys(task for member in members for task in self.last[member]))
        sent = [
            self._task(2 * member + 1, row, kind, layer, member, [ready])
            for member, row in zip(members, rows, strict=True)
        ]
        return self._join(layer, sent)
