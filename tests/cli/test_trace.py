"""`moesim trace`: statistics on the screen, in JSON and in a folder; imports; and what is refused."""

import csv
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from moesim.workloads.importers import FORMATS
from moesim.workloads.routing_files import is_profile, read_routing_profile, read_routing_trace, write_routing_trace
from tests.workloads.random_traces import random_trace


@pytest.fixture
def trace(folder):
    """`trace.parquet` of two domains in the working folder."""
    made = random_trace(lengths=(30, 20, 25), experts=8, layers=3, groups=("code", "facts", "code"))
    write_routing_trace(made, folder / "trace.parquet")
    return made


@pytest.mark.usefixtures("trace")
def test_statistics_on_the_screen(moesim, contents):
    before = contents()
    done = moesim("trace", "stats", "trace.parquet")
    assert (done.code, done.err) == (0, "")
    assert "75 of 3 requests in 2 groups" in done.out
    assert "max / mean load" in done.out
    assert "4 devices" in done.out
    assert contents() == before


def test_statistics_as_json_agree_with_the_trace(moesim, trace):
    document = json.loads(moesim("trace", "stats", "trace.parquet", "--json", "--devices", "2,8", "--seed", 3).out)
    assert document["settings"]["trace"] == "trace.parquet"
    assert document["out"] is None
    summary, tables = document["results"]["summary"], document["results"]["tables"]
    load = trace.loads()
    assert summary["max_over_mean_mean"] == pytest.approx((load.max(axis=1) / load.mean(axis=1)).mean())
    assert tables["load"]["tokens"] == load.ravel().tolist()
    assert tables["places"]["count"] == [2, 8]
    assert tables["domains"]["domain"] == ["code"]
    assert summary["cls_256_mean"] is None


@pytest.mark.parametrize("kind", ["png", "svg", "none"])
@pytest.mark.usefixtures("trace")
def test_a_report(moesim, folder, kind):
    done = moesim("trace", "stats", "trace.parquet", "--out", "report", "--figures", kind)
    assert (done.code, done.err) == (0, "")
    assert "saved to report; begin with report/summary.md" in done.out
    page = (folder / "report/summary.md").read_text()
    assert page.startswith("# Routing of random\n")
    drawn = [path.name for path in (folder / "report").glob(f"*.{kind}")]
    assert len(drawn) == (0 if kind == "none" else 6)
    assert all(f"({name})" in page for name in drawn)
    with (folder / "report/layers.csv").open() as file:
        assert [row["layer"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    assert json.loads((folder / "report/summary.json").read_text())["summary"]["tokens"] == 75
    with np.load(folder / "report/matrices.npz") as matrices:
        assert matrices["transitions"].shape == (2, 8, 8)


@pytest.mark.usefixtures("trace")
def test_a_report_again_keeps_other_files_and_gives_the_same_bytes(moesim, folder):
    assert moesim("trace", "stats", "trace.parquet", "--out", "report", "--figures", "none").code == 0
    first = {path.name: path.read_bytes() for path in (folder / "report").iterdir()}
    (folder / "report/notes.txt").write_text("mine")
    arguments = ("--out", "report", "--figures", "none", "--threads", 1)
    assert moesim("trace", "stats", "trace.parquet", *arguments).code == 0
    again = {path.name: path.read_bytes() for path in (folder / "report").iterdir()}
    assert again.pop("notes.txt") == b"mine"
    first.pop("matrices.npz"), again.pop("matrices.npz")  # archives hold the time of writing
    assert again == first


@pytest.mark.usefixtures("trace")
def test_one_group(moesim):
    summary = json.loads(moesim("trace", "stats", "trace.parquet", "--json", "--group", "code").out)["results"][
        "summary"
    ]
    assert (summary["requests"], summary["tokens"]) == (2, 55)


def test_a_placement_on_devices_and_nodes(moesim, folder):
    made = random_trace(lengths=(40,), layers=2, experts=8)
    write_routing_trace(made, folder / "tiny.parquet")
    (folder / "loads.csv").write_text("8,1,1,1,1,1,1,1\n1,1,1,1,1,1,1,8\n")
    asked = ("--loads", "loads.csv", "--devices", 4, "--slots", 12, "--model", "./tiny-moe.yaml", "--out", "p.json")
    assert moesim("search", "placement", *asked).code == 0
    arguments = ("--devices", 4, "--placement", "p.json", "--nodes", 2, "--model", "./tiny-moe.yaml", "--json")
    rows = json.loads(moesim("trace", "stats", "tiny.parquet", *arguments).out)["results"]["tables"]["places"]
    assert rows["places"] == ["4 devices, p.json", "2 nodes, p.json"]
    assert rows["reached_mean"][1] <= rows["reached_mean"][0] <= 2


@pytest.mark.usefixtures("trace")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.parquet"], "none.parquet: no such file"),
        (["tiny.yaml"], "tiny.yaml: a routing trace must be a .parquet or .npz file"),
        (["trace.parquet", "--figures", "pdf"], "--figures: must be one of png, svg, none, got 'pdf'"),
        (["trace.parquet", "--out", "tiny.yaml"], "tiny.yaml: must be a folder, and is a file"),
        (["trace.parquet", "--out", "trace.parquet/b"], "trace.parquet/b: must be in a folder that can be written to"),
        (["trace.parquet", "--group", "maths"], "--group: must be one of code, facts, got 'maths'"),
        (["trace.parquet", "--windows", "0"], "--windows: must be at least 1, got 0"),
        (["trace.parquet", "--threads", "0"], "--threads: must be at least 1, got 0"),
        (["trace.parquet", "--devices", "0"], "--devices: must be whole numbers above 0"),
        (["trace.parquet", "--devices", "16"], "--devices: must be at most the 8 experts, got 16"),
        (["trace.parquet", "--nodes", "2"], "--devices: must be given with --placement and --nodes"),
        (["trace.parquet", "--devices", "4,8", "--nodes", "2"], "--devices: must be one number"),
        (["trace.parquet", "--devices", "4", "--nodes", "3"], "--nodes: must divide the 4 devices, got 3"),
    ],
)
def test_statistics_refuse(refused, arguments, message):
    assert message in refused("trace", "stats", *arguments)


