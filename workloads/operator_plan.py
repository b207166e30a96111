"""Lowering: a model under a parallelism becomes a plan once, and the plan turns every step into an `OperatorTable`.

The plan holds the coefficients of `operators.Operator` as one matrix, so the rows outside the routed experts cost one
matrix product per step. The experts' rows follow from the tokens each of them got.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.workloads.models import Model, MoE
from moesim.workloads.operator_parts import Linear, Operator
from moesim.workloads.operator_table import ATTENTION, DTYPE_CODES, DTYPES, GROUPED_GEMM, OperatorTable
from moesim.workloads.operators import model_operators, spans
from moesim.workloads.steps import (
    FIRST_WINDOW,
    LONGEST_DECODE,
    LONGEST_PREFILL,
    PREFILL_SEQUENCES,
    Step,
    step_features,
)

EXPERTS = "experts"
_DYNAMIC_COLUMNS = (
    "flops",
    "weight_bytes_read",
    "read_bytes",
    "write_bytes",
    "decode_flops",
    "decode_read_bytes",
)
_COUNTED = {
    "prefill_sequences": PREFILL_SEQUENCES,
    "longest_prefill": LONGEST_PREFILL,
    "longest_decode": LONGEST_DECODE,
}
"""Columns of attention rows that are features as they stand."""
_DYNAMIC = ("m", "decode_m", "flops", "read", "write", "decode_flops", "decode_read")


@dataclass(frozen=True)
class ExpertShape:
    """The routed experts of all MoE layers, which have one shape, on one expert-parallel rank."""

    layers: tuple[int, ...]  # indices of the MoE layers
    block: MoE
    slots: int  # experts (replicas counted) per rank
    hidden: int
    inner: int  # one shard's intermediate size
    expert_bytes: float  # one shard of one expert


class OperatorPlan:
    """All operators of a model under tensor, data and expert parallelism.

    Attributes:
        operators: the distinct operators outside the routed experts; equal ones of different layers are one.
        before, after: positions in `operators` of what runs before the first and after the last layer.
        layers: positions in `operators` for each layer of `layer_range`, in order of execution.
        layer_range: layers of the model that the plan is of; the first comes with the input, the last with the output.
        windows: the distinct spans of tokens that attention sees, in the order of `step_features`.
        experts: the routed experts, or None for a dense model.

    Rows of a table: `dp` blocks of `len(operators)`, then one row per MoE layer and expert-parallel rank.
    """

    def __init__(
        self,
        model: Model,
        *,
        tp: int = 1,
        dp: int = 1,
        ep: int = 1,
        slots: int | None = None,
        layers: range | None = None,
        foreign_share: float = 0.0,
    ) -> None:
        """Build the plan; that the numbers divide is the caller's to check.

        Args:
            model: what runs.
            tp: tensor parallelism.
            dp: data parallelism of attention.
            ep: expert parallelism; the experts' own tensor parallelism is tp * dp / ep.
            slots: expert slots per expert-parallel rank, replicas counted; experts / ep if None.
            layers: the layers of one pipeline stage; all of them if None.
            foreign_share: of the traffic of tokens whose expert is on another rank, what expert kernels move too.
        """
        self.model, self.tp, self.dp, self.ep = model, tp, dp, ep
        self.moe_tp = tp * dp // ep
        self.foreign_share = foreign_share
        self.layer_range = layers or range(len(model.layers))
        self.windows = spans(model)
        self.activation_bytes = DTYPES[model.dtypes.activations].bytes
        before, by_layer, after = self._stage_operators()
        everything = [*before, *(operator for layer in by_layer for operator in layer), *after]
        self.operators = tuple(dict.fromkeys(everything))
        position = {operator: index for index, operator in enumerate(self.operators)}
        self.before = [position[operator] for operator in before]
        self.layers = [[position[operator] for operator in layer] for layer in by_layer]
        self.after = [position[operator] for operator in after]
        self.experts = _expert_shape(self, slots)
        self._template = _template(self)
        self._attention_rows = np.flatnonzero(self._template.form == ATTENTION)
        self._attention_ranks = self._template.rank[self._attention_rows]
        self._coefficients = _coefficient_matrix(self)
        self._weight_bytes = np.array([operator.weight_bytes for operator in self.operators])

    def _stage_operators(self) -> tuple[list[Operator], list[list[Operator]], list[Operator]]:
        """Operators before, in and after the layers of the plan; nothing before or after them in the middle."""
        before, layers, after = model_operators(self.model, self.tp, self.windows)
        first, last = self.layer_range.start == 0, self.layer_range.stop == len(layers)
        stage = [layers[layer] for layer in self.layer_range]
        if self.model.tied_embeddings and not first:  # the table stands with the input, far from this stage's head
            after = [replace(o, resident_bytes=o.weight_bytes) if o.name == "lm_head" else o for o in after]
        return before if first else [], stage, after if last else []

    @property
    def is_last(self) -> bool:
        """Whether the output head belongs to the plan."""
        return bool(self.after)

    @property
    def rows(self) -> int:
        """Rows of a step's table."""
        return len(self._template)

    def row(self, operator: int, dp_rank: int) -> int:
        """Row of the operator at position `operator` on a data-parallel rank."""
        return dp_rank * len(self.operators) + operator

    def expert_row(self, moe_layer: int, ep_rank: int) -> int:
        """Row of the routed experts of the MoE layer number `moe_layer` on an expert-parallel rank."""
        return self.dp * len(self.operators) + moe_layer * self.ep + ep_rank

    def lower(self, step: Step, slot_tokens: NDArray[np.int64] | None = None) -> OperatorTable:
        """The operators of `step`; `slot_tokens` as in `lower_features`."""
        return self.lower_features(self.features(step), slot_tokens)

    def features(self, step: Step) -> NDArray[np.float64]:
        """float64[dp rank, feature]: the sums over the step's sequences that operators depend on."""
        return step_features(step, self.dp, self.windows)

    def lower_features(
        self, features: NDArray[np.float64], slot_tokens: NDArray[np.int64] | None = None
    ) -> OperatorTable:
        """The operators of a step.

        Args:
            features: float64[dp rank, feature], as `features` returns.
            slot_tokens: int64[moe_layer, ep_rank * slots]: tokens each expert slot got; None for a dense model.
        """
        counted = {name: self._counted(features[:, which]) for name, which in _COUNTED.items()}
        dense = self._dense_columns(features)
        if self.experts is None or slot_tokens is None:
            return self._template.with_columns(dense | counted)
        tokens = slot_tokens.reshape(-1, self.experts.slots)
        routed = _expert_columns(self, self.experts, tokens)
        columns: dict[str, Any] = {name: np.concatenate([dense[name], routed[name]]) for name in dense}
        return self._template.with_columns(columns | counted | {"expert_tokens": tokens})

    def _counted(self, feature: NDArray[np.float64]) -> NDArray[np.int64]:
        """int64[row]: the rank's value of a feature in attention rows, 0 elsewhere."""
        column = np.zeros(len(self._template), dtype=np.int64)
        column[self._attention_rows] = feature[self._attention_ranks]
        return column

    def _dense_columns(self, features: NDArray[np.float64]) -> dict[str, Any]:
        """Step-dependent columns of the rows outside the experts: [dp rank, operator] flattened."""
        count = len(self.operators)
        values = (features @ self._coefficients).reshape(self.dp, len(_DYNAMIC), count).transpose(1, 0, 2)
        m, decode_m, flops, read, write, decode_flops, decode_read = values.reshape(len(_DYNAMIC), self.dp * count)
        weights = np.where(values[0] > 0, self._weight_bytes, 0.0).ravel()
        return {
            "m": m.astype(np.int64),
            "decode_m": decode_m.astype(np.int64),
            "routed_tokens": np.zeros(m.size, np.int64),
            "flops": flops,
            "weight_bytes_read": weights,
            "read_bytes": read,
            "write_bytes": write,
            "decode_flops": decode_flops,
            "decode_read_bytes": decode_read,
        }


