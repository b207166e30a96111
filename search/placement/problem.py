"""Balance of expert load, as a problem to solve.

Per MoE layer, every device has equally many slots, every slot holds one expert, every expert has at least one slot and
at most one per device. The replicas of an expert share its load equally. What counts is the load of the fullest device,
since a layer ends when that device does; layers run one after another, so the objective is the sum over the layers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LARGEST = 1e300
"""Largest load: sums of any number of experts stay finite."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Loads, and the slots to put them in.

    Args:
        loads: float64[layer, expert] tokens per expert, in any unit of time.
        devices: devices that share each layer.
        slots: slots per layer on all devices together.

    Raises:
        DataError: loads that are no loads.
        ConfigError: slots that cannot be filled by these rules.
    """

    loads: Floats
    devices: int
    slots: int

    def __post_init__(self) -> None:
        _check_loads(self.loads)
        _check_slots(self.experts, self.devices, self.slots)

    @property
    def layers(self) -> int:
        """MoE layers."""
        return len(self.loads)

    @property
    def experts(self) -> int:
        """Experts per layer."""
        return int(self.loads.shape[1])

    @property
    def slots_per_device(self) -> int:
        """Slots that each device has in each layer."""
        return self.slots // self.devices

    @property
    def mean_load(self) -> Floats:
        """float64[layer]: load of a device if all had the same."""
        mean: Floats = self.loads.sum(axis=1) / self.devices
        return mean


def device_loads(loads: Floats, slots: NDArray[np.integer]) -> Floats:
    """Load of every device of one layer.

    Args:
        loads: float64[expert].
        slots: int[device, slot], the expert in each slot.

    Returns:
        float64[device].
    """
    replicas = np.bincount(slots.ravel(), minlength=len(loads))
    share = loads / np.maximum(replicas, 1)
    total: Floats = share[slots].sum(axis=1)
    return total


def _check_loads(loads: Floats) -> None:
    if loads.ndim != 2 or loads.size == 0:  # noqa: PLR2004  # layers by experts
        raise DataError("loads", "must have one row per layer and one column per expert", loads.shape)
    for layer, row in enumerate(loads):
        wrong = ~np.isfinite(row) | (row < 0)
        if wrong.any():
            expert = int(np.flatnonzero(wrong)[0])
            raise DataError(f"loads[{layer}][{expert}]", "a load must be a finite number >= 0", float(row[expert]))
        if row.max() > _LARGEST:
            raise DataError(f"loads[{layer}]", f"a load must be at most {_LARGEST:g}", float(row.max()))
        if not row.any():
            raise DataError(f"loads[{layer}]", "a layer must have load, all its experts have 0")


def _check_slots(experts: int, devices: int, slots: int) -> None:
    if devices < 1:
        raise ConfigError("devices", "must be at least 1", devices)
    if slots < experts:
        rule = f"every one of {experts} experts needs a slot, {experts - slots} too few"
        raise ConfigError("slots", rule, slots)
    if slots % devices:
        below, above = slots - slots % devices, slots + devices - slots % devices
        near = f"{below} or {above}" if below >= experts else f"{above}"
        rule = f"must divide over {devices} devices, {slots % devices} too many for that; {near} would"
        raise ConfigError("slots", rule, slots)
    if slots > experts * devices:
        most = f"{experts} experts with one replica on each of {devices} devices fill {experts * devices} slots"
        raise ConfigError("slots", f"{most}, {slots - experts * devices} too many", slots)
