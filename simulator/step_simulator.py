"""One step from sequences to seconds on one pipeline stage: lower, price, play, and add up where the time went."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.system import System
from moesim.simulator.collectives import CollectivePlan
from moesim.simulator.engines import get_engine
from moesim.simulator.expert_exchange import Traffic
from moesim.simulator.graph import TaskGraph, Timeline
from moesim.simulator.parallelism import Parallelism
from moesim.simulator.placement import Placement
from moesim.simulator.scheduler import SchedulerSettings, TimedKind
from moesim.simulator.step_graph import HOST, build_step_graph
from moesim.workloads.models import Model
from moesim.workloads.operator_parts import Operator
from moesim.workloads.operator_plan import OperatorPlan
from moesim.workloads.operator_table import OperatorTable
from moesim.workloads.steps import PHASES, Step, StepTokens


class Routed(NamedTuple):
    """A step's tokens and the experts that they use."""

    tokens: StepTokens
    experts: NDArray[np.uint16]  # [token, moe_layer, k]

    def in_layers(self, moe_layers: slice) -> "Routed":
        """The same tokens in some of the MoE layers."""
        return Routed(self.tokens, self.experts[:, moe_layers])


@dataclass(frozen=True)
class StepOutcome:
    """What one step took on one stage."""

    makespan_s: float
    energy_j: float  # dynamic energy of all devices and links
    expert_imbalance: float  # busiest expert-parallel rank over the mean, averaged over MoE layers; 1 if none
    graph: TaskGraph
    timeline: Timeline


@dataclass
class Totals:
    """Sums over all steps, by row of the cost vector (operators, collectives, host, joins)."""

    time_s: NDArray[np.float64]  # busy time
    elapsed_s: NDArray[np.float64]  # as `time_s`, but an operator that two processors share counts its longer part once
    energy_j: NDArray[np.float64]
    flops: NDArray[np.float64]
    bytes: NDArray[np.float64]
    extrapolated_s: NDArray[np.float64]  # part of `time_s` that was priced outside a fitted range
    expert_tokens: NDArray[np.int64]  # [phase, moe_layer, expert]
    waiting_j: float = 0.0  # active power of devices while they communicate or wait for each other
    steps: int = 0

    @classmethod
    def zero(cls, rows: int, expert_tokens: NDArray[np.int64]) -> "Totals":
        """Nothing summed up yet."""
        zeros = np.zeros((6, rows))
        return cls(zeros[0], zeros[1], zeros[2], zeros[3], zeros[4], zeros[5], expert_tokens)


