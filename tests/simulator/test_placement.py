import json

import numpy as np
import pytest

from moesim.errors import DataError
from moesim.simulator.placement import Placement, load_placement
from moesim.simulator.simulate import simulate
from moesim.workloads.models import load_model


def write(path, slots, model="mixtral-8x7b"):
    path.write_text(json.dumps({"model": model, "experts": slots}))
    return str(path)


def test_contiguous_gives_equal_blocks():
    placement = Placement.contiguous(3, 8, 4)
    assert placement.slots.shape == (3, 8)
    assert placement.slots_per_rank == 2
    assert placement.slots[2].tolist() == list(range(8))


def test_replicas_lists_the_slots_of_every_expert():
    first, order = Placement(np.array([[2, 0, 1, 2]], dtype=np.int32), 2).replicas(3)
    slots = [order[0, first[0, e] : first[0, e + 1]].tolist() for e in range(3)]
    assert slots == [[1], [2], [0, 3]]


def test_a_file_is_read(tmp_path):
    slots = [list(range(8))[::-1]] * 32
    placement = load_placement(write(tmp_path / "p.json", slots), load_model("mixtral-8x7b"), 4)
    assert placement.slots.tolist() == slots


@pytest.mark.parametrize(
    ("slots", "model", "rule"),
    [
        ([list(range(8))] * 31, "mixtral-8x7b", "one row per MoE layer \\(32\\)"),
        ([[*range(7), 8]] * 32, "mixtral-8x7b", "experts must lie in 0 ... 7, got 8"),
        ([[*range(7), -1]] * 32, "mixtral-8x7b", "experts must lie in 0 ... 7"),
        ([[*range(7), 6]] * 32, "mixtral-8x7b", "every expert needs a slot; none for expert, got 7"),
        ([[*range(8), 0, 1]] * 32, "mixtral-8x7b", "must divide over ep = 4"),
        ([list(range(8))] * 32, "gpt-oss-20b", "must be mixtral-8x7b, got 'gpt-oss-20b'"),
        ([[1], [1, 2]], "mixtral-8x7b", "equally many per layer"),
        (["a"], "mixtral-8x7b", "equally many per layer"),
    ],
)
def test_broken_placements_are_refused(tmp_path, slots, model, rule):
    path = write(tmp_path / "p.json", slots, model)
    with pytest.raises(DataError, match=rule):
        load_placement(path, load_model("mixtral-8x7b"), 4)


def test_a_placement_for_other_ranks_is_refused(tmp_path):
    document = {"model": "mixtral-8x7b", "devices": 8, "experts": [list(range(8))] * 32}
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="devices: must be the ep = 4 ranks of the scenario, got 8"):
        load_placement(str(tmp_path / "p.json"), load_model("mixtral-8x7b"), 4)


def test_missing_and_cut_files_are_refused(tmp_path):
    model = load_model("mixtral-8x7b")
    with pytest.raises(DataError, match="existing JSON file"):
        load_placement(str(tmp_path / "none.json"), model, 4)
    (tmp_path / "cut.json").write_text('{"model": "mixtral-8x7b", "exp')
    with pytest.raises(DataError, match="must be valid JSON"):
        load_placement(str(tmp_path / "cut.json"), model, 4)


def test_replicas_share_an_experts_tokens_equally(tiny, tmp_path):
    slots = [[0, 0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0]] * 2
    path = write(tmp_path / "p.json", slots, "tiny-moe")
    plain = simulate(tiny(4, parallelism={"dp": 4, "ep": 4}))
    placed = simulate(tiny(4, parallelism={"dp": 4, "ep": 4}, placement=path))
    assert (placed.tables["experts"]["tokens"] == plain.tables["experts"]["tokens"]).all()
    assert placed.summary["rank_load_imbalance_mean"] != plain.summary["rank_load_imbalance_mean"]
