"""What the serving loop writes down: when every request got its tokens, and what every step was."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.growing import GrowingTable
from moesim.simulator.request_states import RequestStates
from moesim.workloads.steps import Step

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STEP_COLUMNS = (
    "replica",
    "start_s",
    "duration_s",
    "repeats",
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
    """A run, written down while it goes on."""

    arrival_s: Floats
    first_token_s: Floats  # end of the step that gave it
    last_token_s: Floats
    first_received_s: Floats  # when the client had it
    last_received_s: Floats
    replica: Ints  # that of the last token
    queued_s: Floats  # when an engine saw it
    rank: Ints  # within the replica
    prefill_replica: Ints  # that of the first token
    kv_arrival_s: Floats  # when the rank that decodes had the cache; NaN if the prompt was computed there
    kv_bytes: Floats  # bytes of cache that moved between ranks
    kv_transfer_j: float
    preemptions: Ints
    prefix_hits: Ints  # prompt tokens found in the cache
    largest_gap_s: Floats  # longest wait between two tokens of the request
    steps: GrowingTable  # STEP_COLUMNS
    gaps: GrowingTable  # waits between tokens after the warm-up: `gap_s`, and how many waits were exactly that long

    @classmethod
    def of(cls, states: RequestStates) -> Self:
        """Nothing has happened yet."""
        n = len(states.prompt)
        return cls(
            arrival_s=np.full(n, np.nan),
            first_token_s=np.full(n, np.nan),
            last_token_s=np.full(n, np.nan),
            first_received_s=np.full(n, np.nan),
            last_received_s=np.full(n, np.nan),
            replica=np.full(n, -1, dtype=np.int64),
            queued_s=states.queued_s,
            rank=states.rank,
            prefill_replica=np.full(n, -1, dtype=np.int64),
            kv_arrival_s=np.full(n, np.nan),
            kv_bytes=np.zeros(n),
            kv_transfer_j=0.0,
            preemptions=states.preemptions,
            prefix_hits=states.prefix_hits,
            largest_gap_s=np.zeros(n),
            steps=GrowingTable(STEP_COLUMNS),
            gaps=GrowingTable(("gap_s", "count")),
        )

    @property
    def duration_s(self) -> float:
        """First arrival until clients have every token."""
        return float(self.last_received_s.max() - self.arrival_s.min())

    def note_tokens(
        self,
        sampled: Ints,
        is_first: NDArray[np.bool_],
        times_s: tuple[float, float],
        warmup_requests: int,
        repeats: int,
    ) -> None:
        """New output tokens of the requests `sampled`, so many of each, of some of them the first.

        `times_s` is when the engine gives them, and when clients have them.
        """
        now_s, received_s = times_s
        self.first_token_s[sampled[is_first]] = now_s
        self.first_received_s[sampled[is_first]] = received_s
        later = sampled[~is_first]
        gap_s = (received_s - self.last_received_s[later]) / repeats
        self._note_gaps(gap_s[later >= warmup_requests], repeats)
        self.largest_gap_s[later] = np.maximum(self.largest_gap_s[later], gap_s)
        self.last_token_s[sampled] = now_s
        self.last_received_s[sampled] = received_s

    def _note_gaps(self, gap_s: Floats, repeats: int) -> None:
        """Sequences that decode step after step wait equally long, so a step has a handful of different gaps."""
        if len(gap_s) and gap_s.min() == gap_s.max():  # nearly always, and np.unique takes long
            self.gaps.append((gap_s[0], repeats * len(gap_s)))
        else:
            for value, count in zip(*np.unique(gap_s, return_counts=True), strict=True):
                self.gaps.append((value, repeats * count))

    def note_transfer(self, request: int, nbytes: float, energy_j: float, now_s: float) -> None:
        """The cache of a request has moved to the rank that decodes it."""
        self.kv_arrival_s[request] = now_s
        self.kv_bytes[request] += nbytes
        self.kv_transfer_j += energy_j

    def note_step(self, replica: int, start_s: float, step: Step, measured: "StepMeasures") -> None:
        """A step that began, and stands for as many as `measured` says."""
        fed_back = step.context >= step.prompt_tokens  # the last chunk of a prompt may be one token, too
        decodes = int((step.decodes & fed_back).sum())
        self.steps.append(
            (
                replica,
                start_s,
                measured.duration_s,
                measured.repeats,
                len(step),
                int(step.new_tokens.sum()) - decodes,
                decodes,
                measured.waiting,
                measured.kv_used_fraction,
                measured.expert_imbalance,
                measured.energy_j,
            )
        )


@dataclass(frozen=True)
class StepMeasures:
    """What is known of a step beside its sequences."""

    repeats: int  # equal steps that this one stands for; of the first for which tokens and sequences are counted
    duration_s: float  # of all of them, from its start to the end of its last stage, waits between stages included
    waiting: int  # requests in the queues of the replica
    kv_used_fraction: float  # of the fullest rank
    expert_imbalance: float  # busiest expert-parallel rank over the mean, averaged over MoE layers; 1 if none
    energy_j: float
