"""Replicas, the router in front of them, and pools: every request is served once, wherever its tokens run."""

import json

import numpy as np
import pytest

from moesim.errors import CapacityError, ConfigError, InputError
from moesim.simulator.memory import KvCache
from moesim.simulator.scenario import load_scenario, prepare
from moesim.simulator.simulate import build_pipelines, run, serve, simulate

PREFILL, DECODE = {"role": "prefill"}, {"role": "decode"}
APART = {"prefill": PREFILL | {"system": "h100-sxm-2"}, "decode": DECODE}


def apart(tiny, **changes):
    """Two devices for prompts, one for decoding."""
    return tiny(1, pools=APART | changes.pop("pools", {}), **changes)


# --- replicas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["least_outstanding", "round_robin"])
def test_replicas_serve_every_request_once(tiny, policy):
    cut = {"dp": 2, "ep": 2}
    result = simulate(tiny(8, replicas=4, parallelism=cut, load_balancing=policy, concurrency=16))
    requests, steps = result.tables["requests"], result.tables["steps"]
    assert steps["prefill_tokens"].sum() == requests["prompt_tokens"].sum()
    assert steps["decode_tokens"].sum() == (requests["output_tokens"] - 1).sum()
    assert set(requests["replica"]) == set(steps["replica"]) == {0, 1, 2, 3}
    assert (result.tables["devices"]["replica"] == np.repeat(np.arange(4), 2)).all()
    assert np.bincount(requests["replica"]).max() <= 40 / 4 + (0 if policy == "round_robin" else 8)


def test_replicas_in_turn_are_so_many_runs_of_their_own(tiny, tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{t},{p},{o}" for t, p, o in zip(np.sort(rng.random(20)) * 0.1, rng.integers(1, 300, 20),
            rng.integers(1, 40, 20), strict=True)]  # fmt: skip
    dense = tiny()["model"] | {"name": "tiny", "layers": [{"pattern": tiny()["model"]["layers"][0]["pattern"][:1]}]}

    def latencies(name, chosen, **changes):
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *chosen]) + "\n")
        scenario = tiny(model=dense, requests=str(path), routing="uniform") | changes
        return simulate(scenario).tables["requests"]["e2e_s"]

    both = latencies("both", rows, system="h100-sxm-2", replicas=2, load_balancing="round_robin")
    assert both[0::2] == pytest.approx(latencies("even", rows[0::2]), rel=1e-9)
    assert both[1::2] == pytest.approx(latencies("odd", rows[1::2]), rel=1e-9)


def test_replicas_share_the_load_of_a_closed_loop(tiny):
    one, two = simulate(tiny(concurrency=16)), simulate(tiny(2, replicas=2, concurrency=16))
    assert two.summary["steps"] > one.summary["steps"]
    assert two.summary["duration_s"] < one.summary["duration_s"]
    assert two.summary["tpot_mean_s"] < one.summary["tpot_mean_s"]


def test_pools_of_other_hardware_serve_side_by_side(tiny):
    pools = {"fast": {}, "slow": {"system": "a100-sxm-2", "parallelism": {"tp": 2}}}
    result = simulate(tiny(1, pools=pools))
    requests = result.tables["requests"]
    assert set(requests["replica"]) == {0, 1}
    assert result.tables["devices"]["device"].tolist() == [0, 1, 2]
    assert result.tables["steps"]["decode_tokens"].sum() == (requests["output_tokens"] - 1).sum()
    assert result.summary["output_tokens_per_s_per_device"] * 3 == pytest.approx(result.summary["output_tokens_per_s"])


def test_settings_of_a_pool_can_be_edited_where_it_names_others(tiny):
    edits = ["pools.decode.scheduler=sglang", "pools.decode.scheduler.token_budget=99"]
    edits += ["pools.decode.system.device_count=2", "pools.prefill.system.device.idle_power.value=1 W"]
    setup = prepare(*load_scenario(apart(tiny, pools={"decode": DECODE | {"system": "h100-sxm-1"}}), edits))
    prefill, decode = setup.pools
    assert (decode.scheduler.token_budget, decode.scheduler.prefill) == (99, "alone")
    assert (decode.system.device_count, prefill.system.idle_w) == (2, 1.0)
    assert prefill.scheduler == setup.scenario.scheduler


