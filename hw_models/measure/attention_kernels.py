"""CUDA kernels of decode attention over a paged KV cache, and their benchmark. Import it lazily: it pulls in numba.

Split along the cached tokens as in Flash-Decoding (Dao et al., 2023): a block takes one part of one KV head of one
sequence, for all query heads that share it, and a second kernel joins the parts.
"""

import math
from functools import cache
from typing import Any, NamedTuple

from moesim.hw_models.measure.attention_problems import DecodeAttention
from moesim.hw_models.measure.benchmark import Buffers, OwnBenchmark
from moesim.hw_models.measure.cuda import cuda, empty, float32, to_device
from moesim.hw_models.measure.problem import Inputs

_TILE_TOKENS = 32
_LEAST_PART_TOKENS = 256
_LOWEST = -1e30
"""Stands for minus infinity, whose difference with itself is not a number."""


class DecodeAttentionBenchmark(OwnBenchmark[DecodeAttention]):
    """Parts of at least 256 tokens, as many as it takes to give every multiprocessor a few blocks.

    Args:
        problem: what to compute.
        target_blocks: blocks that keep the GPU busy.
        tile_tokens: tokens that a block holds in shared memory.
    """

    kernels_per_launch = 2

    def __init__(self, problem: DecodeAttention, target_blocks: int, tile_tokens: int = _TILE_TOKENS) -> None:
        super().__init__(problem)
        self._tile = tile_tokens
        longest = max(problem.context_tokens)
        wanted = -(-target_blocks // (len(problem.context_tokens) * problem.kv_heads))
        parts = max(1, min(wanted, longest // _LEAST_PART_TOKENS))
        self.part_tokens = -(-longest // (parts * tile_tokens)) * tile_tokens
        self.parts = -(-longest // self.part_tokens)

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Queries, cache, pages, contexts, the parts' results and the whole."""
        problem, sequences = self.problem, len(self.problem.context_tokens)
        buffers = {name: to_device(array) for name, array in inputs.items()}
        heads = (self.parts, sequences, problem.heads)
        return buffers | {
            "part_out": empty((*heads, problem.head_dim), "float32"),
            "part_norm": empty((*heads, 2), "float32"),
            "out": empty((sequences, problem.heads, problem.head_dim), buffers["query"].dtype),
        }

    def launch(self, buffers: Buffers) -> None:
        """One kernel for the parts, one that joins them."""
        problem, sequences = self.problem, len(self.problem.context_tokens)
        parts = buffers["part_out"], buffers["part_norm"]
        inputs = (buffers[name] for name in ("query", "keys", "values", "page_table", "context"))
        group = problem.heads // problem.kv_heads
        kernel = part_kernel(PartShape(group, problem.head_dim, problem.page_tokens, self._tile))
        kernel[(self.parts, problem.kv_heads, sequences), problem.head_dim](*inputs, self.part_tokens, *parts)
        join_kernel[(problem.heads, sequences), problem.head_dim](*parts, buffers["out"])


# numba from 0.66 on cannot compile the built-in min() and max() for CUDA (numba/numba#10753).
@cuda.jit(device=True)
def least(a: Any, b: Any) -> Any:
    """The smaller one."""
    return a if a < b else b  # noqa: FURB136


@cuda.jit(device=True)
def greater(a: Any, b: Any) -> Any:
    """The larger one."""
    return a if a > b else b  # noqa: FURB136


class PartShape(NamedTuple):
    """Constants of the kernel for one part."""

    group: int
    """Query heads per KV head."""
    head_dim: int
    page_tokens: int
    tile_tokens: int


@cache
def part_kernel(shape: PartShape) -> Any:
    """The kernel for one part: blocks (part, KV head, sequence), a thread per element of a head.

    It writes part_out[part, sequence, head, element], the weighted sum of values, not yet divided, and
    part_norm[part, sequence, head, 2], the greatest score and the sum of weights. An empty part has sum 0.
    """
    GROUP, D, _, T = shape
    PADDED = D + 1  # neighbouring threads read neighbouring tokens of the tile: they must hit different banks
    load, score, weigh, add = _key_loader(shape), _scorer(shape), _weigher(shape), _adder(shape)
    begin, finish = _starter(shape), _storer(shape)

    @cuda.jit
    def kernel(
        query: Any,
        keys: Any,
        values: Any,
        page_table: Any,
        context: Any,
        part_tokens: int,
        part_out: Any,
        part_norm: Any,
    ) -> None:
        key_tile = cuda.shared.array((T, PADDED), float32)
        q = cuda.shared.array((GROUP, D), float32)
        weight = cuda.shared.array((GROUP, T), float32)
        norm = cuda.shared.array((GROUP, 3), float32)
        sums = cuda.local.array(GROUP, float32)
        part, kv_head, sequence = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        start = part * part_tokens
        end = least(start + part_tokens, context[sequence])
        begin(query[sequence], kv_head, q, norm, sums)
        for first in range(start, end, T):
            count = least(T, end - first)
            load(keys, page_table[sequence], kv_head, first, count, key_tile)
            cuda.syncthreads()
            score(q, key_tile, count, weight)
            cuda.syncthreads()
            weigh(weight, count, norm)
            cuda.syncthreads()
            add(values, page_table[sequence], kv_head, first, count, weight, norm, sums)
            cuda.syncthreads()
        cuda.syncthreads()
        finish(sums, norm, kv_head, part_out[part, sequence], part_norm[part, sequence])

    return kernel


_GREATEST, _TOTAL, _RESCALE = range(3)
"""Columns of `norm`: greatest score so far, sum of weights, and what the last tile multiplied older sums with."""


def _starter(shape: PartShape) -> Any:
    GROUP, D = shape.group, shape.head_dim
    SCALE = 1.0 / math.sqrt(D)

    @cuda.jit(device=True)
    def begin(query: Any, kv_head: int, q: Any, norm: Any, sums: Any) -> None:
        d = cuda.threadIdx.x
        for g in range(GROUP):
            q[g, d] = float32(query[kv_head * GROUP + g, d]) * float32(SCALE)
            sums[g] = float32(0)
        for g in range(d, GROUP, D):
            norm[g, _GREATEST] = float32(_LOWEST)
            norm[g, _TOTAL] = float32(0)

    return begin


def _key_loader(shape: PartShape) -> Any:
    PAGE = shape.page_tokens

    @cuda.jit(device=True)
    def load(keys: Any, pages: Any, kv_head: int, first: int, count: int, key_tile: Any) -> None:
        d = cuda.threadIdx.x
        for t in range(count):
            key_tile[t, d] = float32(keys[pages[(first + t) // PAGE], (first + t) % PAGE, kv_head, d])

    return load


def _scorer(shape: PartShape) -> Any:
    GROUP, D = shape.group, shape.head_dim

    @cuda.jit(device=True)
    def score(q: Any, key_tile: Any, count: int, weight: Any) -> None:
        for pair in range(cuda.threadIdx.x, GROUP * count, D):
            g, t = pair // count, pair % count
            total = float32(0)
            for i in range(D):
                total += q[g, i] * key_tile[t, i]
            weight[g, t] = total

    return score


def _weigher(shape: PartShape) -> Any:
    """Turn scores into weights relative to the greatest score so far (online softmax)."""
    GROUP, D = shape.group, shape.head_dim

    @cuda.jit(device=True)
    def weigh(weight: Any, count: int, norm: Any) -> None:
        for g in range(cuda.threadIdx.x, GROUP, D):
            greatest = norm[g, _GREATEST]
            for t in range(count):
                greatest = greater(greatest, weight[g, t])
            added = float32(0)
            for t in range(count):
                weight[g, t] = float32(math.exp(weight[g, t] - greatest))
                added += weight[g, t]
            norm[g, _RESCALE] = float32(math.exp(norm[g, _GREATEST] - greatest))
            norm[g, _TOTAL] = norm[g, _TOTAL] * norm[g, _RESCALE] + added
            norm[g, _GREATEST] = greatest

    return weigh


def _adder(shape: PartShape) -> Any:
    GROUP, PAGE = shape.group, shape.page_tokens

    @cuda.jit(device=True)
    def add(values: Any, pages: Any, kv_head: int, first: int, count: int, weight: Any, norm: Any, sums: Any) -> None:
        for g in range(GROUP):
            sums[g] *= norm[g, _RESCALE]
        for t in range(count):
            value = float32(values[pages[(first + t) // PAGE], (first + t) % PAGE, kv_head, cuda.threadIdx.x])
            for g in range(GROUP):
                sums[g] += weight[g, t] * value

    return add


def _storer(shape: PartShape) -> Any:
    GROUP, D = shape.group, shape.head_dim

    @cuda.jit(device=True)
    def finish(sums: Any, norm: Any, kv_head: int, part_out: Any, part_norm: Any) -> None:
        for g in range(GROUP):
            part_out[kv_head * GROUP + g, cuda.threadIdx.x] = sums[g]
        for g in range(cuda.threadIdx.x, GROUP, D):
            part_norm[kv_head * GROUP + g, 0] = norm[g, _GREATEST]
            part_norm[kv_head * GROUP + g, 1] = norm[g, _TOTAL]

    return finish


@cuda.jit
def join_kernel(part_out: Any, part_norm: Any, out: Any) -> None:
    """Join the parts into out[sequence, head, element]; blocks (head, sequence), a thread per element."""
    head, sequence, d = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    greatest = float32(_LOWEST)
    for part in range(part_norm.shape[0]):
        greatest = greater(greatest, part_norm[part, sequence, head, 0])
    total, value = float32(0), float32(0)
    for part in range(part_norm.shape[0]):
        weight = float32(math.exp(part_norm[part, sequence, head, 0] - greatest))
        total += weight * part_norm[part, sequence, head, 1]
        value += weight * part_out[part, sequence, head, d]
    out[sequence, head, d] = value / total
