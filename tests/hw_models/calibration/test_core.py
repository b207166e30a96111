from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.hw_models.calibration.errors import BUCKETS_S, error_buckets
from moesim.hw_models.calibration.fit import Free, Settings, calibrate, fit
from moesim.hw_models.calibration.measured import Measured, Source, group_numbers
from moesim.hw_models.calibration.splits import folds, sample

SOURCE = Source("nobody", "abacus", "fingers", "1.0", "sums")


@dataclass(frozen=True)
class Work:
    """Rows of work in a made-up unit."""

    amount: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.amount)

    def take(self, rows: NDArray[np.int64]) -> "Work":
        return Work(self.amount[rows])


def price(values: Mapping[str, float], work: Work) -> NDArray[np.float64]:
    return values["latency_s"] + work.amount / values["rate"]


TRUE = {"latency_s": 4e-6, "rate": 3e12}
SPACE = {"latency_s": Free(1e-6, 1e-7, 1e-4), "rate": Free(1e12, 1e10, 1e14)}


def measured(noise: float = 0.0, rows: int = 400) -> Measured[Work]:
    rng = np.random.default_rng(3)
    work = Work(np.geomspace(1e4, 1e10, rows))
    time_s = price(TRUE, work) * np.exp(noise * rng.standard_normal(rows))
    return Measured(work, time_s, np.arange(rows) // 8, SOURCE, {"amount": work.amount})


def test_a_known_parameter_set_is_recovered_from_wrong_starts() -> None:
    found = fit(measured(), price, SPACE)
    assert found == pytest.approx(TRUE, rel=1e-4)


def test_a_few_wild_rows_do_not_move_the_fit() -> None:
    data = measured(noise=0.02)
    data.time_s[::20] *= 10
    assert fit(data, price, SPACE) == pytest.approx(TRUE, rel=0.03)


def test_fitted_values_stay_within_bounds_and_say_where_they_hit_them() -> None:
    space = SPACE | {"rate": Free(1e12, 1e11, 2e12)}
    result = calibrate(measured(), price, space, Settings(starts=1))
    assert result.values["rate"] == pytest.approx(2e12, rel=1e-3)
    assert result.at_bounds == ("rate",)


def test_errors_on_unseen_groups_are_those_of_the_noise() -> None:
    done: list[tuple[int, int]] = []
    data = measured(noise=0.05)
    result = calibrate(data, price, SPACE, Settings(folds=4), lambda *at: done.append(at))
    expected = 0.05 * np.sqrt(2 / np.pi)
    assert result.unseen["all"].rows == len(data)
    assert result.unseen["all"].mean == pytest.approx(expected, rel=0.15)
    assert result.unseen["all"].mean >= result.seen["all"].mean * (1 - 1e-3)
    assert done == [(count, 5) for count in range(1, 6)]


@given(st.lists(st.integers(0, 12), min_size=13, max_size=80), st.integers(2, 4), st.integers(0, 5))
def test_folds_never_share_a_group_and_leave_every_row_out_once(numbers: list[int], count: int, seed: int) -> None:
    group = np.array([*range(4), *numbers])
    left_out = []
    for kept, out in folds(group, count, seed):
        assert not set(group[kept]) & set(group[out])
        assert len(kept) + len(out) == len(group)
        left_out += out.tolist()
    assert sorted(left_out) == list(range(len(group)))


def test_more_folds_than_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="2 to the 3 groups"):
        list(folds(np.array([1, 1, 2, 3]), 4))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 70))
def test_a_sample_is_even_over_groups(numbers: list[int], rows: int) -> None:
    group = np.array(numbers)
    chosen = sample(group, rows)
    assert len(chosen) == min(rows, len(group)) == len(np.unique(chosen))
    taken, whole = (np.bincount(part, minlength=7) for part in (group[chosen], group))
    unfinished = taken < whole
    if unfinished.any():
        assert taken.max() - taken[unfinished].min() <= 1


def test_groups_are_numbered_by_all_columns_together() -> None:
    n, k = np.array([8, 8, 4, 8, 4]), np.array(["a", "b", "a", "a", "a"])
    assert group_numbers([n, k]).tolist() == [1, 2, 0, 1, 0]


def test_errors_come_by_time() -> None:
    measured_s = np.array([10e-6, 10e-6, 50e-6, 1.0])
    predicted_s = measured_s * np.array([1.1, 0.8, 1.5, 1.0])
    buckets = error_buckets(predicted_s, measured_s)
    assert list(buckets) == ["all", *BUCKETS_S]
    assert buckets["<30 us"].rows == 2
    assert buckets["<30 us"].mean == pytest.approx(0.15)
    assert buckets["<30 us"].bias == pytest.approx(-0.05)
    far = buckets["30-100 us"]
    assert (far.rows, far.mean, far.median, far.p90, far.bias) == (1, *[pytest.approx(0.5)] * 4)
    assert set(error_buckets(predicted_s[:1], measured_s[:1])) == {"all", "<30 us"}
