import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.dispatch import count_tokens
from moesim.simulator.placement import Placement


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 8), (2, 8), (4, 8), (4, 12)]))
def test_loads_and_traffic_equal_a_count_token_by_token(seed, shape):
    ep, slots = shape
    rng = np.random.default_rng(seed)
    layers, experts, k, tokens, devices = 3, 8, 3, 20, 4
    chosen = np.stack([[rng.permutation(experts)[:k] for _ in range(layers)] for _ in range(tokens)]).astype(np.uint16)
    extra = rng.integers(0, experts, (layers, slots - experts))
    table = np.concatenate([np.tile(np.arange(experts), (layers, 1)), extra], axis=1).astype(np.int32)
    placement = Placement(rng.permuted(table, axis=1), ep)
    source = rng.integers(0, devices, tokens).astype(np.int32)
    phase = rng.integers(0, 3, tokens)
    used = np.zeros((3, layers, experts), dtype=np.int64)
    load = np.zeros((layers, slots), dtype=np.int64)
    traffic = np.zeros((layers, devices, ep), dtype=np.int64)
    node = np.arange(ep) // 2
    node_traffic = np.zeros((layers, devices, node[-1] + 1), dtype=np.int64)
    rank_nodes = np.stack([node, node], axis=1).astype(np.int32)
    replicas = placement.replicas(experts)
    counts = (used, load, traffic, node_traffic)
    count_tokens(chosen, phase, source, *replicas, placement.slots_per_rank, rank_nodes, *counts)

    for layer in range(layers):
        expected_load, expected_traffic = np.zeros(slots), np.zeros((devices, ep))
        expected_nodes = np.zeros((devices, node[-1] + 1))
        for token in range(tokens):
            reached = set()
            for choice, expert in enumerate(chosen[token, layer]):
                homes = np.flatnonzero(placement.slots[layer] == expert)
                slot = homes[(token * k + choice) % len(homes)]
                expected_load[slot] += 1
                reached.add(slot // placement.slots_per_rank)
            for rank in reached:
                expected_traffic[source[token], rank] += 1
            for reached_node in {node[rank] for rank in reached}:
                expected_nodes[source[token], reached_node] += 1
        assert load[layer].tolist() == expected_load.tolist()
        assert traffic[layer].tolist() == expected_traffic.tolist()
        assert node_traffic[layer].tolist() == expected_nodes.tolist()
        for number in range(3):
            expected_used = np.bincount(chosen[phase == number, layer].ravel(), minlength=experts)
            assert used[number, layer].tolist() == expected_used.tolist()
