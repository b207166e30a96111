"""Continuous batching of one data-parallel rank: which sequences run in the next step, and how many tokens each.

The rules are those of vLLM's v1 scheduler: running sequences first, in the order they were admitted, then waiting
ones while the token budget, the sequence limit and the KV cache allow; a prompt is cut into chunks that fit the
budget; when the cache is full the sequence admitted last is preempted, and recomputed later.

With pipeline stages several steps are in flight. Tokens count as computed from the moment they are scheduled, so the
next chunk of a prompt may follow right behind, while a sequence that decodes waits for its token. Each step takes at
most its share of the sequences, so that the stages stay equally busy.

Where prefill and decode are served by different pools, a sequence with its first token is parked: its cache stays until
the rank that will decode it has pulled it.
"""

from collections import deque
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from moesim.configs.loader import Config
from moesim.simulator.communication import AllReduce, Communication, ExpertExchange
from moesim.simulator.host import HostTime
from moesim.simulator.memory import KvCache
from moesim.simulator.prefix_cache import PrefixCache, block_bytes
from moesim.simulator.request_states import Completed, Indices, RequestStates, Scheduled
from moesim.units import Seconds

Framework = Literal["vllm", "sglang", "trtllm"]
FRAMEWORKS: tuple[str, ...] = get_args(Framework)
_Variant = Literal["vllm_marlin", "vllm_triton"]
KernelSet = Framework | _Variant
KERNEL_SETS: tuple[str, ...] = (*FRAMEWORKS, *get_args(_Variant))
TimedKind = Literal["attention", "experts", "dense", "communication", "other", "prompts"]
"""What a time scale applies to: kinds of operators, and all operators of steps with prompts."""


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
        "budget, while decodes pause (SGLang); uncut unless longer than that, beside decodes when there is room "
        "(TensorRT-LLM)",
    )
    balance_steps: NonNegativeInt = Field(
        0,
        description="with attention data parallelism, prompts start when every rank has one that can, or else after so "
        "many steps (TensorRT-LLM's attention_dp_config, timeout_iters); 0: at once",
    )
    async_host: bool = Field(
        False,
        description="the host prepares the next step while the devices run this one; a request that arrives "
        "meanwhile runs in the step after the next, and one that ends gives its place back as late",
    )
    exposed_host_s: Seconds = Field(
        0.0, description="host time per step that devices wait for even if the host works ahead; calibrated, else 0"
    )
    sequence_host_s: Seconds = Field(
        0.0, description="the same per sequence of a rank: sampling, bookkeeping, streaming; calibrated, else 0"
    )
    prompts_host_s: Seconds = Field(
        0.0,
        description="the same, more of it in a step with prompts, which no CUDA graph covers as a whole; calibrated, "
        "else 0",
    )
    request_host_s: Seconds = Field(
        0.0,
        description="from a request's arrival until it is queued: HTTP, tokenizer, other processes; calibrated, else 0",
    )
    tokenise_s: Seconds = Field(
        0.0,
        description="host time per prompt token before that, one request after another, to turn text into tokens; 0 "
        "where requests come as tokens",
    )
    stream_s: Seconds = Field(
        0.0, description="from a step's end until clients have its tokens: other processes, detokenizer, HTTP"
    )
    stream_token_s: Seconds = Field(
        0.0,
        description="the same per sequence that the step gives a token, as one process passes them on; measured to 64 "
        "sequences, and no bound on how many it passes on per second",
    )
    eager_operator_s: Seconds = Field(
        0.0,
        description="host time to launch one operator (a few kernels) of a step with prompts from Python instead of as "
        "a part of a CUDA graph; such a step lasts at least as long as its launches; 0: they hide behind the devices",
    )
    time_scale: dict[TimedKind, PositiveFloat] = Field(
        default_factory=dict,
        description="factors on the device time of kinds of operators, a result of calibration against a measured "
        "server: attention, experts, dense (other matrix products), communication, other; and prompts, on "
        "everything in steps with prompts; 1 where left out",
    )
    prefix_caching: bool = Field(
        False,
        description="prompts that start alike share KV blocks; needs requests with `hash_ids` (Mooncake traces); "
        "pools that only decode keep none",
    )
    all_reduce: AllReduce = Field(
        "nccl", description="nccl; or custom: the engine's own kernels for what they can do in a node, else NCCL"
    )
    expert_exchange: ExpertExchange = Field(
        "all_to_all",
        description="how tokens reach their experts when dp > 1: all_to_all (NCCL, each to the devices that need it); "
        "all_gather_reduce_scatter (all to all, vLLM's default); all_reduce (the same by sums, vLLM's former naive); "
        "deepep_normal, deepep_low_latency; or deepep, low-latency in steps without prompts, else normal (SGLang)",
    )
    foreign_expert_traffic: float = Field(
        0.0,
        ge=0,
        le=1,
        description="where a rank gets all tokens: share of the activations of those whose experts are elsewhere that "
        "its kernels move all the same; fitted to kernels measured on one rank of several: 0.70 to 0.79 for Triton's, "
        "0.02 to 0.09 for CUTLASS's",
    )
    kernels: KernelSet | None = Field(
        None,
        description="framework whose kernels the devices run, where the device has a set of them; by default those that"
        " the device describes; vllm_marlin: vLLM's, with MXFP4 experts through Marlin (VLLM_MXFP4_USE_MARLIN=1); "
        "vllm_triton: vLLM's, with bf16 experts through Triton's fused kernel, as vLLM 0.19 runs them",
    )
    source: str = Field("", description="where the settings come from")

    def foreign_share(self, dp: int) -> float:
        """`foreign_expert_traffic` where ranks get all tokens: without data-parallel attention, or by a gather."""
        return self.foreign_expert_traffic if dp == 1 or self.communication.gathers else 0.0

    @property
    def communication(self) -> Communication:
        """Which kernels the engine communicates with."""
        return Communication(self.all_reduce, self.expert_exchange)

    @property
    def host(self) -> HostTime:
        """What the host costs a step."""
        exposed = self.exposed_host_s, self.sequence_host_s, self.prompts_host_s, self.eager_operator_s
        return HostTime(self.host_overhead_s, self.async_host, *exposed)


