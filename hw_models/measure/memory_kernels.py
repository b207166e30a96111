"""CUDA kernels that move bytes, and the benchmarks that run them. Import it lazily: it pulls in numba."""

from functools import cache
from typing import Any

from moesim.hw_models.measure.benchmark import Buffers, OwnBenchmark
from moesim.hw_models.measure.cuda import cuda, empty, float32, int32, to_device
from moesim.hw_models.measure.memory_problems import TRIAD_FACTOR, Copy, Permute, RoutingHistogram, Triad, Unpermute
from moesim.hw_models.measure.problem import Inputs

_THREADS = 256
_WARP = 32
_ELEMENTS_PER_THREAD = 4
_IDS_PER_BLOCK = 4096


class CopyBenchmark(OwnBenchmark[Copy]):
    """One element per thread and turn, neighbours by neighbours."""

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Source and destination."""
        a = to_device(inputs["a"])
        return {"a": a, "out": empty(a.shape, a.dtype)}

    def launch(self, buffers: Buffers) -> None:
        """One kernel."""
        copy_kernel[_stream_blocks(self.problem.elements), _THREADS](buffers["a"], buffers["out"])


class TriadBenchmark(OwnBenchmark[Triad]):
    """As the copy, with a second source."""

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Two sources and a destination."""
        a = to_device(inputs["a"])
        return {"a": a, "b": to_device(inputs["b"]), "out": empty(a.shape, a.dtype)}

    def launch(self, buffers: Buffers) -> None:
        """One kernel."""
        blocks = _stream_blocks(self.problem.elements)
        triad_kernel[blocks, _THREADS](buffers["a"], buffers["b"], buffers["out"])


class PermuteBenchmark(OwnBenchmark[Permute]):
    """One block per selection."""

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Tokens, the token of each selection, and room for the gathered rows."""
        x = to_device(inputs["x"])
        out = empty((self.problem.output_rows, self.problem.hidden), x.dtype)
        return {"x": x, "token": to_device(inputs["token"]), "out": out}

    def launch(self, buffers: Buffers) -> None:
        """One kernel."""
        gather_kernel[self.problem.output_rows, row_threads(self.problem.hidden)](
            buffers["x"], buffers["token"], buffers["out"]
        )


class UnpermuteBenchmark(OwnBenchmark[Unpermute]):
    """One block per token."""

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Results of experts, where each token's are, their weights, and room for the sums."""
        y = to_device(inputs["y"])
        out = empty((self.problem.tokens, self.problem.hidden), y.dtype)
        return {name: to_device(inputs[name]) for name in ("position", "weights")} | {"y": y, "out": out}

    def launch(self, buffers: Buffers) -> None:
        """One kernel."""
        combine_kernel[self.problem.tokens, row_threads(self.problem.hidden)](
            buffers["y"], buffers["position"], buffers["weights"], buffers["out"]
        )


class RoutingHistogramBenchmark(OwnBenchmark[RoutingHistogram]):
    """Counts of a block in shared memory, added up in global memory."""

    kernels_per_launch = 2

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Ids and counts."""
        return {"ids": to_device(inputs["ids"].reshape(-1)), "out": empty((self.problem.experts,), "int32")}

    def launch(self, buffers: Buffers) -> None:
        """One kernel sets the counts to zero, one counts."""
        blocks = -(-self.problem.tokens * self.problem.top_k // _IDS_PER_BLOCK)
        clear_kernel[-(-self.problem.experts // _WARP), _WARP](buffers["out"])
        histogram_kernel(self.problem.experts)[blocks, _THREADS](buffers["ids"], buffers["out"])


def row_threads(columns: int) -> int:
    """Threads of a block that works on one row: whole warps, no more than there are elements."""
    return min(_THREADS, -(-columns // _WARP) * _WARP)


def _stream_blocks(elements: int) -> int:
    return -(-elements // (_THREADS * _ELEMENTS_PER_THREAD))


@cuda.jit
def copy_kernel(a: Any, out: Any) -> None:
    """Copy `a` to `out`."""
    for i in range(cuda.grid(1), a.shape[0], cuda.gridsize(1)):
        out[i] = a[i]


@cuda.jit
def triad_kernel(a: Any, b: Any, out: Any) -> None:
    """Write a + 3 b into `out`."""
    for i in range(cuda.grid(1), a.shape[0], cuda.gridsize(1)):
        out[i] = float32(a[i]) + float32(TRIAD_FACTOR) * float32(b[i])


@cuda.jit
def gather_kernel(x: Any, token: Any, out: Any) -> None:
    """Write x[token[selection]] into out[selection]; a block per selection."""
    row = cuda.blockIdx.x
    source = token[row]
    for i in range(cuda.threadIdx.x, x.shape[1], cuda.blockDim.x):
        out[row, i] = x[source, i]


@cuda.jit
def combine_kernel(y: Any, position: Any, weights: Any, out: Any) -> None:
    """Write the sum of weights[token, k] y[position[token, k]] into out[token]; a block per token."""
    row = cuda.blockIdx.x
    for i in range(cuda.threadIdx.x, y.shape[1], cuda.blockDim.x):
        total = float32(0)
        for k in range(position.shape[1]):
            total += weights[row, k] * float32(y[position[row, k], i])
        out[row, i] = total


@cuda.jit
def clear_kernel(counts: Any) -> None:
    """Set `counts` to zero."""
    i = cuda.grid(1)
    if i < counts.shape[0]:
        counts[i] = 0


@cache
def histogram_kernel(experts: int) -> Any:
    """The kernel that adds the counts of `ids` to `counts`, for a number of experts."""

    @cuda.jit
    def kernel(ids: Any, counts: Any) -> None:
        mine = cuda.shared.array(experts, int32)
        for e in range(cuda.threadIdx.x, experts, cuda.blockDim.x):
            mine[e] = 0
        cuda.syncthreads()
        for i in range(cuda.grid(1), ids.shape[0], cuda.gridsize(1)):
            cuda.atomic.add(mine, ids[i], 1)
        cuda.syncthreads()
        for e in range(cuda.threadIdx.x, experts, cuda.blockDim.x):
            if mine[e] > 0:
                cuda.atomic.add(counts, e, mine[e])

    return kernel
