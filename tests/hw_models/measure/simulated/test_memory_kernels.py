"""Kernels that move bytes, under the simulator, against float64."""

import pytest

from moesim.hw_models.measure.memory_kernels import (
    CopyBenchmark,
    PermuteBenchmark,
    RoutingHistogramBenchmark,
    TriadBenchmark,
    UnpermuteBenchmark,
)
from moesim.hw_models.measure.memory_problems import Copy, Permute, RoutingHistogram, Triad, Unpermute


@pytest.mark.parametrize("elements", [1, 255, 1024, 1025])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_copy_and_triad(check, elements, dtype):
    check(CopyBenchmark(Copy(elements, dtype)))
    check(TriadBenchmark(Triad(elements, dtype)))


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(("tokens", "experts", "top_k", "hidden"), [(1, 4, 1, 1), (3, 5, 2, 20), (2, 3, 3, 300)])
def test_tokens_go_to_their_experts_and_come_back(check, tokens, experts, top_k, hidden, dtype):
    check(PermuteBenchmark(Permute(tokens, experts, top_k, hidden, skewed=True, dtype=dtype)))
    check(UnpermuteBenchmark(Unpermute(tokens, experts, top_k, hidden, skewed=True, dtype=dtype)))


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 4, 1), (3, 300, 2), (2100, 6, 2)])
def test_histogram_counts_every_choice_once(check, tokens, experts, top_k):
    """2,100 tokens take two blocks; of 300 experts nearly all get nothing. Counts start anew at every launch."""
    check(RoutingHistogramBenchmark(RoutingHistogram(tokens, experts, top_k, skewed=True)), launches=2)
