"""Links between devices, and what collectives over them cost."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from moesim.hw_models.collective_table import COLLECTIVES, CollectiveTable
from moesim.hw_models.link_config import CustomAllReduce, ExpertExchange, ExpertKernel, LinkConfig, Protocol, Protocols
from moesim.hw_models.parameters import Fit, Parameter, parameters
from moesim.hw_models.processor import Cost

Floats = NDArray[np.float64]

SECTIONS = ("ring", "ring", "ring", "exchange", "custom_all_reduce", *("deepep",) * 2, *("deepep_low_latency",) * 2)
"""The part of `LinkConfig` that prices each of `COLLECTIVES`."""


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
        self._columns_of = collective_kernel.columns_of
        self._links = _links((intra_node, inter_node), collective_kernel)

    def offers(self, kind: str) -> bool:
        """Whether a collective of this kind can be priced; a custom all-reduce falls back on NCCL, so it always can."""
        section = SECTIONS[COLLECTIVES.index(kind)]
        return kind == "custom_all_reduce" or getattr(self.intra_node, section) is not None

    def price(self, table: CollectiveTable) -> Cost:
        """Price of each row, for one member.

        The energy is that of the bytes which the member sends; for sums, of those of a ring, whatever the algorithm.
        One member, or no bytes, costs nothing.
        """
        cost = Cost.zeros(len(table))
        if len(table):
            columns = self._columns_of(table)
            self._price_rows(columns, self._links, cost.time_s, cost.energy_j, cost.bound, cost.extrapolated)
        return cost

    def stated_errors(self, table: CollectiveTable) -> Floats:
        """float64[row]: error that the calibration of each row's kind states (see `Processor.stated_errors`).

        It is of message sizes that the calibration did not see, inside one node; NaN for groups of several nodes.
        """
        link = self.intra_node
        fits = [next(_fits_of(getattr(link, section), link.fits), None) for section in SECTIONS]
        errors = np.array([np.nan if fit is None else fit.error for fit in fits])
        stated: Floats = np.where(table.nodes > 1, np.nan, errors[table.kind])
        return stated


def _links(links: tuple[LinkConfig, LinkConfig], kernel: Any) -> Any:
    """The parameters as the kernel takes them."""
    inner = links[0]
    in_switch = np.array([np.inf, np.inf, 0.0])
    if inner.in_switch is not None:
        part, bandwidth = inner.in_switch, inner.bandwidth.value
        in_switch[:] = part.launch.value, part.least_members.value, 1 / (bandwidth * part.sustained.value)
    own_blocks = (link.ring.own_block for link in links)
    return kernel.Links(
        ring=np.array([_protocol_rows(link.ring, link) for link in links]),
        exchange=np.array([_protocol_rows(link.exchange, link) for link in links]),
        usable=np.array(
            [[_usable(getattr(link, part), link, kernel) for link in links] for part in ("ring", "exchange")]
        ),
        own_block=np.array([own.value if own else 0.0 for own in own_blocks]),
        in_switch=in_switch,
        custom=np.array(_custom_rows(inner.custom_all_reduce, inner)),
        custom_largest=_largest(inner.custom_all_reduce, kernel),
        deepep=np.array([_deepep_rows(link, kernel) for link in links]),
        j_per_byte=np.array([link.energy.value for link in links]),
        valid=np.array([_valid_range(inner, section) for section in SECTIONS]),
    )


def _protocol_row(protocol: Protocol, link: LinkConfig) -> list[float]:
    rate_bytes_per_s = link.bandwidth.value * protocol.sustained.value
    return [protocol.launch.value, protocol.hop.value, 1 / rate_bytes_per_s]


def _protocol_rows(protocols: Protocols, link: LinkConfig) -> list[list[float]]:
    return [_protocol_row(protocol, link) for protocol in (protocols.ll, protocols.ll128, protocols.simple)]


def _usable(protocols: Protocols, link: LinkConfig, kernel: Any) -> Floats:
    """float64[members]: share of a device's rate that is left in a group of so many in its node."""
    members = np.arange(kernel.MAX_MEMBERS + 1)
    share = np.ones(len(members))
    for least in sorted(protocols.contention):
        share[members >= least] = protocols.contention[least].value
    if link.peer_bandwidth is not None:
        links = np.maximum(1, members - 1)
        share *= np.minimum(1.0, links * link.peer_bandwidth.value / link.bandwidth.value)
    return share


def _custom_rows(custom: CustomAllReduce | None, link: LinkConfig) -> list[list[float]]:
    if custom is None:
        return [[np.inf, 0.0, 0.0]] * 2
    return [_protocol_row(protocol, link) for protocol in (custom.one_shot, custom.two_shot)]


def _largest(custom: CustomAllReduce | None, kernel: Any) -> Floats:
    """float64[members]: largest tensor in bytes; -1 where engines have no kernel of their own."""
    largest = np.full(kernel.MAX_MEMBERS + 1, -1.0)
    for members, nbytes in (custom.largest if custom else {}).items():
        largest[min(members, kernel.MAX_MEMBERS)] = nbytes.value
    return largest


def _deepep_rows(link: LinkConfig, kernel: Any) -> list[list[list[float]]]:
    return [
        [_expert_kernel_row(part, way, link, kernel) for way in ("dispatch", "combine")]
        for part in (link.deepep, link.deepep_low_latency)
    ]


def _expert_kernel_row(exchange: ExpertExchange | None, way: str, link: LinkConfig, kernel: Any) -> list[float]:
    if exchange is None:
        return [np.inf] + [0.0] * (kernel.EXPERT_KERNEL_COLUMNS - 1)
    part: ExpertKernel = getattr(exchange, way)
    values = {
        kernel.START_S: part.launch.value,
        kernel.EXPERT_S: _or_zero(part.per_expert),
        kernel.FILL_S_PER_BYTE: _per_byte(part.fill_bandwidth),
        kernel.LINK_S_PER_BYTE: 1 / (link.bandwidth.value * part.sustained.value),
        kernel.COPY_S: _or_zero(part.copy_latency),
        kernel.COPY_S_PER_BYTE: _per_byte(part.copy_bandwidth),
        kernel.TOKEN_S: _or_zero(part.token_latency),
        kernel.TOKEN_S_PER_BYTE: _per_byte(part.token_bandwidth),
        kernel.MULTIPROCESSORS: float(exchange.multiprocessors.value) if exchange.multiprocessors else 1.0,
    }
    return [values[column] for column in range(kernel.EXPERT_KERNEL_COLUMNS)]


def _or_zero(parameter: Parameter[Any] | None) -> float:
    return float(parameter.value) if parameter else 0.0


def _per_byte(parameter: Parameter[Any] | None) -> float:
    return 1 / float(parameter.value) if parameter else 0.0


def _valid_range(link: LinkConfig, section: str) -> tuple[float, float, float, float]:
    """Least and greatest number of members, and bytes (tokens, for DeepEP); empty without a calibration."""
    fit = next(_fits_of(getattr(link, section), link.fits), None)
    if fit is None:
        return np.inf, -np.inf, np.inf, -np.inf
    size = fit.valid.get("bytes") or fit.valid.get("tokens") or (0.0, np.inf)
    return *fit.valid.get("ranks", (0.0, np.inf)), *size


def _fits_of(part: BaseModel | None, fits: Mapping[str, Fit]) -> Iterator[Fit]:
    """The calibrations that the parameters of a section name."""
    for _, parameter in parameters(part) if part is not None else ():
        if parameter.fit is not None:
            yield fits[parameter.fit]
