"""The heuristic for one layer: good starts, then descent with disturbances from each."""

import numpy as np

from moesim.search.placement.bounds import replica_range
from moesim.search.placement.kernels import frugal_placement, improve
from moesim.search.placement.problem import Floats, Ints, device_loads

_WORK = 5_000_000
"""Changes to look at per layer, some 15 ms. With ten times as many, the mean gap of gpt-oss-20b on 8 devices with 40
slots falls from 0.04 % to 0.02 %."""
_LIMITS = (1.0, 1.1)
"""Loads of the fullest device, in lower bounds, for which a start has just enough replicas. On loads of gpt-oss, and on
skewed random ones, other values up to 1.4 were hardly ever better."""


def improve_layer(weight: Floats, slots: Ints, bound: float, gap: float, rng: np.random.Generator) -> Ints:
    """A placement no worse than a given one.

    Args:
        weight: float64[expert] load of each expert.
        slots: int64[device, slot] a placement.
        bound: lower bound on the load of the fullest device.
        gap: relative gap to the bound at which to stop.
        rng: source of the disturbances.

    Returns:
        int64[device, slot].
    """
    target = bound * (1 + gap)
    starts = [slots, *_frugal_starts(weight, slots, bound, target, rng)]
    best = slots
    for start in starts:
        found = improve(weight, start, target, _WORK // len(starts), rng)
        best = min(best, found, key=lambda placed: fullest_load(weight, placed))
        if fullest_load(weight, best) <= target:
            break
    return best


def fullest_load(weight: Floats, slots: Ints) -> float:
    """Load of the fullest device; `slots: int64[device, slot]`."""
    return float(device_loads(weight, slots).max())


def _frugal_starts(weight: Floats, slots: Ints, bound: float, target: float, rng: np.random.Generator) -> list[Ints]:
    """The best placement that spends replicas only where a limit needs them, if there are spare slots."""
    devices, slots_per_device = slots.shape
    if slots.size == len(weight):
        return []
    counts = [replica_range(weight, devices, slots_per_device, bound * limit) for limit in _LIMITS]
    frugal = [frugal_placement(weight, found[0], devices, slots_per_device) for found in counts if found is not None]
    descended = [improve(weight, start, target, 0, rng) for start in frugal]
    return sorted(descended, key=lambda placed: fullest_load(weight, placed))[:1]
