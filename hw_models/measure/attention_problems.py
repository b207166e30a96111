"""Attention of decoding sequences over a paged KV cache, and of prompts."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.measure.problem import (
    ELEMENT_BYTES,
    INDEX_BYTES,
    DtypeName,
    Floats,
    Inputs,
    Ints,
    Problem,
    Work,
    random_values,
)


@dataclass(frozen=True)
class DecodeAttention(Problem):
    """One new token per sequence attends to its cached tokens; groups of query heads share a KV head.

    The cache is cut into pages that lie in random order, and the last page of a sequence may be partly filled.
    """

    kernel: ClassVar[str] = "decode_attention"
    context_tokens: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    page_tokens: int = 16
    dtype: DtypeName = "fp16"

    @property
    def sequences(self) -> int:
        """Sequences."""
        return len(self.context_tokens)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Cached tokens per sequence, the new one among them."""
        return self.context_tokens

    @property
    def work(self) -> Work:
        """Keys and values are read once per KV head."""
        size, pairs = ELEMENT_BYTES[self.dtype], sum(self.context_tokens)
        queries = size * self.heads * self.head_dim * self.sequences
        pages = INDEX_BYTES * sum(-(-length // self.page_tokens) for length in self.context_tokens)
        read = 2 * size * self.kv_heads * self.head_dim * pairs + queries + pages
        return Work(4.0 * self.heads * self.head_dim * pairs, float(read), float(queries))

    @property
    def output_rows(self) -> int:
        """Sequences."""
        return self.sequences

    @cached_property
    def page_table(self) -> NDArray[np.int32]:
        """int32[sequence, page]: where the pages lie; -1 behind the last one."""
        pages = [-(-length // self.page_tokens) for length in self.context_tokens]
        places = np.random.default_rng(sum(pages)).permutation(sum(pages)).astype(np.int32)
        table = np.full((len(pages), max(pages)), -1, np.int32)
        for line, count, start in zip(table, pages, np.cumsum([0, *pages]), strict=False):
            line[:count] = places[start : start + count]
        return table

    def inputs(self, rng: np.random.Generator) -> Inputs:
        """Queries and the cache in pages.

        `query` [sequence, head, head_dim], `keys` and `values` [page, slot, KV head, head_dim], `page_table`, and
        `context` int32[sequence].
        """
        cache = (int(self.page_table.max()) + 1, self.page_tokens, self.kv_heads, self.head_dim)
        return {
            "query": random_values(rng, (self.sequences, self.heads, self.head_dim), self.dtype),
            "keys": random_values(rng, cache, self.dtype),
            "values": random_values(rng, cache, self.dtype),
            "page_table": self.page_table,
            "context": np.array(self.context_tokens, np.int32),
        }

    def reference(self, inputs: Inputs, rows: Ints) -> Floats:
        """float64[row, head, head_dim]."""
        result = np.zeros((len(rows), self.heads, self.head_dim))
        for line, row in enumerate(rows):
            length = int(inputs["context"][row])
            pages = inputs["page_table"][row, : -(-length // self.page_tokens)]
            keys, values = (inputs[name][pages].reshape(-1, self.kv_heads, self.head_dim)[:length] for name in _CACHE)
            result[line] = attended(inputs["query"][row][:, None], keys, values)[:, 0]
        return result


@dataclass(frozen=True)
class PrefillAttention(Problem):
    """Every token of a prompt attends to itself and those before it; sequences of one length, nothing cached."""

    kernel: ClassVar[str] = "prefill_attention"
    sequences: int
    prompt_tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: DtypeName = "bf16"

    @property
    def work(self) -> Work:
        """Half the square of query-key pairs, the diagonal included."""
        size, n = ELEMENT_BYTES[self.dtype], self.prompt_tokens
        pairs = self.sequences * n * (n + 1) // 2
        queries = size * self.sequences * n * self.heads * self.head_dim
        cache = 2 * size * self.sequences * n * self.kv_heads * self.head_dim
        return Work(4.0 * self.heads * self.head_dim * pairs, float(queries + cache), float(queries))

    @property
    def output_rows(self) -> int:
        """(sequence, head) pairs."""
        return self.sequences * self.heads

    def inputs(self, rng: np.random.Generator) -> Inputs:
        """`query` [sequence, head, token, head_dim], `keys` and `values` [sequence, KV head, token, head_dim]."""
        tail = (self.prompt_tokens, self.head_dim)
        kv = (self.sequences, self.kv_heads, *tail)
        return {
            "query": random_values(rng, (self.sequences, self.heads, *tail), self.dtype),
            "keys": random_values(rng, kv, self.dtype),
            "values": random_values(rng, kv, self.dtype),
        }

    def reference(self, inputs: Inputs, rows: Ints) -> Floats:
        """float64[row, token, head_dim]: a row is a head of a sequence."""
        result = np.zeros((len(rows), self.prompt_tokens, self.head_dim))
        for line, (sequence, head) in enumerate(zip(*np.divmod(rows, self.heads), strict=True)):
            kv_head = head * self.kv_heads // self.heads
            keys, values = (inputs[name][sequence, kv_head][:, None] for name in _CACHE)
            result[line] = attended(inputs["query"][sequence, head][None], keys, values, causal=True)[0]
        return result


_CACHE = ("keys", "values")


def attended(
    query: NDArray[np.generic], keys: NDArray[np.generic], values: NDArray[np.generic], *, causal: bool = False
) -> Floats:
    """softmax(q k / sqrt(head_dim)) v.

    Args:
        query: [head, query token, head_dim].
        keys: [token, KV head, head_dim].
        values: as `keys`.
        causal: a query token sees no later token; both count from the same start.

    Returns:
        float64[head, query token, head_dim].
    """
    heads, _, head_dim = query.shape
    k, v = (np.repeat(np.asarray(x, np.float64), heads // x.shape[1], axis=1) for x in (keys, values))
    scores = np.einsum("hqd,thd->hqt", query.astype(np.float64), k) / np.sqrt(head_dim)
    if causal:
        scores = np.where(np.tri(*scores.shape[1:], dtype=np.bool_), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    return np.asarray(np.einsum("hqt,thd->hqd", weights, v), np.float64)
