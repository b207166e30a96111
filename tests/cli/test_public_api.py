"""`import moesim`: five lines give a result, and importing costs nothing."""

import subprocess
import sys

import pandas as pd
import pytest

import moesim
from moesim.simulator.result import load_result


def test_the_five_lines_of_the_docstring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line.removeprefix(">>> ") for line in str(moesim.__doc__).splitlines() if line.startswith(">>> ")]
    assert len(lines) == 5
    names: dict[str, object] = {}
    exec("\n".join(lines), names)
    result = names["result"]
    assert isinstance(result, moesim.Result)
    assert result.summary["requests"] == 50
    assert load_result(tmp_path / "out/quickstart").summary == result.summary
    assert isinstance(names["first"], pd.DataFrame)
    assert names["ttft_s"] == result.summary["ttft_p50_s"]


def test_tables_are_data_frames():
    result = moesim.simulate("quickstart", ["num_requests=3"])
    for table in ("requests", "steps", "experts", "operators", "devices"):
        assert isinstance(getattr(result, table), pd.DataFrame)
        assert len(getattr(result, table)) > 0


def test_importing_costs_nothing():
    script = "import sys, moesim; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"numpy", "pandas", "pydantic", "yaml", "typer"} & set(done.stdout.split())


def test_every_public_name_can_be_imported():
    for name in moesim.__all__:
        assert getattr(moesim, name).__name__ == name
    assert set(moesim.__all__) <= set(dir(moesim))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = moesim.simulat