def test_a_truncated_trace_and_a_pickle_are_refused(refused, folder, trace):
    assert trace.tokens
    whole = (folder / "trace.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    assert refused("trace", "stats", "cut.parquet").startswith("cut.parquet: cannot be read")
    (folder / "dump.pt").write_bytes(pickle.dumps(1))
    assert refused("trace", "stats", "dump.pt").startswith("dump.pt: is a pickle")


def test_a_shipped_model_has_all_its_layers(refused, moesim, folder):
    made = random_trace(lengths=(3,), layers=31, experts=8)
    write_routing_trace(replace(made, model="mixtral-8x7b"), folder / "less.parquet")
    message = "less.parquet: model mixtral-8x7b: is routing of another model: it has 31 MoE layers, top 2 of 8 experts"
    assert refused("trace", "stats", "less.parquet").startswith(message)
    assert refused("trace", "import", "less.parquet", "--format", "trace", "-o", "t.parquet").startswith(message)
    assert not (folder / "t.parquet").exists()
    assert moesim("trace", "stats", "less.parquet", "--model", "part-of-mixtral").code == 0


def test_import_of_a_trace(moesim, folder):
    tokens = []
    for position in (4, 5):
        layers = {
            f"layer_{layer}": {"selected_experts": [1, position], "selected_probs": [0.5, 0.5]} for layer in range(2)
        }
        tokens.append({f"token_{position}": layers})
    (folder / "s.json").write_text(json.dumps({"dataset": "facts", "router_data": tokens}))
    flags = ("--model", "mine", "--experts", 8, "--licence", "CC0", "--capture", "dtype=bf16")
    done = moesim("trace", "import", "s.json", "--format", "fingerprint", *flags, "-o", "t.parquet")
    assert (done.code, done.err) == (0, "")
    assert "trace: model mine, moe_layers 2, experts 8, top_k 2, requests 1, tokens 2" in done.out
    found = read_routing_trace(folder / "t.parquet")
    assert (found.licence, found.capture["dtype"], found.source) == ("CC0", "bf16", str(folder / "t.parquet"))


def test_import_of_a_profile(moesim, folder):
    (folder / "loads.csv").write_text("1,2,3,2\n2,2,2,2\n")
    arguments = ("--format", "loads", "--top-k", 2, "--model", "mine", "-o", "p.npz", "--json")
    document = json.loads(moesim("trace", "import", "loads.csv", *arguments).out)
    assert document["results"]["kind"] == "profile"
    assert is_profile(folder / "p.npz")
    assert read_routing_profile(folder / "p.npz").popularity[0].tolist() == [0.125, 0.25, 0.375, 0.25]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loads.csv", "--format", "csv", "-o", "p.npz"], "--format: must be one of sglang, vllm"),
        (["loads.csv", "--format", "loads", "-o", "p.npz"], "--top-k: must be given, because neither the files"),
        (["loads.csv", "--format", "loads", "--top-k", "2", "-o", "p.parquet"], "--out: must end in .npz, because"),
        (["loads.csv", "--format", "loads", "--top-k", "2", "-o", "p.csv"], "--out: must end in .parquet (trace) or"),
        (["loads.csv", "--format", "loads", "--top-k", "2", "-o", "a/p.npz"], "a/p.npz: the folder must exist"),
        (["loads.csv", "--format", "loads", "--top-k", "9", "-o", "p.npz"], "--top-k: must be from 1 to 4"),
        (["loads.csv", "--format", "loads", "--capture", "x", "-o", "p.npz"], "--capture: must be KEY=VALUE, got 'x'"),
        (["dump.pt", "--format", "sglang", "-o", "p.npz"], "dump.pt: is a pickle, which can run code"),
    ],
)
def test_import_refuses(refused, folder, arguments, message):
    (folder / "loads.csv").write_text("1,2,3,2\n2,2,2,2\n")
    (folder / "dump.pt").write_bytes(pickle.dumps(1))
    assert message in refused("trace", "import", *arguments)


def test_help_lists_all_formats(moesim):
    text = " ".join(moesim("trace", "import", "--help").out.replace("│", " ").split())
    assert ", ".join(list(FORMATS)[:-1]) + " or trace" in text
