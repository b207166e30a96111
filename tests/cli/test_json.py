"""`--json`: one object on stdout, with what was asked and what came out, and nothing else."""

import json
import re

import pytest

from moesim.simulator.result import load_result

UNIT = re.compile(r"_(s|j|w|bytes|per_s|per_s_per_device|bytes_per_device|per_device_w|token_j)$")
RATIO = re.compile(
    r"(_fraction|_fraction_peak|_utilization|_imbalance|_imbalance_mean|sequences_per_step_mean|_of_90_percent)$"
)
COMMANDS = [
    ["simulate", "tiny.yaml"],
    ["simulate", "tiny.yaml", "--concurrency", "2", "--engine", "simpy"],
    ["models", "list"],
    ["models", "show", "gpt-oss-20b"],
    ["models", "show", "./tiny-moe.yaml"],
    ["hardware", "list"],
    ["hardware", "show", "h100-sxm"],
    ["hardware", "show", "h100-sxm-4"],
]


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


@pytest.fixture
def as_json(moesim):
    """A function that runs a command with `--json` and returns the object, which is all that it prints."""

    def run(*arguments: object):
        outcome = moesim(*arguments, "--json")
        assert (outcome.code, outcome.err) == (0, "")
        return json.loads(outcome.out, parse_constant=refuse_constant)

    return run


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_settings_and_results(as_json, command):
    value = as_json(*command)
    assert {"settings", "results"} <= value.keys()
    assert isinstance(value["settings"], dict)
    assert value["results"]


def test_numbers_have_units_in_their_keys(as_json):
    for key, value in as_json("simulate", "tiny.yaml")["results"].items():
        assert not isinstance(value, float) or UNIT.search(key) or RATIO.search(key), key


def test_undefined_values_are_null(as_json):
    results = as_json("simulate", "tiny.yaml", "--set", "requests.output_tokens=1")["results"]
    assert results["itl_p99_s"] is None
    assert results["tpot_mean_s"] is None
    assert results["ttft_mean_s"] > 0


def test_draws_of_zero_length_are_dropped_and_counted(as_json):
    lengths = ("requests.num_requests=50", "requests.output_tokens={kind: uniform, min: 0, max: 2}")
    results = as_json("simulate", "tiny.yaml", *(part for length in lengths for part in ("--set", length)))["results"]
    assert results["dropped_requests"] > 0
    assert results["requests"] + results["dropped_requests"] == 50


def test_settings_say_what_was_asked_for(as_json):
    settings = as_json("simulate", "tiny.yaml", "--seed", "7", "--set", "scheduler.token_budget=64")["settings"]
    assert settings["seed"] == 7
    assert settings["scheduler"]["token_budget"] == 64
    assert settings["resolved"]["model"] == "tiny-moe"


def test_assignments_come_after_flags(as_json):
    assert as_json("simulate", "tiny.yaml", "--seed", "7", "--set", "seed=8")["settings"]["seed"] == 8


def test_a_value_of_a_flag_stays_text(as_json, folder):
    (folder / "[1]: no.yaml").write_text((folder / "tiny-moe.yaml").read_text())
    assert as_json("simulate", "tiny.yaml", "--model", "[1]: no.yaml")["settings"]["model"] == "[1]: no.yaml"


def test_paths_on_the_command_line_start_from_the_working_folder(as_json, folder):
    (folder / "sub").mkdir()
    (folder / "sub/tiny.yaml").write_text((folder / "tiny.yaml").read_text().replace("./tiny", "../tiny"))
    (folder / "p.json").write_text(json.dumps({"model": "tiny-moe", "experts": [[7, *range(7)]] * 2}))
    settings = as_json("simulate", "sub/tiny.yaml", "--placement", "p.json")["settings"]
    assert settings["placement"] == "p.json"


def test_out_names_the_folder_and_holds_the_same(as_json, folder):
    value = as_json("simulate", "tiny.yaml", "--out", "out/run", "--timeline")
    assert value["out"] == str(folder / "out/run")
    saved = load_result(folder / "out/run")
    assert saved.summary == value["results"]
    assert saved.settings == value["settings"]
    assert saved.timeline
    assert [path.name for path in (folder / "out").iterdir()] == ["run"]


def test_both_engines_give_the_same_results(as_json):
    compiled, simpy = (as_json("simulate", "tiny.yaml", "--engine", engine) for engine in ("compiled", "simpy"))
    assert compiled["results"] == simpy["results"]


def test_values_of_hardware_have_units(as_json):
    parameters = {row["name"]: row for row in as_json("hardware", "show", "h100-sxm-4")["results"]["parameters"]}
    bandwidth = parameters["gpu.dram_bandwidth"]
    assert (bandwidth["value"], bandwidth["unit"]) == (3.35e12, "B/s")
    assert bandwidth["source"]
    assert parameters["intra_node.bandwidth"]["value"] == 450e9
