"""Loads that the fullest device of a layer cannot fall below, by counting.

A limit on the load of every device is *refuted* by showing that it takes more slots than there are. Write `S` for the
slots per device, `N` for all slots, `low[e]` for the least that a replica of expert `e` can carry, and `rest[m]` for
the sum of the `m` smallest `low`: any `m` experts of a device carry at least that.

- A replica shares its device with `S - 1` others, so it carries at most `limit - rest[S - 1]`. That gives every expert
  a least number of replicas; what is left of `N` gives a largest one, and with it a new `low`.
- Call a replica big if it carries more than `(limit - rest[S - j - 1]) / (j + 1)`. A device with `j + 1` big ones is
  over the limit, so there are at most `j` per device. An expert without big replicas needs many slots; the cheapest
  choice of experts that may be big, relaxed to fractions, must fit into `N`. For `j = 0` that is the first argument.

Any refuted limit is a lower bound; bisection finds a large one. Without spare slots there are closed forms.
"""

import math

import numpy as np
from numpy.typing import NDArray

from moesim.search.placement.problem import Floats, Ints, Problem

_ROUNDING = 1e-12
"""Limits are refuted with this relative margin, so that rounding never refutes one that can be kept."""
_FIRST_STEP = 1e-5
"""Where nothing refutes a limit this little above the mean load, the mean is taken."""
_BISECTIONS = 40
"""The interval begins no wider than the bound; 2^-40 of it is far below what counts as equal."""


def lower_bounds(problem: Problem) -> Floats:
    """Lower bounds on the load of the fullest device, float64[layer]."""
    bounds = [lower_bound(row, problem.devices, problem.slots_per_device) for row in problem.loads]
    return np.array(bounds)


def lower_bound(weight: Floats, devices: int, slots_per_device: int) -> float:
    """Lower bound on the load of the fullest device of one layer.

    Args:
        weight: float64[expert] load of each expert.
        devices: devices.
        slots_per_device: slots of each; all slots together are at least as many as experts.
    """
    mean = float(weight.sum() / devices)
    if len(weight) == devices * slots_per_device:
        return _without_spares(weight, devices, slots_per_device)
    low, high = mean, mean * (1 + _FIRST_STEP)
    if replica_range(weight, devices, slots_per_device, high) is not None:
        return mean
    while replica_range(weight, devices, slots_per_device, high) is None:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if replica_range(weight, devices, slots_per_device, middle) is None:
            low = middle
        else:
            high = middle
    return low


def replica_range(weight: Floats, devices: int, slots_per_device: int, limit: float) -> tuple[Ints, Ints] | None:
    """How many replicas each expert can have if no device carries more than `limit`.

    Args:
        weight: float64[expert] load of each expert.
        devices: devices.
        slots_per_device: slots of each.
        limit: largest load of a device.

    Returns:
        (least, most): int64[expert]; None where `limit` is refuted.
    """
    slots, limit = devices * slots_per_device, limit * (1 + _ROUNDING)
    least = np.ones(len(weight), np.int64)
    most = np.full(len(weight), min(devices, slots - len(weight) + 1))
    if weight.sum() > limit * devices:
        return None
    while True:
        rest = _smallest_sums(weight / most, slots_per_device)
        if limit <= rest[-1]:
            return None
        least_now = np.maximum(least, _replicas_for(weight, limit - rest[-1]))
        most_now = np.minimum(most, least_now + slots - least_now.sum())
        if (least_now > most_now).any():
            return None
        if np.array_equal(least, least_now) and np.array_equal(most, most_now):
            break
        least, most = least_now, most_now
    shares = [(limit - rest[slots_per_device - j - 1]) / (j + 1) for j in range(1, slots_per_device)]
    fits = all(
        _slots_needed(weight, least, most, share, devices * j) <= slots + _ROUNDING * slots
        for j, share in enumerate(shares, start=1)
    )
    return (least, most) if fits else None


def _smallest_sums(low: Floats, slots_per_device: int) -> Floats:
    """Element `m` is the sum of the `m` smallest of `low`, for m = 0 ... slots_per_device - 1."""
    sums = np.zeros(slots_per_device)
    np.cumsum(np.sort(low)[: slots_per_device - 1], out=sums[1:])
    return sums


def _replicas_for(weight: Floats, share: float) -> Ints:
    """Least replicas of which each carries at most `share`, int64[expert]."""
    return np.maximum(np.ceil(weight / share * (1 - _ROUNDING)), 1).astype(np.int64)


def _slots_needed(weight: Floats, least: Ints, most: Ints, share: float, big: int) -> float:
    """Slots that all experts need if at most `big` replicas carry more than `share`; infinite where they cannot."""
    need = np.maximum(least, _replicas_for(weight, share))
    forced = need > most
    room = big - int(least[forced].sum())
    if room < 0:
        return math.inf
    need[forced] = least[forced]
    return float(need.sum()) - _largest_saving(need - least, least, room)


def _largest_saving(saving: Ints, cost: Ints, room: int) -> float:
    """Fractional knapsack: most slots saved by making experts big at `cost` big replicas each, `room` in all."""
    order = np.argsort(-saving / cost, kind="stable")
    spent = np.cumsum(cost[order])
    whole = int(np.searchsorted(spent, room, side="right"))
    saved = float(saving[order[:whole]].sum())
    if whole < len(order):
        left = room - (int(spent[whole - 1]) if whole else 0)
        saved += float(saving[order[whole]] / cost[order[whole]]) * left
    return saved


def _without_spares(weight: Floats, devices: int, slots_per_device: int) -> float:
    """Three closed forms for experts with one slot each.

    - Some device holds `j + 1` of the `devices * j + 1` heaviest experts, and the lightest in its other slots at best.
    - Either two of the `m` heaviest share a device, or they are on `m` devices, which then carry on average no less
      than those with the lightest in all their other slots.
    - With two slots, the heaviest belongs to the lightest, the next to the next lightest, and so on, which is optimal.

    Whole loads give a whole bound.
    """
    heavy = np.sort(weight)[::-1]
    rest = _smallest_sums(weight, slots_per_device)
    bounds = [float(weight.sum() / devices), _apart(heavy, rest, devices, slots_per_device)]
    for j in range(slots_per_device):
        crowd = heavy[devices * j - j : devices * j + 1].sum()
        bounds.append(float(crowd + rest[slots_per_device - j - 1]))
    if slots_per_device == 2:  # noqa: PLR2004  # pairs
        bounds.append(float((heavy[:devices] + heavy[devices:][::-1]).max()))
    bound = max(bounds)
    return float(math.ceil(bound * (1 - _ROUNDING))) if _is_whole(weight) else bound


def _apart(heavy: Floats, rest: Floats, devices: int, slots_per_device: int) -> float:
    """The second closed form, for the best `m`; `heavy: float64[expert]` descends, `rest` is of `_smallest_sums`."""
    number = np.arange(1, devices + 1)
    lightest = np.concatenate([[0.0], heavy[::-1].cumsum()])
    apart = (heavy.cumsum()[:devices] + lightest[number * (slots_per_device - 1)]) / number
    if slots_per_device == 1 or devices == 1:
        return float(apart[0])
    together = heavy[: devices - 1] + heavy[1:devices] + rest[slots_per_device - 2]
    return float(max(apart[0], np.minimum(apart[1:], together).max()))


def _is_whole(weight: NDArray[np.float64]) -> bool:
    """Whether all loads are whole numbers, as counts of tokens are."""
    return bool((weight == np.rint(weight)).all())
