from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import DataError, InputError
from moesim.reports import latency
from moesim.reports.latency import Run, ecdf, load_runs
from moesim.reports.latency_figure import (
    FIGURES,
    draw_devices,
    draw_distribution,
    draw_layers,
    draw_steps,
    latency_figure,
)
from moesim.reports.style import OTHER, kind_of, new_figure, save
from moesim.simulator.simulate import simulate
from tests.reports.conftest import DEVICES, OPERATORS, STEPS, make_result


@pytest.fixture
def axes() -> Any:
    return new_figure(4, 3).subplots()


def test_stacks_sum_to_the_seconds_of_the_table(result):
    by_operator, by_kind = latency.step_time_by_operator(result), latency.step_time_by_kind(result)
    on_devices = sum(seconds for _, _, device, seconds in OPERATORS if device >= 0)
    on_host = sum(seconds for _, _, device, seconds in OPERATORS if device < 0)
    expected = (on_devices / DEVICES + on_host) / STEPS
    assert sum(by_operator.values()) == pytest.approx(expected, rel=1e-12)
    assert sum(by_kind.values()) == pytest.approx(expected, rel=1e-12)
    assert by_operator["experts"] == pytest.approx((2.0 + 4.0) / DEVICES / STEPS)
    assert by_operator["host"] == pytest.approx(0.4 / STEPS)


def test_unknown_operators_are_not_lost(result):
    assert latency.step_time_by_kind(result)[OTHER] == latency.step_time_by_operator(result)["something_new"]


def test_waiting_fills_the_mean_step_and_is_never_negative(result):
    busy = sum(latency.step_time_by_operator(result).values())
    assert busy + latency.waiting_s(result) == pytest.approx(latency.mean_step_s(result))
    result.tables["steps"]["duration_s"][:] = busy / 2
    assert latency.waiting_s(result) == 0


def test_layers_and_what_is_outside_sum_to_the_same(result):
    layers, seconds, outside_s = latency.step_time_by_layer(result)
    assert layers.tolist() == [0, 1]
    assert seconds.tolist() == pytest.approx([4.0 / DEVICES / STEPS, 8.2 / DEVICES / STEPS])
    assert outside_s == pytest.approx((0.4 / DEVICES + 0.4) / STEPS)
    assert seconds.sum() + outside_s == pytest.approx(sum(latency.step_time_by_operator(result).values()))


def test_shares_of_a_device_fill_the_run_or_more(result):
    shares = latency.device_shares(result)
    assert list(shares) == ["compute", "network", "idle"]
    assert shares["compute"].tolist() == [0.4, 0.8]
    assert shares["idle"].tolist() == pytest.approx([0.5, 0.0])
    assert sum(shares.values(), np.zeros(2)).tolist() == pytest.approx([1.0, 1.1])


def test_several_processors_are_told_apart():
    busy = {"xpu": np.array([1.0, 2.0]), "pim": np.array([3.0, 4.0])}
    shares = latency.device_shares(make_result(processors=busy))
    assert list(shares) == ["xpu", "pim", "network", "idle"]
    assert shares["idle"].tolist() == pytest.approx([0.5, 0.1])


def test_ecdf_by_hand():
    values, fractions = ecdf(np.array([3.0, np.nan, 1.0, 2.0, 2.0]))
    assert values.tolist() == [1.0, 2.0, 2.0, 3.0]
    assert fractions.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert [part.tolist() for part in ecdf(np.array([np.nan]))] == [[], []]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_ecdf_counts_what_is_not_greater(times):
    values, fractions = ecdf(np.array(times))
    assert fractions[-1] == 1
    last = dict(zip(values.tolist(), fractions.tolist(), strict=True))  # of equal values
    for value, fraction in last.items():
        assert fraction == pytest.approx(np.mean(np.array(times) <= value))


# --- figures -----------------------------------------------------------------------------------------------------


