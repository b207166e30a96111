"""Collectives as columns, as the simulator describes them and the interconnect prices them."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "custom_all_reduce",
    "deepep_dispatch",
    "deepep_combine",
    "deepep_low_latency_dispatch",
    "deepep_low_latency_combine",
)
ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, CUSTOM_ALL_REDUCE = range(5)
DEEPEP_DISPATCH, DEEPEP_COMBINE, DEEPEP_LOW_LATENCY_DISPATCH, DEEPEP_LOW_LATENCY_COMBINE = range(5, 9)
ACTIVATION_BYTES = 2.0
"""Engines add up 16-bit activations."""
DISPATCHED_ELEMENT_BYTES = 1 + 4 / 128
"""Of an element that DeepEP dispatches: one byte, and a 32-bit scale for every 128 elements (DeepEP README)."""
COMBINED_ELEMENT_BYTES = 2.0
"""Of an element that DeepEP combines, in bf16."""


@dataclass(frozen=True)
class CollectiveTable:
    """Collectives as columns; a row is what one member does in one collective.

    "DeepEP" below stands for the four kinds that begin so. A copy is a token on its way to one device (normal
    kernels) or to one expert (low-latency kernels).

    Attributes:
        kind: int8[row], index into `COLLECTIVES`.
        ranks: int32[row], members.
        nodes: int32[row], nodes that the members are spread over, equally many in each.
        payload_bytes: float64[row], size of the tensor that is reduced, or of the gathered one; 0 for exchanges.
        element_bytes: float64[row], of an element that is added up.
        sent_bytes, received_bytes: float64[row], exchanges: bytes to and from other members in the same node.
        sent_internode_bytes, received_internode_bytes: float64[row], exchanges: to and from members in other nodes.
        tokens: float64[row], DeepEP: tokens that start (dispatch) or end (combine) at the member.
        copies: float64[row], DeepEP: copies that the member sends or receives, the greater, its own among them.
        copy_bytes: float64[row], DeepEP: bytes of a copy.
        fan_out: float64[row], DeepEP: copies per token.
        experts: float64[row], DeepEP: routed experts of the layer.
        multiprocessors: float64[row], DeepEP: multiprocessors given to the kernel; 0 for as many as the link says.
    """

    kind: NDArray[np.int8]
    ranks: NDArray[np.int32]
    nodes: NDArray[np.int32]
    payload_bytes: Floats
    element_bytes: Floats
    sent_bytes: Floats
    received_bytes: Floats
    sent_internode_bytes: Floats
    received_internode_bytes: Floats
    tokens: Floats
    copies: Floats
    copy_bytes: Floats
    fan_out: Floats
    experts: Floats
    multiprocessors: Floats

    @classmethod
    def of(cls, kind: ArrayLike, ranks: ArrayLike, nodes: ArrayLike = 1, **columns: ArrayLike) -> "CollectiveTable":
        """A table of broadcast columns; those left out are 0, but for elements of two bytes."""
        given: dict[str, ArrayLike] = {"element_bytes": ACTIVATION_BYTES, **columns}
        names = [field.name for field in fields(cls)][3:]
        values = np.broadcast_arrays(np.atleast_1d(kind), ranks, nodes, *(given.get(name, 0.0) for name in names))
        heads = (values[0].astype(np.int8), values[1].astype(np.int32), values[2].astype(np.int32))
        return cls(*heads, *(np.array(value, np.float64) for value in values[3:]))

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, rows: NDArray[np.int64]) -> "CollectiveTable":
        """The given rows, in the given order."""
        return CollectiveTable(*(getattr(self, field.name)[rows] for field in fields(self)))
