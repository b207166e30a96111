"""Checks and times benchmarks, one after the other."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from moesim.hw_models.measure.benchmark import Benchmark, Buffers, CannotBeMeasuredError
from moesim.hw_models.measure.measured import Measurement, Skipped
from moesim.hw_models.measure.problem import TOLERANCE, Inputs, relative_error, sampled_rows
from moesim.hw_models.measure.suite import Planned

Timer = Callable[[Callable[[], None], int], float]
"""Takes what queues a launch and how many to queue; returns mean seconds of a launch (see `cuda.GpuTimer`)."""

_L2_TURNOVERS = 3
"""The sets of buffers together are at least so many times as large as the L2 cache."""
_MOST_SETS = 64
_QUEUE = 800
"""Kernels that may wait in a stream; it takes 1,024 before it makes the host wait."""
_MEMORY_SHARE = 0.8
"""Of the free memory, for buffers."""


class Device(Protocol):
    """What the runner needs to know of a GPU."""

    @property
    def l2_bytes(self) -> int:
        """Size of the L2 cache."""
        ...

    def free_bytes(self) -> int:
        """Free memory."""
        ...


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        repeats: samples per benchmark.
        sample_s: seconds of work behind a sample, at least.
        most_launches: launches behind a sample, at most.
        warm_up_s: seconds of work before the first sample.
        seed: of the random inputs.
    """

    repeats: int = 20
    sample_s: float = 2e-3
    most_launches: int = 100
    warm_up_s: float = 5e-2
    seed: int = 0


def measure(
    planned: Iterable[Planned], build: Callable[[Planned], Benchmark], device: Device, timer: Timer, effort: Effort
) -> Iterator[Measurement | Skipped]:
    """The outcome of each plan, in order: a measurement, or why there is none.

    Args:
        planned: what to measure.
        build: makes the benchmark.
        device: what fits on the GPU.
        timer: takes the time.
        effort: how long to measure.
    """
    for plan in planned:
        try:
            outcome: Measurement | Skipped = _measurement(build(plan), device, timer, effort)
        except Exception as failure:  # noqa: BLE001 - drivers and libraries raise all kinds; the run goes on without it
            outcome = _skipped(plan, failure)
        yield outcome


def _measurement(benchmark: Benchmark, device: Device, timer: Timer, effort: Effort) -> Measurement:
    problem, work = benchmark.problem, benchmark.problem.work
    rng = np.random.default_rng(effort.seed)
    inputs = problem.inputs(rng)
    set_bytes = max(work.moved_bytes, float(sum(array.nbytes for array in inputs.values())))
    sets = buffer_sets(work.moved_bytes, set_bytes, device)
    if sets == 0:
        raise CannotBeMeasuredError(f"needs {set_bytes / 1e9:.3g} GB of GPU memory")
    buffers = [benchmark.make_buffers(inputs)]
    error, tolerance = _error(benchmark, buffers[0], inputs, rng), TOLERANCE[problem.dtype]
    if not error <= tolerance:
        raise CannotBeMeasuredError(f"wrong result: error {error:.2g}, tolerance {tolerance:.2g}")
    buffers += [benchmark.make_buffers(inputs) for _ in range(sets - 1)]
    launches, samples_s = _samples(benchmark, buffers, timer, effort)
    return Measurement(
        kernel=problem.kernel,
        implementation=benchmark.implementation,
        dtype=problem.dtype,
        shape=problem.shape,
        lengths=problem.lengths,
        **work._asdict(),
        buffer_sets=sets,
        launches=launches,
        samples_s=samples_s,
        error=error,
    )


def buffer_sets(moved_bytes: float, set_bytes: float, device: Device) -> int:
    """Sets of buffers to take in turn: enough to drive each other out of the L2 cache, and that fit in memory.

    Args:
        moved_bytes: what a launch touches.
        set_bytes: memory of a set.
        device: its L2 cache and free memory.

    Returns:
        0 if not even one set fits; else at most 64.
    """
    fitting = math.floor(_MEMORY_SHARE * device.free_bytes() / max(set_bytes, 1.0))
    wanted = max(2, math.ceil(_L2_TURNOVERS * device.l2_bytes / max(moved_bytes, 1.0)))
    return min(fitting, wanted, _MOST_SETS)


def _error(benchmark: Benchmark, buffers: Buffers, inputs: Inputs, rng: np.random.Generator) -> float:
    """Error of one launch, on some rows."""
    rows = sampled_rows(benchmark.problem, rng)
    benchmark.launch(buffers)
    return relative_error(benchmark.result(buffers)[rows], benchmark.problem.reference(inputs, rows))


def _samples(
    benchmark: Benchmark, buffers: list[Buffers], timer: Timer, effort: Effort
) -> tuple[int, tuple[float, ...]]:
    """Launches behind each sample, and the samples."""
    most = max(1, min(effort.most_launches, _QUEUE // benchmark.kernels_per_launch))
    turns = itertools.cycle(buffers)  # goes on from sample to sample

    def launch() -> None:
        benchmark.launch(next(turns))

    estimate_s = timer(launch, min(len(buffers), most))
    warm = math.ceil(effort.warm_up_s / max(estimate_s, 1e-9))
    while warm > 0:
        timer(launch, min(warm, most))
        warm -= most
    estimate_s = timer(launch, min(len(buffers), most))
    launches = max(1, min(math.ceil(effort.sample_s / max(estimate_s, 1e-9)), most))
    return launches, tuple(timer(launch, launches) for _ in range(effort.repeats))


def _skipped(plan: Planned, failure: Exception) -> Skipped:
    problem = plan.problem
    lines = str(failure).strip().splitlines()
    reason = lines[0] if lines else type(failure).__name__
    names = {"kernel": problem.kernel, "implementation": plan.implementation, "dtype": problem.dtype}
    return Skipped(**names, shape=problem.label, reason=reason)
