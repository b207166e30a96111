"""Work that moves bytes: copy, triad, gathering tokens by expert and back, counting tokens per expert."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from moesim.hw_models.measure.matrix_problems import Order, sorted_by_expert
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

TRIAD_FACTOR = 3.0
"""The scalar of STREAM's triad."""


@dataclass(frozen=True)
class _Stream(Problem):
    """Something done to every element of long arrays."""

    elements: int
    dtype: DtypeName = "fp32"

    @property
    def output_rows(self) -> int:
        """Elements."""
        return self.elements


class Copy(_Stream):
    """Copy `a` to `out`."""

    kernel: ClassVar[str] = "copy"

    @property
    def work(self) -> Work:
        """One read, one write."""
        nbytes = float(ELEMENT_BYTES[self.dtype] * self.elements)
        return Work(0.0, nbytes, nbytes)

    def inputs(self, rng: np.random.Generator) -> Inputs:
        """`a` [element]."""
        return {"a": random_values(rng, (self.elements,), self.dtype)}

    def reference(self, inputs: Inputs, rows: Ints) -> Floats:
        """float64[row]."""
        return np.asarray(inputs["a"][rows], np.float64)


class Triad(_Stream):
    """STREAM's triad: out = a + 3 b."""

    kernel: ClassVar[str] = "triad"

    @property
    def work(self) -> Work:
        """Two reads, one write, one multiply-add."""
        nbytes = float(ELEMENT_BYTES[self.dtype] * self.elements)
        return Work(2.0 * self.elements, 2 * nbytes, nbytes)

    def inputs(self, rng: np.random.Generator) -> Inputs:
        """`a` [element], `b` [element]."""
        return {name: random_values(rng, (self.elements,), self.dtype) for name in ("a", "b")}

    def reference(self, inputs: Inputs, rows: Ints) -> Floats:
        """float64[row]."""
        result: Floats = inputs["a"][rows].astype(np.float64) + TRIAD_FACTOR * inputs["b"][rows].astype(np.float64)
        return result


@dataclass(frozen=True)
class _Rows(Routed):
    """Something done to the rows of tokens, in their order or in that of the experts that they chose."""

    hidden: int

    @cached_property
    def order(self) -> Order:
        """The selections sorted by expert."""
        return sorted_by_expert(self.ids, self.experts)


class Permute(_Rows):
    """out[selection] = x[its token]: tokens gathered in the order of experts, before the grouped product."""

    kernel: ClassVar[str] = "permute"

    @property
    def work(self) -> Work:
        """Each token is read once from memory, however many experts chose it."""
        size, selections = ELEMENT_BYTES[self.dtype] * self.hidden, self.output_rows
        return Work(0.0, float(size * self.tokens + INDEX_BYTES * selections), float(size * selections))

    @property
    def output_rows(self) -> int:
        """Selections."""
        return self.tokens * self.top_k

    def inputs(self, rng: np.random.Generator) -> Inputs:
        """`x` [token, hidden], `token` int32[selection]."""
        return {"x": random_values(rng, (self.tokens, self.hidden), self.dtype), "token": self.order.token}

    def reference(self, inputs: Inputs, rows: Ints) -> Floats:
        """float64[row, hidden]."""
        return np.asarray(inputs["x"][inputs["token"][rows]], np.float64)


class Unpermute(_Rows):
    """out[token] = sum of weight x y[its selections]: results of experts brought back and combined."""

    kernel: ClassVar[str] = "unpermute"

    @property
    def work(self) -> Work:
        """Every selection's row is read; a multiply-add per element of it."""
        size, selections = ELEMENT_BYTES[self.dtype] * self.hidden, self.tokens * self.top_k
        read = (size + INDEX_BYTES + 4) * selections
        return Work(2.0 * selections * self.hidden, float(read), float(size * self.tokens))

    @property
    def output_rows(self) -> int:
        """Tokens."""
        return self.tokens

    def inputs(self, rng: np.random.Generator) -> Inputs:
        """`y` [selection, hidden], `position` int32[token, k], `weights` float32[token, k]."""
        y = random_values(rng, (self.tokens * self.top_k, self.hidden), self.dtype)
        return {"y": y, "position": self.order.position, "weights": rng.random(self.ids.shape, np.float32)}

    def reference(self, inputs: Inputs, rows: Ints) -> Floats:
        """float64[row, hidden]."""
        chosen = inputs["y"][inputs["position"][rows]].astype(np.float64)
        weights = inputs["weights"][rows].astype(np.float64)
        return np.asarray(np.einsum("tk,tkh->th", weights, chosen), np.float64)


@dataclass(frozen=True)
class RoutingHistogram(Routed):
    """Tokens per expert, counted from the ids that the router chose."""

    kernel: ClassVar[str] = "routing_histogram"
    dtype: DtypeName = field(default="fp32", kw_only=True)

    @property
    def work(self) -> Work:
        """Ids are read, counts written."""
        return Work(0.0, float(INDEX_BYTES * self.tokens * self.top_k), float(INDEX_BYTES * self.experts))

    @property
    def output_rows(self) -> int:
        """Experts."""
        return self.experts

    def inputs(self, rng: np.random.Generator) -> Inputs:  # noqa: ARG002 - counts need nothing random but the ids
        """`ids` int32[token, k]."""
        return {"ids": self.ids}

    def reference(self, inputs: Inputs, rows: Ints) -> Floats:
        """float64[row]."""
        return np.bincount(inputs["ids"].reshape(-1), minlength=self.experts)[rows].astype(np.float64)
