"""What a person reads after a simulation."""

import os
import re
import subprocess
import sys

import pytest

MOE = ["simulate", "tiny.yaml"]
WORDS = [
    "TTFT",
    "ITL",
    "TPOT",
    "E2E",
    "p99",
    "output tokens/s",
    "J per output token",
    "W per device",
    "utilisation",
    "KV cache",
    "expert load",
    "where the time goes",
    "experts",
    "attention",
]


@pytest.mark.parametrize("columns", [80, 120])
def test_everything_that_matters_in_plain_text_that_fits(moesim, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome = moesim(*MOE)
    assert (outcome.code, outcome.err) == (0, "")
    assert [word for word in WORDS if word not in outcome.out] == []
    assert max(map(len, outcome.out.splitlines())) <= min(columns, 80)


def test_plain_text_has_no_control_codes_and_no_spaces_at_the_ends_of_lines(moesim):
    text = moesim(*MOE).out
    assert not re.search(r"[^\S\n]\n", text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert text.endswith("\n")


def test_a_terminal_gets_colours(moesim, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in moesim(*MOE).out


def test_the_headline_names_what_was_simulated(moesim):
    first, second = moesim("simulate", "--num-requests", "3", "--requests", "azure-code-like").out.splitlines()[:2]
    assert first == "gpt-oss-20b on h100-sxm-1, tp=1 dp=1 ep=1"
    assert second == "3 requests (azure-code-like), open loop; routing gpt-oss-20b"


def test_the_headline_says_when_routing_is_that_of_another_model(moesim):
    second = moesim(*MOE, "--concurrency", "2", "--routing", "gpt-oss-20b").out.splitlines()[1]
    assert second == "4 requests (synthetic), closed loop of 2; routing gpt-oss-20b (adapted)"


def test_files_are_named_without_their_folder(moesim, folder):
    (folder / "deep").mkdir()
    (folder / "deep/day.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,9,3\n")
    assert "1 requests (day.csv)" in moesim(*MOE, "--requests", "deep/day.csv").out


def test_a_dense_model_has_no_routing_and_no_experts(moesim):
    text = moesim(*MOE, "--model", "llama-3.1-8b").out
    assert "routing" not in text
    assert "expert" not in text


def test_undefined_latencies_are_dashes(moesim):
    text = moesim(*MOE, "--set", "requests.output_tokens=1").out
    assert re.search(r"TPOT .* -\s+-\s+-\s+-\n", text)


def test_several_devices_are_counted_per_device(moesim):
    text = moesim(*MOE, "--system", "h100-sxm-2", "--dp", "2", "--ep", "2").out
    assert re.search(r"throughput +[\d,]+ output tokens/s, [\d,]+ per device\n", text)
    assert re.search(r"busiest rank [\d.]+x\n", text)


def test_dropped_requests_are_mentioned(moesim):
    lengths = "requests.output_tokens={kind: uniform, min: 0, max: 2}"
    assert "of zero length dropped" in moesim(*MOE, "--set", lengths, "--set", "requests.num_requests=50").out


def test_shares_of_time_sum_to_one(moesim):
    table = moesim(*MOE).out.partition("where the time goes")[2]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", table)]
    assert sum(shares) == pytest.approx(100, abs=0.06 * len(shares))


def test_the_folder_is_named_at_the_end(moesim, folder):
    assert moesim(*MOE, "--out", "run").out.endswith(f"saved to {folder / 'run'}\n")


@pytest.mark.usefixtures("plain")
def test_an_output_without_unicode_gets_marks_in_place_of_bars():
    command = [sys.executable, "-c", "from moesim.cli import main; main()", *MOE]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "where the time goes" in done.stdout
    assert "??????" in done.stdout
