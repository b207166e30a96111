"""The one module that touches CUDA through numba. Import it lazily: it pulls in numba.

numba's own `numba.cuda` and NVIDIA's package `numba-cuda` (which takes its place where it is installed) offer the same
names. With `NUMBA_ENABLE_CUDASIM=1` in the environment, kernels run in numba's simulator, which keeps no time.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numba
import numpy as np
from numba import float32, int32

__all__ = ["Gpu", "GpuTimer", "cuda", "describe", "empty", "float32", "int32", "to_device", "why_no_gpu"]

cuda: Any = import_module("numba.cuda")  # kernels see the module itself; type checkers see none of its incomplete types


_CALIBRATION_ITERATIONS = 1 << 18
_LONGEST_DELAY_S = 0.1
_TRIES = 5


@dataclass(frozen=True)
class Gpu:
    """Facts about a GPU that its driver tells."""

    name: str
    uuid: str
    compute_capability: str
    multiprocessors: int
    l2_bytes: int
    memory_bytes: int

    @staticmethod
    def free_bytes() -> int:
        """Memory of the current GPU that is free, once libraries have given back what they keep for later."""
        context = cuda.current_context()
        context.deallocations.clear()
        torch, cupy = (sys.modules.get(name) for name in ("torch", "cupy"))
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if cupy is not None:
            cupy.get_default_memory_pool().free_all_blocks()
        return int(context.get_memory_info()[0])


def why_no_gpu() -> str | None:
    """Why nothing can be timed on this machine; None if it can."""
    if getattr(numba.config, "ENABLE_CUDASIM", 0):
        return "the CUDA simulator keeps no time (unset NUMBA_ENABLE_CUDASIM)"
    error = cuda.cuda_error()
    if error is not None:
        return f"no NVIDIA driver was found ({_first_sentence(str(error))})"
    if not cuda.is_available():
        return "the driver is there, but no GPU, or no CUDA compiler for numba (pip install 'moesim[cuda12]')"
    return None


def describe() -> Gpu:
    """The current GPU."""
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    major, minor = device.compute_capability
    return Gpu(
        name=name,
        uuid=str(device.uuid),
        compute_capability=f"{major}.{minor}",
        multiprocessors=int(device.MULTIPROCESSOR_COUNT),
        l2_bytes=int(device.L2_CACHE_SIZE),
        memory_bytes=int(cuda.current_context().get_memory_info()[1]),
    )


def to_device(array: np.ndarray[Any, Any]) -> Any:
    """A copy of `array` on the GPU."""
    return cuda.to_device(np.ascontiguousarray(array))


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array on the GPU with arbitrary contents."""
    return cuda.device_array(shape, dtype)


class GpuTimer:
    """Seconds that launches take on the GPU, as its own clock has it.

    Python takes longer to launch a small kernel than the GPU to run it. So the GPU is first kept busy, for as long as
    it takes to queue everything; then it runs the start event, all launches and the end event without a gap. This is
    what a kernel costs inside a CUDA graph or a busy stream. All work is on the default stream, which cupy and torch
    use too.
    """

    def __init__(self) -> None:
        self._sink = to_device(np.ones(1, np.float32))
        _spin[1, 1](1, self._sink)
        spun_s = self._elapsed(lambda: _spin[1, 1](_CALIBRATION_ITERATIONS, self._sink))
        self._iterations_per_s = _CALIBRATION_ITERATIONS / spun_s

    def __call__(self, launch: Callable[[], None], launches: int) -> float:
        """Mean seconds of a launch.

        Args:
            launch: queues one launch.
            launches: how many to queue.

        Raises:
            RuntimeError: the GPU ran dry before everything was queued, however long it was kept busy.
        """
        for attempt in range(_TRIES):
            start, end = cuda.event(), cuda.event()
            delay_s = min(4**attempt * (1e-4 + 5e-5 * launches), _LONGEST_DELAY_S)
            cuda.synchronize()
            _spin[1, 1](int(delay_s * self._iterations_per_s), self._sink)
            start.record()
            for _ in range(launches):
                launch()
            end.record()
            was_queued_in_time = not start.query()
            end.synchronize()
            if was_queued_in_time:
                return float(start.elapsed_time(end)) * 1e-3 / launches
        raise RuntimeError("the host queues launches more slowly than the GPU runs them")

    @staticmethod
    def _elapsed(work: Callable[[], None]) -> float:
        """Seconds between here and the end of `work`, by the host's clock, which suffices to size the delay."""
        cuda.synchronize()
        before = time.perf_counter()
        work()
        cuda.synchronize()
        return max(time.perf_counter() - before, 1e-9)


@cuda.jit
def _spin(iterations: int, sink: Any) -> None:
    """Keep one thread busy with a chain of dependent operations that no compiler can shorten."""
    value = sink[0]
    for _ in range(iterations):
        value = value * float32(0.999999) + float32(1e-6)
    sink[0] = value


def _first_sentence(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    useful = [line for line in lines if not line.endswith(":")]
    return (useful or lines or ["no reason given"])[0].rstrip(".")
