"""`moesim search placement`: a file that `moesim simulate --placement` uses, or one error and nothing written."""

import json

import numpy as np
import pytest

SKEWED = [600, 560, 120, 120, 20, 10, 10, 10]
TINY = [[6, 1, 1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 3, 3, 4, 4]]


@pytest.fixture
def tables(folder):
    """Tables of loads in the working folder: `skewed.json`, and `tiny.csv` for the two layers of tiny-moe."""
    (folder / "skewed.json").write_text(json.dumps(SKEWED))
    (folder / "tiny.csv").write_text("\n".join(",".join(map(str, row)) for row in TINY))
    (folder / "nan.csv").write_text("1,2\nnan,4\n")
    (folder / "negative.csv").write_text("1,2\n3,-4\n")
    (folder / "zero.csv").write_text("1,2\n0,0\n")
    (folder / "ragged.csv").write_text("1,2\n3\n")
    (folder / "empty.csv").write_text("")
    (folder / "existing.json").write_text("keep me")
    return folder


@pytest.mark.usefixtures("tables")
def test_the_summary_compares_with_what_is_common(moesim):
    done = moesim("search", "placement", "--loads", "skewed.json", "--devices", 8, "--slots", 16)
    assert (done.code, done.err) == (0, "")
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line.strip()}
    assert rows["contiguous"][1] == "3.2000"
    assert rows["eplb"][3] == "232.000"
    assert rows["auto"][3:5] == ["196.667", "0.000%"]
    assert rows["bound"][3] == "196.667"
    assert "status: optimal, gap 0.0000%" in done.out


@pytest.mark.usefixtures("tables")
def test_json_has_the_layers_and_units(moesim):
    arguments = ("--loads", "tiny.csv", "--devices", 4, "--slots", 12, "--method", "milp", "--gap", 0)
    done = moesim("search", "placement", *arguments, "--json")
    assert done.err == ""
    value = json.loads(done.out)
    results = value["results"]
    assert value["settings"]["slots"] == 12
    assert results["status"] == "optimal"
    assert results["gap_fraction"] == 0
    assert results["bound_tokens"] == results["objective_tokens"]
    assert results["objective_tokens"] == sum(row["max_load_tokens"] for row in results["per_layer"])
    assert results["layers_by_status"] == {"optimal": 2}
    for row, loads in zip(results["per_layer"], TINY, strict=True):
        assert row["mean_load_tokens"] == sum(loads) / 4
        assert row["bound_tokens"] <= row["max_load_tokens"] <= row["eplb_max_load_tokens"]
        assert len(row["experts"]) == 12
        assert set(row["experts"]) == set(range(8))


def test_the_file_is_used_by_simulate(moesim, tables):
    arguments = ("--loads", "tiny.csv", "--devices", 2, "--slots", 10, "--model", "./tiny-moe.yaml", "--out", "p.json")
    done = moesim("search", "placement", *arguments)
    assert done.code == 0
    assert "--ep 2 --placement p.json" in done.out
    document = json.loads((tables / "p.json").read_text())
    assert document["model"] == "tiny-moe"
    assert np.array(document["experts"]).shape == (2, 10)
    assert [layer["status"] for layer in document["layers"]] == ["optimal", "optimal"]
    ranks = ("--system", "h100-sxm-2", "--dp", 2, "--ep", 2, "--json")
    plain = json.loads(moesim("simulate", "tiny.yaml", *ranks).out)["results"]
    placed = json.loads(moesim("simulate", "tiny.yaml", *ranks, "--placement", "p.json").out)["results"]
    assert placed["output_tokens"] == plain["output_tokens"]
    assert placed["rank_load_imbalance_mean"] != plain["rank_load_imbalance_mean"]


def test_a_shipped_profile_names_its_model(moesim, tables):
    arguments = ("--trace", "gpt-oss-20b", "--devices", 8, "--slots", 40, "--method", "lpt")
    results = json.loads(moesim("search", "placement", *arguments, "--out", "p.json", "--json").out)["results"]
    assert json.loads((tables / "p.json").read_text())["model"] == "gpt-oss-20b"
    assert results["imbalance_mean"] < 1.001
    assert 1.02 < results["eplb_imbalance_mean"] < results["contiguous_imbalance_mean"]
    for row in results["per_layer"]:
        assert row["max_load_tokens"] <= row["eplb_max_load_tokens"]