def _coefficient_matrix(plan: OperatorPlan) -> NDArray[np.float64]:
    """float64[feature, dynamic column * operator]."""
    features = FIRST_WINDOW + 3 * len(plan.windows)
    matrix = np.zeros((features, len(_DYNAMIC), len(plan.operators)))
    for index, operator in enumerate(plan.operators):
        matrix[operator.m, 0, index] = 1.0
        linears = tuple(getattr(operator, name) for name in _DYNAMIC[1:])
        for column, linear in enumerate(linears, start=1):
            _add_linear(matrix[:, column, index], linear)
    return matrix.reshape(features, -1)


def _add_linear(column: NDArray[np.float64], linear: Linear) -> None:
    for which, coefficient in linear:
        column[which] += coefficient


def _template(plan: OperatorPlan) -> OperatorTable:
    """A table with the columns that no step changes; the others are zero."""
    names = (*dict.fromkeys(operator.name for operator in plan.operators), EXPERTS)
    ranks = np.repeat(np.arange(plan.dp), len(plan.operators))
    first, repeats = _layers_of(plan)

    def column(dtype: type, of: Callable[[Operator], object], expert: object) -> NDArray[Any]:
        dense: NDArray[Any] = np.tile(np.array([of(operator) for operator in plan.operators], dtype=dtype), plan.dp)
        return np.concatenate([dense, np.full(experts, expert, dtype=dtype)])

    shape = plan.experts
    experts = len(shape.layers) * plan.ep if shape else 0
    layers = np.repeat(np.array(shape.layers if shape else (), dtype=np.int32), plan.ep)
    expert_ranks = np.tile(np.arange(plan.ep), len(shape.layers) if shape else 0)
    expert_resident = shape.slots * shape.expert_bytes if shape else 0.0
    expert_dtype = DTYPE_CODES[plan.model.dtypes.experts]
    shards = np.full(plan.dp * len(plan.operators), plan.tp)
    none = np.zeros(plan.dp * len(plan.operators) + experts)
    static = {
        "operators": names,
        "operator": column(np.int8, lambda o: names.index(o.name), len(names) - 1),
        "form": column(np.int8, lambda o: o.form, GROUPED_GEMM),
        "layer": np.concatenate([np.tile(first, plan.dp), layers]).astype(np.int32),
        "repeats": np.concatenate([np.tile(repeats, plan.dp), np.ones(experts)]).astype(np.int32),
        "shards": np.concatenate([shards, np.full(experts, plan.moe_tp)]).astype(np.int32),
        "rank": np.concatenate([ranks, expert_ranks]).astype(np.int32),
        "replicated": column(np.bool_, lambda o: o.replicated, expert=False),
        "weight_dtype": column(np.int8, lambda o: DTYPE_CODES[o.dtype], expert_dtype),
        "n": column(np.int64, lambda o: o.n, shape.inner if shape else 0),
        "k": column(np.int64, lambda o: o.k, plan.model.hidden),
        "groups": column(np.int64, lambda o: o.groups, 1),
        "up_matrices": column(np.int8, lambda _: 0, shape.block.up_matrices if shape else 0),
        "weight_bytes_resident": column(np.float64, lambda o: o.resident_bytes, expert_resident),
        "grouped_rows": np.arange(experts) + plan.dp * len(plan.operators),
        "expert_tokens": np.zeros((experts, shape.slots if shape else 0), dtype=np.int64),
        "window": column(np.int64, lambda o: o.window, 0),
        "prefill_pair_flops": column(np.float64, lambda o: o.prefill_pair_flops, 0.0),
        "decode_pair_flops": column(np.float64, lambda o: o.decode_pair_flops, 0.0),
        "expert_slots": column(np.int64, lambda _: 0, shape.slots if shape else 0),
        "expert_ranks": column(np.int64, lambda _: 0, plan.ep),
    }
    activations = DTYPE_CODES[plan.model.dtypes.activations]
    static["query_dtype"] = column(np.int8, lambda o: activations if o.form == ATTENTION else 0, 0)
    static |= dict.fromkeys(("m", "decode_m", "routed_tokens", *_COUNTED), none.astype(np.int64))
    return OperatorTable(**static, **dict.fromkeys(_DYNAMIC_COLUMNS, none))  # type: ignore[arg-type]  # by name


