"""Fits of links on collectives that the model itself priced: what went in must come out."""

import numpy as np
import pytest

from moesim.errors import DataError
from moesim.hw_models.calibration.fit import Settings
from moesim.hw_models.calibration.links import fit_link, fitted_names, link_price, unseen_times
from moesim.hw_models.calibration.measured import Measured, Source, group_numbers
from moesim.hw_models.collective_table import ALL_GATHER, ALL_REDUCE, CollectiveTable
from moesim.hw_models.parameters import parameters, scaled
from moesim.hw_models.system import load_system
from tests.hw_models.calibration.link_groups import regrouped

CHANGES = {"ring.ll.launch": 0.8, "ring.ll128.hop": 0.8, "ring.simple.sustained": 0.9, "in_switch.launch": 1.2}
QUICK = Settings(starts=3, folds=3, evaluations=60, softness=0.05)


@pytest.fixture(scope="module")
def measured():
    """All-reduces and all-gathers of a link with other parameters than the shipped one."""
    link = load_system("h200-sxm-8").interconnect.intra_node
    sizes, ranks, kinds = np.meshgrid(2.0 ** np.arange(9, 30), [2.0, 4.0, 8.0], [ALL_REDUCE, ALL_GATHER])
    table = CollectiveTable.of(kinds.ravel(), ranks.ravel(), payload_bytes=sizes.ravel())
    time_s = link_price(scaled(link, CHANGES))({}, table)
    source = Source("tests", "a GPU", "NCCL", "1.0", "collectives")
    return link, Measured(table, time_s, group_numbers([sizes.ravel()]), source, {"ranks": ranks.ravel()})


def test_a_fit_finds_the_parameters_that_made_the_times(measured):
    link, rows = measured
    fitted = fit_link(link, "nccl", [("", rows)], QUICK)
    assert fitted.unseen[0]["all"].mean < 0.03
    before, after = dict(parameters(link)), dict(parameters(fitted.link))
    for name, factor in CHANGES.items():
        assert after[name].value == pytest.approx(before[name].value * factor, rel=0.05)
    assert after["bandwidth"] == before["bandwidth"]


def test_a_fit_states_its_data_error_and_range(measured):
    link, rows = measured
    stated = fit_link(link, "nccl", [("", rows)], QUICK).link.fits["nccl"]
    assert stated.rows == len(rows)
    assert stated.valid == {"ranks": (2.0, 8.0), "bytes": (512.0, 2.0**29)}
    assert "NCCL 1.0 on a GPU" in stated.data


def test_only_parameters_of_the_calibration_are_touched(measured):
    link, rows = measured
    names = fitted_names(link, "nccl")
    assert {name.split(".")[0] for name in names} == {"ring", "in_switch"}
    assert fitted_names(link, "deepep", "deepep.combine")
    assert all(name.startswith("deepep.combine") for name in fitted_names(link, "deepep", "deepep.combine"))
    with pytest.raises(KeyError):
        fit_link(link, "nccl", [("exchange", rows)])


def test_rows_of_one_size_judge_no_fit(measured):
    link, rows = measured
    one = rows.take(np.flatnonzero(rows.table.payload_bytes == 512))
    with pytest.raises(DataError, match=r"NCCL 1.0 on a GPU, collectives: must be of at least two shapes.*, got 1"):
        fit_link(link, "nccl", [("", one)], QUICK)


def test_a_parameter_that_only_the_rows_left_out_tell_is_not_known(measured):
    link, rows = measured
    groups = regrouped(rows, "ranks")
    names = fitted_names(link, "nccl")
    times_s = unseen_times(link, names, groups, QUICK)
    eight = (rows.table.ranks == 8) & (rows.table.kind == ALL_REDUCE) & (rows.table.payload_bytes > 1e8)
    assert np.abs(times_s[eight] / rows.time_s[eight] - 1).mean() > 0.05
