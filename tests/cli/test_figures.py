"""`moesim roofline` and `moesim latency`."""

import json
import os
from pathlib import Path

import pytest

ROOFLINE = ("roofline", "--model", "./tiny-moe.yaml", "--hardware", "h100-sxm,h200-sxm")


@pytest.fixture
def run(moesim):
    """A saved simulation."""
    assert moesim("simulate", "tiny.yaml", "--out", "run").code == 0
    return "run"


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_roofline(moesim, folder, suffix):
    outcome = moesim(*ROOFLINE, "--batch", "4, 1", "-o", f"figure.{suffix}")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"saved to figure.{suffix}\n", "")
    assert (folder / f"figure.{suffix}").stat().st_size > 0


def test_roofline_as_json_holds_what_is_drawn(moesim, folder):
    outcome = moesim(*ROOFLINE, "--batch", "1,4", "--context", "100", "--tp", "2", "-o", "figure.svg", "--json")
    document = json.loads(outcome.out)
    assert document["out"] == "figure.svg"
    assert (folder / "figure.svg").exists()
    assert document["settings"]["batches"] == [1, 4]
    devices = document["results"]["devices"]
    assert [device["device"] for device in devices] == document["settings"]["hardware"] == ["h100-sxm", "h200-sxm"]
    for point in devices[0]["points"]:
        assert point["intensity_flops_per_byte"] == pytest.approx(point["flops"] / point["bytes"])
        assert point["attained_flops_per_s"] == pytest.approx(point["flops"] / point["time_s"])
        assert point["attained_flops_per_s"] <= point["roof_flops_per_s"]


@pytest.mark.parametrize("figure", ["steps", "layers", "devices", "latency", "all"])
def test_latency(moesim, folder, run, figure):
    outcome = moesim("latency", run, "-o", "figure.svg", "--figure", figure)
    assert (outcome.code, outcome.out, outcome.err) == (0, "saved to figure.svg\n", "")
    assert (folder / "figure.svg").stat().st_size > 0


def test_latency_as_json_agrees_with_the_summary(moesim, folder, run):
    document = json.loads(moesim("latency", run, "-o", "figure.svg", "--json").out)
    summary = json.loads((folder / run / "summary.json").read_text())
    facts = document["results"]["run"]
    assert facts["steps"]["step_mean_s"] == pytest.approx(summary["step_mean_s"])
    assert facts["devices"]["compute_fraction"] == pytest.approx([summary["compute_utilization"]])
    assert sum(facts["latency"]["ttft_s"]) / summary["requests"] == pytest.approx(summary["ttft_mean_s"])
    by_operator = facts["steps"]["time_per_step_by_operator_s"]
    for name, time_s in by_operator.items():
        assert time_s * summary["steps"] == pytest.approx(summary[f"time_{name}_s"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hardware", "h100-smx"], "--hardware: must be a path or one of"),
        (["--hardware", "h100-smx"], "did you mean `h100-sxm`?"),
        (["--hardware", "h100-sxm,,a100-sxm"], "--hardware: must be 1 to 6 names separated by commas"),
        (["--hardware", ""], "--hardware: must be 1 to 6 names"),
        (["--hardware", "./none.yaml"], "--hardware: no such file"),
        (["--model", "gpt-oss-20"], "did you mean `gpt-oss-20b`"),
        (["--batch", "0"], "--batch: must be whole numbers above 0"),
        (["--batch", "-4"], "--batch: must be whole numbers above 0"),
        (["--batch", "1.5"], "--batch: must be whole numbers above 0"),
        (["--batch", "1,many"], "--batch: must be whole numbers above 0, separated by commas, such as 1,16,128"),
        (["--batch", ""], "--batch: must be whole numbers above 0"),
        (["--batch", "9" * 30], "--batch: must be whole numbers above 0"),
        (["--batch", "99999999"], "batch: must be a whole number from 1 to 1,048,576, got 99999999"),
        (["--batch", ",".join(map(str, range(1, 12)))], "--batch: must be at most 10 batch sizes, got 11"),
        (["--context", "9999999"], "context: must be a whole number from 1"),
        (["--prompt", "9999999"], "prompt: must be a whole number from 1"),
        (["--tp", "3"], "--tp: tp must divide the 8 attention heads"),
        (["-o", "figure.pdf"], "figure.pdf: a figure must end in .png or .svg, got '.pdf'"),
        (["-o", "missing/figure.svg"], "missing/figure.svg: the folder must exist, got 'missing'"),
        (["-o", "tiny.yaml/figure.svg"], "tiny.yaml/figure.svg: the folder must exist"),
    ],
)
def test_roofline_refuses(refused, arguments, message):
    assert message in refused(*ROOFLINE, "-o", "figure.svg", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: must be a folder that a simulation saved"),
        (["tiny.yaml"], "tiny.yaml: must be a folder that a simulation saved"),
        (["run", "run"], "RUN: every run must be given once, got 'run'"),
        (["run", "./run/../run"], "RUN: every run must be given once"),
        (["run", "--figure", "step"], "--figure: must be one of steps, layers, devices, latency, all, got 'step'"),
        (["run", "-o", "figure.jpg"], "figure.jpg: a figure must end in .png or .svg"),
        (["run", "-o", "missing/figure.svg"], "missing/figure.svg: the folder must exist"),
        (["run", "-o", "run"], "run: a figure must end in"),
    ],
)
@pytest.mark.usefixtures("run")
def test_latency_refuses(refused, arguments, message):
    assert message in refused("latency", "-o", "figure.svg", *arguments)


def test_a_broken_run_is_refused(refused, folder, run):
    (folder / run / "devices.parquet").write_bytes(b"PAR1")
    assert "must hold complete files of a result" in refused("latency", run, "-o", "figure.svg")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is unwritable for root")
def test_an_unwritable_folder_is_refused(refused, folder):
    (folder / "locked").mkdir(mode=0o555)
    assert "the folder must be writable" in refused(*ROOFLINE, "-o", "locked/figure.svg")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="/proc is Linux's")
def test_a_folder_that_takes_no_files_is_refused(refused):
    message = refused(*ROOFLINE, "-o", "/proc/figure.svg")
    assert message.startswith("/proc/figure.svg: ")


@pytest.mark.parametrize("arguments", [["latency", "-o", "figure.svg"], ["latency", "run"], ["roofline"]])
def test_what_is_required_is_asked_for(moesim, folder, arguments):
    outcome = moesim(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert "Missing" in outcome.err
    assert not (folder / "figure.svg").exists()
