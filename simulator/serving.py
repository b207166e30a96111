"""The serving loop: requests arrive, replicas batch them, steps take simulated time, every request is accounted.

SimPy keeps the clock of the outer world (arrivals, ends of steps, transfers of caches). Each step's graph is played on
its own clock from 0, and its makespan is added once, so a step's duration does not depend on when it happens.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.errors import StalledError
from moesim.simulator.cache_links import CacheLinks
from moesim.simulator.load_balancing import POLICIES, PolicyName
from moesim.simulator.memory import KvCache
from moesim.simulator.pipeline import Pipeline
from moesim.simulator.pool import KvTransfer, Pool
from moesim.simulator.replica import Passage, Replica
from moesim.simulator.request_states import RequestStates
from moesim.simulator.scheduler import RankScheduler
from moesim.simulator.serving_record import ServingRecord, StepMeasures
from moesim.workloads.requests import Requests
from moesim.workloads.steps import Step

Progress = Callable[[int], None]
"""Called with the number of finished requests, whenever it grows."""
Observer = Callable[[int, int, Passage], None]
"""Called when a step starts with its number, its replica's number and its passage."""
Ints = NDArray[np.int64]


@dataclass(eq=False)
class Rank:
    """A data-parallel rank as the router sees it."""

    number: int
    replica: Replica
    index: int  # within the replica
    scheduler: RankScheduler


@dataclass
class Group:
    """Ranks among which requests are dealt, and how many have been."""

    ranks: list[Rank]
    schedulers: list[RankScheduler]
    dealt: int = 0

    @classmethod
    def of(cls, ranks: list[Rank]) -> "Group":
        """None dealt yet."""
        return cls(ranks, [rank.scheduler for rank in ranks])


