"""Every shipped model runs, on as many H200 as hold it."""

from typing import Any

import numpy as np
import pytest

import moesim
from moesim.configs.loader import shipped
from moesim.workloads.models import load_model

_H200_BYTES = 141e9
_SHARE_FOR_WEIGHTS = 0.8
REQUESTS: dict[str, Any] = {
    "kind": "synthetic",
    "num_requests": 2,
    "rate_per_s": 100.0,
    "prompt_tokens": 100,
    "output_tokens": 4,
}


def devices_for(name: str) -> int:
    need = load_model(name).weight_bytes / (_H200_BYTES * _SHARE_FOR_WEIGHTS)
    return int(2 ** max(0, np.ceil(np.log2(need))))


@pytest.mark.parametrize("name", shipped("models"))
def test_a_shipped_model_serves_requests(name: str) -> None:
    scenario = {"model": name, "system": f"h200-sxm-{devices_for(name)}", "requests": REQUESTS}
    result = moesim.simulate(scenario)
    assert result.summary["requests"] == 2
    assert result.summary["output_tokens"] == 8
    assert result.summary["ttft_mean_s"] > 0
