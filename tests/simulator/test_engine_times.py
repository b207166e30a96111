"""Host times, requests that join late, and time scales: what calibration of a serving engine sets."""

import numpy as np
import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2

from moesim.simulator.simulate import simulate


def scheduler(**settings):
    return {"token_budget": 256, "max_num_seqs": 16, "host_overhead_s": 0.0} | settings


def listed(arrival_s, prompt=100, outputs=50):
    count = len(arrival_s)
    return {
        "kind": "listed",
        "arrival_s": arrival_s,
        "prompt_tokens": [prompt] * count,
        "output_tokens": [outputs] * count,
    }


def test_exposed_host_time_stands_before_every_step(tiny):
    plain = simulate(tiny(scheduler=scheduler(async_host=True), concurrency=4))
    held = simulate(tiny(scheduler=scheduler(async_host=True, exposed_host_s=0.01), concurrency=4))
    steps = plain.tables["steps"]["duration_s"], held.tables["steps"]["duration_s"]
    assert steps[1] - steps[0] == pytest.approx(0.01, rel=1e-9)


def test_host_time_per_sequence_counts_sequences(tiny):
    plain, held = (simulate(tiny(scheduler=scheduler(sequence_host_s=s), concurrency=4)).tables for s in (0, 0.001))
    more = held["steps"]["duration_s"] - plain["steps"]["duration_s"]
    assert more == pytest.approx(0.001 * plain["steps"]["sequences"], rel=1e-9)


