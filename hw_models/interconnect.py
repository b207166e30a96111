"""Links between devices, and what collectives over them cost."""

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.hw_models.parameters import Fitted, Fraction, Parameter
from moesim.hw_models.processor import Cost
from moesim.units import BytesPerS, JoulesPerByte, Seconds

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL = range(4)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CollectiveTable:
    """Collectives as columns; a row is what one member does in one collective.

    Attributes:
        kind: int8[row], index into `COLLECTIVES`.
        ranks: int32[row], members.
        nodes: int32[row], nodes that the members are spread over, equally many in each.
        payload_bytes: float64[row], size of the tensor that is reduced, or of the gathered one; 0 for all_to_all.
        sent_bytes, received_bytes: float64[row], all_to_all: bytes to and from other members in the same node.
        sent_internode_bytes, received_internode_bytes: float64[row], all_to_all: to and from members in other nodes.
    """

    kind: NDArray[np.int8]
    ranks: NDArray[np.int32]
    nodes: NDArray[np.int32]
    payload_bytes: Floats
    sent_bytes: Floats
    received_bytes: Floats
    sent_internode_bytes: Floats
    received_internode_bytes: Floats

    def __len__(self) -> int:
        return len(self.kind)


class LinkConfig(Fitted):
    """What one device has to reach others: a link to those in its node, or to those in other nodes."""

    bandwidth: Parameter[BytesPerS] = Field(description="Datasheet bandwidth per direction and device, B/s.")
    peer_bandwidth: Parameter[BytesPerS] | None = Field(
        default=None,
        description="Its part to each other device in the node, B/s, where every pair has a link of its own; without"
        " it, a switch gives all of the bandwidth to any pair.",
    )
    sustained: Parameter[Fraction] = Field(description="Share of it that large collectives reach.")
    launch_latency: Parameter[Seconds] = Field(description="Start of a ring collective (reduce, gather, scatter), s.")
    hop_latency: Parameter[Seconds] = Field(description="Each hop of a ring adds this, s.")
    exchange_latency: Parameter[Seconds] = Field(description="Start of an all-to-all, s.")
    quick_sustained: Parameter[Fraction] = Field(description="Share of the bandwidth in the low-latency protocol.")
    bulk_latency: Parameter[Seconds] = Field(description="Extra time of the full-bandwidth protocol, s.")
    energy: Parameter[JoulesPerByte] = Field(description="Dynamic energy per byte sent, J.")


class Interconnect:
    """Prices collectives on the links of a system; see `collective_kernel` for the equations.

    Args:
        intra_node: link of a device to the others in its node.
        inter_node: link of a device to other nodes.
    """

    def __init__(self, intra_node: LinkConfig, inter_node: LinkConfig) -> None:
        from moesim.hw_models import collective_kernel

        self.intra_node = intra_node
        self.inter_node = inter_node
        self._price_rows = collective_kernel.price_rows
        self._columns = collective_kernel.Columns
        self._columns_of = operator.attrgetter(*collective_kernel.Columns._fields)
        self._links = np.array([_link_row(link, collective_kernel) for link in (intra_node, inter_node)])
        self._valid = _valid_range(intra_node)

    def price(self, table: CollectiveTable) -> Cost:
        """Price of each row, for one member. The energy is that of the bytes which the member sends.

        One member, or no bytes, costs nothing.
        """
        columns = self._columns(*self._columns_of(table))
        cost = Cost.zeros(len(table))
        self._price_rows(columns, self._links, self._valid, cost.time_s, cost.energy_j, cost.bound, cost.extrapolated)
        return cost


def _link_row(link: LinkConfig, kernel: Any) -> list[float]:
    bandwidth = link.bandwidth.value
    values = {
        kernel.LAUNCH_S: link.launch_latency.value,
        kernel.HOP_S: link.hop_latency.value,
        kernel.EXCHANGE_LAUNCH_S: link.exchange_latency.value,
        kernel.S_PER_BYTE: 1 / (bandwidth * link.sustained.value),
        kernel.QUICK_S_PER_BYTE: 1 / (bandwidth * link.quick_sustained.value),
        kernel.BULK_S: link.bulk_latency.value,
        kernel.PEER_SHARE: min(1.0, link.peer_bandwidth.value / bandwidth) if link.peer_bandwidth else 1.0,
        kernel.J_PER_BYTE: link.energy.value,
    }
    return [values[column] for column in range(kernel.LINK_COLUMNS)]


def _valid_range(link: LinkConfig) -> Floats:
    """float64[4]: least and greatest ranks, least and greatest payload in bytes; empty without a calibration."""
    fit = next(iter(link.fits.values()), None)
    if fit is None:
        return np.array([np.inf, -np.inf, np.inf, -np.inf])
    return np.array([*fit.valid.get("ranks", (0.0, np.inf)), *fit.valid.get("bytes", (0.0, np.inf))])
