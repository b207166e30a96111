"""Systems: how many devices, in nodes of how many, joined by which links."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from moesim.configs.loader import Config, Document, Reference, find, shipped, take_over, validate
from moesim.errors import ConfigError
from moesim.hw_models.device import Device, load_device
from moesim.hw_models.interconnect import Interconnect
from moesim.hw_models.link_config import LinkConfig
from moesim.hw_models.parameters import Count, ParameterRow, parameter_rows

_COUNTED = re.compile(r"(?P<name>.+)-(?P<count>[0-9]+)")


class SystemConfig(Config):
    """Devices of one kind and their links."""

    title: str = Field(description="Full name.")
    device: str | dict[str, Any] = Field(description="A device: shipped name, path, or inline mapping.")
    device_count: Count = Field(description="Devices in the system.")
    devices_per_node: Count = Field(description="Devices in a full node.")
    intra_node: LinkConfig = Field(description="Link of each device to the others in its node.")
    inter_node: LinkConfig = Field(description="Link of each device to other nodes.")


@dataclass(frozen=True)
class System:
    """Devices and links, ready to price operators and collectives.

    Attributes:
        name: such as `h100-sxm-8`.
        config: parameters.
        device: the device, of which there are `device_count`.
        interconnect: prices collectives.
    """

    name: str
    config: SystemConfig
    device: Device
    interconnect: Interconnect

    @property
    def device_count(self) -> int:
        """Devices in the system."""
        return self.config.device_count

    @property
    def devices_per_node(self) -> int:
        """Devices in a node; all of them when the system is one node."""
        return min(self.config.devices_per_node, self.device_count)

    @property
    def memory_bytes(self) -> float:
        """DRAM capacity of one device."""
        return self.device.memory_bytes

    @property
    def idle_w(self) -> float:
        """Power that one device draws with nothing running."""
        return self.device.idle_w


def load_system(reference: Reference, base: str | Path | None = None, kernels: str | None = None) -> System:
    """The system that `reference` stands for.

    Args:
        reference: `<system>-<count>`, such as `h100-sxm-4`, for a shipped system with so many devices; a path; or an
            inline mapping. A count up to `devices_per_node` is one node, a greater one must be whole nodes.
        base: folder that relative paths start from.
        kernels: serving framework whose kernels the devices run (see `load_device`).

    Raises:
        ConfigError: there is no such system, its description breaks a rule, or the count does not fill its nodes.
    """
    document, count = _find_counted(reference, base)
    for link in ("intra_node", "inter_node"):
        if isinstance(document.data, dict) and link in document.data:
            document = take_over(document, "systems", (link,))
    config = validate(SystemConfig, document)
    place = document.place(("device_count",))
    if count is not None:
        config = config.model_copy(update={"device_count": count})
        place = reference.place() if isinstance(reference, Document) else str(reference)
    _check_nodes(config, place)
    device = load_device(document.child("device"), base if document.folder is None else None, kernels)
    name = config.title if document.folder is None else f"{Path(document.file).stem}-{config.device_count}"
    return System(name, config, device, Interconnect(config.intra_node, config.inter_node))


def system_document(reference: Document) -> Document:
    """The configuration that `reference` names, with the number of devices in it; for edits before `load_system`."""
    document, count = _find_counted(reference, None)
    return document if count is None else document.graft(("device_count",), Document(reference.file, count))


def describe_links(system: System) -> list[ParameterRow]:
    """Every parameter of the links of `system`: name, value with unit, source, and error where it was fitted."""
    links = {"intra_node": system.config.intra_node, "inter_node": system.config.inter_node}
    return [row for name, link in links.items() for row in parameter_rows(link, link.fits, f"{name}.")]


def _find_counted(reference: Reference, base: str | Path | None) -> tuple[Document, int | None]:
    """The document of a system, and the number of devices if the reference is a shipped name with one."""
    text = reference.data if isinstance(reference, Document) else reference
    match = _COUNTED.fullmatch(text) if isinstance(text, str) else None
    if match is None or match["name"] not in shipped("systems"):
        return find("systems", reference, base), None
    return find("systems", match["name"]), int(match["count"])


def _check_nodes(config: SystemConfig, place: str) -> None:
    count, per_node = config.device_count, config.devices_per_node
    if count < 1 or (count > per_node and count % per_node):
        rule = f"the number of devices must be 1 to {per_node} (one node) or a multiple of {per_node} (whole nodes)"
        raise ConfigError(place, rule, count)
