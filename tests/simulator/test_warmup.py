"""Requests of the warm-up are simulated, but latency and throughput are those of the others."""

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.simulator.scenario import load_scenario, prepare
from moesim.simulator.simulate import simulate


def test_the_warmup_changes_what_is_counted_and_not_what_happens(parallel):
    everything, rest = simulate(parallel), simulate(parallel | {"warmup_requests": 15})
    for table in ("requests", "steps"):
        for name, column in everything.tables[table].items():
            if name != "warmup":
                np.testing.assert_array_equal(rest.tables[table][name], column)
    assert not everything.tables["requests"]["warmup"].any()
    assert rest.tables["requests"]["warmup"].tolist() == [True] * 15 + [False] * 25
    assert everything.summary["warmup_requests"] == 0
    for name in ("steps", "energy_j", "compute_utilization", "kv_used_fraction_peak"):
        assert rest.summary[name] == everything.summary[name]


def test_summary_is_that_of_the_measured_requests(tiny):
    result = simulate(tiny(warmup_requests=15))
    summary, measured = result.summary, result.requests[~result.requests["warmup"]]
    duration_s = measured["last_token_s"].max() - measured["arrival_s"].min()
    assert summary["requests"] == 25
    assert summary["warmup_requests"] == 15
    assert summary["duration_s"] == duration_s
    assert summary["output_tokens_per_s"] == measured["output_tokens"].sum() / duration_s
    assert summary["total_tokens_per_s"] * duration_s == pytest.approx(
        (measured["output_tokens"] + measured["prompt_tokens"]).sum()
    )
    for name in ("ttft_s", "e2e_s", "tpot_s"):
        assert summary[name.replace("_s", "_mean_s")] == pytest.approx(measured[name].mean(), rel=1e-12)
    # All gaps of a request together last from its first token to its last.
    gaps = (measured["output_tokens"] - 1).sum()
    waited_s = (measured["last_token_s"] - measured["first_token_s"]).sum()
    assert summary["itl_mean_s"] == pytest.approx(waited_s / gaps, rel=1e-9)


@pytest.mark.parametrize("count", [40, 41])
def test_something_must_be_left(tiny, count):
    with pytest.raises(ConfigError, match=rf"warmup_requests: must be less than the 40 requests, got {count}"):
        prepare(*load_scenario(tiny(warmup_requests=count)))


def test_negative(tiny):
    with pytest.raises(ConfigError, match=r"warmup_requests: must be >= 0, got -1"):
        load_scenario(tiny(warmup_requests=-1))
