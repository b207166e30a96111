import numpy as np
import pytest

from moesim.search.placement.baselines import contiguous, eplb
from moesim.search.placement.kernels import greedy_placement, improve
from moesim.search.placement.problem import Problem, device_loads
from tests.search.brute_force import optimum, random_problems

WORK = 100_000


def check(slots, experts):
    """Every expert has a slot, and none has two on one device."""
    assert set(slots.ravel().tolist()) == set(range(experts))
    assert all(len(set(device.tolist())) == len(device) for device in slots)


def test_placements_keep_the_rules_and_improving_never_harms():
    for seed, (loads, devices, per_device) in enumerate(random_problems(seed=2, number=100)):
        start = greedy_placement(loads, devices, per_device)
        check(start, len(loads))
        better = improve(loads, start, 0.0, WORK, np.random.default_rng(seed))
        check(better, len(loads))
        assert device_loads(loads, better).max() <= device_loads(loads, start).max()


def test_the_heuristic_is_mostly_optimal_on_small_layers():
    problems = list(random_problems(seed=3, number=100))
    reached = [
        device_loads(problem[0], improve(problem[0], greedy_placement(*problem), 0.0, WORK, np.random.default_rng(0)))
        for problem in problems
    ]
    excess = np.array([loads.max() / optimum(*problem) - 1 for loads, problem in zip(reached, problems, strict=True)])
    assert (excess > -1e-9).all()
    assert np.mean(excess < 1e-9) > 0.9


def test_no_load_gets_lost():
    rng = np.random.default_rng(4)
    loads = rng.lognormal(0, 1, 64)
    slots = improve(loads, greedy_placement(loads, 8, 10), 0.0, WORK, rng)
    assert device_loads(loads, slots).sum() == pytest.approx(loads.sum())


def test_the_same_seed_gives_the_same_placement():
    loads = np.random.default_rng(5).lognormal(0, 1, 32)
    start = greedy_placement(loads, 8, 5)
    first, second = (improve(loads, start, 0.0, WORK, np.random.default_rng(6)) for _ in range(2))
    assert np.array_equal(first, second)


def test_it_stops_at_the_target():
    loads = np.random.default_rng(7).lognormal(0, 1, 32)
    start = greedy_placement(loads, 8, 4)
    good_enough = improve(loads, start, np.inf, WORK, np.random.default_rng(0))
    only_descended = improve(loads, start, 0.0, 0, np.random.default_rng(1))
    assert np.array_equal(good_enough, only_descended)


def test_packing_finds_room_for_every_replica():
    # all experts on all devices: nothing to choose, and every early choice in the way of later ones
    loads = np.array([9.0, 3, 2, 1, 1])
    slots = greedy_placement(loads, 6, 5)
    check(slots, 5)
    assert device_loads(loads, slots) == pytest.approx(loads.sum() / 6)


@pytest.mark.parametrize(("devices", "slots"), [(4, 8), (4, 12), (4, 32), (1, 8), (8, 8)])
def test_contiguous_is_in_order_and_starts_again(devices, slots):
    placed = contiguous(Problem(np.ones((2, 8)), devices, slots))
    assert placed[1].tolist() == [slot % 8 for slot in range(slots)]
    check(placed[0].reshape(devices, -1), 8)


def test_eplb_replicates_the_heaviest_share():
    loads = np.array([[600, 560, 120, 120, 20, 10, 10, 10.0]])
    placed = eplb(Problem(loads, 8, 16))
    assert np.bincount(placed[0]).tolist() == [5, 5, 1, 1, 1, 1, 1, 1]
    assert device_loads(loads[0], placed[0].reshape(8, 2)).max() == 232
