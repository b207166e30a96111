import subprocess
import sys
import time

import numpy as np
import pytest

from moesim.errors import ConfigError, DataError, InputError
from moesim.search import Status
from moesim.search.placement import METHODS, balance, search_placement
from moesim.search.placement.problem import device_loads
from moesim.workloads.routing_files import read_routing_trace
from tests.search.brute_force import optimum

SKEWED = [600, 560, 120, 120, 20, 10, 10, 10]
RECORDING = "routing/gpt-oss-20b/gpt-oss-20b_decode_top4_ids.npz"


@pytest.mark.parametrize("method", ["auto", "milp"])
def test_the_optimum_of_a_skewed_layer_is_proven(method):
    found = search_placement(SKEWED, 8, 16, method)
    assert found.objective == pytest.approx(590 / 3)  # two heavy experts in 5 and 3 replicas, beside the light ones
    assert found.gap == 0
    assert found.bound == found.objective
    assert found.status is Status.OPTIMAL
    assert search_placement(SKEWED, 8, 16, "eplb").objective == 232


def test_each_method_is_no_worse_than_what_it_starts_from():
    loads = np.random.default_rng(0).lognormal(0, 1, (3, 10))
    found = {method: search_placement(loads, 4, 12, method, time_limit_s=3) for method in METHODS}
    worst = [found[method].value.max_load_tokens for method in ("eplb", "lpt", "auto")]
    assert (worst[0] >= worst[1]).all()
    assert (worst[1] >= worst[2]).all()
    for solution in found.values():
        assert (solution.value.bound_tokens <= solution.value.max_load_tokens).all()
        assert solution.objective == pytest.approx(solution.value.max_load_tokens.sum())
        assert 0 <= solution.gap < 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("devices", "slots"), [(1, 8), (2, 8), (4, 12), (8, 8), (8, 64)])
def test_the_rules_of_a_placement_are_kept(method, devices, slots):
    loads = np.random.default_rng(1).integers(0, 50, (2, 8)).astype(float)
    value = search_placement(loads, devices, slots, method).value
    assert value.placement.slots.shape == (2, slots)
    assert value.placement.ep == devices
    for row, placed, fullest in zip(loads, value.placement.slots, value.max_load_tokens, strict=True):
        per_device = placed.reshape(devices, -1)
        assert set(placed.tolist()) == set(range(8))
        assert all(len(set(device)) == len(device) for device in per_device.tolist())
        assert device_loads(row, per_device).max() == pytest.approx(fullest)


def test_layers_do_not_know_of_each_other():
    loads = np.random.default_rng(2).integers(1, 50, (3, 6)).astype(float)
    found = search_placement(loads, 2, method="milp", gap=0.0)
    assert found.value.max_load_tokens.tolist() == [optimum(row, 2, 3) for row in loads]
    assert found.value.status == (Status.OPTIMAL,) * 3


def test_the_heuristic_repeats_itself():
    loads = np.random.default_rng(3).lognormal(0, 1, (2, 24))
    first, second = (search_placement(loads, 8, 32, "lpt", seed=5).value.placement.slots for _ in range(2))
    assert np.array_equal(first, second)


def test_a_wide_gap_ends_the_search_early():
    loads = np.random.default_rng(4).lognormal(0, 1, (2, 24))
    found = search_placement(loads, 8, 32, gap=0.2)
    assert set(found.value.status) <= {Status.OPTIMAL, Status.WITHIN_GAP}
    assert (found.value.gap_fraction <= 0.2).all()


def test_without_time_for_the_solver_the_heuristic_is_returned():
    loads = np.random.default_rng(5).lognormal(0, 0.7, (6, 32))
    heuristic = search_placement(loads, 32, 64, method="lpt")
    found = search_placement(loads, 32, 64, method="milp", time_limit_s=0.01)
    assert found.status is Status.TIME_LIMIT_HEURISTIC
    assert found.objective == heuristic.objective
    assert found.gap == pytest.approx(heuristic.gap)
    assert found.wall_s < 5


@pytest.mark.slow
def test_out_of_time_the_solver_keeps_what_it_has():
    loads = [*SKEWED, *[1] * 24]  # half of the gap closes in half a second, the rest not in ten
    heuristic = search_placement(loads, 32, 64, "lpt")
    began_s = time.monotonic()
    found = search_placement(loads, 32, 64, "milp", time_limit_s=5)
    assert time.monotonic() - began_s < 7
    assert found.objective <= heuristic.objective
    assert found.bound >= heuristic.bound
    assert 0 < found.gap < heuristic.gap
    assert found.status is Status.TIME_LIMIT


