"""Dispatch and combine under each choice of the engine, against counts token by token."""

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.hw_models.collective_table import COLLECTIVES
from moesim.simulator.collectives import CollectivePlan
from moesim.simulator.communication import EXCHANGE_KINDS, Communication
from moesim.simulator.expert_exchange import Traffic
from moesim.simulator.scenario import load_scenario, prepare
from moesim.simulator.simulate import build_pipelines, serve
from moesim.workloads.steps import DECODE_TOKENS, TOKENS

FP8 = 1 + 4 / 128
GATHERS = ("all_gather_reduce_scatter", "all_reduce")
DIRECT = ("all_to_all", "deepep_normal", "deepep_low_latency", "deepep")


def simulator_of(tiny, exchange, way=(4, 1, 4, 4), **scheduler):
    devices, tp, dp, ep = way
    settings = {"token_budget": 256, "max_num_seqs": 16, "expert_exchange": exchange} | scheduler
    scenario = tiny(devices, parallelism={"tp": tp, "dp": dp, "ep": ep}, scheduler=settings)
    pipelines = build_pipelines(prepare(*load_scenario(scenario)))
    return pipelines, pipelines[0].stages[0]


def features_of(plan, tokens, decodes):
    features = np.zeros((plan.plan.dp, 20))
    features[:, TOKENS], features[:, DECODE_TOKENS] = tokens, decodes
    return features


