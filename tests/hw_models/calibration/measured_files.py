"""Files of `moesim measure` as a GPU with known parameters would give them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moesim.hw_models.calibration.measured_file import read_measured_kernels
from moesim.hw_models.gpu import GPU
from moesim.hw_models.measure.measured import About, Machine, MeasuredKernels, Measurement, write_measured
from moesim.hw_models.measure.problem import Problem


def write_as_measured(
    path: Path, problems: Sequence[Problem], gpu: GPU, noise: float = 0.0, multiprocessors: int = 0
) -> None:
    """Write `problems` as solved by torch on `gpu`, each time off by a normal factor of spread `noise`."""
    count = multiprocessors or int(gpu.config.multiprocessors.value)
    machine = Machine(
        gpu="made up",
        compute_capability="9.0",
        multiprocessors=count,
        l2_bytes=50_000_000,
        memory_bytes=80_000_000_000,
        libraries={"torch": "2.13.0"},
    )
    about = About(machine=machine, moesim="0.1.0", started="2026-01-01", seed=0, planned=len(problems))
    write_measured(MeasuredKernels(about, tuple(_row(problem, 1e-3) for problem in problems)), path)
    sets = read_measured_kernels(path)
    by_kernel: dict[str, list[float]] = {}
    for found in sets:
        by_kernel.setdefault(found.source.kernel.split()[0], []).extend(gpu.price(found.table).time_s.tolist())
    names = {"gemm": "gemm", "expert_ffn": "experts", "copy": "copy"}
    times = {kernel: iter(values) for kernel, values in by_kernel.items()}
    factors = np.exp(np.random.default_rng(0).normal(0.0, noise, len(problems)))
    rows = [_row(one, next(times[names[one.kernel]]) * factor) for one, factor in zip(problems, factors, strict=True)]
    write_measured(MeasuredKernels(about, tuple(rows)), path)


def _row(problem: Problem, time_s: float) -> Measurement:
    return Measurement(
        kernel=problem.kernel,
        implementation="torch",
        dtype=problem.dtype,
        shape=problem.shape,
        lengths=problem.lengths,
        **problem.work._asdict(),
        buffer_sets=2,
        launches=5,
        samples_s=(float(time_s),),
        error=0.0,
    )
