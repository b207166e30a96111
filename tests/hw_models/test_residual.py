"""Learned corrections: the arrays that the kernel walks give what the trees say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.hw_models import gpu_columns, gpu_kernel
from moesim.hw_models.residual import TREES_TOGETHER, Trees, joined

FEATURES = 5


def grown(rng: np.random.Generator, count: int) -> Trees:
    """Random trees, one after another as in files: a node, then pairs of children."""
    feature: list[int] = []
    value: list[float] = []
    left: list[int] = []
    roots: list[int] = []
    for _ in range(count):
        roots.append(len(feature))
        waiting = [len(feature)]
        feature.append(-1)
        value.append(rng.normal())
        left.append(0)
        while waiting and len(feature) - roots[-1] < 30:
            node = waiting.pop(int(rng.integers(len(waiting))))
            feature[node], left[node] = int(rng.integers(FEATURES)), len(feature)
            waiting += [len(feature), len(feature) + 1]
            feature += [-1, -1]
            value += rng.normal(size=2).tolist()
            left += [0, 0]
    columns = (np.array(feature, np.int8), np.array(value, np.float32), np.array(left, np.int32))
    return Trees(*columns, np.array(roots, np.int32), low=-1.5, high=2.0, fingerprint="", error=0.1)


def walked(model: Trees, row: np.ndarray) -> float:
    """One tree after another, one node after another."""
    total = 0.0
    for root in model.roots:
        node = root
        while model.feature[node] >= 0:
            node = model.left[node] + (row[model.feature[node]] > model.value[node])
        total += float(model.value[node])
    return min(max(total, model.low), model.high)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_trees_walked_together_say_what_each_says(seed, counts):
    rng = np.random.default_rng(seed)
    models = [grown(rng, count) for count in counts]
    places = [(0, column, model) for column, model in enumerate(models)]
    residuals = gpu_columns.Residuals(*joined(places, 2, len(models) + 1))
    table = residuals.models
    for column, model in enumerate(models):
        row = rng.normal(size=FEATURES)
        assert gpu_kernel._log_factor(row, residuals, table[0, column]) == pytest.approx(walked(model, row), abs=1e-12)
    assert not table[1].any()
    assert not table[0, -1].any()


def test_the_kernel_walks_as_many_trees_as_models_are_filled_up_to():
    assert gpu_kernel.TREES_TOGETHER == TREES_TOGETHER
