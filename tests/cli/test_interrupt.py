"""Ctrl-C while simulating and while saving: exit code 130, a short message, and nothing half done on disk."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from moesim.simulator.result import load_result

# Children of a shell's background job ignore Ctrl-C, hence the handler; the line says that the simulation has begun.
SCRIPT = """
import signal
import moesim.cli.simulate as command
from moesim.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
simulate = command.run
def run(*arguments, **options):
    print("simulating", flush=True)
    return simulate(*arguments, **options)
command.run = run
main()
"""
MESSAGE = "interrupted; unfinished work is not written\n"


@pytest.mark.usefixtures("plain")
def test_a_long_simulation_stops_at_once(contents):
    before = contents()
    long = ["--num-requests", "3000", "--concurrency", "1", "--set", "requests={kind: synthetic, num_requests: 3000, "]
    long[-1] += "prompt_tokens: 100, output_tokens: 1000}"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "simulate", "tiny.yaml", *long, "--out", "out/run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "simulating\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", MESSAGE)
    assert contents() == before


@pytest.fixture
def interrupted_at_second_table(monkeypatch):
    tables = []
    write = pq.write_table

    def write_one(table, *arguments: Any, **options: Any):
        tables.append(table)
        if len(tables) > 1:
            raise KeyboardInterrupt
        write(table, *arguments, **options)

    monkeypatch.setattr(pq, "write_table", write_one)
    return tables


def test_saving_leaves_nothing_half_written(moesim, folder, interrupted_at_second_table):
    outcome = moesim("simulate", "tiny.yaml", "--out", "run")
    assert len(interrupted_at_second_table) == 2
    assert (outcome.code, outcome.out, outcome.err) == (130, "", MESSAGE)
    assert sorted(path.name for path in folder.iterdir()) == ["tiny-moe.yaml", "tiny.yaml"]


def test_saving_keeps_the_earlier_result(moesim, contents, request):
    moesim("simulate", "tiny.yaml", "--out", "run")
    before = contents()
    request.getfixturevalue("interrupted_at_second_table")
    assert moesim("simulate", "tiny.yaml", "--seed", "1", "--out", "run").code == 130
    assert contents() == before


def test_the_earlier_result_comes_back_when_the_new_one_cannot_take_its_place(moesim, folder, monkeypatch):
    moesim("simulate", "tiny.yaml", "--out", "run")
    rename = Path.rename

    def stop_at_fresh(path, target):
        if path.name == "fresh":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop_at_fresh)
    assert moesim("simulate", "tiny.yaml", "--seed", "1", "--out", "run").code == 130
    assert load_result(folder / "run").settings["seed"] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["run", "tiny-moe.yaml", "tiny.yaml"]


def test_a_disk_that_is_full_is_an_input_error(refused, monkeypatch):
    def full(*_arguments: object, **_options: object):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    assert refused("simulate", "tiny.yaml", "--out", "run") == "run: cannot be written (No space left on device)"
