"""Operators of a step under the roofs of a device: what limits them, and how close to the limit they get."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.hw_models.device import Device
from moesim.hw_models.gpu_products import COMPUTE_FORMATS
from moesim.hw_models.processor import BOUNDS
from moesim.reports.style import Kind, kind_of
from moesim.workloads.models import Model
from moesim.workloads.operator_plan import OperatorPlan
from moesim.workloads.operator_table import ATTENTION, DTYPES, OperatorTable
from moesim.workloads.routing import UniformRouting, make_router
from moesim.workloads.steps import Step

MOST_TOKENS = 2**20
"""New tokens in one step, and tokens of context; beyond it drawing experts takes minutes and says nothing new."""

_ATTENTION_FORMAT = "bf16"  # attention multiplies in 16 bits, whatever the format of the cache
_BLOCK = 8192
"""Tokens whose experts are drawn together."""


@dataclass(frozen=True)
class Roof:
    """The limits of one processor for one number format; those of a data sheet, and what was measured to be reached.

    Attributes:
        format: number format of the products; empty where the processor has one rate for all.
        sustained_flops_per_s: what large dense products reach.
        sustained_bytes_per_s: what large transfers reach.
    """

    processor: str
    format: str
    peak_flops_per_s: float
    sustained_flops_per_s: float
    peak_bytes_per_s: float
    sustained_bytes_per_s: float


@dataclass(frozen=True)
class PlottedStep:
    """A step whose operators are drawn: one token each of `sequences`, or a prompt of `tokens`."""

    phase: str  # "decode" or "prefill"
    sequences: int
    tokens: int
    context_tokens: int

    @property
    def label(self) -> str:
        """Such as `decode, batch 16`."""
        return f"decode, batch {self.sequences:,}" if self.phase == "decode" else f"prefill, {self.tokens:,} tokens"


@dataclass(frozen=True)
class Point:
    """Operators of one kind in a step, all layers together, on one device.

    Attributes:
        operators: their names.
        roofs: those of the processors that work on them; they run side by side, so their rates add up.
        executions: in one step.
        time_s: priced time of these, until the last processor is done.
        time_fraction: of the time of all operators of the step, those without FLOPs too.
        bound: what limits the slowest processor, in most of the time.
        extrapolated_fraction: share of the time that was priced outside the range of a fit.
    """

    step: PlottedStep
    kind: Kind
    operators: tuple[str, ...]
    roofs: tuple[Roof, ...]
    executions: int
    flops: float
    bytes: float
    time_s: float
    time_fraction: float
    bound: str
    extrapolated_fraction: float

    @property
    def intensity_flops_per_byte(self) -> float:
        """FLOPs per byte of weights, cache and activations moved."""
        return self.flops / self.bytes

    @property
    def attained_flops_per_s(self) -> float:
        """FLOPs over priced time."""
        return self.flops / self.time_s

    @property
    def roof_flops_per_s(self) -> float:
        """The data sheet's roof at this intensity."""
        peak = sum(roof.peak_flops_per_s for roof in self.roofs)
        return min(peak, self.intensity_flops_per_byte * sum(roof.peak_bytes_per_s for roof in self.roofs))


@dataclass(frozen=True)
class Roofline:
    """What one panel shows: a model's operators on a device, one of `tp` tensor-parallel shards.

    Attributes:
        roofs: those that an operator uses.
        weight_bytes: weights of a shard, which may be more than the device holds.
    """

    model: str
    device: str
    title: str
    tp: int
    memory_bytes: float
    weight_bytes: float
    roofs: tuple[Roof, ...]
    points: tuple[Point, ...]


def plotted_steps(batches: Sequence[int], context_tokens: int, prompt_tokens: int) -> list[PlottedStep]:
    """A decode step at every batch size, and a prefill step.

    Raises:
        InputError: a number that is not in 1 ... `MOST_TOKENS`.
    """
    for name, values in (("batch", batches), ("context", [context_tokens]), ("prompt", [prompt_tokens])):
        for value in values:
            if not 1 <= value <= MOST_TOKENS:
                raise InputError(name, f"must be a whole number from 1 to {MOST_TOKENS:,}", value)
    decodes = [PlottedStep("decode", batch, batch, context_tokens) for batch in sorted(set(batches))]
    return [*decodes, PlottedStep("prefill", 1, prompt_tokens, 0)]


def rooflines(
    model: Model, devices: Sequence[Device], steps: Sequence[PlottedStep], *, tp: int = 1, seed: int = 0
) -> list[Roofline]:
    """The operators of `steps` on each device.

    Experts are drawn uniformly, every token on its own. Operators without FLOPs (norms, rotary embedding, activation
    functions, top-k, sampling) have no place under a roof and are left out.

    Args:
        model: whose operators.
        devices: on which hardware.
        steps: of which steps.
        tp: tensor-parallel shards, of which one is shown; must divide the model (`check_parallelism`).
        seed: of the draw.
    """
    plan = OperatorPlan(model, tp=tp)
    tables = [_lower(plan, step, seed) for step in steps]
    return [_on_device(plan, device, steps, tables) for device in devices]


def roofs(device: Device) -> tuple[Roof, ...]:
    """All roofs of a device: of every processor and, where its rates differ by number format, every format."""
    return tuple(roof for name, config in device.config.processors.items() for roof in _processor_roofs(name, config))