@dataclass
class StepSimulator:
    """Plays the steps of one pipeline stage.

    Attributes:
        placement: experts of the stage's MoE layers; None if it has none.
        layers: the stage's layers.
        first_device: number of the stage's first device among those of its system.
        device_offset: what is added to it in names and results, where there are several systems.
        totals: sums over the steps played so far.
        names: what each row of the cost vector is, such as "qkv" or "dispatch".
        host: what the host does.
        host_rows: positions of the host's times in the cost vector.
        tasks_per_row: int64[row], tasks of the step graph that each row of the cost vector prices.
        launches: operators and collectives that a step runs on each of the stage's devices.
    """

    model: Model
    system: System
    parallelism: Parallelism
    placement: Placement | None
    engine: str
    settings: SchedulerSettings
    layers: range
    first_device: int = 0
    device_offset: int = 0
    totals: Totals = field(init=False)

    def __post_init__(self) -> None:
        p = self.parallelism
        slots = self.placement.slots_per_rank if self.placement else None
        self.host = self.settings.host
        foreign = self.settings.foreign_share(p.dp)
        cut = {"tp": p.tp, "dp": p.dp, "ep": p.ep}
        self.plan = OperatorPlan(self.model, **cut, slots=slots, layers=self.layers, foreign_share=foreign)
        self.collectives = CollectivePlan(
            self.plan, self.system.devices_per_node, self.settings.communication, self.first_device
        )
        self.processors = tuple(self.system.device.processors)
        self.step_graph = build_step_graph(
            self.plan,
            self.collectives,
            self.processors,
            host=self.host,
            first_device=self.device_offset + self.first_device,
        )
        self._run = get_engine(self.engine)
        self.names = self._row_names()
        self.host_rows = slice(len(self.names) - 3, len(self.names) - 1)
        self._scale = self._time_scale()
        self.tasks_per_row = np.bincount(self.step_graph.source, minlength=len(self.names))
        graph = self.step_graph.graph
        self.launches = int(np.count_nonzero((graph.device == self.devices[0]) & (graph.stream >= 0)))
        rows = len(self.names)
        experts = (len(self.plan.experts.layers), self.plan.experts.block.experts) if self.plan.experts else (0, 0)
        counts = np.zeros((len(PHASES), *experts), dtype=np.int64)
        self.totals = Totals.zero(rows, counts)
        if self.placement and self.plan.experts:
            self._replicas = self.placement.replicas(self.plan.experts.block.experts)

    def _row_names(self) -> list[str]:
        operators = [operator.name for operator in self.plan.operators] * self.plan.dp
        experts = ["experts"] * (self.plan.rows - len(operators))
        return [*(operators + experts) * len(self.processors), *self.collectives.names, HOST, HOST, "join"]

    def _time_scale(self) -> NDArray[np.float64]:
        """float64[row of the cost vector]: the calibrated factor of each operator and collective."""
        kinds: list[TimedKind] = [_kind(operator) for operator in self.plan.operators]
        kinds = kinds * self.plan.dp + ["experts"] * (self.plan.rows - len(kinds) * self.plan.dp)
        kinds = kinds * len(self.processors) + ["communication"] * self.collectives.rows
        return np.array([self.settings.time_scale.get(kind, 1.0) for kind in kinds])

    def kind_of(self, name: str) -> TimedKind:
        """What kind of operator or collective `name` is, as time scales tell them apart."""
        if name in self.collectives.names:
            return "communication"
        operator = next((operator for operator in self.plan.operators if operator.name == name), None)
        return "experts" if operator is None else _kind(operator)

    def _host_s(self, step: Step) -> tuple[float, float]:
        """Host time before and beside the devices: on the first stage, 0 on the others."""
        if not self.plan.before:
            return 0.0, 0.0
        has_prompts = not step.decodes.all()
        beside_s = self.host.beside_s(self.launches, has_prompts=has_prompts)
        return self.host.blocking_s(step.longest_batch, has_prompts=has_prompts), beside_s

    @property
    def devices(self) -> range:
        """Numbers of the stage's devices."""
        first = self.device_offset + self.first_device
        return range(first, first + self.parallelism.stage_devices)

    def run(self, step: Step, routed: Routed | None, repeats: int = 1) -> StepOutcome:
        """Simulate `step` on its own clock and add it to the totals.

        Args:
            step: the sequences.
            routed: their tokens and the experts of those in the stage's MoE layers; None for a dense model.
            repeats: so many equal steps are added.
        """
        slot_tokens, traffic = self._dispatch(routed, repeats)
        features = self.plan.features(step)
        table = self.plan.lower_features(features, slot_tokens)
        costs = self.system.device.price(table)
        links = self.system.interconnect.price(self.collectives.table(features, traffic, slot_tokens))
        prices = (*costs, links)
        host_s = self._host_s(step)
        scale = self._scale if step.decodes.all() else self._scale * self.settings.time_scale.get("prompts", 1.0)
        time_s = np.concatenate([np.concatenate([price.time_s for price in prices]) * scale, (*host_s, 0.0)])
        graph = self.step_graph.graph.with_durations(time_s[self.step_graph.source])
        timeline = self._run(graph)
        energy_j = np.concatenate([*(price.energy_j for price in prices), np.zeros(3)])
        extrapolated = np.concatenate([*(price.extrapolated for price in prices), np.zeros(3, np.bool_)])
        elapsed_s = self._elapsed(time_s)
        self._account(repeats, time_s, elapsed_s, energy_j, extrapolated, table)
        waiting_j = self._waiting_j(elapsed_s, timeline, host_s[0])
        self.totals.waiting_j += repeats * waiting_j
        step_energy_j, imbalance = float(energy_j @ self.tasks_per_row) + waiting_j, _imbalance(slot_tokens, self.plan)
        return StepOutcome(timeline.makespan_s, step_energy_j, imbalance, graph, timeline)

    def stated_errors(self) -> NDArray[np.float64]:
        """float64[row of the cost vector]: errors that calibrations state of the prices; NaN where they state none."""
        nobody = np.zeros(0, np.int64)
        step = Step(nobody, nobody, nobody, nobody, np.zeros(0, np.bool_), nobody, nobody)
        features = self.plan.features(step)
        slots = None if self.placement is None else np.zeros(self.placement.slots.shape, np.int64)
        if slots is None:
            none = np.zeros((0, 0, 0), np.int64)
            traffic = Traffic(none, none)
        else:
            traffic = self._no_traffic(len(slots))
        operators = self.system.device.stated_errors(self.plan.lower_features(features, slots))
        links = self.system.interconnect.stated_errors(self.collectives.table(features, traffic, slots))
        others = np.full(len(self.names) - self.host_rows.start, np.nan)
        return np.concatenate([*operators, links, others])

    def _dispatch(self, routed: Routed | None, repeats: int) -> tuple[NDArray[np.int64] | None, Traffic]:
        """Tokens of each expert slot, and what devices have to send each other for them."""
        none = np.zeros((0, 0, 0), dtype=np.int64)
        if self.placement is None or routed is None:
            return None, Traffic(none, none)
        from moesim.simulator.dispatch import count_tokens  # numba, only for MoE

        tokens, chosen = routed
        slot_tokens = np.zeros(self.placement.slots.shape, dtype=np.int64)
        traffic = self._no_traffic(len(slot_tokens))
        # A tensor-parallel group holds every token on all its devices, so its members share the sending out.
        source = (tokens.rank * self.plan.tp + np.arange(len(tokens.rank)) % self.plan.tp).astype(np.int32)
        per_rank, nodes = self.placement.slots_per_rank, self.collectives.rank_nodes
        expert_tokens = np.zeros_like(self.totals.expert_tokens)
        counts = (expert_tokens, slot_tokens, *traffic)
        count_tokens(chosen, tokens.phase, source, *self._replicas, per_rank, nodes, *counts)
        self.totals.expert_tokens += repeats * expert_tokens
        return slot_tokens, traffic

    def _no_traffic(self, layers: int) -> Traffic:
        devices, nodes = self.plan.dp * self.plan.tp, int(self.collectives.node[-1]) + 1
        to_ranks = np.zeros((layers, devices, self.plan.ep), dtype=np.int64)
        return Traffic(to_ranks, np.zeros((layers, devices, nodes), dtype=np.int64))

    def _account(
        self,
        repeats: int,
        time_s: NDArray[np.float64],
        elapsed_s: NDArray[np.float64],
        energy_j: NDArray[np.float64],
        extrapolated: NDArray[np.bool_],
        table: OperatorTable,
    ) -> None:
        totals, rows = self.totals, len(table)
        totals.time_s += repeats * time_s
        totals.elapsed_s += repeats * elapsed_s
        totals.energy_j += repeats * energy_j
        totals.flops[:rows] += repeats * table.flops
        totals.bytes[:rows] += repeats * (table.weight_bytes_read + table.read_bytes + table.write_bytes)
        totals.extrapolated_s += np.where(extrapolated, repeats * time_s, 0.0)
        totals.steps += repeats

    def _elapsed(self, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """The cost vector with each operator's longest part under the first processor, and nothing under the others."""
        count, rows = len(self.processors), self.plan.rows
        if count == 1:
            return time_s
        elapsed = time_s.copy()
        elapsed[: count * rows] = 0.0
        elapsed[:rows] = time_s[: count * rows].reshape(count, rows).max(axis=0)
        return elapsed

    def _waiting_j(self, elapsed_s: NDArray[np.float64], timeline: Timeline, blocking_s: float) -> float:
        """Active energy of devices that compute nothing: collectives are kernels that poll, and so is waiting in them.

        Prices of operators hold their own active energy. While only the host works, devices are idle.
        """
        rows, devices = self.plan.rows, self.plan.dp * self.plan.tp
        computing_s = elapsed_s[:rows] @ self.tasks_per_row[:rows]
        first_on_device = self.host.tasks if self.plan.before else 0  # those of the host come first
        end_s = timeline.finish_s[first_on_device:].max()
        at_work_s = float(end_s) - blocking_s
        return self.system.device.active_w * max(0.0, devices * at_work_s - float(computing_s))


def _kind(operator: Operator) -> TimedKind:
    if operator.name == "attention":
        return "attention"
    return "dense" if operator.k and operator.n else "other"


def _imbalance(slot_tokens: NDArray[np.int64] | None, plan: OperatorPlan) -> float:
    """Tokens of the busiest expert-parallel rank over the mean rank, averaged over MoE layers."""
    if slot_tokens is None or not slot_tokens.size:
        return 1.0
    ranks = slot_tokens.reshape(len(slot_tokens), plan.ep, -1).sum(axis=2)
    return float((ranks.max(axis=1) / ranks.mean(axis=1)).mean())
