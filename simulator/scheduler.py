"""Continuous batching of one data-parallel rank: which sequences run in the next step, and how many tokens each.

The rules are those of vLLM's v1 scheduler: running sequences first, in the order they were admitted, then waiting
ones while the token budget, the sequence limit and the KV cache allow; a prompt is cut into chunks that fit the
budget; when the cache is full the sequence admitted last is preempted, and recomputed later.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from moesim.configs.loader import Config
from moesim.simulator.memory import KvCache
from moesim.simulator.prefix_cache import PrefixCache, block_bytes
from moesim.units import Seconds
from moesim.workloads.prefix_blocks import PrefixBlocks
from moesim.workloads.requests import Requests

Indices = NDArray[np.int64]


class SchedulerSettings(Config):
    """Settings of the serving engine; presets are in `configs/schedulers`. Defaults: vLLM 0.10 on a large GPU."""

    token_budget: PositiveInt = Field(8192, description="most new tokens in a step of one rank")
    max_num_seqs: PositiveInt = Field(1024, description="most running sequences of one rank")
    block_tokens: PositiveInt = Field(16, description="tokens per block of the KV cache")
    memory_utilization: float = Field(0.9, gt=0, le=1, description="share of device memory the engine may use")
    host_overhead_s: Seconds = Field(
        0.0004, description="host time per step; middle of the 0.1 to 0.7 ms that measured deployments imply"
    )
    prefill: Literal["chunked", "alone", "whole"] = Field(
        "chunked",
        description="how prompts run: cut into chunks beside decodes (vLLM); in steps of their own, cut at the token "
        "budget, while decodes pause (SGLang); never cut, beside decodes when the budget has room (TensorRT-LLM)",
    )
    async_host: bool = Field(False, description="the host prepares the next step while the devices run this one")
    prefix_caching: bool = Field(
        False, description="prompts that start alike share KV blocks; needs requests with `hash_ids` (Mooncake traces)"
    )
    kernels: Literal["vllm", "sglang", "trtllm"] | None = Field(
        None,
        description="framework whose kernels the devices run, where the device has a set of them; by default those that"
        " the device describes",
    )
    source: str = Field("", description="where the settings come from")


@dataclass
class RequestStates:
    """Everything that changes about the requests, column by column: [request]."""

    prompt: Indices
    output: Indices
    computed: Indices  # tokens in the KV cache
    generated: Indices  # output tokens so far
    seen: Indices  # tokens that were in the cache before a preemption
    held_bytes: NDArray[np.float64]
    rank: Indices
    preemptions: Indices
    prefix_hits: Indices  # prompt tokens that were found in the cache and never computed
    prefix: PrefixBlocks | None
    full_blocks: list[list[int]]  # [request][block] hashes; empty without `prefix`

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
            rank=np.full(n, -1, dtype=np.int64),
            preemptions=np.zeros(n, dtype=np.int64),
            prefix_hits=np.zeros(n, dtype=np.int64),
            prefix=requests.prefix,
            full_blocks=[] if requests.prefix is None else requests.prefix.full_blocks(requests.prompt_tokens),
        )


class RankScheduler:
    """The queue, the running batch and the KV budget of one data-parallel rank."""

    def __init__(self, states: RequestStates, settings: SchedulerSettings, cache: KvCache, kv_bytes: float) -> None:
        """Start with nothing to do and `kv_bytes` of cache free on each device of the rank."""
        self.states, self.settings, self.cache = states, settings, cache
        self.capacity_bytes = self.free_bytes = kv_bytes
        self.waiting: deque[int] = deque()
        self.running: Indices = np.zeros(0, dtype=np.int64)
        self.prefixes: PrefixCache | None = None
        if settings.prefix_caching and states.prefix is not None:
            tokens = states.prefix.block_tokens
            self.prefixes = PrefixCache(states.full_blocks, tokens, block_bytes(cache, tokens))

    @property
    def outstanding(self) -> int:
        """Requests waiting or running."""
        return len(self.waiting) + len(self.running)

    def submit(self, request: int) -> None:
        """Take a request into the queue."""
        self.waiting.append(request)

    def schedule(self) -> tuple[Indices, Indices]:
        """Pick the next step and reserve its cache.

        Returns:
            (request, new_tokens): int64[sequence] each; empty when there is nothing to do.
        """
        if self.settings.prefill == "alone":
            request, tokens = self._prefill_alone()
            if len(request):
                return request, tokens
        tokens, preempted = self._schedule_running()
        if not preempted and self.waiting:
            tokens = np.concatenate([tokens, self._admit(int(tokens.sum()))])
        runs = tokens > 0
        return self.running[runs], tokens[runs]

    def _prefill_alone(self) -> tuple[Indices, Indices]:
        """A step of prompts only, begun ones first; empty if no prompt can go on or start, so that decodes run."""
        need = self._uncomputed(self.running)
        tokens = _share_budget(np.where(need > 1, need, 0), self.settings.token_budget)
        growth = np.where(tokens > 0, self._growth(self.running, tokens), 0.0)
        if growth.sum() > self.free_bytes:
            return self.running[:0], tokens[:0]
        self._reserve(self.running, tokens, growth)
        if self.waiting:
            tokens = np.concatenate([tokens, self._admit(int(tokens.sum()))])
        runs = tokens > 0
        return self.running[runs], tokens[runs]

    def _schedule_running(self) -> tuple[Indices, bool]:
        """New tokens of each running sequence, preempting from the end until their cache fits."""
        preempted = False
        while True:
            tokens = _share_budget(self._uncomputed(self.running), self.settings.token_budget)
            growth = self._growth(self.running, tokens)
            if growth.sum() <= self.free_bytes:
                self._reserve(self.running, tokens, growth)
                return tokens, preempted
            self._preempt_last()
            preempted = True

    def _admit(self, used_tokens: int) -> Indices:
        """Start waiting requests; returns the new tokens of each."""
        budget = self.settings.token_budget - used_tokens
        admitted: list[int] = []
        tokens: list[int] = []
        while self.waiting and budget > 0 and len(self.running) + len(admitted) < self.settings.max_num_seqs:
            request = self.waiting[0]
            one = np.array([request])
            shared_bytes = self._skip_cached_prefix(request)
            chunk = np.minimum(self._uncomputed(one), budget)
            if self._must_wait_for_room(request, int(chunk[0]), used_tokens + sum(tokens)):
                break
            growth = self._growth(one, chunk)
            if growth[0] - shared_bytes > self.free_bytes:
                break
            self._note_hits(request)
            self._reserve(one, chunk, growth)
            admitted.append(self.waiting.popleft())
            tokens.append(int(chunk[0]))
            budget -= int(chunk[0])
        self.running = np.concatenate([self.running, np.array(admitted, dtype=np.int64)])
        return np.array(tokens, dtype=np.int64)

    def _skip_cached_prefix(self, request: int) -> float:
        """Let a waiting request start behind its cached prefix, looked up anew each time it might be admitted.

        Returns:
            Bytes of the prefix that running requests hold, so that it takes no memory.
        """
        if self.prefixes is None:
            return 0.0
        states = self.states
        found, shared_bytes = self.prefixes.find(request, int(states.prompt[request] + states.generated[request]))
        states.computed[request] = found
        return shared_bytes

    def _note_hits(self, request: int) -> None:
        """Count the cached prefix of an admitted request, but not what it computed itself before a preemption."""
        states = self.states
        states.prefix_hits[request] += max(0, int(states.computed[request] - states.seen[request]))

    def _must_wait_for_room(self, request: int, chunk: int, used_tokens: int) -> bool:
        """Whether a prompt that may not be cut would be; one longer than the whole budget is cut all the same."""
        if self.settings.prefill != "whole" or used_tokens == 0:
            return False
        return chunk < int(self._uncomputed(np.array([request]))[0])

    def complete(self, request: Indices, new_tokens: Indices) -> tuple[Indices, Indices]:
        """Account a finished step.

        Returns:
            (sampled, finished): requests with a new output token, and those of them that are done.
        """
        states = self.states
        states.computed[request] += new_tokens
        sampled = request[self._uncomputed(request) == 0]
        states.generated[sampled] += 1
        finished = sampled[states.generated[sampled] == states.output[sampled]]
        if len(finished):
            self._release(finished)
            self.running = self.running[states.generated[self.running] < states.output[self.running]]
        return sampled, finished

    def _uncomputed(self, request: Indices) -> Indices:
        """Known tokens that are not in the cache: the rest of the prompt, or the last output token."""
        states = self.states
        return states.prompt[request] + states.generated[request] - states.computed[request]

    def _growth(self, request: Indices, tokens: Indices) -> NDArray[np.float64]:
        return self.cache.bytes(self.states.computed[request] + tokens) - self.states.held_bytes[request]

    def _reserve(self, request: Indices, tokens: Indices, growth: NDArray[np.float64]) -> None:
        self.states.held_bytes[request] += growth
        self.free_bytes -= float(growth.sum())
        if self.prefixes is not None:
            covered = self.states.computed[request] + tokens
            in_prompt = (tokens > 0) & (self.states.computed[request] <= self.states.prompt[request])
            for one, end in zip(request[in_prompt].tolist(), covered[in_prompt].tolist(), strict=True):
                self.free_bytes += self.prefixes.hold(one, end)
            self.prefixes.evict(self.free_bytes)

    def _release(self, request: Indices) -> None:
        self.free_bytes += float(self.states.held_bytes[request].sum())
        self.states.held_bytes[request] = 0.0
        if self.prefixes is not None:
            self.free_bytes -= sum(map(self.prefixes.release, request.tolist()))

    def _preempt_last(self) -> None:
        """Evict the sequence admitted last; it returns to the head of the queue and starts over."""
        states, victim = self.states, self.running[-1:]
        self.running = self.running[:-1]
        self._release(victim)
        states.seen[victim] = np.maximum(states.seen[victim], states.computed[victim])
        states.computed[victim] = 0
        states.preemptions[victim] += 1
        self.waiting.appendleft(int(victim[0]))


def _share_budget(need: Indices, budget: int) -> Indices:
    """Give each sequence what it needs, first come first served, until the budget is spent."""
    spent = np.minimum(np.cumsum(need), budget)
    shares = spent.copy()
    shares[1:] -= spent[:-1]  # np.diff with a first 0 takes three times as long
    return shares
