"""`moesim measure` on machines without a GPU, and with one that the test plays."""

import json
from collections.abc import Callable

import pytest

from moesim.hw_models.measure import cuda, runner
from moesim.hw_models.measure.cuda import Gpu
from moesim.hw_models.measure.measured import Measurement, Skipped, read_measured
from moesim.hw_models.measure.suite import Planned

GPU = Gpu("played GPU", "GPU-0", "9.0", 132, 50_000_000, 80_000_000_000)


@pytest.fixture
def played_gpu(monkeypatch):
    """A GPU that measures nothing: outcomes come from the list that this fixture returns."""
    outcomes: list[Callable[[Planned], Measurement | Skipped]] = []

    def measure(planned, *_arguments: object):
        for one, outcome in zip(planned, outcomes, strict=False):
            yield outcome(one)

    monkeypatch.setattr(cuda, "why_no_gpu", lambda: None)
    monkeypatch.setattr(cuda, "describe", lambda: GPU)
    monkeypatch.setattr(cuda, "GpuTimer", lambda: None)
    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.setenv("PATH", "")
    return outcomes


def measured(planned):
    problem = planned.problem
    return Measurement(
        kernel=problem.kernel,
        implementation=planned.implementation,
        dtype=problem.dtype,
        shape=problem.shape,
        lengths=problem.lengths,
        **problem.work._asdict(),
        buffer_sets=2,
        launches=5,
        samples_s=(1e-3, 2e-3, 3e-3),
        error=0.0,
    )


def skipped(planned):
    problem = planned.problem
    return Skipped(
        kernel=problem.kernel,
        implementation=planned.implementation,
        dtype=problem.dtype,
        shape=problem.label,
        reason="too large",
    )


def interrupted(_planned):
    raise KeyboardInterrupt


ARGUMENTS = ("measure", "--quick", "--only", "copy", "--by", "moesim", "--out", "mine.parquet")


def test_without_a_gpu(refused, monkeypatch):
    monkeypatch.setattr(cuda, "why_no_gpu", lambda: "no NVIDIA driver was found")
    message = refused("measure", "--out", "mine.parquet")
    assert message == "moesim measure: needs an NVIDIA GPU on this machine; no NVIDIA driver was found"


@pytest.mark.skipif(cuda.why_no_gpu() is None, reason="this machine has a GPU")
def test_on_this_machine_without_a_gpu(refused):
    assert refused("measure").startswith("moesim measure: needs an NVIDIA GPU on this machine; ")


@pytest.mark.usefixtures("played_gpu")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "mine.csv"], "--out mine.csv: must end in .parquet"),
        (["--out", "none/mine.parquet"], "none/mine.parquet: the folder must exist, got 'none'"),
        (["--only", "gem"], "--only: must be some of copy, "),
        (["--by", "cublas"], "--by: must be some of moesim"),
        (["--only", "prefill_attention", "--by", "moesim"], "--only and --by: must leave something to measure"),
    ],
)
def test_wrong_arguments(refused, arguments, message):
    assert refused("measure", *arguments).startswith(message)


def test_the_list_needs_no_gpu(moesim, contents):
    before = contents()
    outcome = moesim("measure", "--list", "--quick", "--by", "moesim", "--json")
    rows = json.loads(outcome.out)["results"]["rows"]
    assert outcome.code == 0
    assert {row["implementation"] for row in rows} == {"moesim"}
    assert {"kernel": "copy", "dtype": "fp32", "shape": {"elements": 65536}}.items() <= rows[0].items()
    assert rows[0]["read_bytes"] == 4 * 65536
    text = moesim("measure", "--list", "--quick", "--by", "moesim").out
    assert f"{len(rows)} measurements" in text
    assert contents() == before


def test_a_run_saves_and_shows(moesim, folder, played_gpu):
    played_gpu += [measured, skipped]
    outcome = moesim(*ARGUMENTS)
    assert outcome.code == 0
    assert "played GPU" in outcome.out
    assert "2.00 ms" in outcome.out
    assert "262 M" in outcome.out  # 524,288 bytes in 2 ms
    assert "not measured: copy by moesim, elements=67108864: too large" in outcome.out
    assert outcome.out.endswith("saved to mine.parquet\n")
    contents = read_measured(folder / "mine.parquet")
    assert contents.is_complete
    assert contents.about.machine.gpu == "played GPU"
    assert [row.median_s for row in contents.rows] == [2e-3]


def test_json(moesim, played_gpu):
    played_gpu += [measured, measured]
    shown = json.loads(moesim(*ARGUMENTS, "--json").out)
    assert shown["output"] == "mine.parquet"
    assert [row["median_s"] for row in shown["results"]["rows"]] == [2e-3, 2e-3]
    assert shown["results"]["about"]["machine"]["gpu"] == "played GPU"


def test_an_interrupt_keeps_what_was_measured(moesim, folder, played_gpu):
    played_gpu += [measured, interrupted]
    outcome = moesim(*ARGUMENTS)
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.startswith("mine.parquet holds 1 of 2 measurements\n")
    contents = read_measured(folder / "mine.parquet")
    assert len(contents.rows) == 1
    assert not contents.is_complete


def test_an_interrupt_before_the_first_measurement_writes_nothing(moesim, contents, played_gpu):
    before = contents()
    played_gpu.append(interrupted)
    assert moesim(*ARGUMENTS).code == 130
    assert contents() == before


def test_nothing_could_be_measured(refused, played_gpu):
    played_gpu += [skipped, skipped]
    assert refused(*ARGUMENTS) == "moesim measure: nothing could be measured, got 'too large'"
