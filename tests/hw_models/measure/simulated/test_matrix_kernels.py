"""Kernels that multiply matrices, under the simulator, against float64."""

import pytest

from moesim.hw_models.measure.matrix_kernels import (
    LARGE_TILE,
    SMALL_TILE,
    ExpertFfnBenchmark,
    GemmBenchmark,
    GroupedGemmBenchmark,
    Tile,
)
from moesim.hw_models.measure.matrix_problems import ExpertFfn, Gemm, GroupedGemm

TILE = Tile(4, 8, 4, 2, 2)
"""Eight threads, which the simulator can bear."""


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (4, 8, 4), (8, 16, 12), (5, 9, 7), (3, 17, 1), (1, 8, 30)])
def test_products_with_whole_and_ragged_tiles(check, m, n, k, dtype):
    check(GemmBenchmark(Gemm(m, n, k, dtype), TILE))


@pytest.mark.parametrize("tile", [SMALL_TILE, LARGE_TILE])
def test_the_tiles_that_are_measured(check, tile):
    check(GemmBenchmark(Gemm(tile.m + 1, 40, 3), tile))


@pytest.mark.parametrize(
    "expert_tokens",
    [(4,), (3, 0, 9, 1), (0, 0, 5), (5, 0, 0), (1, 1, 1, 1, 1, 1), (0, 8, 4)],
    ids=lambda tokens: "-".join(map(str, tokens)),
)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_grouped_products_with_empty_experts(check, expert_tokens, dtype):
    check(GroupedGemmBenchmark(GroupedGemm(expert_tokens, 10, 6, dtype), TILE))


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(("tokens", "experts", "top_k", "skewed"), [(1, 3, 1, True), (3, 4, 2, False), (3, 8, 2, True)])
def test_expert_networks(check, tokens, experts, top_k, skewed, dtype):
    check(ExpertFfnBenchmark(ExpertFfn(tokens, experts, top_k, 10, 6, skewed=skewed, dtype=dtype), TILE))
