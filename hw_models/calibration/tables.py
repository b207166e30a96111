"""Operator tables of measured kernels: one form of work per table, with exact FLOPs and bytes."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.hw_models.calibration.measured import Floats, Measured
from moesim.workloads.operator_table import DTYPE_CODES, DTYPES, GEMM, GROUPED_GEMM, OperatorTable

_ACTIVATION_BYTES = 2.0
_PARTS = {"operators", "grouped_rows", "expert_tokens"}
_TYPES: dict[str, Any] = {
    # `ndarray[shape, dtype[int8]]`, which is what `NDArray[int8]` stands for
    column.name: get_args(get_args(column.type)[1])[0]
    for column in fields(OperatorTable)
    if column.name not in _PARTS
}


def operator_table(
    rows: int, form: int, dtype: ArrayLike, expert_tokens: NDArray[np.int64] | None = None, **columns: ArrayLike
) -> OperatorTable:
    """A table of measured work; columns not given are 0, and 1 where 0 makes no sense.

    Args:
        rows: number of them.
        form: of all of them.
        dtype: names of formats of weights (attention: of caches), [row] or one for all.
        expert_tokens: int64[row, expert] of expert FFNs.
        columns: others by name, [row] or one value for all.
    """
    codes = [DTYPE_CODES[str(name)] for name in np.broadcast_to(np.asarray(dtype), rows)]
    given: dict[str, ArrayLike] = {"form": form, "repeats": 1, "shards": 1, "groups": 1, "weight_dtype": codes}
    given |= columns
    kept: dict[str, Any] = {
        name: np.broadcast_to(np.asarray(given.get(name, 0)), rows).astype(scalar, order="C")
        for name, scalar in _TYPES.items()
    }
    grouped = np.arange(rows if form == GROUPED_GEMM else 0)
    tokens = np.zeros((0, 0), np.int64) if expert_tokens is None else expert_tokens
    return OperatorTable(operators=("measured",), grouped_rows=grouped, expert_tokens=tokens, **kept)


def product_table(m: ArrayLike, n: ArrayLike, k: ArrayLike, dtype: str) -> OperatorTable:
    """Products [m, k] x [k, n] with 16-bit activations and weights of `dtype`."""
    tokens, outputs, inputs = (np.asarray(x, np.float64) for x in (m, n, k))
    nbytes = DTYPES[dtype].bytes * outputs * inputs
    return operator_table(
        len(tokens),
        GEMM,
        dtype,
        m=tokens,
        n=outputs,
        k=inputs,
        flops=2.0 * tokens * outputs * inputs,
        weight_bytes_resident=nbytes,
        weight_bytes_read=nbytes,
        read_bytes=_ACTIVATION_BYTES * tokens * inputs,
        write_bytes=_ACTIVATION_BYTES * tokens * outputs,
    )


class Held(NamedTuple):
    """The batch and the ranks of expert FFNs, by row: tokens of all ranks, experts of this rank, and ranks."""

    tokens: ArrayLike
    slots: ArrayLike
    ranks: ArrayLike


def expert_table(
    expert_tokens: NDArray[np.int64],
    n: ArrayLike,
    k: ArrayLike,
    dtype: str,
    up_matrices: ArrayLike = 2,
    foreign_pairs: ArrayLike = 0.0,
    held: Held | None = None,
) -> OperatorTable:
    """Expert FFNs of one rank.

    Args:
        expert_tokens: int64[row, expert], tokens of each expert that the rank holds.
        n: intermediate size of the rank's shard, by row.
        k: hidden size, by row.
        dtype: of the weights.
        up_matrices: 2 where experts are gated, else 1, by row.
        foreign_pairs: pairs of a token and an expert of another rank whose activations the kernel moves all the same.
        held: what else is known of the batch; by default one expert per token, and all experts on one rank.
    """
    total, touched = expert_tokens.sum(axis=1), np.count_nonzero(expert_tokens, axis=1)
    inner, hidden, up = (np.asarray(x, np.float64) for x in (n, k, up_matrices))
    moved: Floats = _ACTIVATION_BYTES * (total + np.asarray(foreign_pairs)) * (hidden + (up + 1.0) * inner)
    held = held or Held(total, expert_tokens.shape[1], 1)
    nbytes = DTYPES[dtype].bytes * (up + 1.0) * touched * inner * hidden
    return operator_table(
        len(expert_tokens),
        GROUPED_GEMM,
        dtype,
        expert_tokens,
        m=total,
        n=inner,
        k=hidden,
        up_matrices=up,
        routed_tokens=held.tokens,
        expert_slots=held.slots,
        expert_ranks=held.ranks,
        flops=2.0 * (up + 1.0) * total * inner * hidden,
        weight_bytes_resident=nbytes,
        weight_bytes_read=nbytes,
        read_bytes=moved,
        write_bytes=moved,
    )


def joined_tables(tables: Sequence[OperatorTable]) -> OperatorTable:
    """The rows of all tables in order, under the operator names of the first; experts are padded with empty ones."""
    columns: dict[str, Any] = {name: np.concatenate([getattr(table, name) for table in tables]) for name in _TYPES}
    offsets = np.cumsum([0, *map(len, tables)])[:-1]
    slots = max(table.expert_tokens.shape[1] for table in tables)
    columns["grouped_rows"] = np.concatenate([t.grouped_rows + start for t, start in zip(tables, offsets, strict=True)])
    columns["expert_tokens"] = np.concatenate(
        [np.pad(table.expert_tokens, ((0, 0), (0, slots - table.expert_tokens.shape[1]))) for table in tables]
    )
    names = tuple(dict.fromkeys(table.operators[code] for table in tables for code in table.operator))
    codes = [names.index(table.operators[code]) for table in tables for code in table.operator]
    return replace(tables[0], operators=names, **columns | {"operator": np.array(codes, np.int8)})


def joined_sets(parts: Sequence[Measured[OperatorTable]]) -> Measured[OperatorTable]:
    """The rows of several sets in order, with the labels that all have; shapes of two sets are distinct.

    Takes at least one set, and has the source of the first.
    """
    offsets = np.cumsum([0, *(part.group.max() + 1 for part in parts)])
    group = np.concatenate([part.group + offset for part, offset in zip(parts, offsets[:-1], strict=True)])
    shared = set.intersection(*(set(part.labels) for part in parts))
    labels = {name: np.concatenate([part.labels[name] for part in parts]) for name in sorted(shared)}
    time_s = np.concatenate([part.time_s for part in parts])
    return Measured(joined_tables([part.table for part in parts]), time_s, group, parts[0].source, labels)