def _layers_of(plan: OperatorPlan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each distinct operator: the first layer that runs it (-1 outside layers), and how often a step does."""
    first = np.full(len(plan.operators), -1)
    repeats = np.zeros(len(plan.operators), dtype=np.int64)
    for layer, positions in zip(plan.layer_range, plan.layers, strict=True):
        for position in positions:
            first[position] = layer if repeats[position] == 0 else first[position]
            repeats[position] += 1
    for position in (*plan.before, *plan.after):
        repeats[position] += 1
    return first, repeats


def _expert_shape(plan: OperatorPlan, slots: int | None) -> ExpertShape | None:
    """The routed experts of the plan's layers; None if it has none."""
    model, moe_layers = plan.model, [(layer, moe) for layer, moe in plan.model.moe_layers if layer in plan.layer_range]
    if not moe_layers:
        return None
    layers, blocks = zip(*moe_layers, strict=True)
    block: MoE = blocks[0]
    matrices = [matrix for matrix in block.matrices(model.hidden, model.dtypes) if matrix.operator == EXPERTS]
    expert_bytes = sum(matrix.nbytes for matrix in matrices) / block.experts / plan.moe_tp
    inner = block.intermediate // plan.moe_tp
    return ExpertShape(layers, block, slots or block.experts // plan.ep, model.hidden, inner, expert_bytes)


def _expert_columns(plan: OperatorPlan, shape: ExpertShape, tokens: NDArray[np.int64]) -> dict[str, Any]:
    """Step-dependent columns of the experts' rows.

    Bytes per token: its input, the up-projections' outputs written and read again by the activation function, that
    function's output written and read again by the down-projection, and the result. Of tokens whose expert is on
    another rank, the plan's `foreign_share` of that.
    """
    up, inner, hidden = shape.block.up_matrices, shape.inner, shape.hidden
    total = tokens.sum(axis=1)
    pairs = np.repeat(total.reshape(-1, plan.ep).sum(axis=1), plan.ep)
    foreign = pairs - total
    moved = (total + plan.foreign_share * foreign) * ((hidden + (up + 1) * inner) * plan.activation_bytes)
    touched = np.count_nonzero(tokens, axis=1)
    none = np.zeros(len(total))
    return {
        "m": total,
        "decode_m": np.zeros_like(total),
        "routed_tokens": pairs // shape.block.top_k,
        "flops": total * (2.0 * hidden * inner * (up + 1)),
        "weight_bytes_read": touched * shape.expert_bytes,
        "read_bytes": moved,
        "write_bytes": moved,
        "decode_flops": none,
        "decode_read_bytes": none,
    }