def _processor_roofs(name: str, config: Any) -> list[Roof]:
    """Roofs of a processor that has `dram_bandwidth`, `dram_sustained`, and `formats`, or one `peak`, to go with it."""
    bandwidth = config.dram_bandwidth.value
    memory = (bandwidth, bandwidth * config.dram_sustained.value)
    if not hasattr(config, "formats"):
        return [Roof(name, "", config.peak.value, config.peak.value, *memory)]
    rates = {key: (item.peak.value, item.sustained.value) for key, item in config.formats.items()}
    return [Roof(name, key, peak, peak * share, *memory) for key, (peak, share) in rates.items()]


def _on_device(
    plan: OperatorPlan, device: Device, steps: Sequence[PlottedStep], tables: Sequence[OperatorTable]
) -> Roofline:
    known = roofs(device)
    points = tuple(
        point for step, table in zip(steps, tables, strict=True) for point in _points(device, step, table, known)
    )
    used = {roof for point in points for roof in point.roofs}
    weights = float(tables[0].weight_bytes_resident @ tables[0].repeats)
    return Roofline(
        model=plan.model.name,
        device=device.name,
        title=device.config.title,
        tp=plan.tp,
        memory_bytes=device.memory_bytes,
        weight_bytes=weights,
        roofs=tuple(roof for roof in known if roof in used),
        points=points,
    )


# --- steps -------------------------------------------------------------------------------------------------------


def _lower(plan: OperatorPlan, plotted: PlottedStep, seed: int) -> OperatorTable:
    step = _step(plotted)
    return plan.lower(step, None if plan.experts is None else _expert_loads(plan, step, seed))


def _step(plotted: PlottedStep) -> Step:
    ones = np.ones(plotted.sequences, dtype=np.int64)
    prompt = plotted.context_tokens if plotted.phase == "decode" else plotted.tokens
    return Step(
        request=np.arange(plotted.sequences),
        rank=0 * ones,
        new_tokens=ones * (plotted.tokens // plotted.sequences),
        context=ones * plotted.context_tokens,
        samples=ones.astype(np.bool_),
        prompt_tokens=ones * prompt,
        seen_tokens=0 * ones,
    )


def _expert_loads(plan: OperatorPlan, step: Step, seed: int) -> NDArray[np.int64]:
    """Tokens of every expert under uniform routing: int64[moe_layer, expert]."""
    assert plan.experts is not None
    layers, experts, top_k = len(plan.experts.layers), plan.experts.block.experts, plan.experts.block.top_k
    router = make_router(UniformRouting(kind="uniform", source=""), layers, experts, top_k, np.random.default_rng(seed))
    tokens = step.tokens()
    loads = np.zeros(layers * experts, dtype=np.int64)
    first_slot = experts * np.arange(layers)[None, :, None]
    for start in range(0, len(tokens.request), _BLOCK):
        block = slice(start, start + _BLOCK)
        chosen = router.experts(tokens.request[block], tokens.position[block])
        loads += np.bincount((first_slot + chosen).ravel(), minlength=len(loads))
    return loads.reshape(layers, experts)


# --- points ------------------------------------------------------------------------------------------------------


def _points(device: Device, step: PlottedStep, table: OperatorTable, known: Sequence[Roof]) -> list[Point]:
    """One point for each kind of operator and set of roofs, in the order of the table."""
    costs = device.price(table)
    part_s = np.stack([cost.time_s for cost in costs])
    columns = {
        "flops": table.flops * table.repeats,
        "bytes": (table.weight_bytes_read + table.read_bytes + table.write_bytes) * table.repeats,
        "time_s": part_s.max(axis=0) * table.repeats,
        "extrapolated": np.any([cost.extrapolated for cost in costs], axis=0),
        "bound": np.stack([cost.bound for cost in costs])[part_s.argmax(axis=0), np.arange(len(table))],
        "repeats": table.repeats,
        "operator": np.array(table.operators)[table.operator],
    }
    groups: dict[tuple[Kind, tuple[Roof, ...]], list[int]] = {}
    for row in np.flatnonzero(table.flops > 0).tolist():
        working = tuple(
            _roof_of(known, name, _format_of(table, row))
            for name, seconds in zip(device.processors, part_s[:, row], strict=True)
            if seconds > 0
        )
        groups.setdefault((kind_of(columns["operator"][row]), working), []).append(row)
    return [_point(step, kind, working, columns, np.array(rows)) for (kind, working), rows in groups.items()]


def _point(
    step: PlottedStep, kind: Kind, working: tuple[Roof, ...], columns: dict[str, NDArray[Any]], rows: NDArray[np.int64]
) -> Point:
    time_s = columns["time_s"][rows]
    bound_s = np.bincount(columns["bound"][rows], time_s, minlength=len(BOUNDS))
    return Point(
        step=step,
        kind=kind,
        operators=tuple(dict.fromkeys(columns["operator"][rows].tolist())),
        roofs=working,
        executions=int(columns["repeats"][rows].sum()),
        flops=float(columns["flops"][rows].sum()),
        bytes=float(columns["bytes"][rows].sum()),
        time_s=float(time_s.sum()),
        time_fraction=float(time_s.sum() / columns["time_s"].sum()),
        bound=BOUNDS[int(bound_s.argmax())],
        extrapolated_fraction=float(time_s[columns["extrapolated"][rows]].sum() / time_s.sum()),
    )


def _format_of(table: OperatorTable, row: int) -> str:
    """Format of a row's weights, or of what attention multiplies."""
    return _ATTENTION_FORMAT if table.form[row] == ATTENTION else tuple(DTYPES)[table.weight_dtype[row]]


def _roof_of(known: Sequence[Roof], processor: str, weight_format: str) -> Roof:
    """The roof of products with such weights on a processor."""
    own = {roof.format: roof for roof in known if roof.processor == processor}
    return own[next((name for name in COMPUTE_FORMATS[weight_format] if name in own), "")]
