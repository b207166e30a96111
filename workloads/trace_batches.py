"""Batches of tokens: how many experts they touch; and placements: how many devices a token's experts are on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.workloads.routing_trace import RoutingTrace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MIXED, DOMAIN = "mixed", "domain"
"""Tokens of a batch: of all requests; of the requests of one group, such as one data set."""


def batch_sizes(most: int) -> Ints:
    """1, 2, 4, ... up to `most` tokens."""
    return 2 ** np.arange(int(np.log2(max(1, most))) + 1, dtype=np.int64)


def mixed_rows(trace: RoutingTrace, batches: int, size: int, rng: np.random.Generator) -> Ints:
    """Rows of random tokens of the trace, int64[batch, token], drawn with replacement."""
    return rng.integers(0, trace.tokens, (batches, size))


def domain_rows(trace: RoutingTrace, batches: int, size: int, rng: np.random.Generator) -> Ints:
    """Rows as `mixed_rows`, all of a batch from one group; a group is drawn as often as it has tokens."""
    names, group = np.unique(np.array(trace.groups), return_inverse=True)
    of_token = group[trace.request]
    tokens = np.bincount(of_token, minlength=len(names))
    sorted_rows = np.argsort(of_token, kind="stable")
    begin = np.cumsum(tokens) - tokens
    drawn = rng.choice(len(names), batches, p=tokens / tokens.sum())
    within = (rng.random((batches, size)) * tokens[drawn][:, np.newaxis]).astype(np.int64)
    return np.asarray(sorted_rows[begin[drawn][:, np.newaxis] + within], np.int64)


@dataclass(frozen=True, eq=False)
class Places:
    """Where the slots of every layer are.

    Args:
        name: what the places are, such as `8 devices`.
        slots: int64[layer, slot] the expert in each slot; every expert has one at least.
        place: int64[slot] where the slot is, from 0 to count - 1.
        count: number of places.
    """

    name: str
    slots: Ints
    place: Ints
    count: int

    def replicas(self, layer: int, experts: int) -> tuple[Ints, Ints]:
        """(first, order) of `trace_kernels.count_reached`.

        Raises:
            InputError: an expert without a slot.
        """
        counts = np.bincount(self.slots[layer], minlength=experts)
        if len(counts) > experts or not counts.all():
            rule = f"every one of {experts} experts must have a slot, and no other (MoE layer {layer})"
            raise InputError(self.name, rule)
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return first, np.argsort(self.slots[layer], kind="stable").astype(np.int64)


def contiguous_places(layers: int, experts: int, count: int, kind: str = "devices") -> Places:
    """Experts in order, equally many on each of `count` places, or one more on some where that does not divide."""
    place = (np.arange(experts, dtype=np.int64) * count) // experts
    return Places(f"{count} {kind}", np.tile(np.arange(experts, dtype=np.int64), (layers, 1)), place, count)


def common_counts(experts: int) -> tuple[int, ...]:
    """Numbers of places that divide the experts: powers of two from 2 on, to the experts but at most 64."""
    return tuple(count for count in (2, 4, 8, 16, 32, 64) if count <= experts and experts % count == 0)
