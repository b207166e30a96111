"""Data files that are missing, cut off, or hold what cannot be: place, rule and value, and nothing written."""

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from moesim.configs.loader import shipped
from moesim.workloads.routing_files import write_routing_profile, write_routing_trace
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_trace import DECODE, RoutingTrace

HEADER = "arrival_s,prompt_tokens,output_tokens\n"
ROW = '{"arrival_s": 0, "prompt_tokens": 9, "output_tokens": 3}\n'
REQUESTS = {
    "header only.csv": (HEADER, "", "must have at least one request"),
    "empty.csv": ("", "", "must start with a line of column names"),
    "empty.jsonl": ("", "", "must not be empty"),
    "cut.csv": (f"{HEADER}0,9,3\n1,9", ":3", "must have 3 fields"),
    "cut.jsonl": (f'{ROW}{{"arrival_s": 1, "prom', ":2", "must be a JSON object"),
    "nan.csv": (f"{HEADER}0,9,3\nnan,9,3\n", ":3: arrival_s", "must be finite and >= 0, got nan"),
    "nan.jsonl": (ROW + ROW.replace("0,", "NaN,"), ":2: arrival_s", "must be finite and >= 0, got nan"),
    "inf.csv": (f"{HEADER}0,9,3\ninf,9,3\n", ":3: arrival_s", "must be finite and >= 0, got inf"),
    "negative.csv": (f"{HEADER}-1,9,3\n", ":2: arrival_s", "must be finite and >= 0, got -1"),
    "not in order.csv": (f"{HEADER}5,9,3\n1,9,3\n", ":3: arrival_s", "earlier than in the row before, got 1"),
    "zero prompt.csv": (f"{HEADER}0,9,3\n1,0,3\n", ":3: prompt_tokens", "a whole number from 1 to 2147483647, got 0"),
    "zero output.csv": (f"{HEADER}0,9,3\n1,9,0\n", ":3: output_tokens", "a whole number from 1 to 2147483647, got 0"),
    "half.csv": (f"{HEADER}0,9.5,3\n", ":2: prompt_tokens", "a whole number from 1 to 2147483647, got 9.5"),
    "text.csv": (f"{HEADER}0,nine,3\n", ":2: prompt_tokens", "must be a number, got 'nine'"),
    "columns.csv": ("a,b\n1,2\n", ":1", "must have the columns arrival_s,prompt_tokens,output_tokens or"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_request_files(refused_run, folder, name):
    text, place, rule = REQUESTS[name]
    (folder / name).write_text(text)
    message = refused_run("--requests", name)
    assert message.startswith(f"{name}{place}: ")
    assert rule in message


def test_arrivals_that_the_clock_cannot_tell_apart(refused_run, folder):
    (folder / "late.csv").write_text(f"{HEADER}0,9,3\n1e17,9,3\n")
    message = refused_run("--requests", "late.csv")
    assert message.startswith("--requests: arrivals must lie within 1e+08 s of the start")
    assert message.endswith("got 1e+17")


@pytest.mark.parametrize(
    ("flag", "name", "place"),
    [
        ("--requests", "none.csv", "none.csv: no such file"),
        ("--requests", "none.yaml", "--requests: no such file, got 'none.yaml'"),
        ("--routing", "none.parquet", "none.parquet: no such file"),
        ("--routing", "none.npz", "none.npz: no such file"),
        ("--model", "./none/config.json", "--model: no such file, got 'none/config.json'"),
        ("--system", "none.yaml", "--system: no such file, got 'none.yaml'"),
        ("--placement", "none.json", "--placement: must be `contiguous` or an existing JSON file, got 'none.json'"),
    ],
)
def test_missing_files(refused_run, flag, name, place):
    assert refused_run(flag, name) == place


def test_a_missing_scenario(refused):
    assert refused("simulate", "none.yaml", "--out", "run") == "none.yaml: no such file"


# --- routing -----------------------------------------------------------------------------------------------------


def trace(layers=2, experts=8, top_k=2, requests=3, steps=4):
    tokens = requests * steps
    order = np.argsort(np.random.default_rng(0).random((tokens, layers, experts)), axis=-1)
    return RoutingTrace(
        model="tiny-moe",
        experts=experts,
        source="made for tests",
        names=tuple(f"r{index}" for index in range(requests)),
        groups=("",) * requests,
        first_decode_position=np.full(requests, 5),
        request=np.repeat(np.arange(requests, dtype=np.int32), steps),
        position=np.tile(np.arange(5, 5 + steps, dtype=np.int32), requests),
        phase=np.full(tokens, DECODE, np.uint8),
        expert=order[..., :top_k].astype(np.uint8),
    )


@pytest.fixture
def trace_file(folder):
    write_routing_trace(trace(), folder / "trace.parquet")
    return folder / "trace.parquet"


def test_a_whole_trace_is_replayed(moesim, trace_file):
    outcome = moesim("simulate", "tiny.yaml", "--requests", "trace", "--routing", trace_file, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out)["results"]["requests"] == 3


@pytest.mark.parametrize(("start", "stop"), [(0, 0.5), (0.5, 1), (0, 0)], ids=["end lost", "start lost", "no bytes"])
def test_a_trace_that_is_cut_off(refused_run, trace_file, start, stop):
    data = trace_file.read_bytes()
    trace_file.write_bytes(data[round(start * len(data)) : round(stop * len(data))])
    message = refused_run("--requests", "trace", "--routing", "trace.parquet")
    assert message.startswith("trace.parquet: cannot be read (")


def test_a_trace_without_tokens(refused_run, trace_file):
    pq.write_table(pq.read_table(trace_file).slice(0, 0), trace_file)
    message = refused_run("--requests", "trace", "--routing", "trace.parquet")
    assert message == "trace.parquet: a trace must have tokens, layers and ranks, got (0, 2, 2)"


def test_an_expert_out_of_range(refused_run, trace_file):
    table = pq.read_table(trace_file)
    about = json.loads(table.schema.metadata[b"moesim.routing_trace"]) | {"experts": 4}
    pq.write_table(table.replace_schema_metadata({b"moesim.routing_trace": json.dumps(about)}), trace_file)
    message = refused_run("--requests", "trace", "--routing", "trace.parquet")
    assert message.startswith("trace.parquet: request r0, row 0: expert ids must be below 4, got ")


@pytest.mark.parametrize("shape", [{"layers": 3}, {"experts": 16}, {"top_k": 3}], ids=str)
def test_a_trace_of_another_model(refused_run, folder, shape):
    write_routing_trace(trace(**shape), folder / "other.parquet")
    message = refused_run("--routing", "other.parquet")
    assert message.startswith("other.parquet: is routing of another model: it has ")
    assert message.endswith("the model has 2 MoE layers, top 2 of 8 experts")


def test_a_profile_that_is_cut_off(refused_run, folder):
    write_routing_profile(RoutingProfile.uniform(2, 8, 2), folder / "profile.npz")
    (folder / "profile.npz").write_bytes((folder / "profile.npz").read_bytes()[:-40])
    assert refused_run("--routing", "profile.npz").startswith("profile.npz: cannot be read (")


# --- placements --------------------------------------------------------------------------------------------------

ROWS = [list(range(8))] * 2
PLACEMENTS: dict[str, tuple[Any, str]] = {
    "cut off": ('{"model": "tiny-moe", "exp', "p.json: must be valid JSON"),
    "no object": ("[]", 'p.json: must be an object with the keys "model" and "experts"'),
    "other model": ({"model": "mixtral", "experts": ROWS}, "p.json: model: must be tiny-moe, got 'mixtral'"),
    "one layer": ({"experts": ROWS[:1]}, "p.json: experts: must have one row per MoE layer (2), got (1, 8)"),
    "no slots": ({"experts": [[], []]}, "p.json: experts: must be a table of expert numbers"),
    "ragged": (
        {"experts": [[0], [0, 1]]},
        "p.json: experts: must be a table of expert numbers, equally many per layer",
    ),
    "half": ({"experts": [[0.5] * 8] * 2}, "p.json: experts: must be a table of expert numbers"),
    "text": ({"experts": [["0"] * 8] * 2}, "p.json: experts: must be a table of expert numbers"),
    "negative": ({"experts": [[-1, *range(1, 8)]] * 2}, "p.json: experts[0]: experts must lie in 0 ... 7, got -1"),
    "too large": ({"experts": [ROWS[0], [*range(7), 8]]}, "p.json: experts[1]: experts must lie in 0 ... 7, got 8"),
    "missing": ({"experts": [[0] * 8] * 2}, "p.json: experts[0]: every expert needs a slot; none for expert, got 1"),
    "uneven": ({"experts": [[*range(8), 0]] * 2}, "p.json: experts: the slots per layer must divide over ep = 2 ranks"),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_placements(refused_run, folder, name):
    value, message = PLACEMENTS[name]
    text = value if isinstance(value, str) else json.dumps({"model": "tiny-moe"} | value)
    (folder / "p.json").write_text(text)
    found = refused_run("--system", "h100-sxm-2", "--dp", "2", "--ep", "2", "--placement", "p.json")
    assert found.startswith(message)


def test_replicas_need_memory(refused_run, folder):
    (folder / "p.json").write_text(json.dumps({"model": "tiny-moe", "experts": [list(range(8)) * 100_000] * 2}))
    message = refused_run("--placement", "p.json")
    assert "tiny-moe needs 314.6 GB per device (weights 314.6" in message


# --- models and hardware -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["simulate", "tiny.yaml", "--model"], ["models", "show"]], ids=" ".join)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "mixtral"', "config.json:1:25: must be YAML"),
        ("[1]", "config.json:1:1: must be a mapping, got [1]"),
        ('{"model_type": "mixtrl"}', "config.json:1:2: model_type: must be one of"),
        ('{"model_type": "mixtral"}', "config.json:1:1: num_hidden_layers: required"),
    ],
    ids=["cut off", "list", "family", "incomplete"],
)
def test_model_configs(refused, folder, command, text, message):
    (folder / "config.json").write_text(text)
    assert refused(*command, "./config.json").startswith(message)


@pytest.fixture
def own_device(folder):
    """A system of the user's own, whose device has a bandwidth in the wrong unit."""
    device, system = (shipped_text(kind, "h100-sxm") for kind in ("devices", "systems"))
    line = next(line for line in device.splitlines() if "3.35 TB/s" in line)
    (folder / "dev.yaml").write_text(device.replace("3.35 TB/s", "3.35 TB"))
    (folder / "sys.yaml").write_text(system.replace("device: h100-sxm", "device: ./dev.yaml"))
    return f"dev.yaml:{device.splitlines().index(line) + 1}:"


def shipped_text(kind, name):
    from moesim.configs import loader

    assert name in shipped(kind)
    return (loader._HERE / kind / f"{name}.yaml").read_text()


@pytest.mark.parametrize(
    "command",
    [
        ["simulate", "tiny.yaml", "--system", "sys.yaml"],
        ["hardware", "show", "sys.yaml"],
        ["hardware", "show", "./dev.yaml"],
    ],
    ids=" ".join,
)
def test_a_device_with_a_wrong_unit(refused, own_device, command):
    message = refused(*command)
    assert message.startswith(own_device)
    assert message.endswith(
        "processors.gpu.dram_bandwidth.value: must be a quantity in bytes/s, such as 3.35 TB/s; TB is in bytes, "
        "got '3.35 TB'"
    )


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (["models", "show", "mixtral-8x70b"], ["did you mean `mixtral-8x7b`?", "got 'mixtral-8x70b'"]),
        (["hardware", "show", "h100-smx-4"], ["hardware: ", "did you mean `h100-sxm`?", "got 'h100-smx-4'"]),
        (["hardware", "show", "h100-sxm-9"], ["h100-sxm-9: ", "multiple of 8 (whole nodes), got 9"]),
        (["hardware", "show", "none.yaml"], ["none.yaml: no such file"]),
        (["models", "show", "./none.json"], ["none.json: no such file"]),
    ],
    ids=" ".join,
)
def test_unknown_models_and_hardware(refused, command, parts):
    message = refused(*command)
    assert all(part in message for part in parts), message