def test_bars_are_as_long_as_the_table_says(axes: Any, result):
    runs = [Run("a", result), Run("b", make_result())]
    draw_steps(axes, runs)
    ends_ms = {round(bar.get_y() + bar.get_height() / 2): bar.get_x() + bar.get_width() for bar in axes.patches}
    assert ends_ms == pytest.approx(dict.fromkeys((0, 1), 1e3 * latency.mean_step_s(result)))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[1:] == [kind.label for kind in latency.step_time_by_kind(result)] + ["waiting for others"]


def test_curves_of_requests_end_at_one(axes: Any, result):
    draw_distribution(axes, [Run("a", result)], "tpot_s")
    xs, ys = axes.lines[0].get_data()
    assert (xs[-1], ys[0], ys[-1]) == (0.3, 0, 1)


def test_requests_of_one_token_have_no_tpot(axes):
    draw_distribution(axes, [Run("a", make_result(tpot_s=[np.nan] * 4))], "tpot_s")
    assert not axes.lines
    assert "second token" in axes.texts[0].get_text()


def test_panels_return_their_axes_and_name_units(axes, result):
    runs = [Run("a", result)]
    for draw, label in ((draw_layers, "(ms)"), (draw_devices, "share of the run")):
        axes.clear()
        assert draw(axes, runs) is axes
        assert label in axes.get_ylabel()
    assert draw_steps(axes, runs) is draw_distribution(axes, runs, "ttft_s") is axes


@pytest.mark.parametrize("figures", [*([name] for name in FIGURES), list(FIGURES)])
def test_each_choice_of_panels_draws(figures, result, tmp_path):
    runs = [Run(f"run {index}", result) for index in range(5)]
    panels = latency_figure(runs, figures).findobj(lambda artist: artist.axes is artist)
    assert len(panels) == len(figures) + ("latency" in figures)
    assert save(latency_figure(runs[:2], figures), tmp_path / "figure.svg").stat().st_size > 0


def test_names_that_look_like_formulas_are_drawn_as_they_are(result, tmp_path):
    save(latency_figure([Run("$\\frac{1$", result), Run("_hidden\n\x00", result)]), tmp_path / "figure.svg")


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_runs_give_the_same_bytes(suffix, result, tmp_path):
    first, second = (save(latency_figure([Run("a", result)]), tmp_path / f"{name}{suffix}") for name in "ab")
    assert first.read_bytes() == second.read_bytes()


# --- loading -----------------------------------------------------------------------------------------------------


def test_runs_are_labelled_by_the_end_of_their_path(result, tmp_path):
    folders = [result.save(tmp_path / name) for name in ("x/a", "y/a", "y/b")]
    assert [run.label for run in load_runs(folders)] == ["x/a", "y/a", "y/b"]
    assert [run.label for run in load_runs(folders[1:])] == ["a", "b"]
    assert load_runs(folders)[0].description == "tiny on h100-sxm-2, tp=1 dp=2 ep=2"


def test_no_run_too_many_and_one_twice_are_refused(result, tmp_path):
    folder = result.save(tmp_path / "a")
    for folders, rule in (([], "1 to 12 runs"), ([folder] * 13, "1 to 12 runs"), ([folder, folder], "once")):
        with pytest.raises(InputError, match=rule):
            load_runs(folders)


def test_a_result_without_a_column_is_refused(tmp_path):
    broken = make_result()
    del broken.tables["operators"]["layer"]
    with pytest.raises(DataError, match=r"operators.parquet: must have the column, got 'layer'"):
        load_runs([broken.save(tmp_path / "a")])


def test_every_operator_of_a_simulation_has_a_kind(reference_run):
    for name in set(reference_run.tables["operators"]["operator"]):
        assert kind_of(name) is not OTHER


def test_warm_up_requests_are_not_part_of_the_distributions():
    result = simulate("quickstart", ["num_requests=8", "warmup_requests=3"])
    values, fractions = latency.request_ecdf(result, "ttft_s")
    assert len(values) == 5
    assert values.tolist() == sorted(result.tables["requests"]["ttft_s"][3:].tolist())
    assert fractions[-1] == 1
