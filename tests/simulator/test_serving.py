"""What must hold of every run, whatever the model, the parallelism and the load."""

import numpy as np
import pytest

from moesim.errors import StalledError
from moesim.simulator.scenario import load_scenario, prepare
from moesim.simulator.serving import ServingLoop
from moesim.simulator.simulate import build_pipelines, run, simulate


def test_every_request_gets_its_tokens(parallel):
    result = simulate(parallel)
    requests, steps = result.tables["requests"], result.tables["steps"]
    assert steps["prefill_tokens"].sum() == requests["prompt_tokens"].sum()
    assert steps["decode_tokens"].sum() == (requests["output_tokens"] - 1).sum()
    assert (requests["first_token_s"] > requests["arrival_s"]).all()
    assert (requests["last_token_s"] >= requests["first_token_s"]).all()
    one = requests["output_tokens"] == 1
    assert (requests["last_token_s"][one] == requests["first_token_s"][one]).all()
    assert np.isnan(requests["tpot_s"][one]).all()


def test_every_token_reaches_top_k_experts_in_every_layer(parallel):
    result = simulate(parallel)
    experts = result.experts.groupby(["phase", "layer"])["tokens"].sum()
    requests = result.tables["requests"]
    assert set(experts["prefill"]) == {2 * requests["prompt_tokens"].sum()}
    assert set(experts["decode"]) == {2 * (requests["output_tokens"] - 1).sum()}
    assert set(experts["recompute"]) == {0}


def test_routing_does_not_depend_on_the_hardware_or_the_schedule(tiny):
    one = simulate(tiny(1))
    many = simulate(tiny(4, parallelism={"tp": 1, "dp": 4, "ep": 4}, scheduler={"token_budget": 64, "max_num_seqs": 4}))
    assert (one.tables["experts"]["tokens"] == many.tables["experts"]["tokens"]).all()


def test_point_to_point_traffic_is_conserved(parallel):
    setup = prepare(*load_scenario(parallel))
    [pool], seen = setup.pools, []
    price = pool.system.interconnect.price

    class Spy:
        def price(self, table):
            seen.append(table)
            return price(table)

    object.__setattr__(pool.system, "interconnect", Spy())
    loop = ServingLoop(setup.requests, build_pipelines(setup))
    loop.run()
    stages, pp = loop.pipelines[0].stages, pool.parallelism.pp
    exchanged = np.zeros(4)
    passed_on = 0.0
    for number, table in enumerate(seen):  # every step on its first stage, on its second, ...
        first_send = stages[number % pp].collectives.first_send
        columns = np.stack([table.sent_bytes, table.received_bytes])
        far = np.stack([table.sent_internode_bytes, table.received_internode_bytes])
        exchanged += np.concatenate([columns, far])[:, :first_send].sum(axis=1)
        passed_on += (columns + far)[0, first_send:].sum()
    assert exchanged[0] == exchanged[1]
    assert exchanged[2] == exchanged[3]
    assert (exchanged[0] > 0) == (pool.parallelism.dp > 1)
    assert (exchanged[2] > 0) == (pool.parallelism.stage_devices > pool.system.devices_per_node)
    if pool.parallelism.dp == 1:  # with several ranks, idle ones pass on a dummy token
        tokens = int((setup.requests.prompt_tokens + setup.requests.output_tokens - 1).sum())
        assert passed_on * pool.parallelism.tp == (pp - 1) * tokens * setup.model.hidden * 2


def test_a_lone_requests_latency_does_not_depend_on_when_it_arrives(tiny, tmp_path):
    latencies = []
    for arrival_s in (0.0, 123456.789):
        path = tmp_path / f"{arrival_s}.csv"
        path.write_text(f"arrival_s,prompt_tokens,output_tokens\n{arrival_s},500,200\n")
        latencies.append(simulate(tiny(requests=str(path))).tables["requests"])
    for name in ("ttft_s", "e2e_s", "tpot_s"):
        # 200 steps are added to a clock that tells 1.5e-11 s apart there.
        assert latencies[1][name][0] == pytest.approx(latencies[0][name][0], rel=1e-9, abs=200 * 1.5e-11)


def test_a_closed_loop_keeps_its_concurrency_until_requests_run_out(tiny):
    result = simulate(tiny(concurrency=8))
    requests = result.tables["requests"]
    arrival, last = requests["arrival_s"], requests["last_token_s"]
    assert (arrival[:8] == 0).all()
    for index in range(8, len(arrival)):
        assert arrival[index] in last
        in_flight = np.sum((arrival <= arrival[index]) & (last > arrival[index]))
        assert in_flight == 8


