"""What changes about requests while they are served, and what a rank says of a step: column by column."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.workloads.prefix_blocks import PrefixBlocks
from moesim.workloads.requests import Requests

Indices = NDArray[np.int64]


@dataclass
class RequestStates:
    """Everything that changes about the requests, column by column: [request]."""

    prompt: Indices
    output: Indices
    computed: Indices  # tokens in the KV cache
    generated: Indices  # output tokens so far
    seen: Indices  # tokens that were in the cache before a preemption
    held_bytes: NDArray[np.float64]
    queued_s: NDArray[np.float64]  # when the engine saw it first; NaN before
    rank: Indices
    preemptions: Indices
    prefix_hits: Indices  # prompt tokens that were found in the cache and never computed
    prefix: PrefixBlocks | None
    full_blocks: list[list[int]]  # [request][block] hashes; empty without `prefix`
    in_flight: Indices  # steps that hold tokens of the request and have not ended
    kv_rank: Indices  # number of the rank that holds the cache which the request's next rank has to pull; -1 if none

    @classmethod
    def of(cls, requests: Requests) -> "RequestStates":
        """All requests before they arrive."""
        n = len(requests)
        return cls(
            prompt=requests.prompt_tokens,
            output=requests.output_tokens,
            computed=np.zeros(n, dtype=np.int64),
            generated=np.zeros(n, dtype=np.int64),
            seen=np.zeros(n, dtype=np.int64),
            held_bytes=np.zeros(n),
            queued_s=np.full(n, np.nan),
            rank=np.full(n, -1, dtype=np.int64),
            preemptions=np.zeros(n, dtype=np.int64),
            prefix_hits=np.zeros(n, dtype=np.int64),
            prefix=requests.prefix,
            in_flight=np.zeros(n, dtype=np.int64),
            kv_rank=np.full(n, -1, dtype=np.int64),
            full_blocks=[] if requests.prefix is None else requests.prefix.full_blocks(requests.prompt_tokens),
        )


class Scheduled(NamedTuple):
    """What a rank runs in a step: int64[sequence] each."""

    request: Indices
    context: Indices  # tokens computed before
    new_tokens: Indices


class Completed(NamedTuple):
    """What came of a rank's part of a step: int64[request] each."""

    sampled: Indices  # have a new output token
    finished: Indices  # of these, done
    parked: Indices  # of these, to be decoded elsewhere
