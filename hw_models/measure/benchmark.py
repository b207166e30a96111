"""What the runner asks of a benchmark: a problem, and somebody who solves it on the GPU."""

from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from moesim.hw_models.measure.problem import Inputs, Problem

Buffers = dict[str, Any]
"""Arrays on the GPU by name; `out` holds the result, after a launch at the latest."""

P_co = TypeVar("P_co", bound=Problem, covariant=True)


class CannotBeMeasuredError(Exception):
    """Why there is no measurement; it becomes the reason of a `Skipped`."""


class Benchmark(Protocol):
    """A problem and a way to solve it on the current GPU.

    `make_buffers` may be called several times: the runner rotates over sets of buffers, so that no launch finds its
    inputs in the cache. Everything runs on the default stream; `launch` returns before the GPU is done.
    """

    @property
    def problem(self) -> Problem:
        """What is computed."""
        ...

    @property
    def implementation(self) -> str:
        """Whose kernels: `moesim`, `torch`, `cupy`."""
        ...

    @property
    def kernels_per_launch(self) -> int:
        """Kernels that one launch queues, at most: no more than a stream takes may wait while the clock is to start."""
        ...

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Copy `inputs` to the GPU and make room for the result; what is done here is not timed."""
        ...

    def launch(self, buffers: Buffers) -> None:
        """Queue the computation once."""
        ...

    def result(self, buffers: Buffers) -> NDArray[Any]:
        """The result of the last launch, first dimension `problem.output_rows`, on the host."""
        ...


class OwnBenchmark(Generic[P_co]):
    """Base of the benchmarks with kernels of our own."""

    implementation = "moesim"
    kernels_per_launch = 1

    def __init__(self, problem: P_co) -> None:
        self.problem = problem

    def result(self, buffers: Buffers) -> NDArray[Any]:
        """The buffer `out`."""
        copied: NDArray[Any] = buffers["out"].copy_to_host()
        return copied