def test_requests_reach_the_pool_that_runs_prompts_by_its_own_settings(tiny):
    slow = {"scheduler": {"request_host_s": 0.25, "tokenise_s": 1e-5}}
    pools = {"prefill": APART["prefill"] | slow, "decode": DECODE}
    there, back = (simulate(tiny(1, pools=dict(order))) for order in (pools.items(), reversed(pools.items())))
    waits_s = [run.tables["requests"]["queued_s"] - run.tables["requests"]["arrival_s"] for run in (there, back)]
    assert waits_s[0].min() >= 0.25
    assert waits_s[1] == pytest.approx(waits_s[0], abs=1e-12)


def test_all_tokens_pass_through_the_front_end_of_the_pool_that_runs_prompts(tiny):
    slow = {"scheduler": {"stream_s": 0.05}}
    pools = {"prefill": APART["prefill"] | slow, "decode": DECODE}
    plain, late = (simulate(tiny(1, pools=some)).tables["requests"] for some in (APART, pools))
    for name in ("ttft_s", "e2e_s"):
        assert np.median(late[name] - plain[name]) == pytest.approx(0.05, rel=0.01)  # some meet others
    assert late["tpot_s"] == pytest.approx(plain["tpot_s"], rel=0.2)


# --- the router --------------------------------------------------------------------------------------------------


def prompts_that_start_alike(folder):
    """A Mooncake file: four conversations, the turns of which come in an order that round robin scatters."""
    lines = []
    for turn in range(1, 7):
        for place, talk in enumerate((0, 1, 2, 3) if turn % 2 else (1, 0, 3, 2)):
            line = {"timestamp": 3000 * turn + 100 * place, "input_length": 1024 * turn, "output_length": 5}
            lines.append(json.dumps(line | {"hash_ids": [100 * talk + block for block in range(2 * turn)]}))
    path = folder / "talks.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_router_that_knows_caches_finds_more_in_them(tiny, tmp_path):
    scenario = tiny(2, model="olmoe-1b-7b", replicas=2, routing="uniform", scheduler={"prefix_caching": True})
    scenario["requests"] = prompts_that_start_alike(tmp_path)
    rates = {
        policy: simulate(scenario | {"load_balancing": policy}).summary["prefix_hit_rate"]
        for policy in ("cache_aware", "round_robin")
    }
    found = sum(1024 * (turn - 1) for turn in range(2, 7))
    assert rates["cache_aware"] == pytest.approx(found / sum(1024 * turn for turn in range(1, 7)), rel=1e-9)
    assert rates["cache_aware"] > rates["round_robin"]


def test_knowing_caches_needs_caches(tiny):
    with pytest.raises(ConfigError, match=r"load_balancing: cache_aware needs scheduler.prefix_caching"):
        prepare(*load_scenario(tiny(load_balancing="cache_aware")))


# --- prefill and decode apart ------------------------------------------------------------------------------------


def test_apart_or_together_the_same_tokens_run(tiny):
    together, split = simulate(tiny()), simulate(apart(tiny))
    assert (together.tables["experts"]["tokens"] == split.tables["experts"]["tokens"]).all()
    requests, steps = split.tables["requests"], split.tables["steps"]
    prefill = steps["replica"] == 0
    assert steps["prefill_tokens"][prefill].sum() == requests["prompt_tokens"].sum()
    assert steps["prefill_tokens"][~prefill].sum() == steps["decode_tokens"][prefill].sum() == 0
    assert steps["decode_tokens"].sum() == (requests["output_tokens"] - 1).sum()


def test_every_cache_moves_once_and_all_memory_is_given_back(tiny, loop_of):
    setup, loop = loop_of(apart(tiny))
    record = loop.run()
    prompt, output = setup.requests.prompt_tokens, setup.requests.output_tokens
    whole = KvCache.of(setup.model, 1, 16)
    assert record.kv_bytes == pytest.approx(np.where(output > 1, whole.bytes(prompt), 0.0), rel=1e-12)
    moved = output > 1
    assert (record.kv_arrival_s[moved] > record.first_token_s[moved]).all()
    assert (record.kv_arrival_s[moved] < record.last_token_s[moved]).all()
    assert np.isnan(record.kv_arrival_s[~moved]).all()
    for rank in loop.ranks:
        assert rank.scheduler.free_bytes == rank.scheduler.capacity_bytes
        assert not rank.scheduler.parked
        assert not rank.scheduler.pulling


