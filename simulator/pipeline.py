"""One replica's hardware: its pipeline stages, through which every step passes in order."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.pool import Pool
from moesim.simulator.step_simulator import Routed, StepOutcome, StepSimulator
from moesim.workloads.models import Model
from moesim.workloads.routing import Router
from moesim.workloads.steps import Step


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The stages of one replica.

    Attributes:
        pool: the pool that the replica belongs to.
        stages: one simulator per pipeline stage.
        router: draws or replays the experts of tokens; None for a dense model.
    """

    pool: Pool
    stages: tuple[StepSimulator, ...]
    router: Router | None

    @classmethod
    def of(cls, pool: Pool, number: int, model: Model, router: Router | None, engine: str) -> "Pipeline":
        """Replica `number` of `pool`."""
        first = number * pool.parallelism.devices
        stages = tuple(_stage(pool, first, stage, model, engine) for stage in range(pool.parallelism.pp))
        return cls(pool, stages, router)

    def run(self, step: Step, repeats: int = 1) -> list[StepOutcome]:
        """Simulate `step` on every stage, each on its own clock, and add it, so many times, to their totals."""
        if self.router is None:
            return [stage.run(step, None, repeats) for stage in self.stages]
        tokens = step.tokens()
        routed = Routed(tokens, self.router.experts(tokens.request, tokens.position))
        if len(self.stages) == 1:
            return [self.stages[0].run(step, routed, repeats)]
        parts = zip(self.stages, self._moe_layers, strict=True)
        return [stage.run(step, routed.in_layers(part), repeats) for stage, part in parts]

    @cached_property
    def _moe_layers(self) -> list[slice]:
        """MoE layers of each stage, counted over the whole model."""
        counts = [len(stage.plan.experts.layers) if stage.plan.experts else 0 for stage in self.stages]
        ends = np.cumsum(counts).tolist()
        return [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]

    def imbalance(self, outcomes: list[StepOutcome]) -> float:
        """Busiest expert-parallel rank over the mean, averaged over MoE layers; 1 without any."""
        layers = [part.stop - part.start for part in self._moe_layers]
        total = sum(count * outcome.expert_imbalance for count, outcome in zip(layers, outcomes, strict=True))
        return total / sum(layers) if sum(layers) else 1.0

    @property
    def model(self) -> Model:
        """What the replica runs."""
        return self.stages[0].model

    @property
    def steps(self) -> int:
        """Steps played so far."""
        return self.stages[0].totals.steps

    @property
    def devices(self) -> list[int]:
        """Numbers of the replica's devices."""
        return [device for stage in self.stages for device in stage.devices]

    def expert_tokens(self) -> NDArray[np.int64]:
        """int64[phase, moe_layer, expert] so far, all MoE layers of the model."""
        parts = [stage.totals.expert_tokens for stage in self.stages if stage.plan.experts]
        return np.concatenate(parts, axis=1) if parts else self.stages[0].totals.expert_tokens


def _stage(pool: Pool, first_replica_device: int, stage: int, model: Model, engine: str) -> StepSimulator:
    layers = pool.parallelism.stage_layers(len(model.layers))[stage]
    return StepSimulator(
        model,
        pool.system,
        pool.parallelism,
        None if pool.placement is None else pool.placement.of_layers(model, layers),
        engine,
        pool.scheduler.host_overhead_s,
        pool.scheduler.async_host,
        pool.scheduler.communication,
        layers,
        first_replica_device + stage * pool.parallelism.stage_devices,
        pool.first_device,
    )
