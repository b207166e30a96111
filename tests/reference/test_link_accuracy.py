"""Collectives against measurements: the errors that system files state, and those on sizes that a fit never saw."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.hw_models.calibration.link_readers import Links, read_custom_all_reduce
from moesim.hw_models.calibration.links import SETTINGS, fit_link, fitted_names, measured_links, unseen_times
from moesim.hw_models.collective_table import (
    COLLECTIVES,
    COMBINED_ELEMENT_BYTES,
    DISPATCHED_ELEMENT_BYTES,
    CollectiveTable,
)
from moesim.hw_models.interconnect import Interconnect
from moesim.hw_models.link_config import LinkConfig
from moesim.hw_models.system import load_system
from tests.hw_models.calibration.link_groups import regrouped

pytestmark = pytest.mark.reference

FOLDERS = {
    "a100-sxm": "a100_sxm",
    "h100-sxm": "h100_sxm",
    "h200-sxm": "h200_sxm",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
IN_SAMPLE_SLACK = 0.005
"""Stated errors are of sizes left out of the fit; those of the shipped values on all rows are not above them."""
QUICK = replace(SETTINGS, rows=800)

# Links, calibration, most that may be stated, most with whole group sizes left out.
FITS = [
    ("a100-sxm", "nccl", 0.065, 0.08),
    ("a100-sxm", "nccl_all_to_all", 0.08, 0.095),
    ("h100-sxm", "nccl", 0.055, 0.07),
    ("h100-sxm", "nccl_all_to_all", 0.085, 0.085),
    ("h100-sxm", "custom_all_reduce", 0.05, 0.07),
    ("h200-sxm", "nccl", 0.06, 0.07),
    ("h200-sxm", "nccl_all_to_all", 0.08, 0.09),
    ("h200-sxm", "custom_all_reduce", 0.035, 0.045),
    ("rtx-pro-6000", "nccl", 0.08, 0.13),
    ("rtx-pro-6000", "nccl_all_to_all", 0.06, 0.22),  # sockets are shared by groups of eight only: nothing else tells
]
DEEPEP = [("deepep", 0.06, 0.06), ("deepep_low_latency", 0.045, 0.05)]


def link_of(system: str) -> LinkConfig:
    return load_system(f"{system}-8").interconnect.intra_node


def rows_of(data: Path, system: str, fit: str) -> Links:
    [(_, rows)] = measured_links(data / "kernels/aiconfigurator" / FOLDERS[system], link_of(system), fit)
    return rows


def errors(link: LinkConfig, rows: Links) -> np.ndarray:
    cost = Interconnect(link, link).price(rows.table)
    assert not cost.extrapolated.any()
    return np.abs(cost.time_s / rows.time_s - 1)


def unseen_error(link: LinkConfig, fit: str, rows: Links, part: str = "") -> float:
    """Mean error on the groups left out, of fits that start from the same round values for every GPU."""
    times_s = unseen_times(link, fitted_names(link, fit, part), rows, QUICK)
    return float(np.abs(times_s / rows.time_s - 1).mean())


@pytest.mark.parametrize(("system", "fit", "limit", "_"), FITS)
def test_stated_errors_hold(reference_data: Path, system: str, fit: str, limit: float, _: float) -> None:
    link, rows = link_of(system), rows_of(reference_data, system, fit)
    assert link.fits[fit].rows == len(rows)
    assert link.fits[fit].error <= limit
    assert errors(link, rows).mean() <= link.fits[fit].error + IN_SAMPLE_SLACK


@pytest.mark.parametrize(("system", "fit", "limit", "group_limit"), FITS)
def test_sizes_and_groups_that_a_fit_never_saw(
    reference_data: Path, system: str, fit: str, limit: float, group_limit: float
) -> None:
    link, rows = link_of(system), rows_of(reference_data, system, fit)
    assert unseen_error(link, fit, rows) <= limit
    groups = regrouped(rows, "ranks")
    assert unseen_error(link, fit, groups) <= group_limit


@pytest.mark.parametrize(("fit", "limit", "shape_limit"), DEEPEP)
@pytest.mark.parametrize("way", ["dispatch", "combine"])
def test_deepep(reference_data: Path, fit: str, limit: float, shape_limit: float, way: str) -> None:
    link, low_latency = link_of("h200-sxm"), fit == "deepep_low_latency"
    both = measured_links(reference_data / "kernels/aiconfigurator/h200_sxm", link, fit)
    part, rows = both[way == "combine"]
    assert link.fits[fit].rows == 2 * len(rows)
    assert link.fits[fit].error <= limit
    assert errors(link, rows).mean() <= limit
    assert unseen_error(link, fit, rows, part) <= limit
    assert unseen_error(link, fit, regrouped(rows, "shape"), part) <= shape_limit
    if not low_latency:
        assert unseen_error(link, fit, regrouped(rows, "multiprocessors"), part) <= limit


@pytest.mark.parametrize("system", ["h100-sxm", "h200-sxm"])
def test_larger_tensors_than_custom_kernels_take_are_summed_by_nccl(reference_data: Path, system: str) -> None:
    folder, link = reference_data / "kernels/aiconfigurator" / FOLDERS[system], link_of(system)
    rows = read_custom_all_reduce(folder)
    assert np.abs(Interconnect(link, link).price(rows.table).time_s / rows.time_s - 1).mean() < 0.055


def test_deepep_between_nodes_is_near_the_published_figures(reference_data: Path) -> None:
    table = pd.read_csv(reference_data / "kernels/deepseek/deepep_readme_2025.csv")
    table = table[(table["mode"] == "low-latency") & (table.ep > 8)]
    ranks, tokens, top_k, hidden = table.ep.to_numpy(), 128.0, 8.0, 7168.0
    prices = load_system("h200-sxm-256").interconnect
    for way, element, column in (
        ("dispatch", DISPATCHED_ELEMENT_BYTES, "dispatch"),
        ("combine", COMBINED_ELEMENT_BYTES, "combine"),
    ):
        moved = tokens * top_k * hidden * element
        near, far = moved * 7 / ranks, moved * (ranks - 8) / ranks
        rows = CollectiveTable.of(
            COLLECTIVES.index(f"deepep_low_latency_{way}"),
            ranks,
            ranks // 8,
            sent_bytes=near,
            received_bytes=near,
            sent_internode_bytes=far,
            received_internode_bytes=far,
            tokens=tokens,
            copies=tokens * top_k,
            copy_bytes=hidden * element,
            fan_out=top_k,
            experts=256.0,
        )
        cost = prices.price(rows)
        assert cost.extrapolated.all()
        measured_s = table[f"{column}_latency_us"].to_numpy() * 1e-6
        assert np.abs(cost.time_s / measured_s - 1).mean() < 0.06


def test_links_that_ship_can_be_fitted_anew(reference_data: Path) -> None:
    link = link_of("a100-sxm")
    folder, again = reference_data / "kernels/aiconfigurator/a100_sxm", link
    for name in link.fits:
        again = fit_link(again, name, measured_links(folder, again, name)).link
    for name, fit in link.fits.items():
        assert again.fits[name].rows == fit.rows
        assert again.fits[name].error == pytest.approx(fit.error, abs=0.005)
        assert again.fits[name].valid == fit.valid
