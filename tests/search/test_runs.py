from dataclasses import replace

import numpy as np

from moesim.hw_models.residual import FOLDER, load_residual, save_residual
from moesim.search import runs
from moesim.search.runs import RunStore, setup_key
from moesim.simulator.scenario import load_scenario, prepare


def quick(*assignments: str):
    return prepare(*load_scenario("quickstart", ["num_requests=5", *assignments]))


def test_equal_setups_have_equal_keys_and_others_do_not():
    key = setup_key(quick())
    assert setup_key(quick("engine=simpy")) == key
    changes = (
        "seed=1",
        "num_requests=6",
        "model=olmoe-1b-7b",
        "routing=uniform",
        "concurrency=2",
        "scheduler.token_budget=100",
        "system=h200-sxm-1",
        "system.device.processors.gpu.dram_bandwidth.value=5 TB/s",
    )
    keys = {setup_key(quick(change)) for change in changes}
    assert len(keys) == len(changes)
    assert key not in keys


def test_other_learned_corrections_of_one_name_are_another_key(tmp_path, monkeypatch):
    key, name = setup_key(quick()), "h100-sxm.npz"
    models = load_residual(FOLDER / name)
    monkeypatch.setattr("moesim.hw_models.gpu.FOLDER", tmp_path)
    save_residual(tmp_path / name, models)
    setup = quick()
    assert setup.pools[0].system.device.processor.residual_file == tmp_path / name
    same = setup_key(setup)
    save_residual(tmp_path / name, {model: replace(trees, high=0.9 * trees.high) for model, trees in models.items()})
    assert setup_key(quick()) not in {key, same}


def test_a_run_is_kept_and_not_repeated(tmp_path, monkeypatch):
    store = RunStore(tmp_path / "runs")
    first = store.result(quick())
    monkeypatch.setattr(runs, "run", None)  # calling it would fail
    again = store.result(quick())
    assert again.summary == first.summary
    assert np.array_equal(again.tables["requests"]["e2e_s"], first.tables["requests"]["e2e_s"])


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunStore().result(quick())
    assert not list(tmp_path.iterdir())
