"""`moesim sweep`: a table of a grid, or one error and nothing written."""

import csv
import json

import pytest


def test_a_grid_becomes_a_table(moesim, folder):
    done = moesim("sweep", "tiny.yaml", "--set", "seed=0,1", "--set", "concurrency=1,2", "-o", "s.csv", "--workers", 1)
    assert (done.code, done.err) == (0, "")
    assert "TTFT p50" in done.out
    rows = list(csv.DictReader((folder / "s.csv").read_text().splitlines()))
    assert [(row["seed"], row["concurrency"]) for row in rows] == [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2")]
    assert all(float(row["output_tokens_per_s"]) > 0 for row in rows)


def test_processes_give_the_same_numbers_and_kept_runs_are_reused(moesim, folder):
    arguments = ("sweep", "tiny.yaml", "--set", "seed=0,1,2", "--json")
    one = json.loads(moesim(*arguments, "--workers", 1).out)["results"]
    two = json.loads(moesim(*arguments, "--workers", 2, "--runs", "runs").out)["results"]
    again = json.loads(moesim(*arguments, "--workers", 2, "--runs", "runs").out)["results"]
    assert one == two == again
    assert len(list((folder / "runs").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["tiny.yaml", "--set", "seed=1,-1"], "--set seed: must be >= 0, got -1"),
        (["tiny.yaml", "--set", "seeds=1,2"], "--set seeds: unknown key; did you mean `seed`?"),
        (["tiny.yaml", "--set", "seed=1", "--workers", "0"], "--workers: must be >= 1, got 0"),
        (["tiny.yaml", "--set", "seed=1", "-o", "s.xlsx"], "must end in .csv"),
        (["tiny.yaml", "--set", "seed=1", "-o", "none/s.csv"], "the folder must exist"),
        (
            ["tiny.yaml", "--set", "seed=1,2", "--runs", "tiny.yaml"],
            "--runs tiny.yaml: must be a folder, and is a file",
        ),
        (["quickstrt", "--set", "seed=1"], "did you mean `quickstart`?"),
    ],
)
def test_wrong_input_is_one_error_and_writes_nothing(moesim, contents, arguments, rule):
    before = contents()
    done = moesim("sweep", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert rule in done.err
    assert done.err.count("\n") == 1
    assert contents() == before