def test_preemption_where_decoding_happens_loses_no_token(tiny, tight):
    requests = {
        "kind": "synthetic", "num_requests": 30, "concurrency": 12,
        "prompt_tokens": {"kind": "uniform", "min": 50, "max": 100},
        "output_tokens": {"kind": "uniform", "min": 50, "max": 150},
    }  # fmt: skip
    setup, loop = tight(apart(tiny, requests=requests), 3)
    record = loop.run()
    assert record.preemptions.sum() > 0
    assert (loop.states.generated == setup.requests.output_tokens).all()
    tokens = sum(pipeline.expert_tokens().sum(axis=2) for pipeline in loop.pipelines)
    assert (tokens[0] == 2 * setup.requests.prompt_tokens.sum()).all()
    assert (tokens[1] == 2 * (setup.requests.output_tokens - 1).sum()).all()
    assert (tokens[2] > 0).all()
    assert all(rank.scheduler.free_bytes == rank.scheduler.capacity_bytes for rank in loop.ranks)


def test_caches_leave_and_enter_one_after_the_other(tiny, loop_of):
    _, loop = loop_of(apart(tiny, requests={"kind": "synthetic", "num_requests": 8, "concurrency": 8,
                                                "prompt_tokens": 20, "output_tokens": 10}))  # fmt: skip
    record = loop.run()
    transfer = loop._transfers["prefill", "decode"]  # what a transfer takes
    arrivals = np.sort(record.kv_arrival_s)
    assert (record.first_token_s == record.first_token_s[0]).all()  # all leave at once
    assert np.diff(arrivals) == pytest.approx(transfer.price(20)[0], rel=1e-6)


def test_a_cache_crosses_as_fast_as_the_slower_side_lets_it(tiny, loop_of):
    _, loop = loop_of(apart(tiny))
    loop.run()
    transfer = loop._transfers["prefill", "decode"]
    link = transfer.destination.system.interconnect.inter_node
    tokens = 1 << 20
    least_s = transfer.bytes(tokens) / link.bandwidth.value  # one device receives, two send
    assert least_s <= transfer.price(tokens)[0] < 1.3 * least_s
    more_s = transfer.price(2 * tokens)[0] - transfer.price(tokens)[0]
    assert more_s == pytest.approx(transfer.price(3 * tokens)[0] - transfer.price(2 * tokens)[0], rel=1e-6)


def test_no_decode_step_is_as_long_as_one_with_prompts(tiny):
    together, split = (simulate(scenario).tables["steps"] for scenario in (tiny(), apart(tiny)))
    assert split["duration_s"][split["replica"] == 1].max() < together["duration_s"].max()


def test_apart_the_run_is_the_same_with_either_engine(tiny, tmp_path):
    scenario = apart(tiny, parallelism={"tp": 1}, replicas=1)
    scenario["pools"] = {"prefill": PREFILL | {"system": "h100-sxm-2", "parallelism": {"pp": 2}}, "decode": DECODE}
    for engine in ("compiled", "simpy"):
        simulate(scenario | {"engine": engine}).save(tmp_path / engine)
    names = ("requests.parquet", "steps.parquet", "operators.parquet")
    assert all(
        (tmp_path / "compiled" / name).read_bytes() == (tmp_path / "simpy" / name).read_bytes() for name in names
    )


def test_a_trace_of_pools_shows_every_device(tiny):
    setup = prepare(*load_scenario(apart(tiny)))
    trace = run(setup, timeline=True).timeline
    assert trace is not None
    for name in ("device 0", "device 1", "device 2", "replica 0", "replica 1"):
        assert name.encode() in trace