def drawn(plan, tokens_per_rank, rng):
    """Experts of every token: (traffic, slot_tokens, [layer][(device, experts)])."""
    operators, devices, nodes = plan.plan, plan.devices, int(plan.node[-1]) + 1
    block = operators.experts.block
    per_rank = block.experts // operators.ep
    to_ranks = np.zeros((plan.moe_layers, devices, operators.ep), np.int64)
    to_nodes = np.zeros((plan.moe_layers, devices, nodes), np.int64)
    slots = np.zeros((plan.moe_layers, block.experts), np.int64)
    for layer in range(plan.moe_layers):
        for rank, count in enumerate(tokens_per_rank):
            for token in range(count):
                device = rank * operators.tp + token % operators.tp
                chosen = rng.choice(block.experts, block.top_k, replace=False)
                ranks = np.unique(chosen // per_rank)
                to_ranks[layer, device, ranks] += 1
                targets = np.concatenate([np.arange(r * operators.moe_tp, (r + 1) * operators.moe_tp) for r in ranks])
                to_nodes[layer, device, np.unique(plan.node[targets])] += 1
                slots[layer, chosen] += 1
    return Traffic(to_ranks, to_nodes), slots


def exchange_part(plan, column):
    """[way, moe_layer, device]"""
    return column[plan.group_rows :].reshape(2, plan.moe_layers, plan.devices)


@pytest.mark.parametrize("exchange", GATHERS)
@pytest.mark.parametrize(("way", "nodes"), [((4, 1, 4, 4), 1), ((4, 2, 2, 4), 1), ((8, 2, 4, 2), 2)])
def test_gathers_carry_every_token_to_every_other_rank(tiny, exchange, way, nodes):
    _, simulator = simulator_of(tiny, exchange, way)
    plan = CollectivePlan(simulator.plan, way[0] // nodes, Communication(expert_exchange=exchange))
    tokens = np.array([7.0, 1.0, 30.0, 2.0][: way[2]])
    table = plan.table(features_of(plan, tokens, 0), Traffic(*(np.zeros((2, 1, 1), np.int64),) * 2))
    rows = slice(plan.group_rows, None)
    token_bytes = simulator.plan.model.hidden * 2
    assert np.all(table.payload_bytes[rows] == tokens.sum() * token_bytes)
    assert np.all(table.ranks[rows] == way[2])
    assert np.all(table.nodes[rows] == min(nodes, way[2]))
    assert not exchange_part(plan, table.sent_bytes).any()
    kinds = [COLLECTIVES[kind] for kind in table.kind[rows]]
    half = plan.moe_layers * plan.devices
    assert (kinds[0], kinds[half]) == EXCHANGE_KINDS[exchange]


def test_what_a_gather_sends_is_each_token_once_to_each_other_rank(tiny):
    _, simulator = simulator_of(tiny, "all_gather_reduce_scatter")
    plan, tokens = simulator.collectives, np.array([7.0, 1.0, 30.0, 2.0])
    table = plan.table(features_of(plan, tokens, 0), Traffic(*(np.zeros((2, 1, 1), np.int64),) * 2))
    link = simulator.system.interconnect
    energy_j = exchange_part(plan, link.price(table).energy_j)
    copies = tokens.sum() * (len(tokens) - 1)
    expected = copies * simulator.plan.model.hidden * 2 * link.intra_node.energy.value
    assert energy_j.sum(axis=2) == pytest.approx(np.full((2, plan.moe_layers), expected))
    summed = Communication(expert_exchange="all_reduce")
    doubled = CollectivePlan(simulator.plan, 8, summed).table(
        features_of(plan, tokens, 0), Traffic(*(np.zeros((2, 1, 1), np.int64),) * 2)
    )
    assert exchange_part(plan, link.price(doubled).energy_j) == pytest.approx(2 * energy_j)


@pytest.mark.parametrize("per_node", [8, 2])
def test_deepep_moves_what_an_all_to_all_moves_with_fewer_bits_on_the_way_out(tiny, per_node):
    _, simulator = simulator_of(tiny, "all_to_all")
    rng = np.random.default_rng(1)
    plain = CollectivePlan(simulator.plan, per_node)
    kernels = CollectivePlan(simulator.plan, per_node, Communication(expert_exchange="deepep_normal"))
    tokens = [5, 11, 2, 8]
    traffic, slots = drawn(plain, tokens, rng)
    one, other = (plan.table(features_of(plan, tokens, 0), traffic, slots) for plan in (plain, kernels))
    for name in ("sent_bytes", "received_bytes", "sent_internode_bytes", "received_internode_bytes"):
        ways = exchange_part(plain, getattr(one, name)), exchange_part(plain, getattr(other, name))
        assert ways[1][0] == pytest.approx(ways[0][0] * FP8 / 2)
        assert ways[1][1] == pytest.approx(ways[0][1])
    assert exchange_part(kernels, other.tokens) == pytest.approx(np.broadcast_to(tokens, (2, 2, 4)))
    sent, received = traffic.to_ranks.sum(axis=2), traffic.to_ranks.sum(axis=1)
    assert exchange_part(kernels, other.copies) == pytest.approx(np.broadcast_to(np.maximum(sent, received), (2, 2, 4)))
    fan_out = traffic.to_ranks.sum(axis=(1, 2)) / sum(tokens)
    assert exchange_part(kernels, other.fan_out)[0, :, 0] == pytest.approx(fan_out)


@pytest.mark.parametrize(("way", "per_node"), [((4, 1, 4, 4), 8), ((4, 1, 4, 4), 2), ((4, 2, 2, 2), 8)])
def test_low_latency_kernels_carry_a_copy_per_expert_and_shard(tiny, way, per_node):
    _, simulator = simulator_of(tiny, "all_to_all", way)
    plan = CollectivePlan(simulator.plan, per_node, Communication(expert_exchange="deepep_low_latency"))
    operators, tokens = simulator.plan, [5, 11, 2, 8][: way[2]]
    traffic, slots = drawn(plan, tokens, np.random.default_rng(2))
    table = plan.table(features_of(plan, tokens, tokens), traffic, slots)
    top_k, token_bytes = operators.experts.block.top_k, operators.model.hidden
    copies = sum(tokens) * top_k * operators.moe_tp
    assert exchange_part(plan, table.fan_out) == pytest.approx(top_k * operators.moe_tp)
    columns = (table.sent_bytes, table.received_bytes, table.sent_internode_bytes, table.received_internode_bytes)
    sent, received, far_sent, far_received = (exchange_part(plan, column) for column in columns)
    for way_back, element in ((0, FP8), (1, 2.0)):
        assert sent[way_back].sum(axis=1) == pytest.approx(received[way_back].sum(axis=1))
        assert far_sent[way_back].sum(axis=1) == pytest.approx(far_received[way_back].sum(axis=1))
        moved = (sent + far_sent)[way_back].sum(axis=1) / (token_bytes * element)
        load = np.repeat(slots.reshape(2, operators.ep, -1).sum(axis=2), operators.moe_tp, axis=1)
        share = np.repeat(np.array(tokens) / operators.tp, operators.tp) / sum(tokens)
        assert moved == pytest.approx(copies - (load * share).sum(axis=1))  # all but what stays at home
    assert np.array_equal(sent[0] / FP8, received[1] / 2.0)
    assert (far_sent.sum() > 0) == (per_node < plan.devices)


def test_deepep_takes_the_low_latency_kernels_in_steps_without_prompts(tiny):
    _, simulator = simulator_of(tiny, "all_to_all")
    plan = CollectivePlan(simulator.plan, 8, Communication(expert_exchange="deepep"))
    traffic, slots = drawn(plan, [4, 4, 4, 4], np.random.default_rng(0))
    kinds = [
        {COLLECTIVES[kind] for kind in plan.table(features_of(plan, 4, decodes), traffic, slots).kind}
        for decodes in (4, 3)
    ]
    assert kinds == [set(EXCHANGE_KINDS["deepep_low_latency"]), set(EXCHANGE_KINDS["deepep_normal"])]


@pytest.mark.parametrize("exchange", [*DIRECT, *GATHERS])
@pytest.mark.parametrize("way", [(4, 1, 4, 4), (4, 2, 2, 4), (16, 1, 16, 8)])
def test_every_exchange_serves_every_request(tiny, exchange, way):
    pipelines, simulator = simulator_of(tiny, exchange, way)
    setup = prepare(*load_scenario(tiny()))
    serve(setup, pipelines)
    tokens = setup.requests.prompt_tokens + setup.requests.output_tokens - 1
    experts = simulator.totals.expert_tokens.sum(axis=(0, 2))
    assert np.all(experts >= tokens.sum() * 2)
    tasks = simulator.tasks_per_row
    names = np.array(simulator.names)
    assert np.all((simulator.totals.time_s * tasks)[names == "combine"] > 0)


@pytest.mark.parametrize("exchange", GATHERS)
def test_sums_over_shards_follow_a_gather(tiny, exchange):
    _, simulator = simulator_of(tiny, exchange, (4, 2, 2, 4))
    graph = simulator.step_graph.graph
    count = {kind: int((graph.kind == index).sum()) for index, kind in enumerate(graph.kinds)}
    layers, devices = 4, 4
    assert count["all_reduce"] == (1 + 2 * layers) * devices
    assert "all_gather" not in count


def test_custom_all_reduce_is_for_the_sums_of_tensor_parallel_groups_only(tiny):
    _, simulator = simulator_of(tiny, "all_reduce", (4, 2, 2, 4), all_reduce="custom")
    plan = simulator.collectives
    kinds = [
        COLLECTIVES[kind]
        for kind in plan.table(features_of(plan, 4, 4), Traffic(*(np.zeros((2, 1, 1), int),) * 2)).kind
    ]
    assert set(kinds[: plan.group_rows]) == {"custom_all_reduce", "all_gather", "reduce_scatter"}
    assert set(kinds[plan.group_rows :]) == {"all_reduce"}


def test_a_custom_all_reduce_makes_decoding_faster(tiny):
    times = []
    for all_reduce in ("nccl", "custom"):
        pipelines, simulator = simulator_of(tiny, "all_to_all", (4, 4, 1, 1), all_reduce=all_reduce)
        serve(prepare(*load_scenario(tiny())), pipelines)
        names = np.array(simulator.names)
        times.append((simulator.totals.time_s * simulator.tasks_per_row)[names == "all_reduce"].sum())
    assert times[1] < times[0] / 2


def test_links_without_the_kernels_are_refused(tiny):
    scenario = tiny(
        system="a100-sxm-4",
        parallelism={"dp": 4, "ep": 4},
        scheduler={"token_budget": 256, "expert_exchange": "deepep"},
    )
    with pytest.raises(ConfigError, match=r"expert_exchange: the links of a100-sxm-4 have no parameters of deepep"):
        prepare(*load_scenario(scenario))
