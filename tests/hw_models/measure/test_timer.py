"""How launches are timed and memory is counted, with a GPU that only notes what it is asked."""

import sys
from types import SimpleNamespace

import pytest

from moesim.hw_models.measure import cuda


class PlayedGpu:
    """Notes events, delays and launches in order. The start event is reached too early in the first so many tries."""

    def __init__(self, late_tries=0):
        self.log = []
        self.delays = []
        self._late_tries = late_tries

    def event(self):
        return PlayedEvent(self)

    def synchronize(self):
        self.log.append("wait")

    def is_late(self):
        self._late_tries -= 1
        return self._late_tries >= 0

    def __getitem__(self, _configuration):
        return self.spin

    def spin(self, iterations, _sink):
        self.log.append("spin")
        self.delays.append(iterations)


class PlayedEvent:
    def __init__(self, gpu):
        self._gpu = gpu

    def record(self):
        self._gpu.log.append("event")

    def query(self):
        return self._gpu.is_late()

    def synchronize(self):
        pass

    def elapsed_time(self, _end):
        return 6.0  # ms


@pytest.fixture
def played(monkeypatch):
    """A function that makes a timer on a played GPU, and returns both."""

    def make(late_tries=0):
        gpu = PlayedGpu(late_tries)
        monkeypatch.setattr(cuda, "cuda", gpu)
        monkeypatch.setattr(cuda, "_spin", gpu)
        monkeypatch.setattr(cuda, "to_device", lambda array: array)
        timer = cuda.GpuTimer()
        gpu.log.clear()
        gpu.delays.clear()
        return timer, gpu

    return make


def test_the_gpu_is_busy_until_everything_is_queued(played):
    timer, gpu = played()
    seconds = timer(lambda: gpu.log.append("launch"), 3)
    assert gpu.log == ["wait", "spin", "event", "launch", "launch", "launch", "event"]
    assert seconds == pytest.approx(2e-3)  # 6 ms for three launches


def test_a_late_host_gets_more_time(played):
    timer, gpu = played(late_tries=2)
    assert timer(lambda: None, 3) == pytest.approx(2e-3)
    assert gpu.delays[1] == pytest.approx(4 * gpu.delays[0], rel=0.01)
    assert gpu.delays[2] == pytest.approx(16 * gpu.delays[0], rel=0.01)


def test_a_host_that_is_always_late_gives_no_time(played):
    timer, _ = played(late_tries=100)
    with pytest.raises(RuntimeError, match="more slowly than the GPU runs them"):
        timer(lambda: None, 3)


@pytest.mark.parametrize("has_gpu", [True, False])
def test_memory_is_counted_once_libraries_have_given_it_back(monkeypatch, has_gpu):
    log: list[str] = []

    def count():
        log.append("count")
        return 5, 9

    deallocations = SimpleNamespace(clear=lambda: log.append("numba"))
    memory = SimpleNamespace(deallocations=deallocations, get_memory_info=count)
    pool = SimpleNamespace(free_all_blocks=lambda: log.append("cupy"))
    torch_cuda = SimpleNamespace(is_available=lambda: has_gpu, empty_cache=lambda: log.append("torch"))
    monkeypatch.setattr(cuda, "cuda", SimpleNamespace(current_context=lambda: memory))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=torch_cuda))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(get_default_memory_pool=lambda: pool))
    assert cuda.Gpu.free_bytes() == 5
    assert log == ["numba", *(["torch"] if has_gpu else []), "cupy", "count"]
