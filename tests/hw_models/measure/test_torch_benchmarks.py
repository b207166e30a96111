"""torch's benchmarks give right results, here on the CPU; skipped where torch is not installed."""

import numpy as np
import pytest

from moesim.hw_models.measure.attention_problems import DecodeAttention, PrefillAttention
from moesim.hw_models.measure.benchmark import CannotBeMeasuredError
from moesim.hw_models.measure.matrix_problems import ExpertFfn, Gemm, GroupedGemm
from moesim.hw_models.measure.memory_problems import Copy, Triad
from moesim.hw_models.measure.problem import TOLERANCE, relative_error
from moesim.hw_models.measure.torch_benchmarks import grouped_product, torch_benchmark

torch = pytest.importorskip("torch")

PROBLEMS = [
    Copy(1000, "bf16"),
    Gemm(5, 24, 16, "bf16"),
    Gemm(5, 24, 16, "fp32"),
    GroupedGemm((3, 0, 5, 1), 16, 32, "bf16"),
    ExpertFfn(6, 8, 2, 32, 16, skewed=True, dtype="bf16"),
    ExpertFfn(1, 8, 2, 32, 16, dtype="bf16"),
    DecodeAttention((20, 20, 20), 4, 2, 16, 16, "bf16"),
    PrefillAttention(2, 9, 4, 2, 16, "bf16"),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"{problem.kernel} {problem.dtype}")
def test_result(problem):
    benchmark = torch_benchmark(problem, "cpu")
    assert benchmark is not None
    inputs = problem.inputs(np.random.default_rng(0))
    buffers = benchmark.make_buffers(inputs)
    benchmark.launch(buffers)
    result = benchmark.result(buffers)
    reference = problem.reference(inputs, np.arange(problem.output_rows))
    assert result.shape == reference.shape
    assert relative_error(result, reference) <= TOLERANCE[problem.dtype]


def test_contexts_of_several_lengths_are_beyond_torch():
    problem = DecodeAttention((3, 9), 4, 2, 8, 4, "bf16")
    benchmark = torch_benchmark(problem, "cpu")
    assert benchmark is not None
    with pytest.raises(CannotBeMeasuredError, match="equal length"):
        benchmark.make_buffers(problem.inputs(np.random.default_rng(0)))


def test_what_torch_does_not_solve():
    assert torch_benchmark(Triad(10)) is None


def test_old_versions_have_no_grouped_product():
    class Old:
        class nn:  # noqa: N801 - the name of torch's module
            functional = object()

    with pytest.raises(CannotBeMeasuredError, match=r"before version 2\.8"):
        grouped_product(Old)
