import re

import numpy as np
import pytest

from moesim.errors import CapacityError
from moesim.hw_models.system import load_system
from moesim.simulator.memory import Demand, KvCache, check_capacity
from moesim.simulator.parallelism import Parallelism
from moesim.workloads.models import load_model

DEMAND = Demand(utilization=0.9, token_budget=8192, block_tokens=16, longest_tokens=4096)


def test_kv_cache_rounds_up_to_blocks():
    cache = KvCache.of(load_model("llama-3.1-8b"), 1, 16)
    token = 2 * 8 * 128 * 2 * 32
    assert cache.bytes(np.array([0, 1, 16, 17])).tolist() == [0, 16 * token, 16 * token, 32 * token]


def test_sliding_layers_stop_growing_at_their_window():
    cache = KvCache.of(load_model("gpt-oss-20b"), 1, 16)
    per_layer = 2 * 8 * 64 * 2
    grown = cache.bytes(np.array([10_000]))[0]
    assert grown == 12 * per_layer * 10_000 + 12 * per_layer * (128 + 16)


def test_recurrent_layers_keep_a_state_of_constant_size():
    cache = KvCache.of(load_model("qwen3.5-35b-a3b"), 1, 16)
    state = 30 * (32 * 128 * 128 * 4 + (2 * 16 * 128 + 32 * 128) * 3 * 2)
    token = 10 * 2 * 2 * 256 * 2
    assert cache.bytes(np.array([0, 1, 1600])).tolist() == [0, state + 16 * token, state + 1600 * token]


def test_chunked_layers_stop_growing_at_their_chunk():
    cache = KvCache.of(load_model("llama-4-scout"), 1, 16)
    token = 2 * 8 * 128 * 2
    assert cache.bytes(np.array([160_000]))[0] == 12 * token * 160_000 + 36 * token * (8192 + 16)


def test_tensor_parallelism_shares_the_cache_until_heads_run_out():
    model = load_model("qwen3-30b-a3b")
    sizes = [float(KvCache.of(model, tp, 16).bytes(np.array([1000]))[0]) for tp in (1, 2, 4, 8)]
    assert sizes[0] == 2 * sizes[1] == 4 * sizes[2]
    assert sizes[3] == sizes[2]


def test_latent_cache_is_whole_on_every_shard():
    model = load_model("deepseek-v3")
    assert KvCache.of(model, 8, 16).bytes(np.array([16]))[0] == 16 * 70_272


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "gpt-oss-120b"])
def test_the_suggested_parallelism_fits_and_half_of_it_does_not(name):
    model = load_model(name)
    system = load_system("a100-sxm-1")
    with pytest.raises(CapacityError) as caught:
        check_capacity(model, system, Parallelism(), Demand(0.5, 8192, 16, 4096))
    found = re.findall(r"(\d+) devices with tp=(\d+) dp=(\d+) ep=(\d+)", str(caught.value))
    devices, tp, dp, ep = map(int, found[0])
    assert devices == tp * dp
    demand = Demand(0.5, 8192, 16, 4096)
    fitting, _ = check_capacity(model, load_system(f"a100-sxm-{devices}"), Parallelism(tp=tp, dp=dp, ep=ep), demand)
    assert fitting.kv_bytes > 0
    for half in (Parallelism(tp=devices // 2), Parallelism(dp=devices // 2, ep=devices // 2)):
        with pytest.raises(CapacityError):
            check_capacity(model, load_system(f"a100-sxm-{devices // 2}"), half, demand)


def test_a_request_longer_than_the_cache_does_not_fit():
    model = load_model("llama-3.1-8b")
    with pytest.raises(CapacityError, match="KV cache of one request of 900000 tokens"):
        check_capacity(model, load_system("h100-sxm-1"), Parallelism(), Demand(0.9, 8192, 16, 900_000))


def test_more_utilization_leaves_more_cache():
    model, system = load_model("gpt-oss-20b"), load_system("h100-sxm-1")
    low, _ = check_capacity(model, system, Parallelism(), DEMAND)
    high, _ = check_capacity(model, system, Parallelism(), Demand(0.95, 8192, 16, 4096))
    assert high.kv_bytes - low.kv_bytes == pytest.approx(0.05 * system.memory_bytes)