def test_a_layer_beyond_the_solver_says_so():
    loads = np.random.default_rng(7).lognormal(0, 1, 64)
    assert search_placement(loads, 8, 80, gap=0.0).status is Status.TOO_LARGE


def test_a_solver_that_fails_costs_nothing_but_the_proof(monkeypatch):
    monkeypatch.setattr(balance, "_SOLVER", "moesim.search.no_such_module:solve")
    found = search_placement(SKEWED, 8, 16)
    assert found.status is Status.SOLVER_FAILED
    assert "ModuleNotFoundError" in found.value.note
    assert found.objective < 232


def test_progress_counts_layers():
    heard: list[tuple[str, int, int]] = []
    search_placement(np.tile(SKEWED, (3, 1)), 8, 16, on_progress=lambda *news: heard.append(news))
    assert [news for news in heard if news[0] == "heuristic"] == [("heuristic", done, 3) for done in (1, 2, 3)]
    assert heard[-1] == ("solver", 3, 3)


@pytest.mark.parametrize(
    ("devices", "slots", "rule"),
    [
        (0, None, "devices: must be at least 1, got 0"),
        (-2, None, "devices: must be at least 1, got -2"),
        (4, 7, "slots: every one of 8 experts needs a slot, 1 too few, got 7"),
        (3, None, "slots: must divide over 3 devices, 2 too many for that; 9 would, got 8"),
        (4, 10, "slots: must divide over 4 devices, 2 too many for that; 8 or 12 would, got 10"),
        (2, 20, "slots: 8 experts with one replica on each of 2 devices fill 16 slots, 4 too many, got 20"),
    ],
)
def test_slots_that_cannot_be_filled_are_refused(devices, slots, rule):
    with pytest.raises(ConfigError) as caught:
        search_placement(SKEWED, devices, slots)
    assert str(caught.value) == rule


@pytest.mark.parametrize(
    ("loads", "rule"),
    [
        ([[1, 2], [3, -1]], r"loads\[1\]\[1\]: a load must be a finite number >= 0, got -1.0"),
        ([[1, float("nan")]], r"loads\[0\]\[1\]: a load must be a finite number >= 0, got nan"),
        ([[1, float("inf")]], r"loads\[0\]\[1\]"),
        ([[1e308, 1e308]], r"loads\[0\]: a load must be at most 1e\+300"),
        ([[1, 2], [0, 0]], r"loads\[1\]: a layer must have load"),
        ([], "loads: must have one row per layer"),
        ([[1, 2], [3]], "loads: must be a table of numbers, equally many per layer"),
        ([[[1, 2]]], "loads: must have one row per layer"),
        (["a", "b"], "loads: must be a table of numbers"),
    ],
)
def test_loads_that_are_none_are_refused(loads, rule):
    with pytest.raises(DataError, match=rule):
        search_placement(loads, 1)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"method": "lptt"}, "method: must be one of auto, milp, lpt, eplb, contiguous; did you mean `lpt`?"),
        ({"time_limit_s": 0}, "time_limit_s: must be a number of seconds > 0, got 0"),
        ({"time_limit_s": float("nan")}, "time_limit_s: must be a number of seconds > 0"),
        ({"gap": 1.0}, "gap: must be a fraction >= 0 and < 1, got 1.0"),
        ({"gap": -0.1}, "gap: must be a fraction"),
    ],
)
def test_settings_out_of_range_are_refused(settings, rule):
    with pytest.raises(InputError) as caught:
        search_placement(SKEWED, 8, 16, **settings)
    assert rule in str(caught.value)


def test_importing_the_package_is_cheap():
    script = "import sys, moesim.search.placement; print({'numba', 'pyomo', 'pandas', 'pyarrow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize(("slots", "largest_gap"), [(32, 0.002), (40, 0.001)])
def test_recorded_loads_are_balanced_better_than_by_eplb_in_every_layer(reference_data, slots, largest_gap):
    loads = read_routing_trace(reference_data / RECORDING).loads().astype(float)
    greedy = search_placement(loads, 8, slots, "eplb")
    found = search_placement(loads, 8, slots, time_limit_s=20)
    sys.stdout.write(
        f"{slots} slots: gap {found.gap:.4%}, eplb {greedy.objective / found.bound - 1:.3%} above the bound\n"
    )
    assert (found.value.max_load_tokens <= greedy.value.max_load_tokens).all()
    assert found.gap < largest_gap
    assert greedy.objective > found.objective * 1.02
