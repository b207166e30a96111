"""A recorded run, replayed: the simulator must route every decoded token as the recording did."""

import numpy as np
import pytest

from moesim.simulator.simulate import simulate
from moesim.workloads.routing_files import read_routing_trace

RECORDING = "routing/gpt-oss-20b/gpt-oss-20b_decode_top4_ids.npz"


@pytest.mark.reference
@pytest.mark.parametrize(("system", "parallelism"), [("h100-sxm-1", {}), ("h100-sxm-4", {"dp": 4, "ep": 4})])
def test_decode_tokens_per_layer_and_expert_equal_those_of_the_recording(reference_data, system, parallelism):
    path = reference_data / RECORDING
    scenario = {"model": "gpt-oss-20b", "system": system, "requests": "trace", "routing": str(path), "concurrency": 256}
    result = simulate(scenario | {"parallelism": parallelism})
    experts = result.experts
    decoded = experts[experts["phase"] == "decode"].pivot_table(index="layer", columns="expert", values="tokens")
    trace = read_routing_trace(path)
    assert np.array_equal(decoded.to_numpy(), trace.loads())
    requests = result.tables["requests"]
    assert len(requests["request"]) == 703
    assert (requests["output_tokens"] - 1).sum() == trace.tokens == 215_438
    assert (requests["prompt_tokens"] == trace.first_decode_position).all()
