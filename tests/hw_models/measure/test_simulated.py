"""Runs the files in `simulated/` with the CUDA simulator, a process each, so that the rest keeps the real numba."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parent / "simulated"
_ROOT = Path(__file__).parents[3]
_FILES = sorted(path.name for path in _FOLDER.glob("test_*.py"))


def test_there_are_files():
    assert len(_FILES) >= 4


@pytest.mark.parametrize("name", _FILES)
def test_file(name):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(_FOLDER / name)],
        cwd=_ROOT,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
