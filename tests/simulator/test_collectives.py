"""Bytes of dispatch and combine against a count token by token."""

import numpy as np
import pytest

from moesim.simulator.collectives import CollectivePlan
from moesim.simulator.expert_exchange import Traffic
from moesim.simulator.scenario import load_scenario, prepare
from moesim.simulator.simulate import build_pipelines


def make_plan(tiny, devices_per_node, tp, dp, ep):
    scenario = tiny(tp * dp if tp * dp <= 8 else 16, parallelism={"tp": tp, "dp": dp, "ep": ep})
    plan = build_pipelines(prepare(*load_scenario(scenario)))[0].stages[0].plan
    return CollectivePlan(plan, devices_per_node)


@pytest.mark.parametrize("way", [(8, 1, 4, 4), (2, 1, 4, 4), (2, 2, 2, 4), (2, 2, 2, 2), (4, 2, 4, 1), (2, 1, 8, 8)])
def test_every_copy_of_a_token_is_carried_once(tiny, way):
    per_node, tp, dp, ep = way
    plan = make_plan(tiny, per_node, tp, dp, ep)
    devices, moe_tp, nodes = tp * dp, tp * dp // ep, int(plan.node[-1]) + 1
    rng = np.random.default_rng(0)
    to_ranks = np.zeros((2, devices, ep), dtype=np.int64)
    to_nodes = np.zeros((2, devices, nodes), dtype=np.int64)
    expected = np.zeros((2, 4, 2, devices))  # dispatch, combine; sent, received, far sent, far received
    for layer in range(2):
        for _ in range(50):
            source, ranks = int(rng.integers(devices)), np.flatnonzero(rng.random(ep) < 0.4)
            targets = {int(d) for rank in ranks for d in range(rank * moe_tp, (rank + 1) * moe_tp)}
            to_ranks[layer, source, ranks] += 1
            to_nodes[layer, source, sorted({int(plan.node[d]) for d in targets})] += 1
            for way_back, own in ((0, {d for d in targets if d // tp == source // tp}), (1, {source})):
                out, back = (1, 0) if way_back else (0, 1)
                for node in {int(plan.node[d]) for d in targets} - {int(plan.node[source])}:
                    landing = node * per_node + source % per_node
                    expected[way_back, 2 + out, layer, source] += 1
                    expected[way_back, 2 + back, layer, landing] += 1
                    for target in targets:
                        if plan.node[target] == node and target != landing:
                            expected[way_back, out, layer, landing] += 1
                            expected[way_back, back, layer, target] += 1
                for target in targets - own:
                    if plan.node[target] == plan.node[source]:
                        expected[way_back, out, layer, source] += 1
                        expected[way_back, back, layer, target] += 1
    table = plan.table(np.zeros((dp, 20)), Traffic(to_ranks, to_nodes))
    columns = (table.sent_bytes, table.received_bytes, table.sent_internode_bytes, table.received_internode_bytes)
    found = np.stack([column[plan.group_rows :] for column in columns]).reshape(4, 2, 2, devices).transpose(1, 0, 2, 3)
    assert np.array_equal(found / (plan.plan.model.hidden * 2), expected)
