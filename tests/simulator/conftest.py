"""Small scenarios that run in milliseconds."""

import pytest

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


WAYS = [(1, 1, 1, 1), (4, 4, 1, 1), (4, 1, 4, 4), (4, 2, 2, 4), (4, 2, 2, 2), (4, 2, 2, 1), (16, 1, 16, 8)]
"""(devices, tp, dp, ep): every kind of parallelism."""


@pytest.fixture
def tiny():
    """A function that makes small scenarios."""
    return tiny_scenario


@pytest.fixture(params=WAYS, ids=lambda way: "devices{}-tp{}-dp{}-ep{}".format(*way))
def parallel(request):
    """A small scenario under each kind of parallelism."""
    devices, tp, dp, ep = request.param
    return tiny_scenario(devices, parallelism={"tp": tp, "dp": dp, "ep": ep})
