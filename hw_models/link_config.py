"""Parameters of links: what collectives over them take, kernel by kernel. The equations are in `collective_kernel`."""

from typing import Annotated

from pydantic import Field

from moesim.configs.loader import Config
from moesim.hw_models.parameters import Count, Fitted, Fraction, Parameter
from moesim.units import Bytes, BytesPerS, JoulesPerByte, Seconds

Members = Annotated[int, Field(ge=2)]
"""Number of devices in a group."""


class Protocol(Config):
    """A way to move bytes: a start, steps that add up, and a rate."""

    launch: Parameter[Seconds] = Field(description="Start of the collective, s.")
    hop: Parameter[Seconds] = Field(description="Added by each step of a ring, or by each peer otherwise, s.")
    sustained: Parameter[Fraction] = Field(description="Share of the datasheet bandwidth.")


class Protocols(Config):
    """NCCL's three protocols; a collective runs in the one that is fastest for its size."""

    ll: Protocol = Field(description="Flags travel in every 8 bytes: quick to start, slow to move.")
    ll128: Protocol = Field(description="Flags travel in every 128 bytes.")
    simple: Protocol = Field(description="Blocks behind memory fences: slow to start, full rate.")
    contention: dict[Members, Parameter[Fraction]] = Field(
        default_factory=dict,
        description="Share of the rate that is left to each device of a group of at least so many, where more devices"
        " share PCIe switches or sockets. Smaller groups have all of it.",
    )


class Ring(Protocols):
    """Sums, gathers and scatters along a ring."""

    own_block: Parameter[Fraction] | None = Field(
        default=None,
        description="Time that a device takes over its own block (payload / members), which only moves within its"
        " memory, as a share of the time of a block that travels.",
    )


class InSwitch(Config):
    """All-reduce in which the switch adds up and multicasts (NVLink SHARP); of 16-bit elements and wider."""

    launch: Parameter[Seconds] = Field(description="Start, s.")
    sustained: Parameter[Fraction] = Field(description="Share of the datasheet bandwidth.")
    least_members: Parameter[Count] = Field(description="Smaller groups use the ring.")


class CustomAllReduce(Config):
    """All-reduce kernels that serving engines bring along, within a node; the faster one runs."""

    one_shot: Protocol = Field(description="Every device reads the tensor of every other device and adds up.")
    two_shot: Protocol = Field(description="Each device adds up one block, through the switch, and gives it to all.")
    largest: dict[Members, Parameter[Bytes]] = Field(
        description="Largest tensor by group size, B; for larger ones and other groups engines call NCCL."
    )


class ExpertKernel(Config):
    """Dispatch or combine by kernels made for it (DeepEP): the slower of link and multiprocessors sets the time."""

    launch: Parameter[Seconds] = Field(description="Start, s.")
    per_expert: Parameter[Seconds] | None = Field(default=None, description="Signals of each expert of the layer, s.")
    fill_bandwidth: Parameter[BytesPerS] | None = Field(
        default=None, description="Rate at which the copies of a first token pass before the pipeline is full, B/s."
    )
    sustained: Parameter[Fraction] = Field(description="Share of the datasheet bandwidth.")
    copy_latency: Parameter[Seconds] | None = Field(
        default=None, description="Time that each copy of a token keeps a multiprocessor busy, s."
    )
    copy_bandwidth: Parameter[BytesPerS] | None = Field(
        default=None, description="Rate of a multiprocessor over the bytes of each copy, B/s."
    )
    token_latency: Parameter[Seconds] | None = Field(
        default=None, description="Time that each token keeps a multiprocessor busy, however many copies it has, s."
    )
    token_bandwidth: Parameter[BytesPerS] | None = Field(
        default=None, description="Rate of a multiprocessor over the bytes of each token, B/s."
    )


class ExpertExchange(Config):
    """Dispatch and combine of one kind of kernels."""

    multiprocessors: Parameter[Count] | None = Field(
        default=None,
        description="Multiprocessors that the kernels may take; low-latency kernels spread experts over"
        " them, equally many on each.",
    )
    dispatch: ExpertKernel = Field(description="Tokens to the devices of their experts.")
    combine: ExpertKernel = Field(description="Results back.")


class LinkConfig(Fitted):
    """What one device has to reach others: a link to those in its node, or to those in other nodes."""

    bandwidth: Parameter[BytesPerS] = Field(description="Datasheet bandwidth per direction and device, B/s.")
    peer_bandwidth: Parameter[BytesPerS] | None = Field(
        default=None,
        description="Its part to each other device in the node, B/s, where every pair has a link of its own; without"
        " it, a switch gives all of the bandwidth to any pair.",
    )
    energy: Parameter[JoulesPerByte] = Field(description="Dynamic energy per byte sent, J.")
    ring: Ring = Field(description="NCCL's all-reduce, all-gather and reduce-scatter.")
    in_switch: InSwitch | None = Field(default=None, description="NCCL's all-reduce in the switch.")
    exchange: Protocols = Field(description="NCCL's all-to-all; the rate of `ll` is that to each peer.")
    custom_all_reduce: CustomAllReduce | None = Field(default=None, description="Serving engines' own all-reduce.")
    deepep: ExpertExchange | None = Field(default=None, description="DeepEP, normal kernels.")
    deepep_low_latency: ExpertExchange | None = Field(default=None, description="DeepEP, low-latency kernels.")
