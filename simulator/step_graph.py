"""The task graph of one step: who computes what, who talks to whom, in which order.

The graph keeps its shape from step to step, so it is built once; a step only refills durations. A task's duration is
an entry of one cost vector: the operator rows once per processor of a device, then the collective rows, then the
host's overhead, then zero for joins. Every operator has a task on each processor, and its successors wait for all of
them: the share of a processor that takes no part lasts no time.

    attention_norm  qkv  rope  attention  attention_out  [all_reduce over tp]
    ffn_norm  router  top_k  [dispatch]  shared experts  experts  [combine]       dp > 1: all-to-all over the replica
    ffn_norm  router  top_k  shared experts  experts  [all_reduce over tp]        dp = 1: tokens are everywhere already

The host's work stands before the first pipeline stage only: it prepares a step once. Every stage but the last ends with
sending the hidden states, each device of a tensor-parallel group a part of them; the next begins with gathering them.
What dispatch and combine are is the engine's choice (`Communication`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.collectives import SEND, CollectivePlan
from moesim.simulator.graph import NO_LAYER, TaskGraph
from moesim.simulator.graph_builder import GraphBuilder
from moesim.workloads.models import MoE
from moesim.workloads.operator_plan import EXPERTS, OperatorPlan

HOST = "host"
NETWORK = "network"


@dataclass(frozen=True)
class StepGraph:
    """A graph without durations, and where each task's duration comes from."""

    graph: TaskGraph
    source: NDArray[np.int64]  # [task] position in the cost vector


def build_step_graph(
    plan: OperatorPlan,
    collectives: CollectivePlan,
    processors: Sequence[str],
    *,
    async_host: bool,
    first_device: int = 0,
) -> StepGraph:
    """The graph of every step of `plan`.

    Args:
        plan: the operators.
        collectives: the communication rows.
        processors: names of a device's processors.
        async_host: the engine prepares the next step while the devices run this one; otherwise devices wait.
        first_device: number of the stage's first device, for names and results.
    """
    tasks = _StepTasks(plan, collectives, processors, first_device)
    if plan.before:
        tasks.host(blocking=not async_host)
        tasks.operators(plan.before, NO_LAYER)
        tasks.group_collective("all_reduce", NO_LAYER)
    else:
        tasks.group_collective("all_gather", NO_LAYER)
    for layer, positions in zip(plan.layer_range, plan.layers, strict=True):
        tasks.layer(layer, positions)
    if plan.is_last:
        *first, sampling = plan.after
        tasks.operators(first, NO_LAYER)
        tasks.group_collective("logits_gather", NO_LAYER)
        tasks.operators([sampling], NO_LAYER)
    else:
        tasks.send()
    return StepGraph(tasks.builder.build(), np.array(tasks.source))


