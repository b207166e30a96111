"""CUDA kernels that multiply matrices, and the benchmarks that run them. Import it lazily: it pulls in numba.

Products run on the ordinary cores in fp32, whatever the format of the operands: numba reaches no tensor cores. So these
kernels show what memory-bound products cost, and the vendor's beside them what compute-bound ones do.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.measure.benchmark import Buffers, OwnBenchmark
from moesim.hw_models.measure.cuda import cuda, empty, float32, to_device
from moesim.hw_models.measure.matrix_problems import ExpertFfn, Gemm, GroupedGemm, sorted_by_expert
from moesim.hw_models.measure.memory_kernels import combine_kernel, gather_kernel, row_threads
from moesim.hw_models.measure.problem import Inputs


class Tile(NamedTuple):
    """Output tile of a block: m x n results, k elements of the sum at a time, each thread a grid of results."""

    m: int
    n: int
    k: int
    thread_m: int
    thread_n: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return (self.m // self.thread_m) * (self.n // self.thread_n)


LARGE_TILE = Tile(128, 128, 8, 8, 8)
SMALL_TILE = Tile(16, 128, 16, 2, 4)
"""For few tokens: less work on rows that are not there."""
_FEW_TOKENS = 48


class TileTable(NamedTuple):
    """Where each block row starts: int32[tile row] each.

    Attributes:
        group: which matrix of the right operand.
        start: first row of the left operand.
        end: one past the last row of the group.
    """

    group: NDArray[np.int32]
    start: NDArray[np.int32]
    end: NDArray[np.int32]


def tile_table(tokens: Sequence[int] | NDArray[np.int64], tile_m: int) -> TileTable:
    """Tiles that cover the rows of each group (expert); groups without rows have none."""
    counts = np.asarray(tokens, np.int64)
    ends = np.cumsum(counts)
    tiles = -(-counts // tile_m)
    group = np.repeat(np.arange(len(counts)), tiles)
    first = np.concatenate([[0], np.cumsum(tiles)[:-1]])
    within = np.arange(tiles.sum()) - first[group]
    start = (ends - counts)[group] + within * tile_m
    return TileTable(group.astype(np.int32), start.astype(np.int32), ends[group].astype(np.int32))


def fitting_tile(tokens: Sequence[int] | NDArray[np.int64]) -> Tile:
    """The tile for groups of these sizes."""
    counts = np.asarray(tokens)
    return SMALL_TILE if counts[counts > 0].mean() <= _FEW_TOKENS else LARGE_TILE


class _Product:
    """One grouped product with its tile table on the GPU."""

    def __init__(self, tokens: Sequence[int] | NDArray[np.int64], tile: Tile | None) -> None:
        self._tile = tile or fitting_tile(tokens)
        self._table = tuple(map(to_device, tile_table(tokens, self._tile.m)))

    def launch(self, a: Any, b: Any, out: Any) -> None:
        """Queue out = a b, where `b` is [group, k, n]."""
        blocks = -(-out.shape[1] // self._tile.n), self._table[0].shape[0]
        product_kernel(self._tile)[blocks, self._tile.threads](a, b, out, *self._table)


class GemmBenchmark(OwnBenchmark[Gemm]):
    """A grouped product of one group."""

    def __init__(self, problem: Gemm, tile: Tile | None = None) -> None:
        super().__init__(problem)
        self._tile = tile

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Operands, result, tiles."""
        a, b = to_device(inputs["a"]), to_device(inputs["b"][None])
        out = empty((self.problem.m, self.problem.n), a.dtype)
        return {"a": a, "b": b, "out": out, "product": _Product([self.problem.m], self._tile)}

    def launch(self, buffers: Buffers) -> None:
        """One kernel."""
        buffers["product"].launch(buffers["a"], buffers["b"], buffers["out"])


class GroupedGemmBenchmark(OwnBenchmark[GroupedGemm]):
    """The tiles of all experts in one launch."""

    def __init__(self, problem: GroupedGemm, tile: Tile | None = None) -> None:
        super().__init__(problem)
        self._tile = tile

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Operands, result, tiles."""
        a, b = to_device(inputs["a"]), to_device(inputs["b"])
        out = empty((self.problem.output_rows, self.problem.n), a.dtype)
        return {"a": a, "b": b, "out": out, "product": _Product(self.problem.expert_tokens, self._tile)}

    def launch(self, buffers: Buffers) -> None:
        """One kernel."""
        buffers["product"].launch(buffers["a"], buffers["b"], buffers["out"])


class ExpertFfnBenchmark(OwnBenchmark[ExpertFfn]):
    """Gather, product, activation, product, combine. The order of selections comes ready: sorting is not timed."""

    kernels_per_launch = 5

    def __init__(self, problem: ExpertFfn, tile: Tile | None = None) -> None:
        super().__init__(problem)
        self._tile = tile

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Operands, result, everything between, and the order of selections."""
        problem, order = self.problem, sorted_by_expert(inputs["ids"], self.problem.experts)
        x = to_device(inputs["x"])
        selections = len(order.token)
        rooms = {"gathered": problem.hidden, "up_out": 2 * problem.intermediate, "inner": problem.intermediate}
        rooms["down_out"] = problem.hidden
        return {
            "x": x,
            "token": to_device(order.token),
            "position": to_device(order.position),
            "product": _Product(order.expert_tokens, self._tile),
            "out": empty((problem.tokens, problem.hidden), x.dtype),
            **{name: to_device(inputs[name]) for name in ("up", "down", "weights")},
            **{name: empty((selections, columns), x.dtype) for name, columns in rooms.items()},
        }

    def launch(self, buffers: Buffers) -> None:
        """Five kernels."""
        product, selections = buffers["product"], buffers["gathered"].shape[0]
        hidden, inner = row_threads(self.problem.hidden), row_threads(self.problem.intermediate)
        gather_kernel[selections, hidden](buffers["x"], buffers["token"], buffers["gathered"])
        product.launch(buffers["gathered"], buffers["up"], buffers["up_out"])
        silu_kernel[selections, inner](buffers["up_out"], buffers["inner"])
        product.launch(buffers["inner"], buffers["down"], buffers["down_out"])
        combine_kernel[self.problem.tokens, hidden](
            buffers["down_out"], buffers["position"], buffers["weights"], buffers["out"]
        )


