"""Products of matrices: one, one per expert, and the whole feed-forward network of the routed experts."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.measure.problem import (
    ELEMENT_BYTES,
    INDEX_BYTES,
    DtypeName,
    Floats,
    Inputs,
    Ints,
    Problem,
    Routed,
    Work,
    random_values,
)


@dataclass(frozen=True)
class Gemm(Problem):
    """[m, k] x [k, n]: m tokens, k inputs, n outputs."""

    kernel: ClassVar[str] = "gemm"
    m: int
    n: int
    k: int
    dtype: DtypeName = "fp32"

    @property
    def work(self) -> Work:
        """Two FLOPs per multiply-add; both operands read once."""
        size = ELEMENT_BYTES[self.dtype]
        read = size * self.k * (self.m + self.n)
        return Work(2.0 * self.m * self.n * self.k, float(read), float(size * self.m * self.n))

    @property
    def output_rows(self) -> int:
        """Tokens."""
        return self.m

    def inputs(self, rng: np.random.Generator) -> Inputs:
        """`a` [m, k], `b` [k, n]."""
        a = random_values(rng, (self.m, self.k), self.dtype)
        return {"a": a, "b": random_values(rng, (self.k, self.n), self.dtype, self.k**-0.5)}

    def reference(self, inputs: Inputs, rows: Ints) -> Floats:
        """float64[row, n]."""
        product: Floats = inputs["a"][rows].astype(np.float64) @ inputs["b"].astype(np.float64)
        return product


@dataclass(frozen=True)
class GroupedGemm(Problem):
    """One product per expert: the tokens of expert e, which follow those of expert e - 1, times its own matrix."""

    kernel: ClassVar[str] = "grouped_gemm"
    expert_tokens: tuple[int, ...]
    n: int
    k: int
    dtype: DtypeName = "fp32"

    @property
    def m(self) -> int:
        """Tokens of all experts."""
        return sum(self.expert_tokens)

    @property
    def experts(self) -> int:
        """Experts, those without tokens too."""
        return len(self.expert_tokens)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens per expert."""
        return self.expert_tokens

    @property
    def work(self) -> Work:
        """The matrices of experts without tokens are not read."""
        size, active = ELEMENT_BYTES[self.dtype], sum(tokens > 0 for tokens in self.expert_tokens)
        read = size * self.k * (self.m + active * self.n)
        return Work(2.0 * self.m * self.n * self.k, float(read), float(size * self.m * self.n))

    @property
    def output_rows(self) -> int:
        """Tokens of all experts."""
        return self.m

    def inputs(self, rng: np.random.Generator) -> Inputs:
        """`a` [m, k], `b` [expert, k, n]."""
        a = random_values(rng, (self.m, self.k), self.dtype)
        return {"a": a, "b": random_values(rng, (self.experts, self.k, self.n), self.dtype, self.k**-0.5)}

    def reference(self, inputs: Inputs, rows: Ints) -> Floats:
        """float64[row, n]."""
        expert = np.repeat(np.arange(self.experts), self.expert_tokens)[rows]
        result = np.zeros((len(rows), self.n))
        for e in np.unique(expert):
            result[expert == e] = inputs["a"][rows[expert == e]].astype(np.float64) @ inputs["b"][e].astype(np.float64)
        return result


class Order(NamedTuple):
    """Selections of experts, sorted by expert.

    Attributes:
        token: int32[selection], the token of each sorted selection.
        position: int32[token, k], where each selection of a token went.
        expert_tokens: int64[expert].
    """

    token: NDArray[np.int32]
    position: NDArray[np.int32]
    expert_tokens: NDArray[np.int64]


def sorted_by_expert(ids: NDArray[np.int32], experts: int) -> Order:
    """The order in which the grouped product wants its rows; tokens of an expert keep their order."""
    order = np.argsort(ids.reshape(-1), kind="stable")
    position = np.empty(len(order), np.int32)
    position[order] = np.arange(len(order), dtype=np.int32)
    token = (order // ids.shape[1]).astype(np.int32)
    return Order(token, position.reshape(ids.shape), np.bincount(ids.reshape(-1), minlength=experts))


@dataclass(frozen=True)
class ExpertFfn(Routed):
    """Routed experts: gather tokens, up and gate projections, SiLU, down projection, weighted sum per token."""

    kernel: ClassVar[str] = "expert_ffn"
    hidden: int
    intermediate: int

    @property
    def work(self) -> Work:
        """Three matrices per active expert, tokens in and out once, and between kernels every selection's rows."""
        size, selections = ELEMENT_BYTES[self.dtype], self.tokens * self.top_k
        weights = 3 * self.hidden * self.intermediate
        active = sum(tokens > 0 for tokens in self.lengths)
        read = size * (active * weights + self.tokens * self.hidden) + selections * (INDEX_BYTES + 4)
        return Work(2.0 * selections * weights, float(read), float(size * self.tokens * self.hidden))

    @property
    def output_rows(self) -> int:
        """Tokens."""
        return self.tokens

    def inputs(self, rng: np.random.Generator) -> Inputs:
        """Tokens, matrices, choices.

        `x` [token, hidden], `up` [expert, hidden, gate then up], `down` [expert, intermediate, hidden], `ids`, and
        `weights` float32[token, k], which sum to 1.
        """
        hidden, inner = self.hidden, self.intermediate
        weights = rng.random((self.tokens, self.top_k), np.float32) + np.float32(0.1)
        return {
            "x": random_values(rng, (self.tokens, hidden), self.dtype),
            "up": random_values(rng, (self.experts, hidden, 2 * inner), self.dtype, hidden**-0.5),
            "down": random_values(rng, (self.experts, inner, hidden), self.dtype, inner**-0.5),
            "ids": self.ids,
            "weights": weights / weights.sum(axis=1, keepdims=True),
        }

    def reference(self, inputs: Inputs, rows: Ints) -> Floats:
        """float64[row, hidden]."""
        result = np.zeros((len(rows), self.hidden))
        ids, weights = inputs["ids"][rows], inputs["weights"][rows].astype(np.float64)
        x = inputs["x"][rows].astype(np.float64)
        for expert in np.unique(ids):
            line, choice = np.nonzero(ids == expert)
            gate, up = np.split(x[line] @ inputs["up"][expert].astype(np.float64), 2, axis=1)
            down = (gate / (1 + np.exp(-gate)) * up) @ inputs["down"][expert].astype(np.float64)
            result[line] += weights[line, choice][:, None] * down
        return result
