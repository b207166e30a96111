"""What nvidia-smi says, played by a script."""

import os

import pytest

from moesim.hw_models.measure.cuda import Gpu
from moesim.hw_models.measure.machine import clocks, libraries, machine

GPU = Gpu("some GPU", "GPU-1", "9.0", 132, 50_000_000, 80_000_000_000)
SCRIPT = """#!/bin/sh
test "$1" = --id=GPU-1 || exit 6
case "$2" in
  --query-gpu=driver_version,*) echo "580.1, 1980, 2619, 700.00" ;;
  --query-gpu=clocks.sm,*) echo "1755, 2619, [N/A], 41" ;;
esac
"""


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A function that puts a program of that name first on the path."""

    def write(script):
        program = tmp_path / "nvidia-smi"
        program.write_text(script)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return write


def test_driver_and_clocks(nvidia_smi):
    nvidia_smi(SCRIPT)
    found = machine(GPU)
    assert (found.driver, found.max_sm_mhz, found.max_memory_mhz, found.power_limit_w) == ("580.1", 1980, 2619, 700)
    assert found.clocks_before.sm_mhz == 1755
    assert found.clocks_before.power_w is None
    assert found.clocks_before.temperature_c == 41
    assert (found.gpu, found.multiprocessors) == ("some GPU", 132)


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 9\n", "#!/bin/sh\necho No devices were found\n", "#!/bin/sh\n"])
def test_a_program_that_knows_nothing(nvidia_smi, script):
    nvidia_smi(script)
    assert clocks("GPU-1").model_dump() == dict.fromkeys(("sm_mhz", "memory_mhz", "power_w", "temperature_c"))


def test_no_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine(GPU).driver is None


def test_versions_of_what_is_installed():
    found = libraries()
    assert found["numba"].startswith("0.")
    assert "numpy" in found
