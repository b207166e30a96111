"""The recording that ships with moesim: its statistics are those of the trace, and its model learned something."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim import configs
from moesim.workloads.capture.summary import summarize_capture
from moesim.workloads.routing import load_routing
from moesim.workloads.routing_files import read_routing_trace
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_trace import DECODE, PREFILL

FOLDER = Path(configs.__file__).parent / "routing"
TRACE = FOLDER / "small-moe.parquet"
LAYERS, EXPERTS, TOP_K = 8, 32, 4


@pytest.fixture(scope="module")
def about() -> Any:
    return json.loads((FOLDER / "small-moe.json").read_text())


@pytest.fixture(scope="module")
def trace():
    return read_routing_trace(TRACE)


def test_statistics_are_those_of_the_trace(about):
    for name, values in summarize_capture(TRACE).items():
        assert about["statistics"][name] == pytest.approx(values, abs=1e-4), name


def test_trace_has_prefill_and_decode(about, trace):
    assert (trace.layers, trace.experts, trace.top_k) == (LAYERS, EXPERTS, TOP_K)
    assert (len(trace.names), trace.tokens) == (about["capture"]["requests"], about["capture"]["tokens"])
    assert np.bincount(trace.phase).tolist() == [trace.tokens // 2] * len((PREFILL, DECODE))


def test_the_model_has_learned(about):
    assert about["final_valid_loss"] < about["bigram_loss"] < about["unigram_loss"]


def test_experts_are_not_interchangeable(about):
    assert about["foreign_routing_loss"] > about["final_valid_loss"] + 1


def test_experts_follow_the_tokens(about):
    statistics = about["statistics"]
    by_token, by_popularity = np.array(statistics["token_hit_rate"]), np.array(statistics["popularity_hit_rate"])
    assert (by_token > 1.5 * by_popularity).all()
    assert (by_popularity > TOP_K / EXPERTS).all()


def test_its_profile_ships_under_its_name(trace):
    profile = load_routing("small-moe")
    assert isinstance(profile, RoutingProfile)
    loads = trace.loads()
    assert profile.popularity == pytest.approx(loads / loads.sum(axis=1, keepdims=True))
    assert (profile.layers, profile.experts, profile.top_k) == (LAYERS, EXPERTS, TOP_K)
