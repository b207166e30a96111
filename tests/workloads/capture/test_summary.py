import numpy as np
import pyarrow.parquet as pq
import pytest

from moesim.workloads.capture.run import capture
from moesim.workloads.capture.settings import CaptureSettings
from moesim.workloads.capture.summary import hit_rates, summarize_capture
from moesim.workloads.routing_trace import RoutingTrace


def trace_of(request, expert, experts):
    """A trace of one layer; positions count up in every request."""
    request = np.array(request, np.int32)
    position = np.concatenate([np.arange(count) for count in np.bincount(request)])
    names = tuple(map(str, range(request.max() + 1)))
    return RoutingTrace(
        model="m",
        experts=experts,
        source="made",
        names=names,
        groups=names,
        first_decode_position=np.zeros(len(names), np.int64),
        request=request,
        position=position.astype(np.int32),
        phase=np.zeros(len(request), np.uint8),
        expert=np.array(expert, np.uint8)[:, np.newaxis],
    )


def test_experts_that_follow_the_token():
    token = np.array([7, 8, 9, 9, 7, 8])
    trace = trace_of([0, 0, 0, 0, 1, 1], [[0, 1], [2, 3], [2, 3], [2, 3], [0, 1], [3, 2]], experts=8)
    by_token, by_popularity = hit_rates(trace, token)
    assert by_token.tolist() == [1.0]
    assert by_popularity.tolist() == [0.5]  # experts 2 and 3 are the most popular of request 0


def test_ids_that_are_new_are_left_out():
    trace = trace_of([0, 1, 1], [[0], [0], [1]], experts=2)
    by_token, _ = hit_rates(trace, np.array([5, 5, 6]))
    assert by_token.tolist() == [1.0]


def test_one_request_cannot_be_foretold():
    trace = trace_of([0, 0], [[0], [1]], experts=2)
    assert np.isnan(hit_rates(trace, np.array([1, 1]))).all()


def test_routing_at_random_is_hit_by_chance():
    rng = np.random.default_rng(0)
    expert = rng.permuted(np.tile(np.arange(16), (20_000, 1)), axis=1)[:, :4]
    trace = trace_of(np.repeat([0, 1], 10_000), expert, experts=16)
    rates = hit_rates(trace, rng.integers(0, 50, 20_000))
    assert np.array(rates) == pytest.approx(0.25, abs=0.01)


def test_summary_of_a_capture(save_model, text, tmp_path):
    out, attention = tmp_path / "trace.parquet", tmp_path / "attention.parquet"
    settings = CaptureSettings(prompt_tokens=32, tokenizer="bytes", attention_every=1)
    capture(str(save_model("gpt_oss")), [text], out, settings, attention=attention)
    summary = summarize_capture(out, attention)
    gate = pq.read_table(out)["gate"].combine_chunks().flatten().to_numpy().reshape(-1, 3, 2).astype(float)
    assert summary["top_gate_share"] == pytest.approx(gate[:, :, 0].mean(axis=0), abs=1e-3)  # weights sum to 1
    assert all(1 <= ratio <= 8 for ratio in summary["max_over_mean_load"])
    assert all(0 < value <= 1 for key in ("load_entropy", "keys_95_share", "local_mass") for value in summary[key])
