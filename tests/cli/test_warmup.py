"""`--warmup-requests` of `moesim simulate`."""

import json


def test_warmup_is_left_out(moesim):
    outcome = moesim("simulate", "tiny.yaml", "--warmup-requests", 1, "--json")
    assert outcome.code == 0
    summary = json.loads(outcome.out)["results"]
    assert (summary["requests"], summary["warmup_requests"]) == (3, 1)
    assert "3 after 1 of warm-up in" in moesim("simulate", "tiny.yaml", "--warmup-requests", 1).out


def test_nothing_left_to_measure(moesim):
    outcome = moesim("simulate", "tiny.yaml", "--warmup-requests", 4)
    assert outcome.code == 2
    assert "--warmup-requests: must be less than the 4 requests, got 4" in outcome.err
