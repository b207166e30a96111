"""A placement made from half of a recording, on the requests of the other half."""

import json

import numpy as np
import pytest

from moesim.search.placement import search_placement
from moesim.simulator.simulate import simulate
from moesim.workloads.routing_files import read_routing_trace, write_routing_trace

RECORDING = "routing/gpt-oss-20b/gpt-oss-20b_decode_top4_ids.npz"


@pytest.mark.reference
@pytest.mark.parametrize("slots", [32, 40])
def test_a_balanced_placement_is_not_slower_on_requests_it_has_not_seen(reference_data, tmp_path, slots):
    seen, unseen = read_routing_trace(reference_data / RECORDING).split(0.5, np.random.default_rng(0))
    write_routing_trace(unseen, tmp_path / "unseen.parquet")
    found = search_placement(seen.loads(), 8, slots, method="lpt").value
    (tmp_path / "placed.json").write_text(
        json.dumps({"model": "gpt-oss-20b", "experts": found.placement.slots.tolist()})
    )
    scenario = {
        "model": "gpt-oss-20b",
        "system": "h100-sxm-8",
        "parallelism": {"dp": 8, "ep": 8},
        "requests": "trace",
        "routing": str(tmp_path / "unseen.parquet"),
        "concurrency": 256,
    }
    plain = simulate(scenario).summary
    placed = simulate(scenario | {"placement": str(tmp_path / "placed.json")}).summary
    replicas_read = 1.005 if slots > 32 else 1.0  # weights that are read on one more device
    assert placed["step_mean_s"] <= replicas_read * plain["step_mean_s"]
    assert placed["rank_load_imbalance_mean"] < plain["rank_load_imbalance_mean"]