def test_equal_calls_write_equal_files(moesim, tables):
    arguments = ("--trace", "gpt-oss-20b", "--devices", 8, "--slots", 40, "--method", "lpt", "--out")
    moesim("search", "placement", *arguments, "a.json")
    moesim("search", "placement", *arguments, "b.json")
    assert (tables / "a.json").read_bytes() == (tables / "b.json").read_bytes()


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("method", ["contiguous", "eplb"])
def test_baselines_are_methods_too(moesim, method):
    arguments = ("--loads", "skewed.json", "--devices", 8, "--slots", 16, "--method", method, "--json")
    results = json.loads(moesim("search", "placement", *arguments).out)["results"]
    assert results["objective_tokens"] == results[f"{method}_objective_tokens"]


def test_a_solver_without_time_leaves_the_heuristic(moesim, tables):
    arguments = ("--trace", "gpt-oss-20b", "--devices", 8, "--time-limit", 0.01, "--out", "p.json", "--json")
    results = json.loads(moesim("search", "placement", *arguments).out)["results"]
    assert results["status"] == "time_limit_heuristic"
    assert 0 < results["gap_fraction"] < 0.01
    assert json.loads((tables / "p.json").read_text())["status"] == "time_limit_heuristic"


ON_8 = ("--loads", "skewed.json", "--devices", "8")


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((*ON_8, "--slots", "7"), "--slots: every one of 8 experts needs a slot, 1 too few, got 7"),
        ((*ON_8, "--slots", "20"), "--slots: must divide over 8 devices, 4 too many for that; 16 or 24 would, got 20"),
        ((*ON_8, "--slots", "72"), "one replica on each of 8 devices fill 64 slots, 8 too many, got 72"),
        (("--loads", "skewed.json", "--devices", "3"), "--slots: must divide over 3 devices"),
        (("--loads", "skewed.json", "--devices", "0"), "--devices: must be at least 1, got 0"),
        (("--loads", "nan.csv", "--devices", "1"), "nan.csv:2: column 1 must be a finite number >= 0, got nan"),
        (
            ("--loads", "negative.csv", "--devices", "1"),
            "negative.csv:2: column 2 must be a finite number >= 0, got -4.0",
        ),
        (("--loads", "zero.csv", "--devices", "1"), "zero.csv:2: a layer must have load"),
        (("--loads", "ragged.csv", "--devices", "1"), "ragged.csv:2: must have 2 loads"),
        (("--loads", "empty.csv", "--devices", "1"), "empty.csv: must have a row per layer"),
        (("--loads", "none.csv", "--devices", "1"), "none.csv: no such file"),
        (("--trace", "none.npz", "--devices", "1"), "none.npz: no such file"),
        (("--trace", "none.parquet", "--devices", "1"), "none.parquet: no such file"),
        (("--trace", "gpt-oss-20", "--devices", "1"), "gpt-oss-20b"),
        (("--trace", "skewed.json", "--devices", "1"), "skewed.json"),
        (("--trace", "uniform", "--devices", "1"), "uniform: must be a recorded trace or profile"),
        (("--devices", "8"), "--trace, --loads: one of them must be given, and only one"),
        ((*ON_8, "--trace", "gpt-oss-20b"), "--trace, --loads: one of them must be given, and only one"),
        ((*ON_8, "--time-limit", "0"), "--time-limit: must be a number of seconds > 0, got 0.0"),
        ((*ON_8, "--time-limit", "-1"), "--time-limit: must be a number of seconds > 0, got -1.0"),
        ((*ON_8, "--gap", "1"), "--gap: must be a fraction >= 0 and < 1, got 1.0"),
        ((*ON_8, "--method", "lptt"), "did you mean `lpt`?, got 'lptt'"),
        ((*ON_8, "--method", "nothing"), "--method: must be one of auto, milp, lpt, eplb, contiguous, got 'nothing'"),
        ((*ON_8, "--seed", "-1"), "--seed: must be >= 0, got -1"),
        ((*ON_8, "--out", "p.json"), "--model: must be given"),
        ((*ON_8, "--model", "mixtral-8x7b"), "skewed.json: must have 32 layers with 8 experts, as mixtral-8x7b has"),
        ((*ON_8, "--model", "mixtrl-8x7b"), "did you mean `mixtral-8x7b`?"),
        (("--trace", "gpt-oss-20b", "--devices", "8", "--out", "none/p.json"), "the folder must exist"),
        (("--trace", "gpt-oss-20b", "--devices", "8", "--out", "."), "must be a file"),
        (("--trace", "gpt-oss-20b", "--devices", "5", "--out", "existing.json"), "--slots: must divide over 5 devices"),
    ],
)
def test_wrong_input_is_one_error_and_writes_nothing(moesim, contents, arguments, rule):
    before = contents()
    done = moesim("search", "placement", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert rule in done.err
    assert done.err.count("\n") == 1
    assert contents() == before


def test_help_shows_examples(moesim):
    done = moesim("search", "placement", "--help")
    assert "moesim search placement --trace gpt-oss-20b --devices 8" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
