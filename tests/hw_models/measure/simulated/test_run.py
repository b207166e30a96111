"""A whole run with the simulator for a GPU and a clock that the test winds."""

import numpy as np
import pytest

from moesim.hw_models.measure.cuda import empty
from moesim.hw_models.measure.measured import About, Clocks, Machine, Measurement, Skipped, read_measured
from moesim.hw_models.measure.memory_problems import Copy, RoutingHistogram, Triad
from moesim.hw_models.measure.problem import Problem
from moesim.hw_models.measure.recording import record
from moesim.hw_models.measure.runner import Effort, measure
from moesim.hw_models.measure.suite import Planned, build

EFFORT = Effort(repeats=5, sample_s=1e-3, most_launches=10, warm_up_s=2e-3)
LAUNCH_S = 2e-4


class Device:
    l2_bytes = 10_000

    def __init__(self, free_bytes=1_000_000):
        self._free_bytes = free_bytes

    def free_bytes(self):
        return self._free_bytes


class Timer:
    """Launches once whatever it is to time, and says that the n-th call took n per cent longer than 0.2 ms."""

    def __init__(self):
        self.calls = []

    def __call__(self, launch, launches):
        launch()
        self.calls.append(launches)
        return LAUNCH_S * (1 + 0.01 * len(self.calls))


@pytest.fixture
def timer():
    return Timer()


def about(planned):
    machine = Machine(
        gpu="simulator",
        compute_capability="5.0",
        multiprocessors=1,
        l2_bytes=10_000,
        memory_bytes=1_000_000,
        libraries={"numba": "0"},
    )
    return About(machine=machine, moesim="0", started="2026-01-01T00:00:00+00:00", seed=0, planned=planned)


def plans(*problems: Problem):
    return [Planned(problem, "moesim") for problem in problems]


def build_here(planned):
    return build(planned, 1)


def test_a_measurement_says_what_was_done(timer):
    (row,) = measure(plans(Triad(1000)), build_here, Device(), timer, EFFORT)
    assert isinstance(row, Measurement)
    assert (row.kernel, row.implementation, row.dtype) == ("triad", "moesim", "fp32")
    assert row.shape == {"elements": 1000}
    assert (row.flops, row.read_bytes, row.write_bytes) == (2000, 8000, 4000)
    assert row.buffer_sets == 3  # three caches of 10,000 bytes in sets of 12,000 bytes
    assert row.launches == 5  # a millisecond of launches that take a little over 0.2 ms
    assert timer.calls[-5:] == [5] * 5
    expected = [LAUNCH_S * (1 + 0.01 * call) for call in range(len(timer.calls) - 4, len(timer.calls) + 1)]
    np.testing.assert_allclose(row.samples_s, expected)
    assert row.median_s == expected[2]
    assert 0 < row.error < 1e-6


def test_what_does_not_fit_is_skipped_with_its_size(timer):
    (skipped,) = measure(plans(Copy(1000)), build_here, Device(free_bytes=9_999), timer, EFFORT)
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "needs 8e-06 GB of GPU memory"
    assert timer.calls == []


def test_a_wrong_result_is_never_timed(timer, monkeypatch):
    def build_wrong(planned):
        benchmark = build(planned, 1)
        monkeypatch.setattr(benchmark, "launch", lambda buffers: buffers["out"].copy_to_device(np.zeros(1000, "f4")))
        return benchmark

    (skipped,) = measure(plans(Copy(1000)), build_wrong, Device(), timer, EFFORT)
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "wrong result: error 1, tolerance 2e-05"
    assert timer.calls == []


def test_a_failing_kernel_does_not_stop_the_run(timer):
    def build_or_fail(planned):
        if planned.problem.kernel == "copy":
            raise RuntimeError("out of memory\nand more")
        return build(planned, 1)

    skipped, row = measure(plans(Copy(10), Triad(10)), build_or_fail, Device(), timer, EFFORT)
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "out of memory"
    assert isinstance(row, Measurement)


def test_the_file_grows_with_every_measurement(tmp_path, timer):
    path = tmp_path / "measured.parquet"
    planned = plans(Copy(100), Copy(10**6), RoutingHistogram(5, 4, 2))
    outcomes = measure(planned, build_here, Device(), timer, EFFORT)
    states = []
    for contents in record(about(3), outcomes, path, lambda: Clocks(sm_mhz=1000.0)):
        assert read_measured(path) == contents
        states.append((len(contents.rows), len(contents.about.skipped), contents.is_complete))
        assert (contents.about.machine.clocks_after.sm_mhz == 1000.0) == contents.is_complete
    assert states == [(1, 0, False), (1, 1, False), (2, 1, True)]


def test_an_interrupt_leaves_what_was_measured(tmp_path, timer):
    path = tmp_path / "measured.parquet"

    def build_or_interrupt(planned):
        if planned.problem.kernel == "triad":
            raise KeyboardInterrupt
        return build(planned, 1)

    outcomes = measure(plans(Copy(100), Triad(100)), build_or_interrupt, Device(), timer, EFFORT)
    with pytest.raises(KeyboardInterrupt):
        list(record(about(2), outcomes, path, Clocks))
    measured = read_measured(path)
    assert [row.kernel for row in measured.rows] == ["copy"]
    assert not measured.is_complete
    assert list(tmp_path.iterdir()) == [path]


def test_launches_take_the_sets_of_buffers_in_turn(timer, monkeypatch):
    seen = []

    def build_and_watch(planned):
        benchmark = build(planned, 1)
        launch = benchmark.launch

        def watched(buffers):
            seen.append(id(buffers["out"]))
            launch(buffers)

        monkeypatch.setattr(benchmark, "launch", watched)
        return benchmark

    (row,) = measure(plans(Copy(1000)), build_and_watch, Device(), timer, EFFORT)
    assert isinstance(row, Measurement)
    turns = seen[1:]  # the first launch is the check
    assert row.buffer_sets == 4
    assert len(set(turns)) == 4
    assert turns[4:] == turns[:-4]


def test_arrays_on_the_simulated_gpu_have_the_shape_asked_for():
    assert empty((2, 3), np.float16).shape == (2, 3)
