"""Replays of measured servers: errors stay within what was reached when the bounds were set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.reports.validation.serving import compare
from moesim.reports.validation.serving_fit import Measured, calibrate
from moesim.reports.validation.serving_host import HOST_CONSTANTS
from moesim.reports.validation.serving_recorded import find_runs, read_run
from moesim.reports.validation.serving_replay import replay
from moesim.reports.validation.serving_silicon import AGGREGATED_MOE, Replay, read_silicon
from moesim.simulator.scenario import load_scenario

pytestmark = pytest.mark.reference

# Means of absolute errors over mean, p50, p90, p95 and p99, fractions.
# Reached: 0.013, 0.016, 0.004 and 0.020, 0.002, 0.002.
RUNS = {
    "Llama-3.1-8B": {"ttft": 0.03, "tpot": 0.02, "e2e": 0.01},  # three host times are fitted on it
    "Qwen3-30B-A3B-Instruct-2507": {"ttft": 0.03, "tpot": 0.01, "e2e": 0.01},  # nothing is fitted on it
}


@pytest.mark.parametrize("model", RUNS)
def test_recorded_runs(reference_data: Path, model: str) -> None:
    folder = next(run for run in find_runs(reference_data / "serving/llmservingsim") if run.parent.name == model)
    deployment = read_run(folder)
    compared = compare([deployment], [replay(deployment)])
    for op, bound in RUNS[model].items():
        errors = [abs(one.error) for one in compared if one.op == op]
        assert len(errors) == 5
        assert np.mean(errors) <= bound


def test_without_host_times_recorded_runs_are_too_fast(reference_data: Path) -> None:
    folder = next(run for run in find_runs(reference_data / "serving/llmservingsim") if "Qwen3" in run.parent.name)
    deployment = read_run(folder, calibrated=False)
    assert not any(name in edit for name in HOST_CONSTANTS for edit in deployment.assignments)
    (tpot,) = (
        one for one in compare([deployment], [replay(deployment)]) if (one.op, one.statistic) == ("tpot", "mean")
    )
    assert -0.15 < tpot.error < 0


def test_gpt_oss_under_vllm(reference_data: Path) -> None:
    """Both times with nothing fitted, and on deployments that the constants have not seen."""
    path = reference_data / "serving/aiconfigurator/silicon_points.csv"
    rows = [
        row
        for row in read_silicon(path, Replay(waves=3, fast_forward=64))
        if row.section == AGGREGATED_MOE and row.framework == "vllm" and row.concurrency in {4, 16} and not row.broken
    ]
    rows = list({(row.group, row.concurrency): row for row in rows}.values())
    outcomes = [replay(row) for row in rows]
    for op, bound in {"ttft": 0.20, "tpot": 0.10}.items():
        errors = [abs(one.error) for one in compare(rows, outcomes) if one.op == op]
        assert len(errors) >= 20
        assert np.median(errors) <= bound
    settings = [load_scenario(row.scenario or {}, row.assignments)[0].scheduler for row in rows]
    seconds = np.array([[row.measured_s[op]["mean"] for op in ("ttft", "tpot")] for row in rows])
    profiles = [outcome.profile for outcome in outcomes if outcome.profile is not None]
    unseen = np.abs(calibrate(Measured(rows, profiles, settings, seconds)).unseen_s / seconds - 1)
    assert np.median(unseen[:, 0]) <= 0.12
    assert np.median(unseen[:, 1]) <= 0.06


def test_the_constants_that_are_printed_do_what_was_promised(reference_data: Path) -> None:
    path = reference_data / "serving/aiconfigurator/silicon_points.csv"
    rows = [row for row in read_silicon(path, Replay(waves=3)) if row.model == "gpt-oss-120b" and row.concurrency == 4]
    rows = [row for row in rows if row.framework == "trtllm"][:4]
    outcomes = [replay(row) for row in rows]
    settings = [load_scenario(row.scenario or {}, row.assignments)[0].scheduler for row in rows]
    seconds = np.array([[row.measured_s[op]["mean"] for op in ("ttft", "tpot")] for row in rows])
    measured = Measured(rows, [one.profile for one in outcomes if one.profile is not None], settings, seconds)
    calibration = calibrate(measured)
    promised = measured.predicted_s(calibration.values)
    again = replay(replace(rows[0], assignments=(*rows[0].assignments, *calibration.assignments))).predicted_s or {}
    assert [again[op]["mean"] for op in ("ttft", "tpot")] == pytest.approx(promised[0].tolist(), rel=0.02)
