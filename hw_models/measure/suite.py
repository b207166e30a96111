"""Which problems are measured, and by whom. The list of problems needs no GPU."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from typing import Any, Literal

import numpy as np

from moesim.errors import ConfigError
from moesim.hw_models.measure.attention_problems import DecodeAttention, PrefillAttention
from moesim.hw_models.measure.benchmark import Benchmark, CannotBeMeasuredError
from moesim.hw_models.measure.matrix_problems import ExpertFfn, Gemm, GroupedGemm
from moesim.hw_models.measure.memory_problems import Copy, Permute, RoutingHistogram, Triad, Unpermute
from moesim.hw_models.measure.problem import KERNEL_SHAPES, Problem, chosen_experts

Implementation = Literal["moesim", "torch", "cupy"]
VENDORS: tuple[Implementation, ...] = ("torch", "cupy")

_PRODUCTS = ((4096, 4096), (512, 4096), (14336, 4096), (2048, 7168), (7168, 2048))
"""(n, k): projections of models with hidden sizes 2048 to 7168, whole and cut by tensor parallelism."""
_EXPERTS = ((8, 2, 4096, 7168), (32, 4, 2880, 2880), (64, 8, 2048, 1024), (128, 8, 2048, 768))
"""(experts, top k, hidden, intermediate): half a Mixtral 8x7B, gpt-oss-20b, OLMoE, Qwen3-30B-A3B."""
_HEADS = ((32, 8, 128), (64, 8, 64), (32, 4, 128), (8, 1, 128))
"""(heads, KV heads, head size): Llama 3 8B and Mixtral, gpt-oss, Qwen3-30B-A3B, a shard of Llama 3 70B."""
_TOKENS = (1, 8, 32, 128, 512, 2048, 8192)
_MOST_CACHED_TOKENS = 1 << 19
_MOST_PROMPT_TOKENS = 1 << 15
_LONGEST_PROMPT = 4096
_BLOCKS_PER_MULTIPROCESSOR = 4


def installed_vendors() -> tuple[Implementation, ...]:
    """Libraries beside whose kernels ours are measured, without importing them."""
    return tuple(name for name in VENDORS if find_spec(name) is not None)


def select(problems: Iterable[Problem], only: str) -> list[Problem]:
    """The problems whose kernels are named in `only`, separated by commas; all if it is empty.

    Raises:
        ConfigError: there is no such kernel.
    """
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in KERNEL_SHAPES:
            raise ConfigError("--only", f"must be some of {', '.join(KERNEL_SHAPES)}", name)
    return [problem for problem in problems if not names or problem.kernel in names]


def all_problems(*, quick: bool = False) -> list[Problem]:
    """Every problem, in a format of our kernels where there are some.

    Args:
        quick: a few of each, for a first look.
    """
    return [*_streams(quick=quick), *_products(quick=quick), *_experts(quick=quick), *_attention(quick=quick)]


@dataclass(frozen=True)
class Planned:
    """A problem, and whose kernels are to solve it."""

    problem: Problem
    implementation: Implementation


def plan(problems: Iterable[Problem], vendors: Sequence[Implementation]) -> list[Planned]:
    """What to measure, in order: our kernels, and the vendors' beside them in the format they are made for."""
    planned = []
    for problem in problems:
        if not isinstance(problem, PrefillAttention):
            planned.append(Planned(problem, "moesim"))
        if "torch" in vendors and isinstance(problem, _OF_TORCH):
            planned.append(Planned(replace(problem, dtype="bf16"), "torch"))
        if "cupy" in vendors and isinstance(problem, Gemm):
            planned.append(Planned(replace(problem, dtype="fp16"), "cupy"))
    return list(dict.fromkeys(planned))


