"""A result with numbers that are easy to add up."""

import numpy as np
import pytest

from moesim.simulator.result import Result
from moesim.simulator.simulate import simulate

OPERATORS = [  # operator, layer, device, seconds over all steps
    ("host", -1, -1, 0.4),
    ("embedding", -1, 0, 0.2),
    ("embedding", -1, 1, 0.2),
    ("qkv", 0, 0, 1.0),
    ("qkv", 0, 1, 3.0),
    ("dispatch", 1, 0, 0.5),
    ("dispatch", 1, 1, 0.5),
    ("experts", 1, 0, 2.0),
    ("experts", 1, 1, 4.0),
    ("something_new", 1, 0, 0.6),
    ("something_new", 1, 1, 0.6),
]
STEPS, DEVICES, DURATION_S = 4, 2, 10.0


def make_result(*, ttft_s=(3.0, 1.0, 2.0, 2.0), tpot_s=(0.1, np.nan, 0.3, 0.2), processors=None):
    operator, layer, device, time_s = (np.array(column) for column in zip(*OPERATORS, strict=True))
    busy = processors or {"gpu": np.array([4.0, 8.0])}
    tables = {
        "operators": {"operator": operator.astype(object), "layer": layer, "device": device, "time_s": time_s},
        "devices": {
            "device": np.arange(DEVICES),
            "steps": np.full(DEVICES, STEPS),
            "compute_busy_s": np.mean(list(busy.values()), axis=0),
            "network_busy_s": np.array([1.0, 3.0]),
            **{f"{name}_busy_s": values for name, values in busy.items()},
        },
        "requests": {
            "ttft_s": np.array(ttft_s),
            "tpot_s": np.array(tpot_s),
            "warmup": np.zeros(len(ttft_s), dtype=bool),
        },
        "steps": {"duration_s": np.full(STEPS, 2.0), "repeats": np.ones(STEPS, dtype=np.int64)},
        "experts": {"tokens": np.zeros(0)},
    }
    pool = {"role": "both", "system": "h100-sxm-2", "replicas": 1, "parallelism": {"tp": 1, "dp": 2, "ep": 2, "pp": 1}}
    settings = {"resolved": {"model": "tiny", "system": "h100-sxm-2", "pools": [pool], "concurrency": None}}
    return Result(settings, {"duration_s": DURATION_S}, tables)


@pytest.fixture
def result():
    return make_result()


@pytest.fixture(scope="session")
def reference_run():
    """A short run with tensor, data and expert parallelism and shared experts, so with every kind of operator."""
    return simulate(
        {
            "model": "deepseek-v3",
            "system": "h200-sxm-16",
            "requests": {
                "kind": "synthetic",
                "num_requests": 3,
                "prompt_tokens": 20,
                "output_tokens": 3,
                "rate_per_s": 50,
            },
            "routing": "uniform",
            "parallelism": {"tp": 2, "dp": 8, "ep": 16},
        }
    )
