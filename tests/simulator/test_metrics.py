import numpy as np
import pytest

from moesim.simulator.metrics import distribution, expert_load_imbalance, request_latencies, sum_by


def test_latencies_follow_their_definitions():
    found = request_latencies(np.array([1.0, 2.0]), np.array([1.5, 2.5]), np.array([3.5, 2.5]), np.array([5, 1]))
    assert found["ttft_s"].tolist() == [0.5, 0.5]
    assert found["e2e_s"].tolist() == [2.5, 0.5]
    assert found["tpot_s"][0] == 0.5
    assert np.isnan(found["tpot_s"][1])


def test_undefined_values_are_left_out_of_distributions():
    found = distribution("tpot", np.array([np.nan, 1.0, 3.0]))
    assert (found["tpot_mean_s"], found["tpot_p50_s"]) == (2.0, 2.0)
    assert set(distribution("tpot", np.array([np.nan])).values()) == {None}


def test_imbalance_is_the_busiest_over_the_mean_by_layer():
    assert expert_load_imbalance(np.array([[1, 1, 1, 5], [2, 2, 2, 2]])) == pytest.approx((2.5 + 1) / 2)
    assert expert_load_imbalance(np.zeros((2, 4), dtype=int)) is None
    assert expert_load_imbalance(np.zeros((0, 4), dtype=int)) is None


def test_sums_go_by_equal_keys():
    found = sum_by(np.array([[1, 2], [0, 0], [1, 2]]), {"x": np.array([1.0, 10.0, 2.0])})
    assert found["keys"].tolist() == [[0, 0], [1, 2]]
    assert found["x"].tolist() == [10.0, 3.0]
