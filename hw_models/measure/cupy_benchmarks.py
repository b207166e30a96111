"""Products by cupy, that is, by cuBLAS. cupy is no dependency."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.measure.benchmark import Benchmark, Buffers
from moesim.hw_models.measure.matrix_problems import Gemm
from moesim.hw_models.measure.problem import Inputs, Problem


def cupy_benchmark(problem: Problem) -> Benchmark | None:
    """How cupy solves `problem`; None for anything but products in the formats that numpy knows."""
    return CupyGemm(problem) if isinstance(problem, Gemm) and problem.dtype != "bf16" else None


class CupyGemm:
    """cupy.matmul, the right operand stored as engines store weights: [outputs, inputs].

    Raises:
        ImportError: cupy is not installed.
    """

    implementation = "cupy"
    kernels_per_launch = 2

    def __init__(self, problem: Gemm) -> None:
        self.problem = problem
        self._cupy: Any = import_module("cupy")

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Operands and result."""
        a = self._cupy.asarray(inputs["a"])
        b = self._cupy.asarray(np.ascontiguousarray(inputs["b"].T)).T
        return {"a": a, "b": b, "out": self._cupy.empty((self.problem.m, self.problem.n), a.dtype)}

    def launch(self, buffers: Buffers) -> None:
        """One product."""
        self._cupy.matmul(buffers["a"], buffers["b"], out=buffers["out"])

    def result(self, buffers: Buffers) -> NDArray[Any]:
        """The buffer `out`."""
        copied: NDArray[Any] = self._cupy.asnumpy(buffers["out"])
        return copied
