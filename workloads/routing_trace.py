"""Routing traces: which experts every recorded token used, layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError

PREFILL, DECODE = 0, 1
"""Values of the column `phase`."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Expert ids per token, MoE layer and rank, tokens sorted by request and position.

    Within a request positions are consecutive. Ranks are in descending gate order where the recording says so.

    Args:
        model: the model that was recorded.
        experts: routed experts per layer.
        source: where the recording comes from.
        names: name of each request.
        groups: data set of each request, empty texts where unknown; the strata of `split`.
        first_decode_position: int64[request] number of prompt tokens, which is the position of the first decode step.
        request: int32[token] index of the request.
        position: int32[token] position in the request, prompt included, from 0.
        phase: uint8[token] 0 for prefill, 1 for decode.
        expert: uint8 or uint16 [token, moe_layer, k], distinct ids below `experts`.
        weight: float16 or float32 [token, moe_layer, k], gate weight of each chosen expert, finite and >= 0; None where
            it was not recorded.
        licence: of the recording, empty where unknown.
        capture: settings of the recording, such as the revision of the model, its data type and the seed.

    Raises:
        DataError: no tokens, columns of different lengths, tokens out of order, an id or a weight that cannot be.
    """

    model: str
    experts: int
    source: str
    names: tuple[str, ...]
    groups: tuple[str, ...]
    first_decode_position: Ints
    request: NDArray[np.int32]
    position: NDArray[np.int32]
    phase: NDArray[np.uint8]
    expert: NDArray[np.uint8] | NDArray[np.uint16]
    weight: NDArray[np.floating[Any]] | None = None
    licence: str = ""
    capture: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_order(self)
        _check_experts(self)
        _check_weights(self)

    @property
    def layers(self) -> int:
        """MoE layers."""
        return int(self.expert.shape[1])

    @property
    def top_k(self) -> int:
        """Experts per token and layer."""
        return int(self.expert.shape[2])

    @property
    def tokens(self) -> int:
        """Recorded tokens of all requests."""
        return len(self.expert)

    @cached_property
    def offset(self) -> Ints:
        """int64[request + 1]: tokens of request r are rows offset[r] to offset[r + 1]."""
        return np.searchsorted(self.request, np.arange(len(self.names) + 1)).astype(np.int64)

    @cached_property
    def _first_position(self) -> Ints:
        return self.position[self.offset[:-1]].astype(np.int64)

    def rows(self, request: Ints, position: Ints) -> Ints:
        """int64[token]: row of each (request, position), -1 where it was not recorded."""
        known = (request >= 0) & (request < len(self.names))
        safe = np.where(known, request, 0)
        step = position - self._first_position[safe]
        row = self.offset[safe] + step
        return np.where(known & (step >= 0) & (row < self.offset[safe + 1]), row, -1)

    def loads(self, phase: int | None = None) -> Ints:
        """Selections per expert, int64[layer, expert], of all tokens or of those of one `phase`."""
        chosen = self.expert if phase is None else self.expert[self.phase == phase]
        counts = [np.bincount(chosen[:, layer].ravel(), minlength=self.experts) for layer in range(self.layers)]
        return np.stack(counts).astype(np.int64)

    def select(self, requests: Sequence[int] | Ints) -> Self:
        """The trace of some of its requests, in the given order.

        Recordings are often ordered by data set, so the first n requests are seldom a fair sample.
        """
        chosen = np.asarray(requests, dtype=np.int64)
        lengths = np.diff(self.offset)[chosen]
        starts = np.repeat(self.offset[chosen] - np.cumsum(lengths) + lengths, lengths)
        rows = starts + np.arange(lengths.sum())
        return type(self)(
            model=self.model,
            experts=self.experts,
            source=self.source,
            names=tuple(self.names[index] for index in chosen),
            groups=tuple(self.groups[index] for index in chosen),
            first_decode_position=self.first_decode_position[chosen],
            request=np.repeat(np.arange(len(chosen), dtype=np.int32), lengths),
            position=self.position[rows],
            phase=self.phase[rows],
            expert=self.expert[rows],
            weight=None if self.weight is None else self.weight[rows],
            licence=self.licence,
            capture=self.capture,
        )

    def split(self, share: float, rng: np.random.Generator) -> tuple[Self, Self]:
        """Two traces without a common request, the first with `share` of the requests of every group, rounded."""
        groups = np.array(self.groups)
        first: list[int] = []
        for group in sorted(set(self.groups)):
            members = rng.permutation(np.flatnonzero(groups == group))
            first += members[: round(share * len(members))].tolist()
        rest = np.setdiff1d(np.arange(len(groups)), first)
        return self.select(np.sort(np.array(first, dtype=np.int64))), self.select(rest)


def _check_shapes(trace: RoutingTrace) -> None:
    if trace.expert.ndim != len(("token", "layer", "rank")) or trace.expert.size == 0:
        raise DataError(trace.source, "a trace must have tokens, layers and ranks", trace.expert.shape)
    if trace.expert.dtype not in (np.uint8, np.uint16):
        raise DataError(trace.source, "expert ids must be uint8 or uint16", str(trace.expert.dtype))
    for name in ("request", "position", "phase"):
        shape = getattr(trace, name).shape
        if shape != (trace.tokens,):
            raise DataError(f"{trace.source}: {name}", f"must have one value for each of {trace.tokens} tokens", shape)
    if not len(trace.names) == len(trace.groups) == len(trace.first_decode_position):
        raise DataError(trace.source, "`names`, `groups` and `first_decode_position` must be equally long")


def _check_order(trace: RoutingTrace) -> None:
    steps = np.diff(trace.request, prepend=-1)
    wrong = np.flatnonzero((steps != 0) & (steps != 1) | (trace.request < 0))
    if wrong.size:
        rule = "tokens must be sorted by request, and requests counted from 0 without a gap"
        raise DataError(f"{trace.source}: row {wrong[0]}", rule, int(trace.request[wrong[0]]))
    if trace.request[-1] != len(trace.names) - 1:
        rule = f"every one of the {len(trace.names)} requests must have tokens, and no other"
        raise DataError(trace.source, rule, int(trace.request[-1]) + 1)
    if trace.first_decode_position.min() < 0:
        raise DataError(
            f"{trace.source}: first_decode_position", "must be >= 0", int(trace.first_decode_position.min())
        )
    gap = (np.diff(trace.position, prepend=-1) != 1) & (steps == 0)
    for broken, rule, values in (
        (trace.position < 0, "positions must be >= 0", trace.position),
        (gap, "positions of a request must be consecutive", trace.position),
        (trace.phase > DECODE, "the phase must be 0 (prefill) or 1 (decode)", trace.phase),
    ):
        if broken.any():
            row = int(broken.argmax())
            raise _row_error(trace, row, rule, values[row])


def _check_experts(trace: RoutingTrace) -> None:
    if trace.expert.max() >= trace.experts:
        row = int(np.flatnonzero((trace.expert >= trace.experts).any(axis=(1, 2)))[0])
        raise _row_error(trace, row, f"expert ids must be below {trace.experts}", trace.expert[row].max())
    for second in range(1, trace.top_k):
        for first in range(second):
            same = trace.expert[:, :, first] == trace.expert[:, :, second]
            if same.any():
                row, layer = (int(index) for index in np.argwhere(same)[0])
                rule = f"a token must use each expert once per layer (MoE layer {layer})"
                raise _row_error(trace, row, rule, trace.expert[row, layer, first])


def _check_weights(trace: RoutingTrace) -> None:
    if trace.weight is None:
        return
    if trace.weight.shape != trace.expert.shape or trace.weight.dtype not in (np.float16, np.float32):
        rule = f"must be float16 or float32 {trace.expert.shape}, a weight for each expert id"
        raise DataError(f"{trace.source}: weight", rule, (str(trace.weight.dtype), trace.weight.shape))
    wrong = ~(np.isfinite(trace.weight) & (trace.weight >= 0))
    if wrong.any():
        row, layer, rank = (int(index) for index in np.argwhere(wrong)[0])
        rule = f"gate weights must be finite and >= 0 (MoE layer {layer})"
        place = f"{trace.source}: request {trace.names[trace.request[row]]}, row {row}"
        raise DataError(place, rule, float(trace.weight[row, layer, rank]))


def _row_error(trace: RoutingTrace, row: int, rule: str, got: np.integer) -> DataError:
    return DataError(f"{trace.source}: request {trace.names[trace.request[row]]}, row {row}", rule, int(got))
