"""Measured attention kernels as operator tables: the aiconfigurator and LLMServingSim data sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from moesim.errors import DataError
from moesim.hw_models.calibration.aiconfigurator import check_times, read_table
from moesim.hw_models.calibration.measured import Floats, Measured, Source, group_numbers
from moesim.hw_models.calibration.tables import operator_table
from moesim.workloads.operator_table import ATTENTION, DTYPE_CODES, DTYPES, OperatorTable

_ACTIVATION_BYTES = 2.0
_CACHES = {"bfloat16": "bf16", "fp8": "fp8"}
LATENT_RANK, LATENT_ROPE, NOPE_DIM, VALUE_DIM = 512, 64, 128, 128
"""Latent attention of DeepSeek-V3, the one measured (arXiv 2412.19437, section 4.2)."""


@dataclass(frozen=True)
class Sequences:
    """Equal sequences of each row, and what attends: arrays of float64[row]."""

    count: Floats
    new_tokens: Floats
    context: Floats
    window: Floats  # most keys that a query sees; inf without a limit

    @property
    def pairs(self) -> Floats:
        """Query-key pairs of all sequences of a row, causal and within the window (see `steps.attention_pairs`)."""
        n, total = self.new_tokens, self.new_tokens + self.context
        window = np.minimum(self.window, total)
        capped = np.minimum(n, np.maximum(0.0, total - window))
        excess = capped * (total - window) - capped * (capped - 1) / 2
        pairs: Floats = self.count * (n * self.context + n * (n + 1) / 2 - excess)
        return pairs

    @property
    def keys(self) -> Floats:
        """Keys that any query of a sequence sees, of all sequences of a row."""
        total = self.new_tokens + self.context
        keys: Floats = self.count * np.minimum(total, self.new_tokens + np.minimum(self.window, total) - 1)
        return keys


@dataclass(frozen=True)
class Heads:
    """What a row's heads are: float64[row] each."""

    count: Floats
    row_elements: Floats  # `n` of the operator table
    stored: Floats  # elements of keys and values that a token stores on a shard
    read_elements: Floats  # elements read per key in this phase
    pair_flops: Floats
    decode_pair_flops: Floats
    moved_elements: Floats  # of queries and results together, per token


def grouped_heads(heads: ArrayLike, kv_heads: ArrayLike, head_dim: ArrayLike) -> Heads:
    """Grouped-query heads."""
    h, g, d = (np.asarray(values, np.float64) for values in (heads, kv_heads, head_dim))
    return Heads(h, h * d, 2 * g * d, 2 * g * d, 4 * h * d, 4 * h * d, 2 * h * d)


def latent_heads(heads: ArrayLike, *, absorbed: bool) -> Heads:
    """Heads of latent attention: rebuilt per head, or absorbed into the latent space (DeepSeek-V2, 2.1)."""
    h = np.asarray(heads, np.float64)
    cached = LATENT_RANK + LATENT_ROPE
    rebuilt = h * (NOPE_DIM + LATENT_ROPE + VALUE_DIM)
    stored = np.full_like(h, cached)
    latent = h * (cached + LATENT_RANK)
    if absorbed:
        return Heads(h, rebuilt, stored, stored, 2 * latent, 2 * latent, latent)
    return Heads(h, rebuilt, stored, rebuilt, 2 * rebuilt, 2 * latent, rebuilt)


def attention_rows(
    cache: ArrayLike,
    heads: Heads,
    prefill: Sequences | None,
    decode: Sequences | None,
    queries: ArrayLike = "bf16",
) -> OperatorTable:
    """An operator table of attention rows as lowering a step makes them; one of both parts may be missing.

    Args:
        cache: names of cache formats, [row].
        heads: of both parts.
        prefill: chunks of prefill.
        decode: decode sequences.
        queries: names of formats of queries, [row] or for all.
    """
    names = np.asarray(cache)
    rows, kv_bytes = len(heads.count), np.array([DTYPES[name].bytes for name in names])
    none = Sequences(np.zeros(rows), np.zeros(rows), np.zeros(rows), np.full(rows, np.inf))
    first, second = prefill or none, decode or none
    # Rebuilt keys are activations; what a cache stores is in the cache's format.
    per_key = np.where(heads.read_elements == heads.stored, kv_bytes, _ACTIVATION_BYTES) * heads.read_elements
    half_bytes = heads.moved_elements / 2 * _ACTIVATION_BYTES
    tokens, decodes = first.count * first.new_tokens, second.count * second.new_tokens
    window = np.minimum(first.window, second.window)
    decode_read = second.keys * per_key + half_bytes * decodes
    columns: dict[str, Any] = {
        "m": tokens + decodes,
        "n": heads.row_elements,
        "k": heads.stored,
        "groups": heads.count,
        "flops": (first.pairs + second.pairs) * heads.pair_flops,
        "read_bytes": first.keys * per_key + half_bytes * tokens + decode_read,
        "write_bytes": half_bytes * (tokens + decodes),
        "decode_m": decodes,
        "decode_flops": second.pairs * heads.pair_flops,
        "decode_read_bytes": decode_read,
        "prefill_sequences": np.where(tokens > 0, first.count, 0),
        "longest_prefill": np.where(tokens > 0, first.new_tokens + first.context, 0),
        "longest_decode": np.where(decodes > 0, second.new_tokens + second.context, 0),
        "window": np.where(np.isfinite(window), window, 0),
        "prefill_pair_flops": heads.pair_flops,
        "decode_pair_flops": heads.decode_pair_flops,
        "query_dtype": [DTYPE_CODES[name] for name in np.broadcast_to(np.asarray(queries), rows)],
    }
    return operator_table(rows, ATTENTION, names, **columns)


