"""Operator tables for tests of processors: one form of work at a time, with exact FLOPs and bytes."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.workloads.operator_table import (
    ATTENTION,
    DTYPE_CODES,
    DTYPES,
    ELEMENTWISE,
    GEMM,
    GROUPED_GEMM,
    OperatorTable,
)

_ACTIVATION_BYTES = 2.0
_DTYPES = {
    "operator": np.int8,
    "form": np.int8,
    "layer": np.int32,
    "repeats": np.int32,
    "shards": np.int32,
    "rank": np.int32,
    "replicated": np.bool_,
    "weight_dtype": np.int8,
    "m": np.int64,
    "n": np.int64,
    "k": np.int64,
    "groups": np.int64,
    "decode_m": np.int64,
    "prefill_sequences": np.int64,
    "longest_prefill": np.int64,
    "longest_decode": np.int64,
    "window": np.int64,
    "up_matrices": np.int8,
    "query_dtype": np.int8,
}


def operator_table(
    rows: int, form: int, expert_tokens: NDArray[np.int64] | None = None, **columns: ArrayLike
) -> OperatorTable:
    """`rows` rows of one form; columns that are not given are 0, and 1 where 0 makes no sense."""
    defaults = {"operator": 0, "form": form, "repeats": 1, "shards": 1, "groups": 1}
    given = defaults | {"weight_dtype": DTYPE_CODES["bf16"]} | columns
    names = [field.name for field in fields(OperatorTable)]
    kept: dict[str, Any] = {
        name: np.broadcast_to(np.asarray(given.get(name, 0), _DTYPES.get(name, np.float64)), rows).copy()
        for name in names
        if name not in {"operators", "grouped_rows", "expert_tokens"}
    }
    grouped = np.arange(rows if form == GROUPED_GEMM else 0)
    tokens = np.zeros((0, 0), np.int64) if expert_tokens is None else np.asarray(expert_tokens, np.int64)
    return OperatorTable(operators=("work",), grouped_rows=grouped, expert_tokens=tokens, **kept)


def gemm_table(
    m: ArrayLike, n: ArrayLike, k: ArrayLike, dtype: str = "bf16", weight_bytes: float | None = None
) -> OperatorTable:
    """Products [m, k] x [k, n]; `weight_bytes` per element are those of `dtype` unless given."""
    tokens, outputs, inputs = np.broadcast_arrays(*(np.atleast_1d(np.asarray(x, np.float64)) for x in (m, n, k)))
    per_weight = DTYPES[dtype].bytes if weight_bytes is None else weight_bytes
    nbytes = per_weight * outputs * inputs
    return operator_table(
        len(tokens),
        GEMM,
        weight_dtype=DTYPE_CODES[dtype],
        m=tokens,
        n=outputs,
        k=inputs,
        flops=2.0 * tokens * outputs * inputs,
        weight_bytes_resident=nbytes,
        weight_bytes_read=np.where(tokens > 0, nbytes, 0.0),
        read_bytes=_ACTIVATION_BYTES * tokens * inputs,
        write_bytes=_ACTIVATION_BYTES * tokens * outputs,
    )


def experts_table(
    expert_tokens: ArrayLike, n: ArrayLike, k: ArrayLike, dtype: str = "bf16", up_matrices: int = 2
) -> OperatorTable:
    """Expert FFNs; `expert_tokens` is int64[row, expert], n the intermediate and k the hidden size."""
    tokens = np.atleast_2d(np.asarray(expert_tokens, np.int64))
    total, touched = tokens.sum(axis=1), np.count_nonzero(tokens, axis=1)
    matrices = up_matrices + 1.0
    inner, hidden = np.asarray(n, np.float64), np.asarray(k, np.float64)
    moved = _ACTIVATION_BYTES * total * (hidden + matrices * inner)
    return operator_table(
        len(tokens),
        GROUPED_GEMM,
        tokens,
        weight_dtype=DTYPE_CODES[dtype],
        m=total,
        n=inner,
        k=hidden,
        up_matrices=up_matrices,
        flops=2.0 * matrices * total * inner * hidden,
        weight_bytes_read=DTYPES[dtype].bytes * matrices * touched * inner * hidden,
        read_bytes=moved,
        write_bytes=moved,
    )


def attention_table(
    sequences: ArrayLike,
    new_tokens: ArrayLike,
    context: ArrayLike,
    *,
    heads: ArrayLike = 32,
    kv_heads: ArrayLike = 8,
    head_dim: ArrayLike = 128,
    window: ArrayLike = np.inf,
    dtype: str = "bf16",
    decode: ArrayLike | None = None,
) -> OperatorTable:
    """Equal causal sequences of `new_tokens` on `context` cached ones; by default one token on some context decodes."""
    b, n, c, h, g, d, w = np.broadcast_arrays(
        *(
            np.atleast_1d(np.asarray(x, np.float64))
            for x in (sequences, new_tokens, context, heads, kv_heads, head_dim, window)
        )
    )
    total = n + c
    capped = np.minimum(n, np.maximum(0.0, total - np.minimum(w, total)))
    pairs = n * c + n * (n + 1) / 2 - (capped * (total - np.minimum(w, total)) - capped * (capped - 1) / 2)
    keys = np.minimum(total, n + np.minimum(w, total) - 1)
    flops = 4.0 * b * pairs * h * d
    query_bytes = _ACTIVATION_BYTES * b * n * h * d
    read = 2.0 * DTYPES[dtype].bytes * b * keys * g * d + query_bytes
    decodes = (n == 1) & (c > 0) if decode is None else np.broadcast_to(np.asarray(decode, np.bool_), b.shape)
    return operator_table(
        len(b),
        ATTENTION,
        weight_dtype=DTYPE_CODES[dtype],
        m=b * n,
        n=h * d,
        k=2 * g * d,
        groups=h,
        flops=flops,
        read_bytes=read,
        write_bytes=query_bytes,
        decode_m=np.where(decodes, b * n, 0),
        decode_flops=np.where(decodes, flops, 0.0),
        decode_read_bytes=np.where(decodes, read, 0.0),
        prefill_sequences=np.where(decodes, 0, b),
        longest_prefill=np.where(decodes, 0, total),
        longest_decode=np.where(decodes, total, 0),
        window=np.where(np.isfinite(w), w, 0),
        prefill_pair_flops=4.0 * h * d,
        decode_pair_flops=4.0 * h * d,
    )


def copy_table(nbytes: ArrayLike) -> OperatorTable:
    """Elementwise rows that move so many bytes, half read and half written."""
    half = np.atleast_1d(np.asarray(nbytes, np.float64)) / 2
    return operator_table(len(half), ELEMENTWISE, m=1, read_bytes=half, write_bytes=half)


def mixed_table() -> OperatorTable:
    """A row of each form in one table, and one without tokens."""
    parts = (gemm_table([64, 0], 4096, 4096), attention_table(8, 1, 1000), copy_table(1e6))
    experts = experts_table([[5, 0, 17, 2], [1, 1, 0, 0]], 1024, 2048)
    return concatenated([parts[0], experts, *parts[1:]])


def concatenated(tables: list[OperatorTable]) -> OperatorTable:
    """The rows of all tables in order."""
    offsets = np.cumsum([0, *(len(table) for table in tables)])
    slots = max(table.expert_tokens.shape[1] for table in tables)
    columns: dict[str, Any] = {
        field.name: np.concatenate([getattr(table, field.name) for table in tables])
        for field in fields(OperatorTable)
        if field.name not in {"operators", "grouped_rows", "expert_tokens"}
    }
    columns["grouped_rows"] = np.concatenate(
        [table.grouped_rows + offset for table, offset in zip(tables, offsets[:-1], strict=True)]
    )
    columns["expert_tokens"] = np.concatenate(
        [np.pad(table.expert_tokens, ((0, 0), (0, slots - table.expert_tokens.shape[1]))) for table in tables]
    )
    return replace(tables[0], **columns)


def row_of(table: OperatorTable, row: int) -> OperatorTable:
    """One row as a table."""
    columns = {
        field.name: getattr(table, field.name)[row : row + 1]
        for field in fields(OperatorTable)
        if field.name not in {"operators", "grouped_rows", "expert_tokens"}
    }
    mine = table.grouped_rows == row
    return replace(
        table, **columns, grouped_rows=np.zeros(mine.sum(), np.int64), expert_tokens=table.expert_tokens[mine]
    )