@cuda.jit
def silu_kernel(up_out: Any, inner: Any) -> None:
    """Write silu(gate) x up into `inner`; the first half of `up_out` is the gate. A block per row."""
    row, columns = cuda.blockIdx.x, inner.shape[1]
    for i in range(cuda.threadIdx.x, columns, cuda.blockDim.x):
        gate = float32(up_out[row, i])
        inner[row, i] = gate / (float32(1) + float32(math.exp(-gate))) * float32(up_out[row, columns + i])


@cache
def product_kernel(tile: Tile) -> Any:
    """The kernel out[rows of group] = a[rows of group] b[group] with this tile.

    Blocks: (columns / tile.n, tiles of the table); both operands pass through shared memory.
    """
    M, N, K, THREAD_M, THREAD_N = tile
    ACROSS = N // THREAD_N
    PADDED = M + 1  # without the column more, the threads that store a row of `a` would all hit one bank
    load_a, load_b, multiply, store = _a_loader(tile), _b_loader(tile), _multiplier(tile), _storer(tile)

    @cuda.jit
    def kernel(a: Any, b: Any, out: Any, tile_group: Any, tile_start: Any, tile_end: Any) -> None:
        a_tile = cuda.shared.array((K, PADDED), float32)
        b_tile = cuda.shared.array((K, N), float32)
        sums = cuda.local.array((THREAD_M, THREAD_N), float32)
        a_part = cuda.local.array(THREAD_M, float32)
        b_part = cuda.local.array(THREAD_N, float32)
        down, across = cuda.threadIdx.x // ACROSS, cuda.threadIdx.x % ACROSS
        group, start, end = tile_group[cuda.blockIdx.y], tile_start[cuda.blockIdx.y], tile_end[cuda.blockIdx.y]
        for i in range(THREAD_M):
            for j in range(THREAD_N):
                sums[i, j] = float32(0)
        for first in range(0, a.shape[1], K):
            load_a(a, start, end, first, a_tile)
            load_b(b[group], cuda.blockIdx.x * N, first, b_tile)
            cuda.syncthreads()
            multiply(a_tile, b_tile, down, across, a_part, b_part, sums)
            cuda.syncthreads()
        store(sums, start + down, end, cuda.blockIdx.x * N + across, out)

    return kernel


def _a_loader(tile: Tile) -> Any:
    M, K, THREADS = tile.m, tile.k, tile.threads

    @cuda.jit(device=True)
    def load(a: Any, start: int, end: int, first: int, a_tile: Any) -> None:
        for i in range(cuda.threadIdx.x, M * K, THREADS):
            row, k = i // K, i % K
            is_inside = start + row < end and first + k < a.shape[1]
            a_tile[k, row] = float32(a[start + row, first + k]) if is_inside else float32(0)

    return load


def _b_loader(tile: Tile) -> Any:
    N, K, THREADS = tile.n, tile.k, tile.threads

    @cuda.jit(device=True)
    def load(b: Any, column: int, first: int, b_tile: Any) -> None:
        for i in range(cuda.threadIdx.x, K * N, THREADS):
            k, col = i // N, i % N
            is_inside = first + k < b.shape[0] and column + col < b.shape[1]
            b_tile[k, col] = float32(b[first + k, column + col]) if is_inside else float32(0)

    return load


def _multiplier(tile: Tile) -> Any:
    """Results of a thread lie a stride apart, so that neighbouring threads read neighbouring columns."""
    K, THREAD_M, THREAD_N = tile.k, tile.thread_m, tile.thread_n
    DOWN, ACROSS = tile.m // tile.thread_m, tile.n // tile.thread_n

    @cuda.jit(device=True)
    def multiply(a_tile: Any, b_tile: Any, down: int, across: int, a_part: Any, b_part: Any, sums: Any) -> None:
        for k in range(K):
            for i in range(THREAD_M):
                a_part[i] = a_tile[k, down + i * DOWN]
            for j in range(THREAD_N):
                b_part[j] = b_tile[k, across + j * ACROSS]
            for i in range(THREAD_M):
                for j in range(THREAD_N):
                    sums[i, j] += a_part[i] * b_part[j]

    return multiply


def _storer(tile: Tile) -> Any:
    THREAD_M, THREAD_N = tile.thread_m, tile.thread_n
    DOWN, ACROSS = tile.m // tile.thread_m, tile.n // tile.thread_n

    @cuda.jit(device=True)
    def store(sums: Any, row: int, end: int, column: int, out: Any) -> None:
        for i in range(THREAD_M):
            for j in range(THREAD_N):
                if row + i * DOWN < end and column + j * ACROSS < out.shape[1]:
                    out[row + i * DOWN, column + j * ACROSS] = sums[i, j]

    return store
