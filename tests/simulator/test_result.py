import numpy as np
import pytest

from moesim.errors import DataError
from moesim.simulator.result import load_result
from moesim.simulator.simulate import simulate


@pytest.fixture
def result(tiny):
    return simulate(tiny(), timeline=True)


def test_save_and_load_give_the_same_object(result, tmp_path):
    loaded = load_result(result.save(tmp_path / "run"))
    assert loaded.settings == result.settings
    assert loaded.summary == result.summary
    assert loaded.timeline == result.timeline
    assert loaded.tables.keys() == result.tables.keys()
    for name, columns in result.tables.items():
        assert list(loaded.tables[name]) == list(columns)
        for column, values in columns.items():
            np.testing.assert_array_equal(loaded.tables[name][column], values)


def test_saving_again_replaces_and_leaves_nothing_behind(result, tmp_path):
    result.save(tmp_path / "run")
    (tmp_path / "run/extra").write_text("stale")
    result.save(tmp_path / "run")
    assert not (tmp_path / "run/extra").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_with_other_files_is_left_alone(result, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="it holds other files"):
        result.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_error_while_writing_leaves_the_old_result(result, tmp_path):
    result.save(tmp_path / "run")
    before = (tmp_path / "run/summary.json").read_text()
    broken = type(result)(result.settings, {"bad": float("nan")}, result.tables)
    with pytest.raises(ValueError, match="Out of range"):
        broken.save(tmp_path / "run")
    assert (tmp_path / "run/summary.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_no_result_and_half_a_result_are_refused(result, tmp_path):
    with pytest.raises(DataError, match="must be a folder that a simulation saved"):
        load_result(tmp_path)
    folder = result.save(tmp_path / "run")
    (folder / "steps.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="complete files"):
        load_result(folder)


def test_summary_is_flat_and_has_units(result):
    for key, value in result.summary.items():
        assert value is None or isinstance(value, int | float), key
    assert result.summary["requests"] == 40


def test_tables_are_data_frames(result):
    assert len(result.requests) == 40
    assert result.steps["duration_s"].sum() <= result.summary["duration_s"] + result.requests["arrival_s"].max()
    assert set(result.operators["operator"]) >= {"qkv", "attention", "experts", "shared_up", "host"}
    assert len(result.devices) == 1
