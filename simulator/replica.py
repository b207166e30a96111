"""One replica serving: its ranks form steps together, its pipeline plays them, tokens appear when they end."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.simulator.pipeline import Pipeline
from moesim.simulator.pool import Pool
from moesim.simulator.request_states import RequestStates, Scheduled
from moesim.simulator.scheduler import RankScheduler
from moesim.simulator.serving_record import StepMeasures
from moesim.simulator.step_simulator import StepOutcome
from moesim.workloads.steps import Step

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Passage:
    """A step on its way through the pipeline."""

    step: Step
    repeats: int  # equal steps that it stands for
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
        fast_forward: most decode steps of an unchanged batch for which one is played.
        next_arrival_s: when the next request arrives, as far as is known.
        on_start: called with the replica, a step's passage and measures when the step starts.
        on_end: called with the replica and the passage when its last stage ends.
        on_pull: called with the replica, the index of a rank and a request the cache of which the rank has room for.

    Attributes:
        ranks: schedulers of its data-parallel ranks.
    """

    env: simpy.Environment
    number: int
    pipeline: Pipeline
    states: RequestStates
    fast_forward: int
    next_arrival_s: Callable[[], float]
    on_start: Callable[["Replica", Passage, StepMeasures], None]
    on_end: Callable[["Replica", Passage], None]
    on_pull: Callable[["Replica", int, int], None]
    ranks: list[RankScheduler] = field(init=False)
    _idle: simpy.Event | None = field(default=None, init=False)
    _in_flight: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        pool = self.pipeline.pool
        self.ranks = [self._scheduler(pool) for _ in range(pool.parallelism.dp)]
        self._last_s = 0.0  # what the last step took
        self._held_steps = 0  # steps since prompts could start
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
            caches_prefixes=pool.caches_prefixes,
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
            passage = self._start_step() if self._in_flight < stages else None
            if passage is None:
                self._idle = self.env.event()
                yield self._idle
            elif stages == 1:
                yield self.env.timeout(passage.duration_s)
                self._end(passage)
            else:
                self.env.process(self._end_later(passage))
                yield self.env.timeout(max(0.0, self._free_s[0] - self.env.now))

    def _end_later(self, passage: Passage) -> Generator[simpy.Event, None, None]:
        yield self.env.timeout(passage.duration_s)
        self._end(passage)
        self.wake()

    def _start_step(self) -> Passage | None:
        """Form a step of what every rank runs next and play it; None if nothing runs."""
        parts = self._schedule()
        for index, rank in enumerate(self.ranks):
            while rank.new_pulls:
                self.on_pull(self, index, rank.new_pulls.pop(0))
        if not any(len(part.request) for part in parts):
            return None
        waiting = sum(len(rank.waiting) for rank in self.ranks)
        used = max(1.0 - rank.free_bytes / rank.capacity_bytes for rank in self.ranks)
        repeats = self._repeat(parts) if self.fast_forward > 1 else 1
        return self._play(self._step(parts, repeats), repeats, waiting, used)

    def _schedule(self) -> list[Scheduled]:
        """What every rank runs next. A host that works ahead knows what has just happened in the step after only."""
        if not self.pipeline.pool.scheduler.async_host:
            self._catch_up()
            return self._scheduled()
        parts = self._scheduled()
        self._catch_up()
        if not any(len(part.request) for part in parts):
            parts = [rank.schedule() for rank in self.ranks]
        return parts

    def _catch_up(self) -> None:
        queued = [request for rank in self.ranks for request in rank.catch_up()]
        if queued:
            self.states.queued_s[queued] = np.fmin(self.states.queued_s[queued], self.env.now)

    def _scheduled(self) -> list[Scheduled]:
        admits = self._admits()
        return [rank.schedule(admits=admits) for rank in self.ranks]

    def _admits(self) -> bool:
        """Whether prompts may start: if all ranks have one, if some rank has nothing to decode, or after some steps."""
        limit = self._balance_steps
        self._held_steps += 1
        admits = self._held_steps >= limit or all(rank.could_start for rank in self.ranks)
        if admits or not all(len(rank.running) for rank in self.ranks):
            self._held_steps = 0
            return True
        return False

    @property
    def _balance_steps(self) -> int:
        return self.pipeline.pool.scheduler.balance_steps if len(self.ranks) > 1 else 0

    def _repeat(self, parts: Sequence[Scheduled]) -> int:
        """Schedule the same step as often as nothing changes, up to `fast_forward`; returns how often."""
        if len(self._free_s) > 1:
            return 1
        most = self.fast_forward
        if self._last_s > 0:  # steps that begin before the next request arrives, if they take as long as the last one
            most = int(min(most, max(1.0, np.ceil((self.next_arrival_s() - self.env.now) / self._last_s))))
        if self._balance_steps:  # the next time that prompts may start without all ranks having one
            most = max(1, min(most, self._balance_steps - self._held_steps))
        repeats = min(rank.repeats(part, most) for rank, part in zip(self.ranks, parts, strict=True))
        if repeats > 1:
            self._held_steps += repeats - 1
            for rank, part in zip(self.ranks, parts, strict=True):
                rank.repeat(part, repeats)
        return repeats

    def _step(self, parts: Sequence[Scheduled], repeats: int) -> Step:
        """What the ranks run as one step; of several equal ones the middle one, where contexts are the mean."""
        request, context, tokens = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        states = self.states
        return Step(
            request=request,
            rank=states.rank[request],
            new_tokens=tokens,
            context=context + (repeats - 1) // 2,
            samples=context + tokens == states.prompt[request] + states.generated[request],
            prompt_tokens=states.prompt[request],
            seen_tokens=states.seen[request],
        )

    def _play(self, step: Step, repeats: int, waiting: int, used: float) -> Passage:
        """Play the step on all stages. Steps keep their order, so each stage's start is known at once."""
        outcomes = self.pipeline.run(step, repeats)
        passage = self._pass(step, repeats, outcomes)
        imbalance, energy_j = self.pipeline.imbalance(outcomes), sum(outcome.energy_j for outcome in outcomes)
        measured = StepMeasures(repeats, passage.duration_s, waiting, used, imbalance, repeats * energy_j)
        self._in_flight += 1
        self.on_start(self, passage, measured)
        return passage

    def _pass(self, step: Step, repeats: int, outcomes: list[StepOutcome]) -> Passage:
        """When each stage starts: when the one before has ended, and when it has done the step before."""
        start_s, ready_s = [], self.env.now
        for stage, outcome in enumerate(outcomes):
            start_s.append(max(ready_s, self._free_s[stage]))
            ready_s = self._free_s[stage] = start_s[-1] + outcome.makespan_s
        self._last_s = outcomes[0].makespan_s
        duration_s = repeats * self._last_s if len(outcomes) == 1 else ready_s - self.env.now
        return Passage(step, repeats, outcomes, start_s, duration_s)

    def _end(self, passage: Passage) -> None:
        self._in_flight -= 1
        self.on_end(self, passage)