@dataclass
class ServingLoop:
    """Replicas serving a list of requests to the end.

    Args:
        requests: what arrives.
        pipelines: a pipeline per replica.
        load_balancing: how requests are dealt over the ranks of all replicas of a role.
        on_progress, on_step: observers.
        warmup_requests: so many are left out of the gaps between tokens.
        fast_forward: most decode steps of an unchanged batch for which one is played.
    """

    requests: Requests
    pipelines: Sequence[Pipeline]
    load_balancing: PolicyName = "least_outstanding"
    on_progress: Progress | None = None
    on_step: Observer | None = None
    warmup_requests: int = 0
    fast_forward: int = 1

    def run(self) -> ServingRecord:
        """Serve every request; returns when the last one has its last token.

        Raises:
            StalledError: requests wait for each other; a fault of the simulator.
        """
        self.env = simpy.Environment()
        self.states = RequestStates.of(self.requests)
        self.record = ServingRecord.of(self.states)
        self.ranks = self._build_ranks()
        self._ranks_of = [[rank for rank in self.ranks if rank.replica.number == n] for n in range(len(self.pipelines))]
        self._links = CacheLinks(self.env)
        self._transfers: dict[tuple[str, str], KvTransfer] = {}
        self.first = Group.of([rank for rank in self.ranks if rank.replica.pipeline.pool.role != "decode"])
        self.decoding = Group.of([rank for rank in self.ranks if rank.replica.pipeline.pool.role == "decode"])
        # Between clients and engines stands one front end, with the settings of the first pool that runs prompts.
        self._front_end = self.first.ranks[0].replica.pipeline.pool.scheduler
        self.policy = POLICIES[self.load_balancing]
        self.next_request = self.finished = 0
        self._on_their_way: list[float] = []  # heap of when those that will arrive next will be queued
        self._tokenised_s = 0.0  # when all that have arrived are tokens
        self._received_s = 0.0  # when clients have all tokens of steps that have ended
        concurrency = self.requests.concurrency
        self.env.process(self._open_loop() if concurrency is None else self._closed_loop(concurrency))
        self.env.run()
        if self.finished < len(self.requests):
            raise StalledError(f"{len(self.requests) - self.finished} of {len(self.requests)} requests wait for ever")
        return self.record

    def _build_ranks(self) -> list[Rank]:
        ranks: list[Rank] = []
        for number, pipeline in enumerate(self.pipelines):
            events = (self._next_arrival_s, self._note_start, self._complete, self._start_pull)
            replica = Replica(self.env, number, pipeline, self.states, self.fast_forward, *events)
            for index, scheduler in enumerate(replica.ranks):
                ranks.append(Rank(len(ranks), replica, index, scheduler))
        return ranks

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

    def _submit_next(self, count: int, arrival_s: float) -> None:
        """The next requests arrive, now or a little later."""
        last = min(self.next_request + count, len(self.requests))
        for request in range(self.next_request, last):
            self.record.arrival_s[request] = arrival_s
            self._tokenised_s, queued_s = self._times(request, arrival_s)
            if queued_s > self.env.now:
                heappush(self._on_their_way, queued_s)
                self.env.process(self._queue_later(request, queued_s - self.env.now))
            else:
                self._queue(request)
        self.next_request = last

    def _times(self, request: int, arrival_s: float) -> tuple[float, float]:
        """When a request will be tokens, behind those that came before it, and when it is queued."""
        tokenised_s = arrival_s
        if self._front_end.tokenise_s > 0:
            own_s = self._front_end.tokenise_s * float(self.requests.prompt_tokens[request])
            tokenised_s = max(arrival_s, self._tokenised_s) + own_s
        return tokenised_s, tokenised_s + self._front_end.request_host_s

    def _queue_later(self, request: int, delay_s: float) -> Generator[simpy.Event, None, None]:
        """Requests pass through other processes before the engine sees them."""
        yield self.env.timeout(delay_s)
        heappop(self._on_their_way)
        self._queue(request)

    def _queue(self, request: int) -> None:
        """The engine that will run its prompt sees a request."""
        rank = self._deal(request, self.first)
        self.record.prefill_replica[request] = rank.replica.number

    def _next_arrival_s(self) -> float:
        """When the next request is queued; infinite if that depends on completions."""
        if self._on_their_way:
            return self._on_their_way[0]
        if self.requests.concurrency is not None or self.next_request == len(self.requests):
            return np.inf
        return self._times(self.next_request, float(self.requests.arrival_s[self.next_request]))[1]

    def _deal(self, request: int, group: Group) -> Rank:
        """Send a request to one of the ranks of `group`."""
        rank = group.ranks[self.policy(group.schedulers, request, group.dealt)]
        group.dealt += 1
        self.states.rank[request] = rank.index
        self.record.replica[request] = rank.replica.number
        rank.scheduler.submit(request)
        rank.replica.wake()
        return rank

    # --- steps ---------------------------------------------------------------------------------------------------

    def _note_start(self, replica: Replica, passage: Passage, measured: StepMeasures) -> None:
        number = len(self.record.steps)
        self.record.note_step(replica.number, self.env.now, passage.step, measured)
        if self.on_step:
            self.on_step(number, replica.number, passage)

    def _complete(self, replica: Replica, passage: Passage) -> None:
        """Tokens appear at the end of the step that computed them, and reach clients a little later."""
        finished, step = 0, passage.step
        self._received_s = max(self._received_s, self.env.now + self._stream_s(step))
        for rank in self._ranks_of[replica.number]:
            mine = step.rank == rank.index
            if mine.any():
                finished += self._complete_rank(rank, step.request[mine], passage.repeats)
        if finished:
            self.finished += finished
            if self.requests.concurrency is not None:
                self._submit_next(finished, self._received_s)
            if self.on_progress:
                self.on_progress(self.finished)

    def _stream_s(self, step: Step) -> float:
        """From the end of a step until clients have its tokens."""
        token_s = self._front_end.stream_token_s
        return self._front_end.stream_s + (token_s * int(step.samples.sum()) if token_s > 0 else 0.0)

    def _complete_rank(self, rank: Rank, request: Ints, repeats: int) -> int:
        """Account a rank's part of a step, or of so many equal ones; returns how many requests are done."""
        sampled, finished, parked = rank.scheduler.complete(request, repeats)
        is_first = self.states.generated[sampled] == 1
        times_s = self.env.now, self._received_s
        self.record.note_tokens(sampled, is_first, times_s, self.warmup_requests, repeats)
        for one in parked.tolist():
            self.states.kv_rank[one] = rank.number
            self._deal(one, self.decoding)
        return len(finished)

    # --- caches on their way from prefill to decode --------------------------------------------------------------

    def _start_pull(self, replica: Replica, index: int, request: int) -> None:
        self.env.process(self._pull(self._ranks_of[replica.number][index], request))

    def _pull(self, rank: Rank, request: int) -> Generator[simpy.Event, None, None]:
        """Move a cache to `rank`; it stays where it was until all of it has moved."""
        source, tokens = self.ranks[int(self.states.kv_rank[request])], int(self.states.computed[request])
        transfer = self._transfer_between(source.replica.pipeline.pool, rank.replica.pipeline.pool)
        duration_s, energy_j = transfer.price(tokens)
        yield self._links.claim(source.number, rank.number)
        yield self.env.timeout(duration_s)
        self._links.free(source.number, rank.number)
        self.record.note_transfer(request, transfer.bytes(tokens), energy_j, self.env.now)
        source.scheduler.free_parked(request)
        source.replica.wake()
        rank.scheduler.pulled(request)
        rank.replica.wake()

    def _transfer_between(self, source: Pool, destination: Pool) -> KvTransfer:
        pair = source.name, destination.name
        if pair not in self._transfers:
            self._transfers[pair] = KvTransfer(source, destination, self._whole_cache(destination))
        return self._transfers[pair]

    def _whole_cache(self, pool: Pool) -> KvCache:
        """The cache of the whole model on one device, in the pool's blocks."""
        return KvCache.of(self.pipelines[0].model, 1, pool.scheduler.block_tokens)
