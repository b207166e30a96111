"""Placements to compare with: what engines do without thinking, and the greedy balance that is common practice."""

import numpy as np
from numpy.typing import NDArray

from moesim.search.placement.problem import Problem


def contiguous(problem: Problem) -> NDArray[np.int32]:
    """Experts in order; spare slots begin again with expert 0.

    Returns:
        int32[layer, slot].
    """
    row = np.arange(problem.slots, dtype=np.int32) % problem.experts
    return np.tile(row, (problem.layers, 1))


def eplb(problem: Problem) -> NDArray[np.int32]:
    """The idea of DeepSeek's expert-parallelism load balancer (EPLB), its policy for one group of devices.

    Spare slots go one by one to the expert with the largest load per replica; then replicas, heaviest first, go to the
    emptiest device that has a free slot. Unlike there, no device gets two replicas of an expert, which would be one
    replica that takes two slots.

    Returns:
        int32[layer, slot].
    """
    from moesim.search.placement.kernels import greedy_placement  # numba loads slowly

    layers = [greedy_placement(row, problem.devices, problem.slots_per_device) for row in problem.loads]
    return np.stack(layers).reshape(problem.layers, problem.slots).astype(np.int32)
