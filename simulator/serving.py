"""The serving loop: requests arrive, ranks batch them, steps take simulated time, every request is accounted.

SimPy keeps the clock of the outer world (arrivals, ends of steps). Each step's graph is played on its own clock from
0, and its makespan is added once, so a step's duration does not depend on when it happens.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.simulator.growing import GrowingTable
from moesim.simulator.memory import KvCache
from moesim.simulator.scheduler import RankScheduler, RequestStates, SchedulerSettings
from moesim.simulator.step_simulator import StepOutcome, StepSimulator
from moesim.workloads.requests import Requests
from moesim.workloads.steps import Step

Progress = Callable[[int], None]
"""Called with the number of finished requests, whenever it grows."""
Observer = Callable[[int, float, StepOutcome], None]
"""Called after every step with its number, its start in seconds and its outcome."""

STEP_COLUMNS = (
    "start_s",
    "duration_s",
    "sequences",
    "prefill_tokens",
    "decode_tokens",
    "waiting",
    "kv_used_fraction",
    "expert_imbalance",
    "energy_j",
)


@dataclass
class ServingRecord:
    """What the loop wrote down."""

    arrival_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    last_token_s: NDArray[np.float64]
    rank: NDArray[np.int64]
    preemptions: NDArray[np.int64]
    prefix_hits: NDArray[np.int64]  # prompt tokens found in the cache
    largest_gap_s: NDArray[np.float64]  # longest wait between two tokens of the request
    steps: GrowingTable  # STEP_COLUMNS
    gaps: GrowingTable  # waits between tokens after the warm-up: `gap_s`, and how many waits were exactly that long


@dataclass
class ServingLoop:
    """One replica serving a list of requests to the end."""

    requests: Requests
    simulator: StepSimulator
    settings: SchedulerSettings
    cache: KvCache
    kv_bytes: float
    on_progress: Progress | None = None
    on_step: Observer | None = None
    warmup_requests: int = 0
    _idle: simpy.Event | None = field(default=None, init=False)

    def run(self) -> ServingRecord:
        """Serve every request; returns when the last one has its last token."""
        self.env = simpy.Environment()
        self.states = RequestStates.of(self.requests)
        ranks = range(self.simulator.parallelism.dp)
        self.ranks = [RankScheduler(self.states, self.settings, self.cache, self.kv_bytes) for _ in ranks]
        self.record = _empty_record(self.requests, self.states)
        self.next_request = self.finished = 0
        concurrency = self.requests.concurrency
        self.env.process(self._open_loop() if concurrency is None else self._closed_loop(concurrency))
        self.env.process(self._serve())
        self.env.run()
        return self.record

    # --- arrivals ------------------------------------------------------------------------------------------------

    def _open_loop(self) -> Generator[simpy.Event, None, None]:
        """Requests arrive when the trace says so; those of one instant arrive together."""
        arrival_s = self.requests.arrival_s
        while self.next_request < len(arrival_s):
            due_s = arrival_s[self.next_request]
            yield self.env.timeout(due_s - self.env.now)
            self._submit_next(int(np.searchsorted(arrival_s, due_s, side="right")) - self.next_request, due_s)

    def _closed_loop(self, concurrency: int) -> Generator[simpy.Event, None, None]:
        """`concurrency` requests at time 0; each completion brings the next (see `_complete`)."""
        yield self.env.timeout(0.0)
        self._submit_next(concurrency, 0.0)

    def _submit_next(self, count: int, now_s: float) -> None:
        """The next requests arrive, each on the rank with the fewest outstanding."""
        last = min(self.next_request + count, len(self.requests))
        for request in range(self.next_request, last):
            self.record.arrival_s[request] = now_s
            rank = min(range(len(self.ranks)), key=lambda index: (self.ranks[index].outstanding, index))
            self.states.rank[request] = rank
            self.ranks[rank].submit(request)
        self.next_request = last
        if self._idle is not None:
            idle, self._idle = self._idle, None
            idle.succeed()

    # --- steps ---------------------------------------------------------------------------------------------------

    def _serve(self) -> Generator[simpy.Event, None, None]:
        """Form a step, play it, let its time pass, account it; sleep while there is nothing to do."""
        while True:
            step = self._form_step()
            if not len(step):
                self._idle = self.env.event()
                yield self._idle
                continue
            start_s, waiting = self.env.now, sum(len(rank.waiting) for rank in self.ranks)
            used = self._kv_used_fraction()
            outcome = self.simulator.run(step)
            self._note_step(start_s, step, outcome, waiting, used)
            yield self.env.timeout(outcome.makespan_s)
            self._complete(step)

    def _form_step(self) -> Step:
        """What every rank runs next, as one step."""
        parts = [rank.schedule() for rank in self.ranks]
        request = np.concatenate([ids for ids, _ in parts])
        tokens = np.concatenate([counts for _, counts in parts])
        states = self.states
        context = states.computed[request]
        known = states.prompt[request] + states.generated[request]
        return Step(
            request=request,
            rank=states.rank[request],
            new_tokens=tokens,
            context=context,
            samples=context + tokens == known,
            prompt_tokens=states.prompt[request],
            seen_tokens=states.seen[request],
        )

    def _complete(self, step: Step) -> None:
        """Tokens appear at the end of the step that computed them."""
        finished = 0
        for number, rank in enumerate(self.ranks):
            mine = step.rank == number
            if mine.any():
                sampled, done = rank.complete(step.request[mine], step.new_tokens[mine])
                self._note_tokens(sampled)
                finished += len(done)
        if finished:
            self.finished += finished
            if self.requests.concurrency is not None:
                self._submit_next(finished, self.env.now)
            if self.on_progress:
                self.on_progress(self.finished)

    # --- notes ---------------------------------------------------------------------------------------------------

    def _note_tokens(self, sampled: NDArray[np.int64]) -> None:
        record, now_s = self.record, self.env.now
        is_first = self.states.generated[sampled] == 1
        record.first_token_s[sampled[is_first]] = now_s
        later = sampled[~is_first]
        gap_s = now_s - record.last_token_s[later]
        # Sequences that decode step after step wait equally long, so a step has a handful of different gaps.
        measured_s = gap_s[later >= self.warmup_requests]
        if len(measured_s) and measured_s.min() == measured_s.max():  # nearly always, and np.unique takes long
            record.gaps.append((measured_s[0], len(measured_s)))
        else:
            for value, count in zip(*np.unique(measured_s, return_counts=True), strict=True):
                record.gaps.append((value, count))
        record.largest_gap_s[later] = np.maximum(record.largest_gap_s[later], gap_s)
        record.last_token_s[sampled] = now_s

    def _note_step(self, start_s: float, step: Step, outcome: StepOutcome, waiting: int, used: float) -> None:
        decodes = int(step.decodes.sum())
        values = (
            start_s,
            outcome.makespan_s,
            len(step),
            int(step.new_tokens.sum()) - decodes,
            decodes,
            waiting,
            used,
            outcome.expert_imbalance,
            outcome.energy_j,
        )
        self.record.steps.append(values)
        if self.on_step:
            self.on_step(len(self.record.steps) - 1, start_s, outcome)

    def _kv_used_fraction(self) -> float:
        """Of the fullest rank."""
        return max(1.0 - rank.free_bytes / rank.capacity_bytes for rank in self.ranks)


def _empty_record(requests: Requests, states: RequestStates) -> ServingRecord:
    n = len(requests)
    return ServingRecord(
        arrival_s=np.full(n, np.nan),
        first_token_s=np.full(n, np.nan),
        last_token_s=np.full(n, np.nan),
        rank=states.rank,
        preemptions=states.preemptions,
        prefix_hits=states.prefix_hits,
        largest_gap_s=np.zeros(n),
        steps=GrowingTable(STEP_COLUMNS),
        gaps=GrowingTable(("gap_s", "count")),
    )
