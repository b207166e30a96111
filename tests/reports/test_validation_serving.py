"""Readers of measured servers, weights, profiles, errors and calibration of serving."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import DataError
from moesim.reports.validation.serving import as_csv, as_markdown, compare, summarise
from moesim.reports.validation.serving_bench import read_benchmark
from moesim.reports.validation.serving_deployment import (
    STATISTICS,
    Deployment,
    measured_statistics,
    request_weights,
    weighted_statistics,
)
from moesim.reports.validation.serving_figure import axis_ticks, draw_predictions
from moesim.reports.validation.serving_fit import Measured, calibrate, fit
from moesim.reports.validation.serving_host import HOST_CONSTANTS, fit_host
from moesim.reports.validation.serving_recorded import find_runs, read_run
from moesim.reports.validation.serving_replay import Outcome, replay, replay_all
from moesim.reports.validation.serving_silicon import Replay, read_silicon
from moesim.simulator.scenario import load_scenario, prepare

HEADER = (
    "id,backend,backend_version,model_path,system,precision,mode,isl,osl,gemm_quant_mode,tp_size,attention_dp_size,"
    "moe_tp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms,silicon_concurrency"
)
GPT = "openai/gpt-oss-120b,h200_sxm,fp4,agg,1024,1024,nvfp4"


def given(value: Any) -> Any:
    """A value that may be None, but must not be here."""
    assert value is not None
    return value


def silicon(tmp_path, *rows: str):
    path = tmp_path / "silicon_points.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return path


def recorded(tmp_path, *requests: dict[str, float], **engine: object):
    folder = tmp_path / "RTXPRO6000" / "Llama-3.1-8B" / "vllm"
    folder.mkdir(parents=True)
    kwargs = {"max_num_batched_tokens": 2048, "max_num_seqs": 128} | engine
    (folder / "meta.json").write_text(json.dumps({"vllm_version": "0.19.0", "engine_kwargs": kwargs}))
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, requests)))
    return folder


def request(queued_s, first_s, last_s, inputs=10, outputs=3):
    names = ("queued_ts", "first_token_ts", "last_token_ts", "input_toks", "output_toks", "arrival_time")
    return dict(zip(names, (queued_s, first_s, last_s, inputs, outputs, 1e9), strict=True))


# --- silicon points --------------------------------------------------------------------------------------------------


def test_a_row_becomes_a_closed_loop_of_the_client(tmp_path):
    path = silicon(tmp_path, f"a,vllm,0.18.0,{GPT},2,1,2,1,63.8,4.8,4")
    (deployment,) = read_silicon(path, Replay(waves=5))
    setup = prepare(*load_scenario(given(deployment.scenario), deployment.assignments))
    assert deployment.measured_s == {"ttft": {"mean": 0.0638}, "tpot": {"mean": 0.0048}}
    assert (setup.requests.concurrency, len(setup.requests)) == (4, 20)
    assert setup.requests.prompt_tokens.min() >= 819
    assert setup.requests.prompt_tokens.max() <= 1024
    assert setup.pools[0].scheduler.max_num_seqs == 4
    assert setup.pools[0].system.device_count == 2


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ("8,1,8,1", (8, 1, 8)),  # the recipe spreads experts over all GPUs, which old rows do not state
        ("8,1,1,8", (8, 1, 8)),
        ("64,1,8,8", (8, 1, 8)),
        ("1,64,8,8", (1, 8, 8)),
        ("1,8,1,8", (1, 8, 8)),
        ("4,1,2,2", (2, 1, 2)),
        ("16,1,4,4", (4, 1, 4)),
        ("1,1,1,1", (1, 1, 1)),
    ],
)
def test_multiplied_sizes_are_undone(tmp_path, sizes, cut):
    (deployment,) = read_silicon(silicon(tmp_path, f"a,trtllm,1,{GPT},{sizes},63.8,4.8,4"))
    degrees = given(deployment.scenario)["parallelism"]
    assert (degrees["tp"], degrees["dp"], degrees["ep"]) == cut


def test_token_budgets_and_sequences_are_those_of_the_recipe(tmp_path):
    """One prompt beside the sequences of a rank with their drafts, in units of 64; later runs take 8192 at least."""
    header = f"{HEADER},measured"
    r1 = "deepseek-ai/DeepSeek-R1,h200_sxm,fp8,agg,1024,1024,fp8_block"
    lines = [
        header,
        f"a,trtllm,1,{r1},8,1,8,1,300,14,16,2025-11-02",
        f"b,trtllm,1,{r1},8,1,1,8,300,14,16,2026-01-14",
        f"c,trtllm,1,{r1},1,8,1,8,300,14,128,2026-01-14",
        f"d,trtllm,1,{r1},8,1,1,8,300,14,64,2026-01-28",
    ]
    path = tmp_path / "silicon_points.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = read_silicon(path)
    schedulers = [load_scenario(given(one.scenario), one.assignments)[0].scheduler for one in found]
    assert [one.token_budget for one in schedulers] == [1152, 1152, 1152, 8192]
    assert [one.max_num_seqs for one in schedulers] == [16, 16, 16, 64]
    assert [one.tokens_per_step > 1 for one in found] == [False, True, True, False]


def test_twins_and_loads_of_a_deployment_share_a_group(tmp_path):
    rows = [f"a,trtllm,1,{GPT},4,1,2,2,63.8,4.8,4", f"b,trtllm,2,{GPT},2,1,2,1,63.8,4.8,64"]
    first, second = read_silicon(silicon(tmp_path, *rows))
    assert first.group == second.group


def test_rows_that_contradict_themselves_are_named(tmp_path):
    row = GPT.replace("h200", "h100")
    broken, fine = read_silicon(silicon(tmp_path, f"a,vllm,1,{row},2,1,2,1,9,9,512", f"b,vllm,1,{row},2,1,2,1,9,9,64"))
    assert broken.broken is not None
    assert fine.broken is None


def test_an_unknown_model_or_load_is_unanswered(tmp_path):
    other = GPT.replace("gpt-oss-120b", "gpt-oss-999b")
    rows = [f"a,vllm,1,{other},2,1,2,1,9,9,4", f"b,vllm,1,{GPT},2,1,2,1,9,9,", f"c,max,1,{GPT},2,1,2,1,9,9,4"]
    outcomes = [replay(deployment) for deployment in read_silicon(silicon(tmp_path, *rows))]
    assert [outcome.refusal for outcome in outcomes] == [
        "no shipped model of this name",
        "the concurrency is not stated",
        "no settings of this serving engine are known",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"a,vllm,1,{GPT},2,1,2,1,fast,4.8,4", r"csv:2: silicon_ttft_ms: must be a number, got 'fast'"),
        (f"a,vllm,1,{GPT},2,1,2,1,0,4.8,4", r"csv:2: silicon_ttft_ms and silicon_tpot_ms must be > 0"),
        (f"a,vllm,1,{GPT},-2,1,2,1,9,4.8,4", r"csv:2: tp_size: must be finite and >= 0, got -2"),
        (f"a,vllm,1,{GPT},2,1,2,1,9", r"csv:2: silicon_tpot_ms: must be a number, got ''"),
    ],
)
def test_broken_rows_are_refused(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_silicon(silicon(tmp_path, row))


def test_a_missing_column_is_refused(tmp_path):
    path = tmp_path / "silicon_points.csv"
    path.write_text("id,backend\n")
    with pytest.raises(DataError, match=r"csv:1: must have the column, got 'model_path'"):
        read_silicon(path)


# --- recorded runs ---------------------------------------------------------------------------------------------------


def test_a_recorded_run_is_replayed_from_when_requests_were_queued(tmp_path):
    folder = recorded(tmp_path, request(5.0, 5.5, 6.5), request(4.0, 4.1, 4.3))
    assert find_runs(tmp_path) == [folder]
    deployment = read_run(folder)
    setup = prepare(*load_scenario(given(deployment.scenario), deployment.assignments))
    assert setup.requests.arrival_s.tolist() == [0.0, 1.0]
    assert deployment.measured_s["ttft"]["mean"] == pytest.approx(0.3)
    assert deployment.measured_s["tpot"]["mean"] == pytest.approx((0.5 + 0.1) / 2)
    assert set(given(replay(deployment).predicted_s)["e2e"]) == set(STATISTICS)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (request(5.0, 4.0, 6.0), r"jsonl:1: queued_ts <= first_token_ts"),
        (request(1.0, None, 2.0), r"jsonl:1: first_token_ts: must be a number"),
        (request(1.0, 1.5, float("inf")), r"jsonl:1: last_token_ts: must be a number, got inf"),
        (request(1.0, 1.5, 2.0, outputs=0), r"jsonl:1: output_toks: must be a whole number >= 1, got 0"),
        (request(1.0, 1.5, 2.0, outputs=2.5), r"jsonl:1: output_toks: must be a whole number >= 1, got 2.5"),
    ],
)
def test_broken_recorded_requests_are_refused(tmp_path, broken, message):
    with pytest.raises(DataError, match=message):
        read_run(recorded(tmp_path, broken))


@pytest.mark.parametrize("wrong", ["2", 0, None, True])
@pytest.mark.parametrize("name", ["max_num_seqs", "tensor_parallel_size", "data_parallel_size"])
def test_a_run_without_its_settings_is_refused(tmp_path, name, wrong):
    folder = recorded(tmp_path, request(1.0, 1.1, 1.2), **{name: wrong})
    with pytest.raises(DataError, match=rf"meta.json: engine_kwargs.{name}: must be a whole number >= 1"):
        read_run(folder)


# --- results of benchmarks -------------------------------------------------------------------------------------------

VLLM = {
    "backend": "vllm",
    "model_id": "m",
    "request_rate": "inf",
    "max_concurrency": 2,
    "completed": 3,
    "total_input_tokens": 300,
    "total_output_tokens": 9,
    "input_lens": [100, 90, 110, 100],
    "output_lens": [3, 3, 3, 0],
    "ttfts": [0.02, 0.03, 0.04, 0.0],
    "itls": [[0.01, 0.02], [0.01, 0.01], [0.01, 0.01], []],
    "errors": ["", "", "", "refused"],
    "mean_ttft_ms": 30.0,
    "median_ttft_ms": 30.0,
    "mean_tpot_ms": 11.7,
}


def test_a_detailed_vllm_result_is_replayed_request_by_request(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(VLLM))
    (deployment,) = read_benchmark(path, "llama-3.1-8b")
    setup = prepare(*load_scenario(given(deployment.scenario), deployment.assignments))
    assert setup.requests.prompt_tokens.tolist() == [100, 90, 110]
    assert setup.requests.concurrency == 2
    assert deployment.measured_s["e2e"]["mean"] == pytest.approx((0.05 + 0.05 + 0.06) / 3)
    assert deployment.measured_s["tpot"]["p50"] == pytest.approx(0.01)


def test_start_times_are_arrivals_of_an_open_loop(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(VLLM | {"max_concurrency": None, "start_times": [7.0, 9.0, 8.0, 7.5]}))
    (deployment,) = read_benchmark(path, "llama-3.1-8b")
    setup = prepare(*load_scenario(given(deployment.scenario), deployment.assignments))
    assert setup.requests.arrival_s.tolist() == [0.0, 1.0, 2.0]
    assert setup.requests.prompt_tokens.tolist() == [100, 110, 90]


def test_sglang_writes_a_run_per_line(tmp_path):
    run = {"backend": "sglang", "completed": 4, "request_rate": 2.0, "max_concurrency": None}
    run |= {"total_input_tokens": 400, "total_output_tokens": 40, "mean_ttft_ms": 20.0, "mean_e2e_latency_ms": 90.0}
    path = tmp_path / "result.jsonl"
    path.write_text(f"{json.dumps(run)}\n{json.dumps(run | {'completed': 8})}\n")
    first, second = read_benchmark(path, "llama-3.1-8b")
    assert first.measured_s == {"ttft": {"mean": 0.02}, "e2e": {"mean": 0.09}}
    setup = prepare(*load_scenario(given(second.scenario), second.assignments))
    assert len(setup.requests) == 8
    assert setup.requests.prompt_tokens.tolist() == [50] * 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have at least one run"),
        ('{"completed": 0}', r"completed: must be a number of requests > 0"),
        ('{"completed": 1}\n{"completed"', r"jsonl:2: must be JSON"),
        ('{"completed": 1}', r"mean_ttft_ms: must be a number of milliseconds > 0"),
        (json.dumps(VLLM | {"ttfts": [0.02]}), r"columns of requests must be equally long"),
        (json.dumps(VLLM | {"ttfts": [0.02, -1.0, 0.1, 0.1]}), r"request 1: ttfts: must be > 0, got -1"),
        (json.dumps(VLLM | {"ttfts": [0.02, math.inf, 0.1, 0.1]}), r"request 1: ttfts: must be > 0, got inf"),
        (json.dumps(VLLM | {"itls": [[math.nan], [0.1], [0.1], []]}), r"request 0: itls: must be a list of seconds"),
        (json.dumps(VLLM | {"input_lens": [1.5, 9, 9, 9]}), r"input_lens: must be a whole number >= 1, got 1.5"),
        (json.dumps(VLLM | {"start_times": [0, "1", 2, 3]}), r"request 1: start_times: must be seconds, got '1'"),
        (json.dumps(VLLM | {"max_concurrency": math.inf}), r"max_concurrency: must be a whole number >= 1, or null"),
        (json.dumps(VLLM | {"completed": math.inf}), r"completed: must be a number of requests > 0"),
    ],
)
def test_broken_results_are_refused(tmp_path, text, message):
    path = tmp_path / "result.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_benchmark(path, "llama-3.1-8b")


# --- statistics and errors -------------------------------------------------------------------------------------------


def test_statistics_of_equal_weights_are_those_of_numpy():
    values = np.random.default_rng(0).gamma(2.0, 1.0, 57)
    stated = weighted_statistics(values, np.full(57, 1 / 57))
    expected = [values.mean(), *np.percentile(values, [50, 90, 95, 99])]
    assert list(stated.values()) == pytest.approx(expected)


def deployment_of(**changes):
    values = {"id": "a", "group": ("g",), "framework": "vllm", "model": "m", "gpu": "gpu", "scenario": None}
    return Deployment(**(values | {"assignments": (), "measured_s": {"ttft": {"mean": 0.1}}} | changes))


def test_fewer_requests_keep_the_share_of_start_and_end():
    weights = request_weights(deployment_of(concurrency=4, prompts_per_slot=10), 16)
    assert weights.sum() == pytest.approx(1)
    assert weights[:4].sum() == weights[-4:].sum() == pytest.approx(0.1)
    assert request_weights(deployment_of(concurrency=4, prompts_per_slot=10), 40) == pytest.approx(np.full(40, 1 / 40))


def test_errors_count_what_is_unanswered_and_leave_out_what_is_broken():
    measured = [deployment_of(id=name, broken="so" if name == "d" else None) for name in "abcd"]
    outcomes = [Outcome({"ttft": {"mean": value}}) for value in (0.11, 0.08)] + [Outcome(None, "no model")] * 2
    (row,) = summarise(compare(measured, outcomes))
    assert (row.rows, row.unanswered) == (3, 1)
    assert row.median_abs_error == pytest.approx(0.2)
    assert row.mean_abs_error == pytest.approx((0.1 + 0.2 + 1.0) / 3)
    assert row.bias == pytest.approx(-0.05)
    assert summarise(compare(measured, outcomes), broken=True)[0].rows == 4
    assert as_csv([row]).count("\n") == 2
    assert "20.0 %" in as_markdown([row])


def test_rows_of_one_server_come_in_the_order_of_its_requests():
    measured = deployment_of(measured_s={op: {"mean": 0.1} for op in ("e2e", "ttft", "tpot")})
    rows = summarise(compare([measured, replace(measured, model="n")], [Outcome(measured.measured_s)] * 2))
    assert [row.op for row in rows] == ["ttft", "tpot", "e2e"] * 3
    assert [row.model for row in rows] == ["m"] * 3 + ["n"] * 3 + ["all"] * 3


def test_statistics_of_one_request_are_its_own():
    assert measured_statistics({"ttft": [0.1]})["ttft"] == dict.fromkeys(STATISTICS, 0.1)


@pytest.mark.parametrize("predicted_s", [{"ttft": {"mean": 0.11}}, None])
def test_a_figure_of_predictions_is_the_same_every_time(tmp_path, predicted_s):
    compared = compare([deployment_of()], [Outcome(predicted_s)])
    files = [draw_predictions(compared, tmp_path / name) for name in ("a.png", "b.png")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("low", [0.02, 3.1, 730.0, 98_765.0])
@pytest.mark.parametrize("ratio", [1.96, 3.0, 10.0, 150.0, 1e4])
def test_axes_have_a_few_labels_whatever_their_range(low, ratio):
    ticks = axis_ticks(low, low * ratio)
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))
    assert low <= ticks[0] <= ticks[-1] <= low * ratio


# --- profiles and calibration ----------------------------------------------------------------------------------------

EDITS = {
    "exposed_host_s": 0.002,
    "sequence_host_s": 1e-4,
    "prompts_host_s": 5e-4,
    "eager_operator_s": 8e-5,
    "time_scale.attention": 1.7,
    "time_scale.experts": 1.3,
    "time_scale.prompts": 1.5,
}


NOT_THERE = [f"scheduler.{name}=0" for name in ("request_host_s", "tokenise_s", "stream_s", "stream_token_s")]


@pytest.fixture
def small(tmp_path):
    path = silicon(tmp_path, *(f"{n},vllm,0.18.0,{GPT.replace('1024', '128')},2,1,2,1,60,5,{n}" for n in (2, 5)))
    return read_silicon(path, Replay(waves=4, fast_forward=8))


@pytest.mark.parametrize(("front_end", "error"), [(NOT_THERE, 1e-6), ([], 0.15)])
def test_a_profile_says_what_another_simulation_would(small, front_end, error):
    """Exactly, but for requests that are on their way while steps run: longer steps are fewer then."""
    for row in small:
        deployment = deployment_of(**(vars(row) | {"assignments": (*row.assignments, *front_end)}))
        profile = given(replay(deployment).profile)
        edits = [f"scheduler.{name}={value}" for name, value in EDITS.items()]
        changed = deployment_of(**(vars(deployment) | {"assignments": (*deployment.assignments, *edits)}))
        scheduler = load_scenario(given(changed.scenario), changed.assignments)[0].scheduler
        predicted_s = given(replay(changed).predicted_s)
        expected = [predicted_s[op]["mean"] for op in ("ttft", "tpot")]
        assert profile.mean_s(scheduler).tolist() == pytest.approx(expected, rel=error)


def test_calibration_finds_what_was_put_in(small):
    profiles = [given(replay(deployment).profile) for deployment in small]
    settings = [load_scenario(given(one.scenario), one.assignments)[0].scheduler for one in small]
    blank = Measured(small, profiles, settings, np.ones((2, 2)))
    truth = {"exposed_host_s": 0.001, "time_scale.experts": 1.2}
    measured = Measured(small, profiles, settings, blank.predicted_s(truth))
    found = measured.predicted_s(fit(measured))
    assert found == pytest.approx(measured.measured_s, rel=0.03)
    assert np.abs(blank.predicted_s({}) / measured.measured_s - 1).max() > 0.1


def test_a_profile_of_requests_with_one_token_has_no_tpot(small):
    scenario = given(small[0].scenario)
    one = replace(small[0], scenario=scenario | {"requests": scenario["requests"] | {"output_tokens": 1}})
    profile = given(replay(one).profile)
    means = profile.mean_s(load_scenario(given(one.scenario), one.assignments)[0].scheduler)
    assert means[0] > 0
    assert means[1] == 0


def test_a_single_deployment_is_its_own_test_without_any_constant(small):
    profiles = [given(replay(deployment).profile) for deployment in small]
    settings = [load_scenario(given(one.scenario), one.assignments)[0].scheduler for one in small]
    measured = Measured(small, profiles, settings, np.full((2, 2), 0.01))
    assert calibrate(measured).unseen_s == pytest.approx(measured.predicted_s({}))


def test_host_times_of_a_recorded_run_are_found_by_replaying_it(monkeypatch):
    truth = dict(zip(HOST_CONSTANTS, (1e-3, 4e-6, 5e-3), strict=True))
    sequences, prompts = np.linspace(1, 256, 40), np.linspace(1, 9, 40)
    asked = []

    def answered(deployment: Deployment) -> dict[str, Any]:
        values = dict(edit.removeprefix("scheduler.").split("=") for edit in deployment.assignments)
        step_s, sequence_s, prompt_s = (float(values[name]) for name in HOST_CONSTANTS)
        asked.append(deployment.assignments)
        tpot_s = 0.01 + step_s + sequence_s * sequences
        ttft_s = 0.05 + 4 * step_s + prompt_s * prompts
        return {"ttft_s": ttft_s, "tpot_s": tpot_s, "e2e_s": ttft_s + 100 * tpot_s}

    run = deployment_of(assignments=("seed=3",))
    real = answered(replace(run, assignments=tuple(f"scheduler.{name}={value}" for name, value in truth.items())))
    asked.clear()
    host = "moesim.reports.validation.serving_host"
    monkeypatch.setattr(f"{host}.read_run", lambda _folder, **_: run)
    monkeypatch.setattr(f"{host}.read_latencies", lambda _folder: np.stack(list(real.values())))
    monkeypatch.setattr(f"{host}.request_times", answered)
    found = fit_host(Path("run"))
    assert found == pytest.approx(truth, rel=0.1)
    assert all(assignments[0] == "seed=3" for assignments in asked)
    assert fit_host(Path("run")) == found


def test_outcomes_are_kept_and_found_again(small, tmp_path):
    runs = tmp_path / "runs"
    first = dict(replay_all(small, runs=runs))
    kept = {path: path.stat().st_mtime_ns for path in runs.iterdir()}
    second = dict(replay_all(small, runs=runs))
    assert len(kept) == 2
    assert {path: path.stat().st_mtime_ns for path in runs.iterdir()} == kept
    assert [second[n].predicted_s for n in (0, 1)] == [first[n].predicted_s for n in (0, 1)]
    assert given(second[0].profile).seconds == pytest.approx(given(first[0].profile).seconds, rel=1e-6)
    counted_otherwise = dict(replay_all([replace(small[0], tokens_per_step=2.0)], runs=runs))
    assert len(list(runs.iterdir())) == 3
    assert given(counted_otherwise[0].predicted_s)["tpot"]["mean"] == given(first[0].predicted_s)["tpot"]["mean"] / 2
