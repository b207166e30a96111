"""Reader of the files that `moesim measure` writes: each measurement becomes the row that a simulation would price.

A row is lowered from a model that has just that operator, by the code that lowers every step. So what is fitted to is
what is simulated, whatever columns operators have.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import DataError
from moesim.hw_models.calibration.measured import Measured, Source, group_numbers
from moesim.hw_models.calibration.tables import joined_tables
from moesim.hw_models.gpu import GPU
from moesim.hw_models.measure.measured import Machine, Measurement, read_measured
from moesim.workloads.attention_blocks import GroupedQueryAttention
from moesim.workloads.models import DenseFFN, FeedForward, Layer, LayerGroup, Model, MoE
from moesim.workloads.operator_plan import EXPERTS, OperatorPlan
from moesim.workloads.operator_table import OperatorTable
from moesim.workloads.steps import Step

PUBLISHER = "moesim measure"
KERNELS = {
    "gemm": "gemm",
    "expert_ffn": "experts",
    "decode_attention": "decode attention",
    "prefill_attention": "prefill attention",
    "copy": "copy",
}
"""Kernels that are operators, by their names in files, and what the source of a fit calls them. The others (triad,
single grouped product, permutations, histogram) are parts of operators, or none."""

_OWN = "moesim"
_PACKAGES = {"torch": ("torch",), "cupy": ("cupy", "cupy-cuda12x", "cupy-cuda13x")}
_SHAPES = {
    "gemm": ("n", "k"),
    "expert_ffn": ("experts", "top_k", "hidden", "intermediate"),
    "decode_attention": ("heads", "kv_heads", "head_dim"),
    "prefill_attention": ("heads", "kv_heads", "head_dim"),
    "copy": ("elements",),
}
"""What makes measurements of a kernel one shape: all but the number of tokens."""


def read_measured_kernels(path: str | Path, *, vendor_first: bool = True) -> list[Measured[OperatorTable]]:
    """Measured operators, an entry per kernel, library and number format; groups are shapes.

    Labels: `tokens` (of products and experts; cached ones per sequence for attention; elements of copies), `kernel`
    (whose kernel).

    Args:
        path: a file of `moesim measure`.
        vendor_first: leave out our own kernels of a kind where a library's were measured too: ours use no tensor cores.

    Raises:
        DataError: the file breaks a rule, or no measurement in it is an operator.
    """
    contents = read_measured(path)
    rows = [row for row in contents.rows if row.kernel in KERNELS]
    if vendor_first:
        vendors = {row.kernel for row in rows if row.implementation != _OWN}
        rows = [row for row in rows if row.implementation != _OWN or row.kernel not in vendors]
    if not rows:
        raise DataError(str(path), f"must hold measurements of some of {', '.join(KERNELS)}")
    sets: dict[tuple[str, str, str], list[Measurement]] = {}
    for row in rows:
        sets.setdefault((row.kernel, row.implementation, row.dtype), []).append(row)
    return [_measured(contents.about.machine, contents.about.moesim, same) for same in sets.values()]


def streaming(processor: GPU) -> GPU:
    """The same GPU where copies take turns of more data than L2 holds, as `moesim measure` times them."""
    elementwise = processor.config.elementwise.model_copy(update={"cached_bytes": None})
    return GPU(processor.config.model_copy(update={"elementwise": elementwise}))


def _measured(machine: Machine, moesim: str, rows: Sequence[Measurement]) -> Measured[OperatorTable]:
    """One set: rows of one kernel, library and format."""
    first = rows[0]
    names = _PACKAGES.get(first.implementation, ())
    versions = [machine.libraries[name] for name in names if name in machine.libraries]
    version = versions[0] if versions else moesim if first.implementation == _OWN else "of unknown version"
    kernel = f"{KERNELS[first.kernel]} {first.dtype}"
    source = Source(PUBLISHER, machine.gpu, first.implementation, version, kernel)
    shapes = [np.array([row.shape[name] for row in rows]) for name in _SHAPES[first.kernel]]
    labels = {
        "tokens": np.array([_tokens(row) for row in rows]),
        "kernel": np.array([first.implementation] * len(rows)),
    }
    time_s = np.array([row.median_s for row in rows])
    table = joined_tables([_LOWERED[first.kernel](row) for row in rows])
    return Measured(table, time_s, group_numbers(shapes), source, labels)


def _tokens(row: Measurement) -> float:
    shape = row.shape
    if row.kernel == "decode_attention":
        return float(np.mean(row.lengths))
    return float(next(shape[name] for name in ("m", "tokens", "prompt_tokens", "elements") if name in shape))


def _product(row: Measurement) -> OperatorTable:
    """The down-projection of a dense feed-forward block."""
    ffn = DenseFFN(kind="dense", intermediate=row.shape["k"], gated=False)
    return _lowered(_model(row, row.shape["n"], ffn), "ffn_down", _step([row.shape["m"]], [0]))


def _experts(row: Measurement) -> OperatorTable:
    shape = row.shape
    names = {name: shape[name] for name in ("experts", "top_k", "intermediate")}
    model = _model(row, shape["hidden"], MoE(kind="moe", **names))
    return _lowered(model, EXPERTS, _step([shape["tokens"]], [0]), np.array([row.lengths], np.int64))


def _decode(row: Measurement) -> OperatorTable:
    """Lengths count the new token, whose key is in the cache by then; the contexts of a step do not."""
    context = [length - 1 for length in row.lengths]
    return _lowered(_model(row, row.shape["head_dim"]), "attention", _step([1] * len(context), context))


def _prefill(row: Measurement) -> OperatorTable:
    sequences, tokens = row.shape["sequences"], row.shape["prompt_tokens"]
    step = _step([tokens] * sequences, [0] * sequences)
    return _lowered(_model(row, row.shape["head_dim"]), "attention", step)


def _copy(row: Measurement) -> OperatorTable:
    """Looking up the embedding of one token reads a row and writes it."""
    return _lowered(_model(row, row.shape["elements"]), "embedding", _step([1], [0]))


_LOWERED: dict[str, Callable[[Measurement], OperatorTable]] = {
    "gemm": _product,
    "expert_ffn": _experts,
    "decode_attention": _decode,
    "prefill_attention": _prefill,
    "copy": _copy,
}


def _model(row: Measurement, hidden: int, ffn: FeedForward | None = None) -> Model:
    """A model of one layer, everything in the format that was measured."""
    heads = {name: row.shape.get(name, 1) for name in ("heads", "kv_heads", "head_dim")}
    layer = Layer(attention=GroupedQueryAttention(**heads), ffn=ffn or DenseFFN(kind="dense", intermediate=1))
    dtype = row.dtype
    formats = {"weights": dtype, "experts": dtype, "embeddings": dtype, "activations": dtype, "kv_cache": dtype}
    values = {"name": row.kernel, "source": "measured", "hidden": hidden, "vocabulary": 1, "dtypes": formats}
    return Model.model_validate(values | {"layers": (LayerGroup(pattern=(layer,)),)})


def _step(new_tokens: Sequence[int], context: Sequence[int]) -> Step:
    new, cached = np.array(new_tokens, np.int64), np.array(context, np.int64)
    zeros = np.zeros_like(new)
    return Step(np.arange(len(new)), zeros, new, cached, np.ones(len(new), np.bool_), new + cached, zeros)


def _lowered(model: Model, operator: str, step: Step, expert_tokens: Any = None) -> OperatorTable:
    """The row of `operator` in a step of `model`."""
    table = OperatorPlan(model).lower(step, expert_tokens)
    return table.take(np.flatnonzero(table.operator == table.operators.index(operator)))