class RankScheduler:
    """The queue, the running batch and the KV budget of one data-parallel rank.

    Attributes:
        waiting: requests that have not started here.
        arriving: requests that came since the engine last looked.
        leaving: requests that are done, but were not when the next step was formed, where the host works ahead.
        running: requests that have, in the order in which they were admitted.
        pulling: requests with room for their cache, which is on its way from the rank that computed it.
        parked: bytes of the caches that other ranks have yet to pull from here, by request.
    """

    def __init__(
        self,
        states: RequestStates,
        settings: SchedulerSettings,
        cache: KvCache,
        kv_bytes: float,
        *,
        stages: int = 1,
        parks: bool = False,
        caches_prefixes: bool = True,
    ) -> None:
        """Start with nothing to do.

        Args:
            states: of all requests.
            settings: of the engine.
            cache: bytes per sequence.
            kv_bytes: room for the cache on each device of the rank.
            stages: pipeline stages, so many steps are in flight at once.
            parks: sequences leave with their first token, to be decoded elsewhere.
            caches_prefixes: the settings decide; False where prompts do not run.
        """
        self.states, self.settings, self.cache, self.stages, self.parks = states, settings, cache, stages, parks
        self.capacity_bytes = self.free_bytes = kv_bytes
        self.waiting: deque[int] = deque()
        self.arriving: list[int] = []
        self.leaving: Indices = np.zeros(0, dtype=np.int64)
        self._may_admit = False  # in the step after the one just formed
        self.running: Indices = np.zeros(0, dtype=np.int64)
        self.pulling: set[int] = set()
        self.parked: dict[int, float] = {}
        self.new_pulls: list[int] = []
        self.prefixes: PrefixCache | None = None
        if settings.prefix_caching and states.prefix is not None and caches_prefixes:
            tokens = states.prefix.block_tokens
            self.prefixes = PrefixCache(states.full_blocks, tokens, block_bytes(cache, tokens))

    @property
    def outstanding(self) -> int:
        """Requests waiting, on their way here or running."""
        return len(self.arriving) + len(self.waiting) + len(self.pulling) + len(self.running)

    def cached_tokens(self, request: int) -> int:
        """Leading tokens of a prompt that are in the cache."""
        if self.prefixes is None:
            return 0
        return self.prefixes.find(request, int(self.states.prompt[request]))[0]

    def submit(self, request: int) -> None:
        """A request has come to the engine, which will see it when it next looks (`catch_up`)."""
        self.arriving.append(request)

    def catch_up(self) -> list[int]:
        """See what has happened: requests that have come are queued, those that are done give their room back.

        An engine looks before it forms a step; one whose host works ahead has formed it by then, one step earlier.

        Returns:
            The requests that are queued now.
        """
        queued, self.arriving = self.arriving, []
        self.waiting.extend(queued)
        news = bool(queued) or (len(self.leaving) > 0 and len(self.waiting) > 0)
        self._may_admit = news and self.settings.async_host
        self._release(self.leaving)
        self.leaving = self.leaving[:0]
        return queued

    @property
    def could_start(self) -> bool:
        """Whether a request waits for which there is room in the batch."""
        return bool(self.waiting) and self._holds(0) < self.settings.max_num_seqs

    def schedule(self, *, admits: bool = True) -> Scheduled:
        """Pick the next step and reserve its cache; no sequences when there is nothing to do.

        Requests whose cache must be pulled first are appended to `new_pulls` when there is room for it.

        Args:
            admits: let requests start that wait.
        """
        request, tokens = self._pick(admits=admits)
        context = self.states.computed[request]
        self.states.computed[request] += tokens
        self.states.in_flight[request] += 1
        return Scheduled(request, context, tokens)

    def _pick(self, *, admits: bool) -> tuple[Indices, Indices]:
        """(request, new_tokens) of the next step."""
        if self.settings.prefill == "alone":
            request, tokens = self._prefill_alone(admits=admits)
            if len(request):
                return request, tokens
        tokens, is_tight = self._schedule_running()
        if admits and not is_tight and self.waiting:
            tokens = np.concatenate([tokens, self._admit(int(tokens.sum()))])
        runs = tokens > 0
        return self.running[runs], tokens[runs]

    def _prefill_alone(self, *, admits: bool) -> tuple[Indices, Indices]:
        """A step of prompts only, begun ones first; empty if no prompt can go on or start, so that decodes run."""
        need = self._uncomputed(self.running)
        tokens = _share_budget(np.where(need > 1, need, 0), self.settings.token_budget)
        growth = np.where(tokens > 0, self._growth(self.running, tokens), 0.0)
        if growth.sum() > self.free_bytes:
            return self.running[:0], tokens[:0]
        self._reserve(self.running, tokens, growth)
        if admits and self.waiting:
            tokens = np.concatenate([tokens, self._admit(int(tokens.sum()))])
        runs = tokens > 0
        return self.running[runs], tokens[runs]

    def _schedule_running(self) -> tuple[Indices, bool]:
        """New tokens of each running sequence, and whether there was room for the cache of all.

        While there is not, the last is preempted. One in flight cannot be: until its step has ended, sequences run for
        which there is room in their order. So the first always goes on, and no two can preempt each other for ever.
        """
        is_tight = False
        while True:
            tokens = _share_budget(self._need(), self.settings.token_budget)
            growth = self._growth(self.running, tokens)
            if growth.sum() <= self.free_bytes:
                break
            is_tight = True
            if self.states.in_flight[self.running[-1]]:
                tokens[np.cumsum(growth) > self.free_bytes] = 0
                growth = np.where(tokens > 0, growth, 0.0)
                break
            self._preempt_last()
        self._reserve(self.running, tokens, growth)
        return tokens, is_tight

    def _need(self) -> Indices:
        """Tokens that each running sequence could add; with several stages, of a share of those that decode only."""
        need = self._uncomputed(self.running)
        if self.stages == 1:
            return need
        decodes = self.states.generated[self.running] > 0
        share = -(-len(self.running) // self.stages)
        return np.where(decodes & (np.cumsum(decodes & (need > 0)) > share), 0, need)

    def _admit(self, used_tokens: int) -> Indices:
        """Start waiting requests; returns the new tokens of each."""
        budget = self.settings.token_budget - used_tokens
        admitted: list[int] = []
        tokens: list[int] = []
        while self.waiting and budget > 0 and self._holds(len(admitted)) < self.settings.max_num_seqs:
            request = self.waiting[0]
            one = np.array([request])
            if self.states.kv_rank[request] >= 0:
                if not self._start_pull(one):
                    break
                continue
            shared_bytes = self._skip_cached_prefix(request)
            chunk = np.minimum(self._uncomputed(one), budget)
            if self._must_wait_for_room(one, chunk):
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

    def _holds(self, admitted: int) -> int:
        """Sequences that hold cache to run with, once so many more are admitted."""
        return len(self.running) + len(self.leaving) + len(self.pulling) + admitted

    def _start_pull(self, one: Indices) -> bool:
        """Reserve room for the cache of the first waiting request and have it pulled, if there is room."""
        growth = self._growth(one, np.zeros(1, dtype=np.int64))
        if growth[0] > self.free_bytes:
            return False
        self.states.held_bytes[one] += growth
        self.free_bytes -= float(growth[0])
        request = self.waiting.popleft()
        self.pulling.add(request)
        self.new_pulls.append(request)
        return True

    def pulled(self, request: int) -> None:
        """The cache of a request has arrived: it runs from the next step on."""
        self.pulling.remove(request)
        self.states.kv_rank[request] = -1
        self.running = np.append(self.running, request)

    def free_parked(self, request: int) -> None:
        """Another rank has pulled the cache of a request."""
        self.free_bytes += self.parked.pop(request)
        if self.prefixes is not None:
            self.free_bytes -= self.prefixes.release(request)

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

    def _must_wait_for_room(self, one: Indices, chunk: Indices) -> bool:
        """Whether a prompt that may not be cut would be.

        One longer than the whole budget is cut whenever it starts. If it waited for a step to itself, so would all that
        queue behind it, until the last running sequence had ended.
        """
        need = int(self._uncomputed(one)[0])
        return self.settings.prefill == "whole" and int(chunk[0]) < need <= self.settings.token_budget

    def repeats(self, scheduled: Scheduled, most: int) -> int:
        """How many steps, up to `most`, would be `scheduled` again if nothing arrived.

        That is until a sequence ends or the cache is full; 1 if not all sequences decode. What waits could not start in
        this step, and in the next ones there is less room, unless `catch_up` has just found some.
        """
        states, request = self.states, scheduled.request
        if self._may_admit or len(request) < len(self.running) or not (states.generated[request] > 0).all():
            return 1
        left = states.output[request] - states.generated[request]
        repeats = min(most, int(left.min(initial=most)))
        while repeats > 1 and self._growth(request, np.full(len(request), repeats - 1)).sum() > self.free_bytes:
            repeats //= 2
        return repeats if (scheduled.new_tokens == 1).all() else 1

    def repeat(self, scheduled: Scheduled, repeats: int) -> None:
        """Schedule the same sequences for the next steps too, so that there are `repeats`."""
        tokens = np.full(len(scheduled.request), repeats - 1)
        self._reserve(scheduled.request, tokens, self._growth(scheduled.request, tokens))
        self.states.computed[scheduled.request] += tokens

    def complete(self, request: Indices, repeats: int = 1) -> Completed:
        """Account a finished step, or so many equal ones, the sequences of which on this rank are `request`."""
        states = self.states
        states.in_flight[request] -= 1
        known = states.prompt[request] + states.generated[request] + repeats - 1
        sampled = request[(known == states.computed[request]) & (states.in_flight[request] == 0)]
        states.generated[sampled] += repeats
        done = states.generated[sampled] == states.output[sampled]
        finished, parked = sampled[done], sampled[~done] if self.parks else sampled[:0]
        if len(finished):
            self.leaving = np.append(self.leaving, finished)
            self.running = self.running[states.generated[self.running] < states.output[self.running]]
        if len(parked):
            self._park(parked)
        return Completed(sampled, finished, parked)

    def _park(self, request: Indices) -> None:
        """Take sequences out of the batch; their cache stays."""
        self.parked.update(zip(request.tolist(), self.states.held_bytes[request].tolist(), strict=True))
        self.states.held_bytes[request] = 0.0
        self.running = self.running[~np.isin(self.running, request)]

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
        states = self.states
        victim, self.running = self.running[-1:], self.running[:-1]
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