def read_attention(file: Path) -> Measured[OperatorTable]:
    """Rows of `context_attention_perf.parquet` or `generation_attention_perf.parquet` of aiconfigurator.

    Labels: kernel, cache, activations, heads, kv_heads, head_dim, window, sequences, tokens (per sequence), context.

    Raises:
        DataError: the file has no such columns, or no row with a known format of the cache.
    """
    rows = _read(file, ("num_heads", "num_key_value_heads", "head_dim", "batch_size", "isl", "step", "kernel_source"))
    window = rows["window_size"] if "window_size" in rows else pd.Series(0, index=rows.index)
    heads = grouped_heads(rows.num_heads, rows.num_key_value_heads, rows.head_dim)
    labels = {
        "heads": rows.num_heads,
        "kv_heads": rows.num_key_value_heads,
        "head_dim": rows.head_dim,
        "window": window,
    }
    return _measured(rows, heads, labels, decodes="generation" in file.name)


def read_latent_attention(file: Path) -> Measured[OperatorTable]:
    """Rows of `context_mla_perf.parquet` or `generation_mla_perf.parquet`; labels as `read_attention`.

    Raises:
        DataError: the file has no such columns, or no row with a known format of the cache.
    """
    rows = _read(file, ("num_heads", "batch_size", "isl", "step", "kernel_source"))
    decodes = "generation" in file.name
    zeros = pd.Series(0, index=rows.index)
    labels = {"heads": rows.num_heads, "kv_heads": zeros, "head_dim": zeros, "window": zeros}
    return _measured(rows, latent_heads(rows.num_heads, absorbed=decodes), labels, decodes=decodes)


def _read(file: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    rows = read_table(file)
    missing = sorted({*columns, "latency", "kv_cache_dtype"} - set(rows.columns))
    if missing:
        raise DataError(str(file), "must hold measured attention kernels", f"no column {missing[0]}")
    check_times(file, rows)
    known = rows[rows.kv_cache_dtype.isin(_CACHES)]
    if known.empty:
        raise DataError(f"{file}: kv_cache_dtype", f"must be {' or '.join(_CACHES)} in some row")
    return known


def _measured(
    rows: pd.DataFrame, heads: Heads, labels: dict[str, pd.Series], *, decodes: bool
) -> Measured[OperatorTable]:
    window = labels["window"].to_numpy(np.float64)
    count, tokens = (rows[name].to_numpy(np.float64) for name in ("batch_size", "isl"))
    context = rows.step.to_numpy(np.float64)
    sequences = Sequences(count, tokens, context, np.where(window > 0, window, np.inf))
    cache = rows.kv_cache_dtype.map(_CACHES).to_numpy()
    # `mla_dtype` is bf16 throughout.
    activations = rows.attn_dtype.map(_CACHES).to_numpy() if "attn_dtype" in rows else np.full(len(rows), "bf16")
    prefill, decode = (None, sequences) if decodes else (sequences, None)
    table = attention_rows(cache, heads, prefill, decode, activations)
    known: dict[str, NDArray[Any]] = {name: column.to_numpy() for name, column in labels.items()}
    group = group_numbers(list(known.values()))
    known |= {"kernel": rows.kernel_source.to_numpy().astype(str), "cache": cache.astype(str)}
    known |= {"activations": activations.astype(str), "sequences": count, "tokens": tokens, "context": context}
    first = rows.iloc[0]
    kernel = "decode attention" if decodes else "prefill attention"
    source = Source("aiconfigurator (NVIDIA)", str(first.device), str(first.framework), str(first.version), kernel)
    return Measured(table, rows.latency.to_numpy(np.float64) * 1e-3, group, source, known)


def read_mixed_attention(file: Path, heads: int, kv_heads: int, head_dim: int) -> Measured[OperatorTable]:
    """Rows of LLMServingSim's `attention.csv`: a chunk of prefill beside equal decode sequences; either may be absent.

    Labels: tokens (of the chunk), context, sequences (that decode), decode_context.

    Args:
        file: the table, times in microseconds.
        heads: query heads of one shard.
        kv_heads: KV heads of one shard.
        head_dim: elements of a head.

    Raises:
        DataError: the file has no such columns.
    """
    rows = pd.read_csv(file)
    names = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    missing = sorted(set(names) - set(rows.columns))
    if missing:
        raise DataError(str(file), "must hold measured steps of attention", f"no column {missing[0]}")
    chunk, context, decodes, decode_context, time_us = (rows[name].to_numpy(np.float64) for name in names)
    one, unlimited = np.ones(len(rows)), np.full(len(rows), np.inf)
    shape = grouped_heads(one * heads, one * kv_heads, one * head_dim)
    prefill = Sequences(np.where(chunk > 0, 1.0, 0.0), chunk, np.where(chunk > 0, context, 0.0), unlimited)
    # `kv_decode` counts the new token's key.
    cached = np.maximum(decode_context - 1, 0)
    decode = Sequences(decodes, np.where(decodes > 0, 1.0, 0.0), np.where(decodes > 0, cached, 0.0), unlimited)
    table = attention_rows(np.full(len(rows), "bf16"), shape, prefill, decode)
    source = Source("LLMServingSim (KAIST)", "RTX PRO 6000", "vllm", "0.19.0", "attention of mixed steps")
    labels = {"tokens": chunk, "context": context, "sequences": decodes, "decode_context": decode_context}
    return Measured(table, time_us * 1e-6, np.zeros(len(rows), np.int64), source, labels)