def test_requests_never_start_before_they_arrive_and_gaps_are_bounded_by_the_worst(tiny):
    requests = simulate(tiny()).tables["requests"]
    many = requests["output_tokens"] > 1
    assert (requests["largest_gap_s"][many] >= requests["tpot_s"][many] - 1e-12).all()


def test_preemption_recomputes_and_loses_no_token(tiny, tight):
    scenario = tiny(requests={
        "kind": "synthetic", "num_requests": 30, "concurrency": 12,
        "prompt_tokens": {"kind": "uniform", "min": 50, "max": 100},
        "output_tokens": {"kind": "uniform", "min": 50, "max": 150},
    })  # fmt: skip
    setup, loop = tight(scenario, 3)
    record = loop.run()
    assert record.preemptions.sum() > 0
    assert (loop.states.generated == setup.requests.output_tokens).all()
    tokens = loop.pipelines[0].expert_tokens().sum(axis=2)
    assert (tokens[0] == 2 * setup.requests.prompt_tokens.sum()).all()
    assert (tokens[1] == 2 * (setup.requests.output_tokens - 1).sum()).all()
    assert (tokens[2] > 0).all()
    assert all(rank.scheduler.free_bytes == rank.scheduler.capacity_bytes for rank in loop.ranks)


def test_memory_is_never_overdrawn(tiny, tight):
    scenario = tiny(requests={
        "kind": "synthetic", "num_requests": 30, "concurrency": 30,
        "prompt_tokens": {"kind": "constant", "tokens": 100}, "output_tokens": {"kind": "constant", "tokens": 30},
    })  # fmt: skip
    _, loop = tight(scenario, 2)
    record = loop.run()
    assert max(record.steps["kv_used_fraction"]) <= 1.0
    assert max(record.steps["kv_used_fraction"]) > 0.9


def test_limits_of_the_scheduler_hold(tiny):
    result = simulate(tiny(concurrency=40))
    steps = result.tables["steps"]
    assert (steps["prefill_tokens"] + steps["decode_tokens"]).max() <= 256
    assert steps["sequences"].max() == 16


def test_the_same_seed_gives_the_same_bytes_with_either_engine(parallel, tmp_path):
    for name, engine in (("a", "compiled"), ("b", "compiled"), ("c", "simpy")):
        simulate(parallel | {"engine": engine}).save(tmp_path / name)
    first = (tmp_path / "a/requests.parquet").read_bytes()
    assert first == (tmp_path / "b/requests.parquet").read_bytes()
    assert first == (tmp_path / "c/requests.parquet").read_bytes()


def test_another_seed_gives_other_requests(tiny):
    one, two = simulate(tiny(seed=1)), simulate(tiny(seed=2))
    assert (one.tables["requests"]["prompt_tokens"] != two.tables["requests"]["prompt_tokens"]).any()


def test_busy_time_never_exceeds_the_duration(parallel):
    result = simulate(parallel)
    devices = result.tables["devices"]
    assert (devices["compute_utilization"] <= 1.0).all()
    assert (devices["network_utilization"] <= 1.0).all()
    operators = result.tables["operators"]
    on_devices = operators["device"] >= 0
    busy = devices["compute_busy_s"].sum() + devices["network_busy_s"].sum()
    assert operators["time_s"][on_devices].sum() == pytest.approx(busy, rel=1e-9)


def test_progress_counts_up_to_all_requests(tiny):
    seen: list[int] = []
    run(prepare(*load_scenario(tiny())), on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 40


def test_times_by_operator_add_up_to_the_steps(tiny):
    for scenario in (tiny(), tiny(4, parallelism={"tp": 4})):
        result = simulate(scenario)
        total = sum(value for key, value in result.summary.items() if key.startswith("time_"))
        assert total == pytest.approx(result.tables["steps"]["duration_s"].sum(), rel=1e-9)


def test_a_run_that_stalls_never_ends_as_if_it_were_done(tiny, tight):
    _, loop = tight(tiny(), 0.5)  # `prepare` would have refused so little memory
    with pytest.raises(StalledError, match=r"of 40 requests wait for ever"):
        loop.run()


def test_a_last_chunk_of_one_token_is_still_prefill(tiny):
    requests = {"kind": "synthetic", "num_requests": 3, "rate_per_s": 1, "prompt_tokens": 257, "output_tokens": 5}
    steps = simulate(tiny(requests=requests)).tables["steps"]  # 256 tokens fit in a step
    assert steps["prefill_tokens"].sum() == 3 * 257
    assert steps["decode_tokens"].sum() == 3 * 4
