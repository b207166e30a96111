"""A worker whose model is a clock: steps take as long as they are told to, and give random tokens.

`NULL_STEP_S` says how long a step takes beside its prompts, s. `NULL_LOG` names the file that gets a line for every
request that reaches the engine, and for every step that gives first tokens; times are seconds of the machine's
monotonic clock, which a client on the same machine shares.
"""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import torch
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, AsyncModelRunnerOutput, ModelRunnerOutput

PROMPT_TOKEN_S = 20e-6  # assumption; only the load depends on it, no measured time
MEMORY_BYTES = 4 << 30
TOKENS = range(1000, 30000)


class Log:
    """Lines of JSON, each whole."""

    def __init__(self, path: str) -> None:
        """Begin an empty file."""
        self._file = Path(path).open("w", buffering=1, encoding="utf-8")  # noqa: SIM115 - as long as the server

    def write(self, **values: Any) -> None:
        """One line."""
        self._file.write(json.dumps(values) + "\n")


class Pending(AsyncModelRunnerOutput):
    """A step's tokens, to be had when the step has ended."""

    def __init__(self, output: ModelRunnerOutput, end_s: float) -> None:
        """Of a step that ends at `end_s`."""
        self._output, self._end_s = output, end_s

    def get_output(self) -> ModelRunnerOutput:
        """Wait for the end."""
        time.sleep(max(0.0, self._end_s - time.perf_counter()))
        return self._output


class NullWorker:
    """What vLLM's executor calls, and a clock."""

    def __init__(self, vllm_config: Any, **_others: Any) -> None:
        """Note every request that reaches the engine of this process."""
        self.config = vllm_config
        self.log = Log(os.environ["NULL_LOG"])
        self._step_s = float(os.environ["NULL_STEP_S"])
        self._free_s = 0.0  # when the device has done all it was given
        self._prompt: dict[str, int] = {}
        self._computed: dict[str, int] = {}
        self._pending: Pending | None = None
        _note_arrivals(self.log)

    def execute_model(self, scheduled: Any) -> ModelRunnerOutput | None:
        """Begin a step as soon as the one before has ended."""
        if not scheduled.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        self._note_requests(scheduled)
        first, tokens, prompt_tokens = [], [], 0
        for request, count in scheduled.num_scheduled_tokens.items():
            before, prompt = self._computed[request], self._prompt[request]
            self._computed[request] = before + count
            prompt_tokens += count if before < prompt else 0
            is_sampled = before + count >= prompt
            first += [request] if before < prompt <= before + count else []
            tokens.append([random.choice(TOKENS)] if is_sampled else [])
        end_s = max(time.perf_counter(), self._free_s) + self._step_s + PROMPT_TOKEN_S * prompt_tokens
        self._free_s = end_s
        if first:
            self.log.write(first=first, end_s=end_s, sequences=sum(map(bool, tokens)))
        requests = list(scheduled.num_scheduled_tokens)
        places = {request: place for place, request in enumerate(requests)}
        self._pending = Pending(ModelRunnerOutput(requests, places, tokens), end_s)
        return None

    def _note_requests(self, scheduled: Any) -> None:
        for request in scheduled.scheduled_new_reqs:
            self._prompt[request.req_id] = len(request.prompt_token_ids)
            self._computed[request.req_id] = request.num_computed_tokens
        for request in scheduled.finished_req_ids:
            self._prompt.pop(request, None)
            self._computed.pop(request, None)

    def sample_tokens(self, _grammar: Any) -> AsyncModelRunnerOutput | ModelRunnerOutput | None:
        """The tokens of the step that has just begun; of a host that works ahead, a promise of them."""
        pending, self._pending = self._pending, None
        if pending is None or self.config.scheduler_config.async_scheduling:
            return pending
        return pending.get_output()

    def get_kv_cache_spec(self) -> dict[str, FullAttentionSpec]:
        """A layer with a small cache."""
        block = self.config.cache_config.block_size
        return {
            "layers.0.attn": FullAttentionSpec(block_size=block, num_kv_heads=1, head_size=64, dtype=torch.bfloat16)
        }

    def determine_available_memory(self) -> int:
        """For caches, bytes."""
        return MEMORY_BYTES

    def get_supported_tasks(self) -> tuple[str, ...]:
        """Text."""
        return ("generate",)

    def compile_or_warm_up_model(self) -> float:
        """Nothing is compiled; seconds that it took."""
        return 0.0

    def __getattr__(self, _name: str) -> Any:
        """Devices are also set up, reset and shut down: nothing to do."""
        return lambda *_args, **_named: None


def _note_arrivals(log: Log) -> None:
    """Write down when the engine's process has a request, before the engine looks for it between two steps."""
    preprocess = EngineCoreProc.preprocess_add_request

    def noted(self: Any, request: Any) -> Any:
        log.write(request=request.request_id, arrived_s=time.perf_counter())
        return preprocess(self, request)

    EngineCoreProc.preprocess_add_request = noted
