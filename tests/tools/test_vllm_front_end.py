"""The parts of the measurement of vLLM's front end that need no vLLM."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "vllm_front_end" / "measure.py"


@pytest.fixture(scope="module")
def measure():
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_requests_of_a_load_are_found_among_those_of_others(measure, tmp_path):
    lines = [
        {"request": "cmpl-n1p10_0-0-ab", "arrived_s": 10.002},
        {"request": "cmpl-n1p10_1-0-cd", "arrived_s": 20.004},
        {"request": "cmpl-n1p100_1-0-ef", "arrived_s": 99.0},
        {"first": ["cmpl-n1p100_1-0-ef", "cmpl-n1p10_1-0-cd"], "end_s": 20.05, "sequences": 7},
        {"first": ["cmpl-n1p10_0-0-ab"], "end_s": 10.05, "sequences": 3},
    ]
    log = tmp_path / "engine.log"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    client = {"start_times": [10.0, 20.0], "ttfts": [0.06, 0.053], "input_lens": [10, 11]}
    rows = measure.matched(client, log, "n1p10", 1)
    assert rows == [pytest.approx((11, 7, 4.0, 3.0))]  # ms to the engine and to the client


def test_the_report_finds_the_times_that_loads_were_made_of(measure, capsys):
    loads = [
        measure.Load(8.0, n, tokens, float(n), 6.0 + 0.002 * tokens + 0.05 * n, 2.0 + 0.0005 * tokens + 0.1 * n)
        for n, tokens in ((1, 1000), (16, 1000), (64, 1000), (1, 8000))
    ]
    measure.report(loads)
    printed = capsys.readouterr().out
    assert "request_host_s=6 ms scheduler.tokenise_s=2.5 us" in printed
    assert "stream_s=2 ms scheduler.stream_token_s=0.1 ms" in printed
    assert "in tokenise_s, but on the way to the client: 0.5 us" in printed
    assert "in no setting: 50 us" in printed
    missed_ms = 0.05 * np.sqrt(np.mean(np.square([1, 16, 64, 1])))
    assert f"with these settings: {missed_ms:.2g} ms" in printed
