"""Everything a device of one layer can hold without being over a limit: the columns of the exact model.

An *option* is an expert together with how many replicas it has, which fixes what one replica carries. A *pattern* is
what one device holds: as many options as it has slots, of different experts. Devices are alike, so a placement is a
choice of patterns, and no two solutions differ by names of devices only.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moesim.search.placement.bounds import replica_range
from moesim.search.placement.problem import Floats, Ints

_ROUNDING = 1e-12
_MOST_OPTIONS, _MOST_TRIES = 2_000, 2_000_000
"""Enumeration gives up after so many partial patterns, some 50 ms, or at once with so many options."""
_GAVE_UP = -1


@dataclass(frozen=True, eq=False)
class Patterns:
    """What devices may hold.

    Args:
        expert: int64[option].
        replicas: int64[option] replicas that the expert has.
        options: int32[pattern, slot] options of each pattern, heaviest replica first.
    """

    expert: Ints
    replicas: Ints
    options: NDArray[np.int32]


class TooManyPatternsError(Exception):
    """There are more patterns than were asked for."""


def find_patterns(
    weight: Floats, devices: int, slots_per_device: int, limit: float, most_patterns: int
) -> Patterns | None:
    """All patterns of placements whose devices carry at most `limit`.

    Args:
        weight: float64[expert] load of each expert.
        devices: devices.
        slots_per_device: slots of each.
        limit: largest load of a device. The other devices carry at most that too, so none carries less than the total
            minus `devices - 1` times the limit.
        most_patterns: how many patterns to return at most.

    Returns:
        The patterns; None where counting refutes the limit.

    Raises:
        TooManyPatternsError: more than `most_patterns`, or too many options to find out.
    """
    counts = replica_range(weight, devices, slots_per_device, limit)
    if counts is None:
        return None
    least, most = counts
    expert = np.repeat(np.arange(len(weight)), most - least + 1)
    replicas = np.concatenate([np.arange(low, high + 1) for low, high in zip(least, most, strict=True)])
    if len(expert) > _MOST_OPTIONS:
        raise TooManyPatternsError
    order = np.argsort(-weight[expert] / replicas, kind="stable")
    expert, replicas = expert[order], replicas[order]
    top = limit * (1 + _ROUNDING)
    bottom = weight.sum() - (devices - 1) * top - _ROUNDING * limit
    found = np.empty((most_patterns, slots_per_device), np.int32)
    count = _enumerate(expert, weight[expert] / replicas, bottom, top, found)
    if count == _GAVE_UP:
        raise TooManyPatternsError
    return Patterns(expert, replicas, found[:count].copy())


@njit(cache=True)
def _enumerate(expert: Ints, share: Floats, bottom: float, top: float, found: NDArray[np.int32]) -> int:
    """Write all sets of options of different experts with a sum in [bottom, top] into `found`, depth first.

    Args:
        expert: int64[option].
        share: float64[option], descending.
        bottom: least sum.
        top: largest sum.
        found: int32[pattern, slot].

    Returns:
        How many there are, or `_GAVE_UP`.
    """
    options, slots = len(share), found.shape[1]
    lightest = np.zeros(slots + 1)  # least sum of so many options
    for picks in range(1, min(slots, options) + 1):
        lightest[picks] = lightest[picks - 1] + share[options - picks]
    chosen = np.full(slots, -1, np.int64)
    total = np.zeros(slots + 1)
    depth, count, tries = 0, 0, 0
    while depth >= 0:
        chosen[depth] += 1
        option, left = chosen[depth], slots - depth - 1
        tries += 1
        if tries > _MOST_TRIES:
            return _GAVE_UP
        if option >= options or total[depth] + share[option] * (left + 1) < bottom:
            depth -= 1  # those that follow are no heavier
            continue
        here = total[depth] + share[option]
        if here + lightest[left] > top:
            continue
        if (expert[chosen[:depth]] == expert[option]).any():
            continue
        if left > 0:
            depth += 1
            total[depth] = here
            chosen[depth] = option
            continue
        if count == len(found):
            return _GAVE_UP
        found[count] = chosen
        count += 1
    return count
