"""What a benchmark computes, whoever computes it: shapes, work, random inputs, and the right answer in float64.

A `Problem` knows nothing of GPUs. Several benchmarks (ours, the vendor's) solve the same problem.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

DtypeName = Literal["fp32", "fp16", "bf16"]
Inputs = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ELEMENT_BYTES: dict[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
INDEX_BYTES = 4
"""Expert ids, page numbers and positions are int32."""
KERNEL_SHAPES: dict[str, tuple[str, ...]] = {
    "copy": ("elements",),
    "triad": ("elements",),
    "gemm": ("m", "n", "k"),
    "grouped_gemm": ("m", "n", "k", "experts"),
    "expert_ffn": ("tokens", "experts", "top_k", "hidden", "intermediate"),
    "decode_attention": ("sequences", "heads", "kv_heads", "head_dim", "page_tokens"),
    "prefill_attention": ("sequences", "prompt_tokens", "heads", "kv_heads", "head_dim"),
    "permute": ("tokens", "experts", "top_k", "hidden"),
    "unpermute": ("tokens", "experts", "top_k", "hidden"),
    "routing_histogram": ("tokens", "experts", "top_k"),
}
"""Names of the dimensions of each kernel; a problem has each as an attribute."""
TOLERANCE: dict[str, float] = {"fp32": 2e-5, "fp16": 4e-3, "bf16": 1.6e-2}
"""Greatest error of a correct kernel, relative to the largest value of the result.

16-bit results: eight times the rounding error of the format, for two products in a row and reduced-precision sums.
fp32: sums of 10,000 terms in any order.
"""

_POOL = 4_194_301
"""Random values behind the inputs: a prime number, so that rows of round lengths never repeat each other."""
_SAMPLED_ROWS = 16


class Work(NamedTuple):
    """What the algorithm has to do at least; every input is read once, every result written once."""

    flops: float
    read_bytes: float
    write_bytes: float

    @property
    def moved_bytes(self) -> float:
        """Bytes read and written."""
        return self.read_bytes + self.write_bytes


class Problem(ABC):
    """One computation of one shape."""

    kernel: ClassVar[str]
    """Name of the computation, such as `gemm`."""
    dtype: DtypeName
    """Format of weights, activations and caches; sums are in fp32."""

    @property
    def shape(self) -> dict[str, int]:
        """Dimensions by name."""
        return {name: getattr(self, name) for name in KERNEL_SHAPES[self.kernel]}

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens per expert, or cached tokens per sequence; empty where there is neither."""
        return ()

    @property
    @abstractmethod
    def work(self) -> Work:
        """FLOPs and bytes of the algorithm."""

    @property
    @abstractmethod
    def output_rows(self) -> int:
        """First dimension of the result."""

    @abstractmethod
    def inputs(self, rng: np.random.Generator) -> Inputs:
        """Random inputs whose values the format can hold exactly (bf16 as float32, which numpy has)."""

    @abstractmethod
    def reference(self, inputs: Inputs, rows: Ints) -> Floats:
        """The given rows of the result, in float64."""

    @property
    def label(self) -> str:
        """Shape as text, such as `m=16 n=4096 k=4096`."""
        return shape_text(self.shape, self.lengths)


@dataclass(frozen=True)
class Routed(Problem):
    """One computation on tokens and the experts that they chose.

    Attributes:
        tokens, experts, top_k: how many, and how many of the experts each token chose.
        skewed: as `chosen_experts` takes it.
    """

    tokens: int
    experts: int
    top_k: int
    skewed: bool = field(default=False, kw_only=True)
    dtype: DtypeName = field(default="fp16", kw_only=True)

    @cached_property
    def ids(self) -> NDArray[np.int32]:
        """int32[token, k]: experts of every token."""
        return chosen_experts(self.tokens, self.experts, self.top_k, skewed=self.skewed)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens per expert."""
        return tuple(np.bincount(self.ids.reshape(-1), minlength=self.experts).tolist())


def shape_text(shape: Mapping[str, int], lengths: Sequence[int]) -> str:
    """Shape as text, with the mean context of sequences or the tokens of the busiest expert."""
    text = " ".join(f"{name}={size}" for name, size in shape.items())
    if not lengths:
        return text
    return f"{text} context={np.mean(lengths):.0f}" if "sequences" in shape else f"{text} busiest={max(lengths)}"


def sampled_rows(problem: Problem, rng: np.random.Generator) -> Ints:
    """Rows of the result to check: all of a small one, else the first, the last, and some between."""
    rows = problem.output_rows
    if rows <= _SAMPLED_ROWS:
        return np.arange(rows)
    return np.unique(np.concatenate([[0, rows - 1], rng.integers(0, rows, _SAMPLED_ROWS - 2)]))


def relative_error(result: NDArray[Any], reference: Floats) -> float:
    """Largest difference over the largest value; infinite where the result is not a number."""
    difference = np.abs(result.astype(np.float64) - reference).max(initial=0.0)
    scale = np.abs(reference).max(initial=0.0)
    error = float(difference / scale) if scale > 0 else float(difference)
    return error if np.isfinite(error) else float("inf")


def random_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: DtypeName, scale: float = 1.0) -> Any:
    """Uniform in (-scale, scale), rounded to `dtype`; float16 for fp16, else float32.

    Large arrays repeat a pool of values, because drawing billions takes longer than measuring.
    """
    size = int(np.prod(shape))
    pool = ((rng.random(min(size, _POOL), np.float32) * 2 - 1) * np.float32(scale)).astype(np.float32)
    pool = pool.astype(np.float16) if dtype == "fp16" else rounded_to_bf16(pool) if dtype == "bf16" else pool
    return np.resize(pool, shape)


def rounded_to_bf16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Finite values rounded to the nearest bf16, ties to even."""
    bits = values.view(np.uint32)
    rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded: NDArray[np.float32] = ((bits + rounding) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded


def chosen_experts(tokens: int, experts: int, top_k: int, *, skewed: bool) -> NDArray[np.int32]:
    """int32[token, k]: distinct experts of every token, always the same for the same arguments.

    Balanced: every expert gets the same number of tokens, give or take one. Skewed: popularity falls as one over the
    rank of an expert, so that the busiest of many experts has several times the mean and some may have none.
    """
    if not skewed:
        return (np.arange(tokens * top_k).reshape(tokens, top_k) % experts).astype(np.int32)
    rng = np.random.default_rng([tokens, experts, top_k])
    popularity = rng.permutation(1.0 / np.arange(1, experts + 1))
    # The top k of log popularity plus Gumbel noise are draws without replacement (Kool et al., ICML 2019).
    keys = np.log(popularity) + rng.gumbel(size=(tokens, experts))
    return np.argsort(-keys, axis=1)[:, :top_k].astype(np.int32)
