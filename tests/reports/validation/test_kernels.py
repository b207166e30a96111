"""Errors of kernels by variant, time and shape."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from moesim.hw_models.calibration.measured import NOT_TUNED, Measured, Source
from moesim.hw_models.calibration.tables import expert_table, product_table
from moesim.hw_models.collective_table import COLLECTIVES, CollectiveTable
from moesim.hw_models.gpu import GPU
from moesim.reports.style import SUBTLE
from moesim.reports.validation import kernel_figure
from moesim.reports.validation.kernel_figure import draw_kernels
from moesim.reports.validation.kernel_files import MeasuredSet
from moesim.reports.validation.kernel_prices import (
    link_roofline_s,
    load_gpu,
    priced,
    prices_of,
    roofline_s,
    shapes_of,
    without_residual,
)
from moesim.reports.validation.kernel_tables import as_csv, as_markdown
from moesim.reports.validation.kernels import (
    OTHER,
    PHYSICS,
    RESIDUAL,
    ROOFLINE,
    SEEN,
    TIMES_S,
    UNSEEN,
    Kernels,
    by_distribution,
    group_errors,
    group_rows,
)

SOURCE = Source("made for tests", "a GPU", "vllm", "1.0", "gemm bf16")
TIMES_US = np.array([10.0, 20.0, 40.0, 60.0, 200.0, 1000.0])


def kernels(factors: dict[str, float], unseen: dict[str, float] | None = None) -> Kernels:
    """Six products, predicted with the same factor each."""
    table = product_table(np.full(6, 8), np.full(6, 4096), np.full(6, 4096), "bf16")
    time_s = TIMES_US * 1e-6
    measured = Measured(table, time_s, np.arange(6), SOURCE, {})
    predicted = {name: time_s * factor for name, factor in factors.items()}
    left_out = {name: time_s * factor for name, factor in (unseen or {}).items()}
    return Kernels("gpu", "gemm", "vllm", "1.0", "bf16", measured, predicted, SEEN, 0.0, 0.07, left_out)


def test_balanced_loads_and_drawn_ones_are_told_apart() -> None:
    item = kernels({ROOFLINE: 0.5, PHYSICS: 1.0, RESIDUAL: 1.2}, {PHYSICS: 1.1, RESIDUAL: 1.3})
    labels = {"distribution": np.array(["balanced"] * 2 + ["power_law_1.2"] * 4)}
    apart = list(by_distribution([replace(item, measured=replace(item.measured, labels=labels)), item]))
    assert [(one.distribution, len(one.measured)) for one in apart] == [("balanced", 2), ("power law", 4), (None, 6)]
    rows = group_rows(apart)
    assert [row["distribution"] for row in rows] == ["balanced", "power law", None]
    assert rows[1]["mean_abs_error"] == pytest.approx(0.2)
    assert rows[1]["unseen_mean_abs_error"] == pytest.approx(0.3)
    assert "|vllm bf16|power law|4|median|10.0%|10.0%|30.0%|30.0%|" in as_markdown([apart[1]])


def test_rows_that_were_not_tuned_are_grey_and_do_not_count_in_the_headline(tmp_path: Path, monkeypatch) -> None:
    meant, odd = kernels(FACTORS), kernels(dict.fromkeys(FACTORS, 0.1))
    odd = replace(odd, measured=replace(odd.measured, labels={NOT_TUNED: np.ones(6, np.bool_)}))
    assert (meant.is_tuned, odd.is_tuned) == (True, False)
    save = Mock()
    monkeypatch.setattr(kernel_figure, "save", save)
    draw_kernels([meant, odd], tmp_path / "kernels.png")
    panel = save.call_args.args[0].axes[0]
    assert panel.texts[0].get_text() == "6 rows (without the grey ones)\nmean |error| 50.0%\nmedian 50.0%"
    assert len({tuple(series.get_facecolor()[0]) for series in panel.collections[-2:]}) == 2
    assert tuple(panel.collections[-1].get_facecolor()[0][:3]) == to_rgb(SUBTLE)


FACTORS = {ROOFLINE: 0.5, PHYSICS: 1.1, RESIDUAL: 0.98}


@pytest.fixture(scope="module")
def h100() -> GPU:
    return load_gpu("h100-sxm", "vllm")


def test_every_variant_has_errors_in_every_range_of_time() -> None:
    errors = list(group_errors([kernels(FACTORS)]))
    assert {(error.variant, error.time) for error in errors} == {(v, t) for v in FACTORS for t in TIMES_S}
    rows = {error.time: error.errors.rows for error in errors if error.variant == PHYSICS}
    assert rows == {"all": 6, "<30 us": 2, "30-100 us": 2, ">100 us": 2, ">50 us": 3}
    for error in errors:
        size = abs(FACTORS[error.variant] - 1)
        assert error.errors.mean == pytest.approx(size)
        assert error.errors.p90 == pytest.approx(size)
        assert error.errors.bias == pytest.approx(FACTORS[error.variant] - 1)


def test_a_row_per_group_has_what_a_simulation_uses_and_the_error_on_unseen_shapes() -> None:
    (stated,), (refit,) = (group_rows([kernels(FACTORS, unseen)]) for unseen in (None, {PHYSICS: 1.2, RESIDUAL: 1.05}))
    assert stated["mean_abs_error"] == pytest.approx(0.02)
    assert stated["bias"] == pytest.approx(-0.02)
    assert (stated["unseen_mean_abs_error"], stated["unseen_from"]) == (0.07, "stated")
    assert refit["unseen_mean_abs_error"] == pytest.approx(0.05)
    assert (refit["unseen_from"], refit["shapes"]) == ("refit", SEEN)
    names = {"gpu", "op", "framework", "model", "rows", "mean_abs_error", "median_abs_error", "p90_abs_error", "bias"}
    assert names <= set(stated)


def test_the_roofline_is_that_of_the_data_sheet(h100: GPU) -> None:
    peak = h100.config.formats["bf16"].peak.value
    large = product_table([8192], [8192], [8192], "bf16")
    assert roofline_s(h100.config, large)[0] == pytest.approx(2 * 8192**3 / peak)
    small = product_table([1], [4096], [4096], "bf16")
    assert roofline_s(h100.config, small)[0] == pytest.approx(
        2 * (4096**2 + 2 * 4096) / h100.config.dram_bandwidth.value
    )
    assert (roofline_s(h100.config, large) <= h100.price(large).time_s).all()
    # Without tensor cores for fp4, such weights are multiplied in bf16.
    weights = product_table([8192], [8192], [8192], "mxfp4")
    assert roofline_s(h100.config, weights)[0] == pytest.approx(2 * 8192**3 / peak)


def test_prices_are_those_of_the_device(h100: GPU) -> None:
    table = product_table([16, 64, 4096], [4096, 2048, 8192], [4096, 4096, 1024], "bf16")
    measured = Measured(table, np.ones(3), np.arange(3), SOURCE, {})
    found = priced("h100-sxm", MeasuredSet("gemm", "vllm", "bf16", measured, 3), prices_of("h100-sxm", "vllm"))
    np.testing.assert_array_equal(found.predicted_s[RESIDUAL], h100.price(table).time_s)
    np.testing.assert_array_equal(found.predicted_s[PHYSICS], without_residual(h100).price(table).time_s)
    assert (found.predicted_s[RESIDUAL] != found.predicted_s[PHYSICS]).any()
    assert found.extrapolated == 0
    assert found.stated is not None
    assert found.stated < h100.config.fits["gemm_bf16"].error


def test_stated_errors_are_of_the_fit_that_prices_a_row(h100: GPU) -> None:
    physics, fits = without_residual(h100), h100.config.fits
    assert physics.stated_errors(product_table([8], [64], [64], "bf16")) == fits["gemm_bf16"].error
    assert physics.stated_errors(product_table([8], [64], [64], "fp8")) == fits["gemm_fp8"].error
    assert np.isnan(physics.stated_errors(product_table([8], [64], [64], "int8")))
    tokens = np.array([[4, 4]])
    for up_matrices in (1, 2):  # the H100 has no kernels of their own for ungated experts
        rows = expert_table(tokens, [64], [64], "bf16", up_matrices)
        assert physics.stated_errors(rows) == fits["experts_bf16"].error
    ungated = without_residual(load_gpu("h200-sxm", "trtllm"))
    errors = [ungated.stated_errors(expert_table(tokens, [64], [64], "bf16", count))[0] for count in (1, 2)]
    assert errors == [ungated.config.fits[f"{name}experts_bf16"].error for name in ("ungated_", "")]


def test_rows_are_seen_where_a_fit_names_them(h100: GPU) -> None:
    fit = h100.config.fits["gemm_bf16"]
    publisher, rest = fit.data.split(", ", 1)
    framework, version = rest.split()[:2]
    device = rest.split(" on ")[1].split(",")[0]
    source = Source(publisher, device, framework, version, "gemm bf16")
    assert source.text == fit.data
    assert shapes_of(source, fit.rows, h100.config.fits) == SEEN
    assert shapes_of(source, fit.rows - 1, h100.config.fits) == OTHER
    assert shapes_of(SOURCE, fit.rows, h100.config.fits) == OTHER


def test_the_roofline_of_links_counts_bytes_sent() -> None:
    prices = prices_of("h100-sxm", "vllm")
    assert prices.interconnect is not None
    link, nbytes = prices.interconnect.intra_node, 8e6
    rate = link.bandwidth.value
    expected = {"all_reduce": 2 * 7 / 8 * nbytes / rate, "all_gather": 7 / 8 * nbytes / rate}
    for kind, seconds in expected.items():
        table = CollectiveTable.of(COLLECTIVES.index(kind), 8, payload_bytes=nbytes)
        assert link_roofline_s(link, table)[0] == pytest.approx(seconds)
        measured = Measured(table, np.ones(1), np.zeros(1, np.int64), SOURCE, {})
        found = priced("h100-sxm", MeasuredSet(kind, "nccl", "nccl", measured, 1), prices)
        assert found.predicted_s[PHYSICS] == prices.interconnect.price(table).time_s
        assert found.stated == link.fits["nccl"].error
    exchange = CollectiveTable.of(COLLECTIVES.index("all_to_all"), 8, sent_bytes=nbytes, received_bytes=nbytes)
    assert link_roofline_s(link, exchange)[0] == pytest.approx(nbytes / rate)


def test_rows_that_no_refit_predicted_have_no_unseen_error() -> None:
    item = kernels(FACTORS, {RESIDUAL: 1.05})
    item.unseen_s[RESIDUAL][:3] = np.nan
    errors = [e for e in group_errors([item]) if e.shapes == UNSEEN]
    assert {e.time: e.errors.rows for e in errors} == {"all": 3, "30-100 us": 1, ">100 us": 2, ">50 us": 3}


def test_tables_hold_every_error(tmp_path: Path) -> None:
    held = [kernels(FACTORS, {PHYSICS: 1.2, RESIDUAL: 1.05})]
    errors = list(group_errors(held))
    rows = list(csv.DictReader(io.StringIO(as_csv(errors))))
    assert len(rows) == len(errors) == 25
    assert {row["shapes"] for row in rows} == {SEEN, UNSEEN}
    text = as_markdown(held)
    assert "|vllm bf16|6|50.0%|10.0%|2.0%|5.0%*|" in text
    assert "|vllm bf16|5.0%|5.0%|+5.0%|5.0%|5.0%|5.0%|5.0%|" in text
    figure = draw_kernels(held, tmp_path / "kernels.png")
    assert figure.read_bytes()[:4] == b"\x89PNG"