class _StepTasks:
    """Adds the tasks of a step; `last[device]` holds the tasks that the device's next one waits for."""

    def __init__(
        self, plan: OperatorPlan, collectives: CollectivePlan, processors: Sequence[str], first_device: int
    ) -> None:
        self.plan, self.collectives, self.first_device = plan, collectives, first_device
        self.builder = GraphBuilder()
        self.source: list[int] = []
        numbers = range(first_device, first_device + plan.dp * plan.tp)
        self.compute = [[self.builder.stream(f"device {d} {name}") for name in processors] for d in numbers]
        self.network = [self.builder.stream(f"device {d} {NETWORK}") for d in numbers]
        self.last: list[list[int]] = [[] for _ in numbers]
        self.first_collective = plan.rows * len(processors)
        self.host_source = self.first_collective + collectives.rows
        self.moe_layer = 0

    @property
    def devices(self) -> range:
        """All devices of the stage, counted from 0."""
        return range(len(self.last))

    def _join(self, layer: int, after: Iterable[int]) -> int:
        self.source.append(self.host_source + 1)
        return self.builder.join(after, layer)

    def _compute(self, device: int, row: int, kind: str, layer: int) -> None:
        """One operator on a device: a task on each of its processors."""
        tasks = []
        for processor, stream in enumerate(self.compute[device]):
            self.source.append(processor * self.plan.rows + row)
            tasks.append(self.builder.add(stream, kind, layer, self.first_device + device, after=self.last[device]))
        self.last[device] = tasks

    def host(self, *, blocking: bool) -> None:
        """Work of the host before a step: the devices wait for it, or it runs beside them."""
        self.source.append(self.host_source)
        task = self.builder.add(self.builder.stream(HOST), HOST)
        if blocking:
            self.last = [[task] for _ in self.devices]

    def operators(self, positions: Sequence[int], layer: int) -> None:
        """The given operators in order, on every device."""
        for position in positions:
            for device in self.devices:
                row = self.plan.row(position, device // self.plan.tp)
                self._compute(device, row, self.plan.operators[position].name, layer)

    def layer(self, layer: int, positions: Sequence[int]) -> None:
        """One decoder layer, the operators of which stand at `positions`."""
        names = [self.plan.operators[position].name for position in positions]
        ffn = names.index("ffn_norm")
        attention, feed_forward = positions[:ffn], positions[ffn:]
        self.operators(attention, layer)
        self.group_collective("all_reduce", layer)
        if isinstance(self.plan.model.layers[layer].ffn, MoE):
            self._moe(feed_forward, layer)
        else:
            self.operators(feed_forward, layer)
            self.group_collective("all_reduce", layer)

    def _moe(self, positions: Sequence[int], layer: int) -> None:
        routing, shared = positions[:3], positions[3:]  # norm, router and top_k come before anything is sent
        self.operators(routing, layer)
        if self.plan.dp == 1:
            self.operators(shared, layer)
            self._experts(layer)
            self.group_collective("all_reduce", layer)
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
        self.last = [[combined] for _ in self.devices]
        if self.collectives.communication.gathers:  # each device has the sums over its own shards
            self.group_collective("all_reduce", layer)
            return
        if shared:
            self.group_collective("reduce_scatter", layer)
        self.group_collective("all_gather", layer)

    def _experts(self, layer: int) -> None:
        for device in self.devices:
            row = self.plan.expert_row(self.moe_layer, device // self.plan.moe_tp)
            self._compute(device, row, EXPERTS, layer)

    def send(self) -> None:
        """The hidden states on their way to the next stage."""
        for device in self.devices:
            self.source.append(self.first_collective + self.collectives.send_row(device // self.plan.tp))
            number = self.first_device + device
            self.builder.add(self.network[device], SEND, NO_LAYER, number, after=self.last[device])

    def group_collective(self, kind: str, layer: int) -> None:
        """A collective within each tensor-parallel group; nothing for groups of one."""
        tp = self.plan.tp
        if tp == 1:
            return
        for rank in range(self.plan.dp):
            members = range(rank * tp, (rank + 1) * tp)
            row = self.first_collective + self.collectives.group_row(kind, rank)
            done = self._collective(members, [row] * tp, kind, layer)
            for device in members:
                self.last[device] = [done]

    def _all_to_all(self, kind: str, layer: int) -> int:
        first, row_of = self.first_collective, self.collectives.exchange_row
        rows = [first + row_of(kind, self.moe_layer, device) for device in self.devices]
        return self._collective(self.devices, rows, kind, layer)

    def _collective(self, members: Sequence[int], rows: Sequence[int], kind: str, layer: int) -> int:
        """A join on all members' producers, one task per member on its network stream, a second join."""
        ready = self._join(layer, dict.fromkeys(task for member in members for task in self.last[member]))
        sent = []
        for member, row in zip(members, rows, strict=True):
            self.source.append(row)
            sent.append(self.builder.add(self.network[member], kind, layer, self.first_device + member, after=[ready]))
        return self._join(layer, sent)
