"""Small scenarios that run in milliseconds."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.simulator.memory import MemoryPlan
from moesim.simulator.scenario import load_scenario, prepare
from moesim.simulator.serving import ServingLoop
from moesim.simulator.simulate import build_pipelines

TINY = {
    "name": "tiny-moe",
    "source": "made for tests",
    "hidden": 256,
    "vocabulary": 1000,
    "layers": [
        {
            "repeat": 2,
            "pattern": [
                {
                    "attention": {"kind": "gqa", "heads": 8, "kv_heads": 4, "head_dim": 32, "window": 64},
                    "ffn": {"kind": "dense", "intermediate": 512},
                },
                {
                    "attention": {"kind": "gqa", "heads": 8, "kv_heads": 4, "head_dim": 32},
                    "ffn": {
                        "kind": "moe",
                        "experts": 8,
                        "top_k": 2,
                        "intermediate": 128,
                        "shared_intermediate": 128,
                    },
                },
            ],
        }
    ],
}
LENGTHS = {"kind": "uniform", "min": 1, "max": 300}


def tiny_scenario(devices=1, **changes):
    """A tiny model with 40 requests on `devices` GPUs."""
    requests = {"kind": "synthetic", "num_requests": 40, "rate_per_s": 200}
    requests |= {"prompt_tokens": LENGTHS, "output_tokens": {"kind": "uniform", "min": 1, "max": 40}}
    return {
        "model": TINY,
        "system": f"h100-sxm-{devices}",
        "requests": requests,
        "routing": "zipf:0.8",
        "scheduler": {"token_budget": 256, "max_num_seqs": 16},
    } | changes


WAYS = [
    (1, 1, 1, 1, 1),
    (4, 4, 1, 1, 1),
    (4, 1, 4, 4, 1),
    (4, 2, 2, 4, 1),
    (4, 2, 2, 2, 1),
    (4, 2, 2, 1, 1),
    (16, 1, 16, 8, 1),
    (2, 1, 1, 1, 2),
    (8, 2, 2, 4, 2),
    (16, 8, 1, 2, 2),
]
"""(devices, tp, dp, ep, pp): every kind of parallelism."""


@pytest.fixture
def tiny():
    """A function that makes small scenarios."""
    return tiny_scenario


@pytest.fixture(params=WAYS, ids=lambda way: "devices{}-tp{}-dp{}-ep{}-pp{}".format(*way))
def parallel(request):
    """A small scenario under each kind of parallelism."""
    devices, tp, dp, ep, pp = request.param
    return tiny_scenario(devices, parallelism={"tp": tp, "dp": dp, "ep": ep, "pp": pp})


def make_loop(scenario, requests_that_fit=None):
    """What a scenario loads and the loop that serves it; with room for so many of the longest requests, if given."""
    setup = prepare(*load_scenario(scenario))
    longest = np.array([(setup.requests.prompt_tokens + setup.requests.output_tokens).max()])

    def shrunk(pool):
        return replace(pool, memory=MemoryPlan(float(pool.cache.bytes(longest)[0]) * requests_that_fit, 0.0, 0.0))

    if requests_that_fit is not None:
        setup = replace(setup, pools=tuple(map(shrunk, setup.pools)))
    return setup, ServingLoop(setup.requests, build_pipelines(setup), setup.scenario.load_balancing)


@pytest.fixture
def loop_of():
    """A function that makes the serving loop of a scenario."""
    return make_loop


@pytest.fixture
def tight():
    """The same with little memory: room for so many of the longest requests."""
    return make_loop
