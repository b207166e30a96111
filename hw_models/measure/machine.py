"""Facts about the machine that was measured: driver, clocks, versions of libraries."""

import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from moesim.hw_models.measure.measured import Clocks, Machine

if TYPE_CHECKING:
    from moesim.hw_models.measure.cuda import Gpu

_LIBRARIES = ("numba", "numba-cuda", "llvmlite", "numpy", "torch", "cupy-cuda12x", "cupy-cuda13x", "cupy")
_PATIENCE_S = 20.0


def machine(gpu: "Gpu") -> Machine:
    """Everything that stays the same during a run, and the clocks now."""
    driver, sm, memory, limit = _ask(gpu.uuid, ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit"))
    return Machine(
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        multiprocessors=gpu.multiprocessors,
        l2_bytes=gpu.l2_bytes,
        memory_bytes=gpu.memory_bytes,
        driver=driver,
        max_sm_mhz=_number(sm),
        max_memory_mhz=_number(memory),
        power_limit_w=_number(limit),
        clocks_before=clocks(gpu.uuid),
        libraries=libraries(),
    )


def clocks(uuid: str) -> Clocks:
    """Clocks and power of a GPU at this moment."""
    fields = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
    sm, memory, power, temperature = map(_number, _ask(uuid, fields))
    return Clocks(sm_mhz=sm, memory_mhz=memory, power_w=power, temperature_c=temperature)


def libraries() -> dict[str, str]:
    """Versions of what computes here, without importing it."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _ask(uuid: str, fields: Sequence[str]) -> list[str | None]:
    """Answers of nvidia-smi, None for what it does not know (`[N/A]`) or where it does not run."""
    program = shutil.which("nvidia-smi")
    unknown: list[str | None] = [None] * len(fields)
    if program is None:
        return unknown
    command = [program, f"--id={uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return unknown
    lines = done.stdout.strip().splitlines()
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    if len(values) != len(fields):
        return unknown
    return [None if value.startswith("[") or not value else value for value in values]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