def build(planned: Planned, multiprocessors: int) -> Benchmark:
    """The benchmark, for a GPU with so many multiprocessors. It imports numba, torch or cupy, whichever is to solve it.

    Raises:
        ImportError: the library is not installed.
        CannotBeMeasuredError: nobody has a kernel for it.
    """
    if planned.implementation == "moesim":
        return _own(planned.problem, multiprocessors)
    if planned.implementation == "torch":
        from moesim.hw_models.measure.torch_benchmarks import torch_benchmark

        found = torch_benchmark(planned.problem)
    else:
        from moesim.hw_models.measure.cupy_benchmarks import cupy_benchmark

        found = cupy_benchmark(planned.problem)
    if found is None:
        raise CannotBeMeasuredError(f"{planned.implementation} has no kernel for {planned.problem.kernel}")
    return found


def _own(problem: Problem, multiprocessors: int) -> Benchmark:
    from moesim.hw_models.measure import attention_kernels, matrix_kernels, memory_kernels

    if isinstance(problem, DecodeAttention):
        return attention_kernels.DecodeAttentionBenchmark(problem, _BLOCKS_PER_MULTIPROCESSOR * multiprocessors)
    kinds: dict[type[Problem], Any] = {
        Copy: memory_kernels.CopyBenchmark,
        Triad: memory_kernels.TriadBenchmark,
        Permute: memory_kernels.PermuteBenchmark,
        Unpermute: memory_kernels.UnpermuteBenchmark,
        RoutingHistogram: memory_kernels.RoutingHistogramBenchmark,
        Gemm: matrix_kernels.GemmBenchmark,
        GroupedGemm: matrix_kernels.GroupedGemmBenchmark,
        ExpertFfn: matrix_kernels.ExpertFfnBenchmark,
    }
    benchmark: Benchmark = kinds[type(problem)](problem)
    return benchmark


_OF_TORCH = (Copy, Gemm, GroupedGemm, ExpertFfn, DecodeAttention, PrefillAttention)


def _streams(*, quick: bool) -> Iterator[Problem]:
    for exponent in (16, 26) if quick else (12, 16, 20, 22, 24, 26, 28):
        yield Copy(1 << exponent)
        yield Triad(1 << exponent)


def _products(*, quick: bool) -> Iterator[Problem]:
    for (n, k), m in product(_PRODUCTS[:1] if quick else _PRODUCTS, (1, 256) if quick else _TOKENS):
        yield Gemm(m, n, k, dtype="fp16")
    for m in (256,) if quick else (16, 256, 4096):
        yield Gemm(m, 4096, 4096, dtype="fp32")


def _experts(*, quick: bool) -> Iterator[Problem]:
    shapes = _EXPERTS[2:3] if quick else _EXPERTS
    for (experts, top_k, hidden, inner), tokens in product(shapes, (16, 512) if quick else (1, 8, 64, 512, 4096)):
        for skewed in (False, True):
            yield ExpertFfn(tokens, experts, top_k, hidden, inner, skewed=skewed)
        loads = np.bincount(chosen_experts(tokens, experts, top_k, skewed=True).reshape(-1), minlength=experts)
        yield GroupedGemm(tuple(loads.tolist()), 2 * inner, hidden, dtype="fp16")
    for tokens in (512,) if quick else (16, 512, 8192):
        yield Permute(tokens, 64, 8, 2048, skewed=True)
        yield Unpermute(tokens, 64, 8, 2048, skewed=True)
        yield RoutingHistogram(tokens, 64, 8, skewed=True)


def _attention(*, quick: bool) -> Iterator[Problem]:
    heads = _HEADS[:1] if quick else _HEADS
    batches = (8,) if quick else (1, 8, 32, 128)
    for shape, sequences, context in product(heads, batches, (1024,) if quick else (256, 2048, 16384)):
        if sequences * context <= _MOST_CACHED_TOKENS:
            yield DecodeAttention((context,) * sequences, *shape)
        if sequences * context <= _MOST_PROMPT_TOKENS and context <= _LONGEST_PROMPT:
            yield PrefillAttention(sequences, context, *shape)
    ragged = tuple(int(length) for length in np.geomspace(100, 8000, 16))
    yield DecodeAttention(ragged, *heads[0])
