import time

import numpy as np
import pytest

from moesim.search.placement.exact import LayerSearch, is_tractable, solve_layers
from moesim.search.placement.kernels import greedy_placement
from moesim.search.placement.pattern_model import Answer, ask
from moesim.search.placement.patterns import TooManyPatternsError, find_patterns
from moesim.search.placement.problem import device_loads
from tests.search.brute_force import optimum, random_problems

FAR_S = 60.0


def search(loads, devices, per_device, most_patterns=10_000):
    start = greedy_placement(loads, devices, per_device)
    return LayerSearch(loads, start, loads.sum() / devices, most_patterns)


@pytest.mark.slow
def test_the_solver_finds_the_optimum_of_100_random_layers_and_proves_it():
    for loads, devices, per_device in random_problems(seed=10, number=100):
        layer = search(loads, devices, per_device)
        layer.run(0.0, time.monotonic() + FAR_S)
        assert layer.fullest == pytest.approx(optimum(loads, devices, per_device), rel=1e-9), loads.tolist()
        assert layer.gap == 0
        assert layer.bound <= layer.fullest
        assert all(len(set(device)) == per_device for device in layer.slots.tolist())


def test_patterns_are_all_there_is():
    weight = np.array([4.0, 3, 2, 1])
    found = find_patterns(weight, 2, 2, 6.0, 100)
    assert found is not None
    held = {frozenset(found.expert[row].tolist()) for row in found.options}
    # at most 6, and no less than 10 - 6
    assert held == {frozenset(pair) for pair in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3))} - {frozenset((0, 1))}
    assert find_patterns(weight, 2, 2, 4.9, 100) is None
    with pytest.raises(TooManyPatternsError):
        find_patterns(weight, 2, 2, 6.0, 3)


def test_a_limit_is_kept_or_refuted():
    weight = np.array([5.0, 4, 3, 3, 2, 1])
    known = np.array([[0, 1, 2], [3, 4, 5]])
    for limit, kept in ((9.0, True), (11.0, True)):
        patterns = find_patterns(weight, 2, 3, limit, 100)
        assert patterns is not None
        answer = ask(patterns, known, time.monotonic() + FAR_S)
        assert (answer.slots is not None) is kept
        assert answer.slots is not None
        assert device_loads(weight, answer.slots).max() <= limit
    weight = np.array([5.0, 5, 5, 1, 1, 1])  # two of the fives meet: 11 at least, though counting says 10.33
    patterns = find_patterns(weight, 2, 3, 10.9, 100)
    assert patterns is None or ask(patterns, known, time.monotonic() + FAR_S) == Answer(None, refuted=True)


def test_a_solver_without_time_answers_nothing_and_keeps_the_start():
    loads = np.random.default_rng(0).lognormal(0, 1, 16)
    patterns = find_patterns(loads, 4, 4, loads.sum() / 4 * 1.01, 10_000)
    assert patterns is not None
    for left_s in (-1, 0, 0.001, 0.01, 0.02, 0.05):
        answer = ask(patterns, greedy_placement(loads, 4, 4), time.monotonic() + left_s)
        assert left_s > 0 or answer == Answer(None, refuted=False)
    layer = search(loads, 4, 4)
    before = layer.fullest
    layer.run(0.0, time.monotonic() - 1)
    assert layer.fullest == before


def test_the_enumeration_gives_up_where_no_sum_fits():
    weight = np.array([10.0 * (1 + index % 10) for index in range(64)])  # all sums are multiples of ten
    with pytest.raises(TooManyPatternsError):
        find_patterns(weight, 2, 32, weight.sum() / 2 + 0.6, 20_000)


def test_large_layers_are_left_alone():
    loads = np.random.default_rng(1).lognormal(0, 1, 64)
    start = greedy_placement(loads, 8, 10)
    assert not is_tractable(loads, start, loads.sum() / 8, 1000)
    assert is_tractable(loads[:8], greedy_placement(loads[:8], 4, 3), loads[:8].sum() / 4, 1000)
    layer = search(loads, 8, 10, most_patterns=10)
    layer.run(0.0, time.monotonic() + 1)
    assert layer.too_large


def test_progress_is_sent_for_every_layer():
    loads = np.array([[6.0, 5, 4, 3, 2, 1], [3, 3, 3, 2, 2, 2]])
    layers = [
        {"index": 7 + n, "weight": row.tolist(), "slots": [[0, 1, 2], [3, 4, 5]], "bound": row.sum() / 2}
        for n, row in enumerate(loads)
    ]
    sent: list[dict[str, object]] = []
    payload = {"layers": layers, "gap": 0.0, "most_patterns": 1000, "deadline_s": time.monotonic() + FAR_S}
    solve_layers(payload, sent.append)
    last = {message["index"]: message for message in sent}
    assert last.keys() == {7, 8}
    for layer, row in zip(last.values(), loads, strict=True):
        assert device_loads(row, np.array(layer["slots"])).max() == optimum(row, 2, 3)
