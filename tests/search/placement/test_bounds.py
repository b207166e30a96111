import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.search.placement.bounds import lower_bound, lower_bounds, replica_range
from moesim.search.placement.kernels import greedy_placement
from moesim.search.placement.problem import Problem, device_loads
from tests.search.brute_force import optimum, random_problems


def test_no_bound_is_above_the_optimum():
    gaps = []
    for loads, devices, per_device in random_problems(seed=1, number=150):
        best, bound = optimum(loads, devices, per_device), lower_bound(loads, devices, per_device)
        assert bound <= best * (1 + 1e-9), (loads.tolist(), devices, per_device)
        gaps.append(1 - bound / best)
    assert np.mean(np.array(gaps) < 1e-9) > 0.6  # most are exact
    assert np.mean(gaps) < 0.02


@given(
    loads=st.lists(st.floats(0, 1e6) | st.integers(0, 100).map(float), min_size=4, max_size=12).filter(any),
    devices=st.integers(1, 6),
    per_device=st.integers(1, 4),
)
def test_no_bound_is_above_what_a_heuristic_reaches(loads, devices, per_device):
    slots = devices * per_device
    weight = np.array(loads[: max(slots, per_device)])
    if not weight.any() or len(weight) * devices < slots:
        return
    reached = device_loads(weight, greedy_placement(weight, devices, per_device)).max()
    assert lower_bound(weight, devices, per_device) <= reached * (1 + 1e-9)


def test_the_heaviest_expert_cannot_be_alone():
    # 10 shares its device with the two lightest
    assert lower_bound(np.array([10.0, 1, 2, 3, 1, 1]), 2, 3) == 12


def test_heavy_experts_crowd():
    # three of the five heaviest meet on one of two devices
    assert lower_bound(np.array([5.0, 5, 5, 5, 5, 1]), 2, 3) == 15


def test_heavy_experts_on_devices_of_their_own_need_light_partners():
    # apart, the three 9s carry 27 + 1 + 1 + 1 + 4 + 4 + 4 = 42 on three devices; together, two of them carry 19
    weight = np.array([9.0, 9, 9, 4, 4, 4, 4, 4, 4, 1, 1, 1])
    assert lower_bound(weight, 4, 3) == 14


def test_two_slots_without_replicas_are_solved_by_pairing():
    rng = np.random.default_rng(0)
    for _ in range(50):
        weight = rng.integers(1, 100, 8).astype(float)
        assert lower_bound(weight, 4, 2) == optimum(weight, 4, 2)


def test_whole_loads_have_a_whole_bound():
    assert lower_bound(np.array([3.0, 3, 2, 2, 2, 1]), 2, 3) == 7  # 13 over two devices


def test_an_expert_that_is_half_of_all_needs_replicas():
    # four slots, three experts: 6 gets the spare one, and each half stands beside one of the others
    assert lower_bound(np.array([6.0, 1, 1]), 2, 2) == pytest.approx(4)


def test_counting_says_how_many_replicas_an_expert_can_have():
    weight = np.array([600.0, 560, 120, 120, 20, 10, 10, 10])
    found = replica_range(weight, 8, 2, 200.0)
    assert found is not None
    least, most = found
    assert least[:2].tolist() == [4, 3]
    assert (most >= least).all()
    assert least.sum() <= 16
    assert replica_range(weight, 8, 2, weight.sum() / 8 * 0.999) is None


def test_layers_are_bounded_one_by_one():
    loads = np.array([[3.0, 1, 1, 1], [1, 1, 1, 1]])
    assert lower_bounds(Problem(loads, 2, 4)).tolist() == [4, 2]
