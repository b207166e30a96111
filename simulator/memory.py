"""What fits on a device: weights, workspace, and the paged KV cache that gets the rest."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import CapacityError, ConfigError
from moesim.hw_models.system import System
from moesim.simulator.parallelism import Parallelism, check_parallelism
from moesim.workloads.models import Model, MoE
from moesim.workloads.operator_plan import OperatorPlan
from moesim.workloads.steps import Chunk

_LARGEST_SUGGESTION = 1024


@dataclass(frozen=True)
class KvCache:
    """Bytes that a sequence's cache takes on each device of its rank.

    Caches are allocated in blocks of `block_tokens`. Layers with a sliding window keep the blocks that the window can
    still touch: its own and one more, since it rarely starts on a block's edge.
    """

    block_tokens: int
    token_bytes: NDArray[np.float64]  # [window] per token, all layers with that window together
    windows: tuple[int | None, ...]
    state_bytes: float = 0.0  # per sequence with any token, whatever its length

    @classmethod
    def of(cls, model: Model, tp: int, block_tokens: int, layers: range | None = None) -> "KvCache":
        """The cache of `model` under tensor parallelism; of some `layers`, if they are given."""
        sizes: dict[int | None, float] = {}
        held = model.layers if layers is None else model.layers[layers.start : layers.stop]
        for layer in held:
            span = layer.attention.span
            window = span.tokens if isinstance(span, Chunk) else layer.attention.window
            sizes[window] = sizes.get(window, 0.0) + layer.attention.cached_bytes(tp, model.dtypes)
        state = sum(layer.attention.state_bytes(tp, model.dtypes) for layer in held)
        return cls(block_tokens, np.array(list(sizes.values())), tuple(sizes), state)

    def bytes(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64[sequence]: bytes for `tokens` cached tokens each."""
        blocks = -(-tokens // self.block_tokens)
        total = np.where(tokens > 0, self.state_bytes, 0.0)
        for token_bytes, window in zip(self.token_bytes, self.windows, strict=True):
            kept = blocks if window is None else np.minimum(blocks, -(-window // self.block_tokens) + 1)
            total += kept * (self.block_tokens * token_bytes)
        return total


@dataclass(frozen=True)
class MemoryPlan:
    """How one device's memory is used, in bytes."""

    usable_bytes: float
    weight_bytes: float
    workspace_bytes: float

    @property
    def kv_bytes(self) -> float:
        """What is left for the KV cache."""
        return self.usable_bytes - self.weight_bytes - self.workspace_bytes


def plan_memory(plan: OperatorPlan, memory_bytes: float, utilization: float, token_budget: int) -> MemoryPlan:
    """Share out a device's memory.

    Args:
        plan: what the device holds.
        memory_bytes: capacity.
        utilization: the share that the engine may use.
        token_budget: the most tokens in one step.
    """
    return MemoryPlan(memory_bytes * utilization, weight_bytes(plan), _workspace_bytes(plan, token_budget))


def weight_bytes(plan: OperatorPlan) -> float:
    """Bytes of weights on each device."""
    positions = [*plan.before, *(position for layer in plan.layers for position in layer), *plan.after]
    dense = sum(plan.operators[position].resident_bytes for position in positions)
    if plan.experts is None:
        return dense
    return dense + len(plan.experts.layers) * plan.experts.slots * plan.experts.expert_bytes


def _workspace_bytes(plan: OperatorPlan, token_budget: int) -> float:
    """Activations alive at the widest point of a full step: the residual and one operator's input and output."""
    widest = max(operator.k + operator.n for operator in plan.operators if operator.name != "lm_head")
    if plan.experts is not None:
        block = plan.experts.block
        widest = max(widest, block.top_k * (plan.model.hidden + (block.up_matrices + 1) * plan.experts.inner))
    return token_budget * (plan.model.hidden + widest) * plan.activation_bytes


@dataclass(frozen=True)
class Demand:
    """What the memory has to hold beside the weights."""

    utilization: float
    token_budget: int
    block_tokens: int
    longest_tokens: int  # cached tokens of the longest request
    expert_slots: int | None = None  # per layer, replicas counted; one per expert if None

    def slots_per_rank(self, ep: int) -> int | None:
        """Expert slots of each of `ep` ranks, rounded up."""
        return None if self.expert_slots is None else -(-self.expert_slots // ep)


def check_capacity(
    model: Model, system: System, parallelism: Parallelism, demand: Demand
) -> tuple[MemoryPlan, KvCache]:
    """Memory and KV cache of a device on the stage with room for the fewest tokens, if the longest request fits there.

    All stages hold the same tokens, so the tightest one decides for all (as in vLLM, where every worker gets the least
    number of blocks).

    Raises:
        CapacityError: model and longest request do not fit; the message names the smallest parallelism that does.
    """
    memory, cache = _tightest_stage(model, system, parallelism, demand)
    need = _kv_need(cache, demand)
    if memory.kv_bytes >= need:
        return memory, cache
    total = (memory.weight_bytes + memory.workspace_bytes + need) / 1e9
    suggestion = _suggestion(model, system, demand)
    rule = (
        f"{model.name} needs {total:.1f} GB per device (weights {memory.weight_bytes / 1e9:.1f}, workspace "
        f"{memory.workspace_bytes / 1e9:.1f}, KV cache of one request of {demand.longest_tokens} tokens "
        f"{need / 1e9:.1f}), but {system.name} offers {memory.usable_bytes / 1e9:.1f} GB; {suggestion}"
    )
    raise CapacityError(f"parallelism {_degrees(parallelism)}", rule)


def _degrees(parallelism: Parallelism) -> str:
    stages = f" pp={parallelism.pp}" if parallelism.pp > 1 else ""
    return f"tp={parallelism.tp} dp={parallelism.dp} ep={parallelism.ep}{stages}"


def _tightest_stage(
    model: Model, system: System, parallelism: Parallelism, demand: Demand
) -> tuple[MemoryPlan, KvCache]:
    stages = [
        (_stage_memory(model, system, parallelism, demand, layers), _stage_cache(model, parallelism, demand, layers))
        for layers in parallelism.stage_layers(len(model.layers))
    ]
    return min(stages, key=lambda stage: stage[0].kv_bytes / max(1.0, _kv_need(stage[1], demand)))


def _stage_memory(model: Model, system: System, parallelism: Parallelism, demand: Demand, layers: range) -> MemoryPlan:
    p = parallelism
    plan = OperatorPlan(model, tp=p.tp, dp=p.dp, ep=p.ep, slots=demand.slots_per_rank(p.ep), layers=layers)
    return plan_memory(plan, system.memory_bytes, demand.utilization, demand.token_budget)


def _stage_cache(model: Model, parallelism: Parallelism, demand: Demand, layers: range) -> KvCache:
    return KvCache.of(model, parallelism.tp, demand.block_tokens, layers)


def _kv_need(cache: KvCache, demand: Demand) -> float:
    return float(cache.bytes(np.array([demand.longest_tokens]))[0])


def _suggestion(model: Model, system: System, demand: Demand) -> str:
    """The smallest parallelism, in devices, that fits on this kind of device."""
    devices = 1
    while devices <= _LARGEST_SUGGESTION:
        for candidate in _candidates(model, devices):
            if _fits(model, system, candidate, demand):
                return f"the smallest that fits is {devices} devices with {_degrees(candidate)}"
        devices *= 2
    return f"nothing up to {_LARGEST_SUGGESTION} devices fits"


def _candidates(model: Model, devices: int) -> list[Parallelism]:
    """Ways to use `devices`: all tensor parallel, or all data parallel with the experts shared out."""
    ways = [Parallelism(tp=devices)]
    if any(isinstance(layer.ffn, MoE) for layer in model.layers):
        ways.append(Parallelism(dp=devices, ep=devices))
    return ways


def _fits(model: Model, system: System, parallelism: Parallelism, demand: Demand) -> bool:
    try:
        check_parallelism(model, parallelism, "candidate")
    except ConfigError:
        return False
    memory, cache = _tightest_stage(model, system, parallelism, demand)
    return memory.kv_bytes >= _kv_need(cache, demand)
