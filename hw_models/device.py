"""Devices: memory, power and processors, read from YAML in which every number states its source."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.configs.loader import Config, Document, KeyPath, Reference, find, take_over, validate
from moesim.hw_models.attention_config import kernel_rows
from moesim.hw_models.coprocessing import share_out
from moesim.hw_models.gpu import GpuConfig
from moesim.hw_models.logic_pim import LogicPimConfig
from moesim.hw_models.parameters import Parameter, ParameterRow, parameter_rows
from moesim.hw_models.processor import Cost, Processor
from moesim.units import Bytes, Watts
from moesim.workloads.operator_table import OperatorTable

ProcessorConfig = Annotated[GpuConfig | LogicPimConfig, Field(discriminator="kind")]
"""The kinds of processors. A new one is a configuration class with a `kind` and a method `build(name)`, joined here."""


class DeviceConfig(Config):
    """Parameters of a device."""

    title: str = Field(description="Full name.")
    memory_capacity: Parameter[Bytes] = Field(description="DRAM capacity, bytes.")
    idle_power: Parameter[Watts] = Field(description="Power drawn with nothing running, W.")
    design_power: Parameter[Watts] = Field(description="Thermal design power, W.")
    processors: dict[str, ProcessorConfig] = Field(
        min_length=1, max_length=2, description="Processors by name, the main one first."
    )


@dataclass(frozen=True)
class Device:
    """A device ready to price operators.

    Attributes:
        name: name of the shipped configuration or of the file; the title of an inline one.
        config: parameters.
        processors: by name, the main one first.
    """

    name: str
    config: DeviceConfig
    processors: dict[str, Processor]

    @property
    def processor(self) -> Processor:
        """The main processor."""
        return next(iter(self.processors.values()))

    def price(self, operators: OperatorTable) -> tuple[Cost, ...]:
        """What each processor contributes to each row, in the order of `processors`; the parts run side by side."""
        first, *others = self.processors.values()
        return share_out(first, others[0], operators) if others else (first.price(operators),)

    def stated_errors(self, operators: OperatorTable) -> tuple[NDArray[np.float64], ...]:
        """Errors stated of each processor's prices, in the order of `processors` (see `Processor.stated_errors`)."""
        return tuple(processor.stated_errors(operators) for processor in self.processors.values())

    @property
    def memory_bytes(self) -> float:
        """DRAM capacity."""
        return self.config.memory_capacity.value

    @property
    def active_w(self) -> float:
        """Power of the main processor while it runs or polls, on top of idle power and of what the work takes."""
        return self.processor.active_w

    @property
    def idle_w(self) -> float:
        """Power drawn with nothing running."""
        return self.config.idle_power.value


def load_device(reference: Reference, base: str | Path | None = None, kernels: str | None = None) -> Device:
    """The device that `reference` stands for: a shipped name, a path, or an inline mapping.

    Args:
        reference: name, path, mapping, or a document that holds one of these.
        base: folder that relative paths start from.
        kernels: serving framework whose kernels run, where the device has a set of them; else those it describes.

    Raises:
        ConfigError: there is no such device, or its description breaks a rule.
    """
    document = find("devices", reference, base)
    held = document.data.get("processors") if isinstance(document.data, dict) else None
    for name in held if isinstance(held, dict) else ():
        document = take_over(document, "devices", ("processors", name))
        document = _with_kernels(document, ("processors", name), kernels)
    config = validate(DeviceConfig, document)
    name = config.title if document.folder is None else Path(document.file).stem
    return build_device(config, name)


def _with_kernels(document: Document, processor: KeyPath, kernels: str | None) -> Document:
    """`document` with one of the processor's sets of kernels merged over it, if it has that set."""
    held = document.at(processor).data
    sets = held.get("kernels") if isinstance(held, dict) else None
    if kernels is None or not isinstance(sets, dict) or not isinstance(sets.get(kernels), dict):
        return document
    chosen = (*processor, "kernels", kernels)
    source = document.at(chosen)
    same_file = document.at(processor).file == source.file
    for path in _leaves(source.data):
        target = (*processor, *path)
        if any(key[: len(target)] == target and document.is_set(key) for key in document.sources):
            continue  # the command line has the last word
        document = document.graft(target, source.at(path))
        if same_file:  # then errors show the whole key, and the line of the set
            document = replace(document, sources={key: name for key, name in document.sources.items() if key != target})
    return document.graft((*processor, "default_kernels"), Document(source.file, kernels))


def _leaves(mapping: Mapping[str, Any]) -> Iterator[KeyPath]:
    """Paths of the parameters, calibrations, lists and scalars in `mapping`: what a set replaces whole."""
    for key, value in mapping.items():
        if isinstance(value, dict) and value and not {"value", "data"} & set(value):
            yield from ((key, *path) for path in _leaves(value))
        else:
            yield (key,)


def build_device(config: DeviceConfig, name: str) -> Device:
    """A device with the given parameters."""
    return Device(name, config, {key: processor.build(key) for key, processor in config.processors.items()})


def describe(device: Device) -> list[ParameterRow]:
    """Every parameter of `device`: name, value with unit, source, and error where it was fitted.

    Attention kernels come last, a line for each.
    """
    rows = parameter_rows(device.config, {}, exclude="processors")
    for name, processor in device.config.processors.items():
        rows += parameter_rows(processor, processor.fits, f"{name}.")
    for name, processor in device.config.processors.items():
        if isinstance(processor, GpuConfig):
            rows += kernel_rows(processor.attention, processor.fits, f"{name}.")
    return rows