def test_host_time_of_prompts_stands_before_steps_with_prompts_alone(tiny):
    settings = {"async_host": True, "exposed_host_s": 0.01}
    plain, held = (
        simulate(tiny(scheduler=scheduler(**settings, prompts_host_s=s), concurrency=4)).tables["steps"]
        for s in (0, 0.002)
    )
    more = held["duration_s"] - plain["duration_s"]
    assert more == pytest.approx(np.where(plain["prefill_tokens"] > 0, 0.002, 0.0), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("async_host", [False, True])
def test_only_steps_with_prompts_have_a_launch_floor(tiny, async_host):
    settings = scheduler(async_host=async_host, eager_operator_s=0.001)
    steps = simulate(tiny(scheduler=settings, concurrency=4)).tables["steps"]
    prompts = steps["prefill_tokens"] > 0
    # Six operators in each of four layers, three more in the two dense ones, six in the two sparse ones, four around.
    assert steps["duration_s"][prompts] == pytest.approx(0.046, rel=1e-9)
    assert steps["duration_s"][~prompts].max() < 0.01


def test_time_scales_apply_to_their_kind_alone(tiny):
    plain = simulate(tiny(4, parallelism={"tp": 4}, scheduler=scheduler(), concurrency=4)).summary
    scales = {"attention": 2.0, "experts": 3.0, "dense": 4.0, "communication": 5.0, "other": 6.0}
    settings = scheduler(time_scale=scales)
    scaled = simulate(tiny(4, parallelism={"tp": 4}, scheduler=settings, concurrency=4)).summary
    kinds = {"attention": 2, "experts": 3, "qkv": 4, "ffn_down": 4, "all_reduce": 5, "rope": 6, "top_k": 6}
    for name, factor in kinds.items():
        assert scaled[f"time_{name}_s"] == pytest.approx(factor * plain[f"time_{name}_s"], rel=1e-9)


def test_the_scale_of_prompts_leaves_decodes_alone(tiny):
    plain, scaled = (
        simulate(tiny(scheduler=scheduler(time_scale={"prompts": s}), concurrency=4)).tables["steps"] for s in (1, 2)
    )
    factor = np.where(plain["prefill_tokens"] > 0, 2, 1)
    assert scaled["duration_s"] == pytest.approx(factor * plain["duration_s"], rel=1e-9)


def test_a_request_joins_an_asynchronous_engine_in_the_step_after_the_next(tiny):
    first_s = []
    for async_host in (False, True):
        settings = scheduler(async_host=async_host)
        alone = simulate(tiny(scheduler=settings, requests=listed([0.0]))).tables["steps"]
        begins = alone["start_s"][10] + 0.5 * alone["duration_s"][10]
        tables = simulate(tiny(scheduler=settings, requests=listed([0.0, float(begins)]))).tables
        prompts = np.flatnonzero(tables["steps"]["prefill_tokens"] > 0)
        first_s.append(prompts.tolist())
    assert first_s == [[0, 11], [0, 12]]


def test_an_idle_asynchronous_engine_starts_at_once(tiny):
    tables = simulate(tiny(scheduler=scheduler(async_host=True), requests=listed([0.0, 5.0]))).tables
    assert (tables["steps"]["start_s"] == 5.0).any()


@pytest.mark.parametrize("fast_forward", [1, 16])
def test_time_before_the_engine_sees_a_request_delays_it(tiny, fast_forward):
    settings = scheduler(request_host_s=0.25)
    requests = listed([0.0, 5.0])
    late = simulate(tiny(scheduler=settings, requests=requests, fast_forward=fast_forward)).tables["requests"]
    plain = simulate(tiny(scheduler=scheduler(), requests=requests, fast_forward=fast_forward)).tables["requests"]
    assert late["ttft_s"] - plain["ttft_s"] == pytest.approx(0.25, rel=1e-9)
    assert late["tpot_s"] == pytest.approx(plain["tpot_s"], rel=1e-6)


def test_every_request_is_served_with_late_ones_on_their_way(tiny):
    settings = scheduler(request_host_s=0.001, async_host=True)
    exact = simulate(tiny(scheduler=settings, concurrency=4))
    assert not np.isnan(exact.tables["requests"]["last_token_s"]).any()
    quick = simulate(tiny(scheduler=settings, concurrency=4, fast_forward=8))
    assert quick.summary["tpot_mean_s"] == pytest.approx(exact.summary["tpot_mean_s"], rel=0.02)


def test_prompts_become_tokens_one_after_another(tiny):
    requests = listed([0.0, 0.0, 0.0, 9.0])
    plain, late = (
        simulate(tiny(scheduler=scheduler(tokenise_s=s), requests=requests)).tables["requests"] for s in (0, 0.01)
    )
    waited = late["ttft_s"] - plain["ttft_s"]
    assert waited[[0, 3]] == pytest.approx(100 * 0.01, rel=0.01)  # 100 tokens each; the last finds nobody before it
    assert waited[1:3] == pytest.approx([2.0, 3.0], rel=0.01)


@pytest.mark.parametrize("fast_forward", [1, 16])
def test_clients_have_tokens_a_little_after_the_step_that_gives_them(tiny, fast_forward):
    requests = listed([0.0, 0.0, 5.0])
    plain, late = (
        simulate(tiny(scheduler=settings, requests=requests, fast_forward=fast_forward))
        for settings in (scheduler(), scheduler(stream_s=0.01, stream_token_s=0.002))
    )
    waited = late.tables["requests"]["ttft_s"] - plain.tables["requests"]["ttft_s"]
    assert waited == pytest.approx([0.014, 0.014, 0.012], abs=1e-9)  # two tokens of one step, then one
    assert late.tables["requests"]["tpot_s"] == pytest.approx(plain.tables["requests"]["tpot_s"], rel=1e-6)
    assert late.tables["steps"]["start_s"] == pytest.approx(plain.tables["steps"]["start_s"])  # the engine goes on


def test_clients_have_tokens_in_the_order_of_steps(tiny):
    """A step of one token follows one of many, which take longer to pass on."""
    requests = listed([0.0] * 16, prompt=10, outputs=1) | {"output_tokens": [1] * 15 + [4]}
    tables = simulate(tiny(scheduler=scheduler(stream_token_s=0.01), requests=requests)).tables["requests"]
    assert tables["ttft_s"] == pytest.approx(0.16, rel=0.01)
    assert tables["tpot_s"][15] >= 0.0
    assert tables["largest_gap_s"][15] >= tables["tpot_s"][15]
    assert (tables["e2e_s"] >= tables["ttft_s"]).all()


def test_a_trace_shows_requests_as_clients_see_them(tiny):
    result = simulate(tiny(scheduler=scheduler(stream_s=0.5), requests=listed([0.0])), timeline=True)
    packets = perfetto_trace_pb2.Trace.FromString(result.timeline or b"").packet
    begin = perfetto_trace_pb2.TrackEvent.TYPE_SLICE_BEGIN
    begins_s = {p.track_event.name: p.timestamp * 1e-9 for p in packets if p.track_event.type == begin}
    assert begins_s["request 0 decode"] == pytest.approx(result.tables["requests"]["first_token_s"][0], abs=1e-8)


@pytest.mark.parametrize("fast_forward", [1, 8])
def test_a_client_asks_again_when_it_has_its_last_token(tiny, fast_forward):
    settings = scheduler(stream_s=0.5, async_host=True)
    served = simulate(tiny(scheduler=settings, concurrency=2, fast_forward=fast_forward)).tables["requests"]
    later = served["arrival_s"][2:]
    ends_s = np.sort(served["last_token_s"])[: len(later)]
    assert np.sort(later) == pytest.approx(ends_s)
    assert (served["queued_s"] > served["arrival_s"] - 1e-9).all()


def test_prompts_wait_until_all_attention_ranks_have_one(tiny):
    settings = scheduler(max_num_seqs=2, balance_steps=7)
    requests = {
        "kind": "listed",
        "arrival_s": [0.0] * 4 + [1e-6],
        "prompt_tokens": [10] * 5,
        "output_tokens": [20, 40, 40, 40, 5],
    }
    two_ranks = {"parallelism": {"tp": 1, "dp": 2, "ep": 2}}
    tables = simulate(tiny(2, **two_ranks, scheduler=settings, requests=requests)).tables
    free = simulate(tiny(2, **two_ranks, scheduler=settings | {"balance_steps": 0}, requests=requests)).tables
    starts = [np.flatnonzero(t["steps"]["prefill_tokens"] > 0) for t in (free, tables)]
    assert len(starts[0]) == len(starts[1]) == 2
    assert 0 < starts[1][1] - starts[0][1] < 7


@pytest.mark.parametrize("fast_forward", [1, 16])
def test_no_request_waits_for_ever_for_a_balance(tiny, fast_forward):
    settings = scheduler(max_num_seqs=2, balance_steps=5, async_host=True)
    scenario = tiny(
        2, parallelism={"tp": 1, "dp": 2, "ep": 2}, scheduler=settings, concurrency=4, fast_forward=fast_forward
    )
    assert not np.isnan(simulate(scenario).tables["requests"]["last_token_s"]).any()
