"""One replica serving: its ranks form steps together, its pipeline plays them, tokens appear when they end."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.simulator.pipeline import Pipeline
from moesim.simulator.pool import Pool
from moesim.simulator.scheduler import RankScheduler, RequestStates
from moesim.simulator.serving_record import StepMeasures
from moesim.simulator.step_simulator import StepOutcome
from moesim.workloads.steps import Step

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Passage:
    """A step on its way through the pipeline."""

    step: Step
    outcomes: list[StepOutcome]  # [stage]
    start_s: list[float]  # [stage]
    duration_s: float  # to the end of the last stage


@dataclass(eq=False)
class Replica:
    """One replica.

    Args:
        env: the clock.
        number: among all replicas.
        pipeline: its stages.
        states: of all requests.
        on_start: called with the replica, a step's passage and measures when the step starts.
        on_end: called with the replica and the step when its last stage ends.
        on_pull: called with the replica, the index of a rank and a request the cache of which the rank has room for.

    Attributes:
        ranks: schedulers of its data-parallel ranks.
    """

    env: simpy.Environment
    number: int
    pipeline: Pipeline
    states: RequestStates
    on_start: Callable[["Replica", Passage, StepMeasures], None]
    on_end: Callable[["Replica", Step], None]
    on_pull: Callable[["Replica", int, int], None]
    ranks: list[RankScheduler] = field(init=False)
    _idle: simpy.Event | None = field(default=None, init=False)
    _in_flight: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        pool = self.pipeline.pool
        self.ranks = [self._scheduler(pool) for _ in range(pool.parallelism.dp)]
        self._free_s = [0.0] * pool.parallelism.pp  # when each stage has done all it was given
        self.env.process(self._serve())

    def _scheduler(self, pool: Pool) -> RankScheduler:
        return RankScheduler(
            self.states,
            pool.scheduler,
            pool.cache,
            pool.memory.kv_bytes,
            stages=pool.parallelism.pp,
            parks=pool.role == "prefill",
            caches_prefixes=pool.role != "decode",
        )

    def wake(self) -> None:
        """There may be something to do again."""
        if self._idle is not None:
            idle, self._idle = self._idle, None
            idle.succeed()

    def _serve(self) -> Generator[simpy.Event, None, None]:
        """Form a step, play it, let its time pass; sleep while there is nothing to do or the pipeline is full."""
        stages = len(self._free_s)
        while True:
            step = self._form_step() if self._in_flight < stages else None
            if step is None:
                self._idle = self.env.event()
                yield self._idle
                continue
            passage = self._start(step)
            if stages == 1:
                yield self.env.timeout(passage.duration_s)
                self._end(step)
            else:
                self.env.process(self._end_later(passage))
                yield self.env.timeout(max(0.0, self._free_s[0] - self.env.now))

    def _end_later(self, passage: Passage) -> Generator[simpy.Event, None, None]:
        yield self.env.timeout(passage.duration_s)
        self._end(passage.step)
        self.wake()

    def _form_step(self) -> Step | None:
        """What every rank runs next, as one step; None if nothing does."""
        parts = [rank.schedule() for rank in self.ranks]
        for index, rank in enumerate(self.ranks):
            while rank.new_pulls:
                self.on_pull(self, index, rank.new_pulls.pop(0))
        request, context, tokens = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        if not len(request):
            return None
        states = self.states
        return Step(
            request=request,
            rank=states.rank[request],
            new_tokens=tokens,
            context=context,
            samples=context + tokens == states.prompt[request] + states.generated[request],
            prompt_tokens=states.prompt[request],
            seen_tokens=states.seen[request],
        )

    def _start(self, step: Step) -> Passage:
        """Play the step on all stages. Steps keep their order, so each stage's start is known at once."""
        waiting = sum(len(rank.waiting) for rank in self.ranks)
        used = max(1.0 - rank.free_bytes / rank.capacity_bytes for rank in self.ranks)
        outcomes = self.pipeline.run(step)
        passage = self._pass(step, outcomes)
        imbalance, energy_j = self.pipeline.imbalance(outcomes), sum(outcome.energy_j for outcome in outcomes)
        self._in_flight += 1
        self.on_start(self, passage, StepMeasures(passage.duration_s, waiting, used, imbalance, energy_j))
        return passage

    def _pass(self, step: Step, outcomes: list[StepOutcome]) -> Passage:
        """When each stage starts: when the one before has ended, and when it has done the step before."""
        start_s, ready_s = [], self.env.now
        for stage, outcome in enumerate(outcomes):
            start_s.append(max(ready_s, self._free_s[stage]))
            ready_s = self._free_s[stage] = start_s[-1] + outcome.makespan_s
        duration_s = outcomes[0].makespan_s if len(outcomes) == 1 else ready_s - self.env.now
        return Passage(step, outcomes, start_s, duration_s)

    def _end(self, step: Step) -> None:
        self._in_flight -= 1
        self.on_end(self, step)
