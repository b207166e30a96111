"""Devices: memory, power and processors, read from YAML in which every number states its source."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from moesim.configs.loader import Config, Reference, find, take_over, validate
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


def load_device(reference: Reference, base: str | Path | None = None) -> Device:
    """The device that `reference` stands for: a shipped name, a path, or an inline mapping.

    Raises:
        ConfigError: there is no such device, or its description breaks a rule.
    """
    document = find("devices", reference, base)
    held = document.data.get("processors") if isinstance(document.data, dict) else None
    for name in held if isinstance(held, dict) else ():
        document = take_over(document, "devices", ("processors", name))
    config = validate(DeviceConfig, document)
    name = config.title if document.folder is None else Path(document.file).stem
    return build_device(config, name)


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
