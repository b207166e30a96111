"""The optimal placement of one small layer, by trying all."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Problem = tuple[NDArray[np.float64], int, int]


def random_problems(seed: int, number: int) -> Iterator[Problem]:
    """Loads, devices and slots per device of small layers with and without replicas; half of the loads are whole."""
    rng = np.random.default_rng(seed)
    while number:
        devices, per_device = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        experts = int(rng.integers(per_device, min(devices * per_device, 8) + 1))
        if experts * devices < devices * per_device:
            continue
        whole, skewed = rng.integers(0, 30, experts).astype(float), rng.lognormal(0.0, 1.0, experts)
        loads = whole if number % 2 and whole.any() else skewed
        number -= 1
        yield loads, devices, per_device


def optimum(loads: NDArray[np.float64], devices: int, per_device: int) -> float:
    """Least load of the fullest device."""
    return min(
        _best_with(loads / np.array(counts), counts, devices, per_device)
        for counts in _counts(len(loads), devices * per_device, devices)
    )


def _counts(experts: int, slots: int, devices: int) -> Iterator[tuple[int, ...]]:
    """All numbers of replicas, at least one and at most one per device, that fill the slots."""
    if experts == 0:
        if slots == 0:
            yield ()
        return
    for first in range(1, min(devices, slots - experts + 1) + 1):
        for rest in _counts(experts - 1, slots - first, devices):
            yield first, *rest


def _best_with(share: NDArray[np.float64], counts: tuple[int, ...], devices: int, per_device: int) -> float:
    """Breadth first over the experts; a state is the sorted loads and free slots of the devices, which are alike."""
    states: set[Any] = {((0.0, per_device),) * devices}
    for expert in np.argsort(-share):
        following = set()
        for state in states:
            for hosts in itertools.combinations(range(devices), counts[expert]):
                if all(state[host][1] for host in hosts):
                    changed = list(state)
                    for host in hosts:
                        changed[host] = state[host][0] + float(share[expert]), state[host][1] - 1
                    following.add(tuple(sorted(changed)))
        states = following
    return min((max(load for load, _ in state) for state in states), default=float("inf"))
