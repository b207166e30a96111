"""`moesim trace synth`: what is written, what is said, and what is refused."""

import json

import numpy as np

from moesim.workloads.routing_files import read_routing_trace

SHORT = ("--num-requests", 3, "--prompt-tokens", 4, "--output-tokens", 5)


def synth(moesim, *arguments: object):
    return moesim("trace", "synth", *arguments)


def test_a_drawn_trace_replays(moesim, folder):
    outcome = synth(moesim, "--profile", "gpt-oss-20b", "--model", "tiny-moe.yaml", *SHORT, "-o", "drawn.parquet")
    assert outcome.code == 0, outcome.err
    assert "3 requests, 27 tokens" in outcome.out
    assert "assumed to hold for 2 MoE layers, top 2 of 8" in " ".join(outcome.out.split())
    trace = read_routing_trace(folder / "drawn.parquet")
    assert (trace.model, trace.layers, trace.experts, trace.top_k) == ("tiny-moe", 2, 8, 2)
    run = moesim("simulate", "tiny.yaml", "--requests", "trace", "--routing", "drawn.parquet", "--json")
    assert run.code == 0, run.err
    assert json.loads(run.out)["results"]["requests"] == 3


def test_json_and_seed(moesim, folder):
    found = []
    for seed in (1, 1, 2):
        outcome = synth(
            moesim, "--profile", "mixtral-8x7b-mmlu", *SHORT, "--seed", seed, "-o", f"{seed}.parquet", "--json"
        )
        assert outcome.code == 0, outcome.err
        results = json.loads(outcome.out)["results"]
        assert (results["tokens"], results["moe_layers"], results["experts"]) == (27, 32, 8)
        found.append(read_routing_trace(folder / f"{seed}.parquet").expert)
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_skew_and_domain(moesim):
    peaks = []
    for options in (("--skew", 0), (), ("--skew", 3), ("--domain", "astronomy")):
        outcome = synth(
            moesim, "--profile", "mixtral-8x7b-mmlu", "--num-requests", 40, *options, "-o", "x.parquet", "--json"
        )
        assert outcome.code == 0, outcome.err
        peaks.append(json.loads(outcome.out)["results"]["busiest_expert_over_mean"])
    assert peaks[0] < peaks[1] < peaks[2]
    assert peaks[0] < 1.05
    assert "domain astronomy" in json.loads(outcome.out)["results"]["source"]


def test_what_is_refused(moesim):
    for options, message in (
        (("--profile", "uniform"), "--model: must be given, because this routing has no dimensions of its own"),
        (("--profile", "gpt-oss-20b", "--skew", -1), "--skew: must be a finite number >= 0"),
        (("--profile", "gpt-oss-20b", "--domain", "poems"), "--domain: must be one of Polyglot"),
        (("--profile", "gpt-oss-20b", "--model", "llama-3.1-8b"), "--model: must have MoE layers"),
        (("--profile", "gpt-oss-20b", "--prompt-tokens", 0, "--output-tokens", 0), "at least one token"),
        (("--profile", "none"), "none"),
    ):
        outcome = synth(moesim, *options, "-o", "x.parquet")
        assert outcome.code == 2
        assert message in " ".join(outcome.err.split())
        assert "Traceback" not in outcome.err
    outcome = synth(moesim, "--profile", "gpt-oss-20b", "-o", "x.csv")
    assert outcome.code == 2
    assert "must end in .parquet" in outcome.err


def test_a_profile_is_fitted_and_drawn_from(moesim):
    drawn = synth(moesim, "--profile", "gpt-oss-20b", "--model", "tiny-moe.yaml", "-o", "t.parquet")
    assert drawn.code == 0, drawn.err
    outcome = moesim("trace", "fit", "--trace", "t.parquet", "--states", 4, "-o", "p.npz", "--json")
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)["results"]
    assert (results["model"], results["states"], results["moe_layers"], results["domains"]) == ("tiny-moe", 4, 2, [])
    assert "51200 tokens of" in results["source"]
    again = synth(moesim, "--profile", "p.npz", *SHORT, "-o", "again.parquet")
    assert "tiny-moe: 3 requests, 27 tokens" in again.out
    for arguments, message in (
        (("--trace", "p.npz", "-o", "q.npz"), "--trace: must be a recorded trace"),
        (("--trace", "t.parquet", "-o", "q.parquet"), "--out q.parquet: must end in .npz"),
    ):
        outcome = moesim("trace", "fit", *arguments)
        assert outcome.code == 2
        assert message in " ".join(outcome.err.split())
