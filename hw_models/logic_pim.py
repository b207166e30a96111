"""Logic-PIM: compute units on the logic die of each memory stack, which see more bandwidth than the host (Duplex).

A roofline on the internal bandwidth: t = launches x latency + max(FLOPs / rate, bytes / bandwidth). Each kernel is
spread over all stacks of the device, so there are no tiles and no waves to count (Duplex, MICRO 2024, section IV).
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.hw_models.parameters import Fitted, Fraction, Parameter
from moesim.hw_models.processor import COMPUTE, LATENCY, MEMORY, Cost
from moesim.units import BytesPerS, FlopsPerS, JoulesPerByte, JoulesPerFlop, Seconds
from moesim.workloads.operator_table import GROUPED_GEMM, OperatorTable


class LogicPimConfig(Fitted):
    """Parameters of the Logic-PIM units of one device, all stacks together."""

    kind: Literal["logic_pim"]
    peak: Parameter[FlopsPerS] = Field(description="Rate of all multiply-accumulate units, FLOP/s.")
    dram_bandwidth: Parameter[BytesPerS] = Field(description="Bandwidth that the units see, B/s.")
    dram_sustained: Parameter[Fraction] = Field(description="Share of it that streams reach.")
    kernel_latency: Parameter[Seconds] = Field(description="Start of one kernel, s.")
    flop_energy: Parameter[JoulesPerFlop] = Field(description="Dynamic energy per FLOP, J.")
    dram_energy: Parameter[JoulesPerByte] = Field(description="Dynamic energy per byte read or written, J.")

    def build(self, name: str) -> "LogicPim":
        """The processor with these parameters."""
        return LogicPim(self, name)


class LogicPim:
    """Prices operators on the Logic-PIM units of one device.

    Args:
        config: parameters.
        name: name within the device.
    """

    def __init__(self, config: LogicPimConfig, name: str = "pim") -> None:
        self.config = config
        self.name = name

    @property
    def active_w(self) -> float:
        """None beyond the energy of its work: the paper gives none."""
        return 0.0

    def price(self, operators: OperatorTable) -> Cost:
        """Price of one execution of each row by one shard (see `Processor.price`)."""
        config = self.config
        works = operators.m > 0
        moved = operators.weight_bytes_read + operators.read_bytes + operators.write_bytes
        compute_s = operators.flops / config.peak.value
        memory_s = moved / (config.dram_bandwidth.value * config.dram_sustained.value)
        launches = np.where(operators.form == GROUPED_GEMM, 2, 1)  # up- and down-projection of the experts
        latency_s = launches * config.kernel_latency.value
        time_s = latency_s + np.maximum(compute_s, memory_s)
        energy_j = operators.flops * config.flop_energy.value + moved * config.dram_energy.value
        bound = np.where(compute_s > memory_s, COMPUTE, MEMORY)
        bound = np.where(latency_s > np.maximum(compute_s, memory_s), LATENCY, bound)
        unmeasured = works.copy()  # nobody has built one, so no price was ever held against a measurement
        return Cost(np.where(works, time_s, 0.0), np.where(works, energy_j, 0.0), bound.astype(np.int8), unmeasured)

    def stated_errors(self, operators: OperatorTable) -> NDArray[np.float64]:
        """None: nobody has measured one (see `Processor.stated_errors`)."""
        return np.full(len(operators), np.nan)