def test_energy_counts_every_pool_and_what_moves_between_them(tiny):
    setup = prepare(*load_scenario(apart(tiny)))
    record = serve(setup, build_pipelines(setup))
    result = run(prepare(*load_scenario(apart(tiny))))
    idle_w = sum(pool.system.idle_w * pool.system.device_count for pool in setup.pools)
    assert result.summary["idle_energy_j"] == pytest.approx(idle_w * record.duration_s)
    j_per_byte = setup.pools[0].system.interconnect.inter_node.energy.value
    assert record.kv_transfer_j == pytest.approx(record.kv_bytes.sum() * j_per_byte)
    parts = result.summary["idle_energy_j"] + result.tables["steps"]["energy_j"].sum() + record.kv_transfer_j
    assert result.summary["energy_j"] == pytest.approx(parts, rel=1e-9)


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ({"prefill": PREFILL}, r"pools: the roles must be all `both`, or `prefill` of some .* got 'prefill'"),
        ({"a": {}, "b": DECODE}, r"pools: the roles must be .* got 'both, decode'"),
        ({"a": {"role": "decoder"}}, r"pools\.a\.role: .*did you mean `decode`"),
        ({"a": {"replicas": 0}}, r"pools\.a\.replicas: must be > 0, got 0"),
        ({"a": {"replicas": 3}}, r"replicas must be the 1 devices of h100-sxm-1, got 3"),
        ({"a": {"system": "h100-smx-2"}}, r"pools\.a\.system: .*did you mean `h100-sxm`"),
        ({"a": {"sytem": "h100-sxm-2"}}, r"pools\.a\.sytem: unknown key; did you mean `system`"),
        ({"a": {"scheduler": "vlm"}}, r"pools\.a\.scheduler: .*did you mean `vllm`"),
        (
            {"a": {"parallelism": {"tp": 2}}},
            r"pools\.a\.parallelism: dp \* tp must be the 1 devices of h100-sxm-1, got 2",
        ),
        ({"a": {"placement": "nowhere.json"}}, r"pools\.a\.placement: must be `contiguous` or an existing JSON file"),
        ({"a": 3}, r"pools\.a: must be a mapping, got 3"),
        (3, r"pools: must be a mapping, got 3"),
    ],
)
def test_pools_that_break_a_rule(tiny, pools, message):
    with pytest.raises(InputError, match=message):
        prepare(*load_scenario(tiny(pools=pools)))


def test_edits_of_a_pool_that_is_not_there_are_refused(tiny):
    scenario = tiny(1, pools=APART)
    rule = (
        r"--set pools\.prefil\.replicas: no such pool \(did you mean `prefill`\?\); a new one is --set pools\.prefil="
    )
    with pytest.raises(ConfigError, match=rule):
        load_scenario(scenario, ["pools.prefil.replicas=2"])
    with pytest.raises(ConfigError, match=r"no such pool \(there is prefill and decode\); a new"):
        load_scenario(scenario, ["pools.third.scheduler.token_budget=64"])


def test_pools_can_be_added_by_edits(tiny):
    loaded, _ = load_scenario(tiny(1, pools=APART), ["pools.more={role: decode}", "pools.more.replicas=2"])
    assert loaded.pools["more"].replicas == 2
    loaded, _ = load_scenario(tiny(1), ["pools.a.role=prefill", "pools.b.role=decode"])
    assert list(loaded.pools) == ["a", "b"]
    loaded, _ = load_scenario(tiny(1, pools=APART), ["pools={c: {}}", "pools.c.replicas=3"])
    assert list(loaded.pools) == ["c"]


def test_the_pool_that_is_too_small_is_named(tiny):
    huge = {
        "prefill": PREFILL | {"system": "h100-sxm-2"},
        "decode": DECODE | {"scheduler": {"memory_utilization": 1e-6}},
    }
    with pytest.raises(CapacityError, match=r"^<inline>: pools\.decode: parallelism tp=1 dp=1 ep=1: .* needs"):
        prepare(*load_scenario(tiny(1, pools=huge)))


def test_settings_of_a_result_have_the_parallelism_of_every_pool(tiny):
    settings = simulate(tiny(1, pools=APART)).settings
    degrees = {name: pool["parallelism"]["tp"] for name, pool in settings["pools"].items()}
    assert degrees == {"prefill": 2, "decode": 1}
    assert settings["parallelism"] is None
    assert simulate(tiny(2)).settings["parallelism"]["tp"] == 2


def test_stages_that_cut_nodes_unevenly_are_refused(tiny):
    with pytest.raises(
        ConfigError, match=r"dp \* tp must divide the 8 devices of a node or be a multiple of them, got 6"
    ):
        prepare(*load_scenario(tiny(24, replicas=4, parallelism={"dp": 6})))
