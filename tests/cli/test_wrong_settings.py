"""Flags, `--set` and scenario files that break a rule: place, rule and value, all at once, and nothing written."""

import subprocess
import sys

import pytest

FLAGS = [
    (["--num-requests", "0"], "--num-requests: must be >= 1, got 0"),
    (["--num-requests", "-3"], "--num-requests: must be >= 1, got -3"),
    (["--num-requests", "1000000000000"], "--num-requests: must be <= 100000000, got 1000000000000"),
    (["--concurrency", "0"], "--concurrency: must be > 0, got 0"),
    (["--concurrency", "-1"], "--concurrency: must be > 0, got -1"),
    (["--tp", "0"], "--tp: must be > 0, got 0"),
    (["--dp", "-1"], "--dp: must be > 0, got -1"),
    (["--ep", "0"], "--ep: must be > 0, got 0"),
    (["--fast-forward", "0"], "--fast-forward: must be > 0, got 0"),
    (["--pp", "0"], "--pp: must be > 0, got 0"),
    (["--pp", "2"], "--pp: dp * tp * pp must be the 1 devices of h100-sxm-1, got 2"),
    (["--replicas", "0"], "--replicas: must be > 0, got 0"),
    (
        ["--load-balancing", "cache_aware"],
        "--load-balancing: cache_aware needs scheduler.prefix_caching, got 'cache_aware'",
    ),
    (["--seed", "-1"], "--seed: must be >= 0, got -1"),
    (["--tp", "2"], "--tp: dp * tp must be the 1 devices of h100-sxm-1, got 2"),
    (["--timeline", "--out", "tiny.yaml"], "tiny.yaml: must be a folder, and is a file"),
]
NAMES = [
    (["--model", "mixtrl-8x7b"], "--model: ", "did you mean `mixtral-8x7b`?", "got 'mixtrl-8x7b'"),
    (["--system", "h100-smx-4"], "--system: ", "did you mean `h100-sxm`?", "got 'h100-smx-4'"),
    (["--requests", "quickstrt"], "--requests: ", "did you mean `quickstart`?", "got 'quickstrt'"),
    (["--routing", "unifrm"], "--routing: ", "did you mean `uniform`?", "got 'unifrm'"),
    (["--engine", "compild"], "--engine: ", "did you mean `compiled`?", "got 'compild'"),
    (["--load-balancing", "round_robbin"], "--load-balancing: ", "did you mean `round_robin`?", "got 'round_robbin'"),
    (["--placement", "contigous"], "--placement: ", "`contiguous` or an existing JSON file", "got 'contigous'"),
    (["--model", "a: b"], "--model: ", "shipped names", "got 'a: b'"),
    (["--model", ""], "--model: ", "shipped names", "got ''"),
    (["--routing", "zipf:steep"], "--routing: ", "must be a number", "got 'steep'"),
    (["--system", "h100-sxm-9"], "--system: ", "a multiple of 8 (whole nodes)", "got 9"),
]
ASSIGNMENTS = [
    ("modle=mixtral-8x7b", "--set modle: unknown key; did you mean `model`?"),
    ("scheduler.token_budgt=8", "--set scheduler.token_budgt: unknown key; did you mean `token_budget`?"),
    ("scheduler.host_overhead_s=3 TB", "--set scheduler.host_overhead_s: must be a quantity in s", "got '3 TB'"),
    ("scheduler.memory_utilization=.nan", "--set scheduler.memory_utilization: must be finite", "got nan"),
    ("system.devices_per_node=8 GB", "--set system.devices_per_node: must be a whole number", "got '8 GB'"),
    ("system.device.memory_capacity.value=80 GB/s", "must be a quantity in bytes", "got '80 GB/s'"),
    ("requests.rate_per_s=3 GB", "--set requests.rate_per_s: must be a quantity in 1/s", "got '3 GB'"),
    ("requests.prompt_tokens=0", "--set requests.prompt_tokens: must be > 0, got 0"),
    ("requests.output_tokens={kind: uniform, min: 0, max: 0}", "at least one request", "all 4 draws had a zero length"),
    ("requests=trace", "--set requests: requests of kind trace need routing that is a trace"),
    ("pools={a: {role: prefil}}", "--set pools: pools.a.role: ", "did you mean `prefill`?"),
    (
        "pools={a: {role: decode}}",
        "--set pools: the roles must be all `both`, or `prefill` of some and `decode` of the",
    ),
    ("replicas=3", "must be the 1 devices of h100-sxm-1, got 3"),
    ("parallelism=3", "--set parallelism: must be a mapping, got 3"),
    ("placement=3", "--set placement: must be text, got 3"),
    ("model=3", "--set model: must be text, or must be a mapping, got 3"),
    ("model={name: x", "--set model:1:9: must be YAML"),
    ("tp", "--set tp: must read `key.subkey=value`"),
]


@pytest.mark.parametrize(("arguments", "message"), FLAGS, ids=" ".join)
def test_flags_are_named_as_they_were_typed(refused_run, arguments, message):
    assert refused_run(*arguments) == message


@pytest.mark.parametrize("row", NAMES, ids=lambda row: " ".join(row[0]))
def test_unknown_names_suggest_the_nearest(refused_run, row):
    arguments, *parts = row
    message = refused_run(*arguments)
    assert message.startswith(parts[0])
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("row", ASSIGNMENTS, ids=lambda row: row[0])
def test_assignments_that_break_a_rule(refused_run, row):
    assignment, *parts = row
    message = refused_run("--set", assignment)
    assert all(part in message for part in parts), message


def test_all_flags_at_once(refused_run):
    message = refused_run("--tp", "0", "--seed", "-1", "--engine", "fast", "--set", "sed=3")
    assert {line.partition(":")[0] for line in message.splitlines()} == {"--tp", "--engine", "--seed", "--set sed"}


def test_all_references_at_once(refused_run):
    message = refused_run("--model", "x", "--system", "y", "--requests", "z", "--routing", "w")
    found = {line.partition(":")[0] for line in message.splitlines()}
    assert found == {"--model", "--system", "--requests", "--routing"}


def test_requests_of_a_trace_that_is_missing_are_one_error(refused_run):
    assert refused_run("--requests", "trace", "--routing", "none.parquet") == "none.parquet: no such file"


def test_an_unknown_scenario(refused):
    message = refused("simulate", "quickstat", "--out", "run")
    assert "did you mean `quickstart`?" in message
    assert "got 'quickstat'" in message


def test_all_broken_rules_of_a_file_at_once(refused, folder):
    (folder / "wrong.yaml").write_text(
        "model: 5\nsystm: h100-sxm-1\nrequests: quickstart\nparallelism: {tp: 0, epp: 3}\n"
        "scheduler:\n  async_host: 3\nseed: -3\n"
    )
    assert refused("simulate", "wrong.yaml", "--out", "run").splitlines() == [
        "wrong.yaml:1:1: model: must be text, or must be a mapping, got 5",
        "wrong.yaml:1:1: system: required",
        "wrong.yaml:2:1: systm: unknown key; did you mean `system`?",
        "wrong.yaml:4:15: parallelism.tp: must be > 0, got 0",
        "wrong.yaml:4:22: parallelism.epp: unknown key; did you mean `pp` or `ep`?",
        "wrong.yaml:6:3: scheduler.async_host: must be true or false, got 3",
        "wrong.yaml:7:1: seed: must be >= 0, got -3",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "wrong.yaml: must not be empty"),
        ("model: tiny\nrequests: {kind: synth", "wrong.yaml:2:23: must be YAML"),
        ("- model\n", "wrong.yaml:1:1: must be a mapping, got ['model']"),
        ("model", "wrong.yaml:1:1: must be a mapping, got 'model'"),
        ("model: a\nmodel: b\n", "wrong.yaml:2:1: key 'model' stands here for the second time"),
    ],
    ids=["empty", "cut off", "list", "text", "twice"],
)
def test_files_that_are_no_scenario(refused, folder, text, message):
    (folder / "wrong.yaml").write_text(text)
    assert refused("simulate", "wrong.yaml", "--tp", "1", "--out", "run").startswith(message)


@pytest.mark.parametrize(
    ("arguments", "rules"),
    [
        (["--tp", "3"], ["dp * tp must be the 4 devices", "tp must divide the 8 attention heads, got tp = 3"]),
        (["--tp", "16"], ["dp * tp must be the 4 devices", "tp must divide the 8 attention heads, got tp = 16"]),
        (["--dp", "4", "--ep", "3"], ["`ep` must divide dp * tp = 4 devices, got ep = 3"]),
        (["--dp", "2"], ["dp * tp must be the 4 devices of h100-sxm-4, got 2"]),
        (["--tp", "4", "--set", "model.layers.0.pattern.0.ffn.intermediate=130"], ["must divide the expert width 130"]),
    ],
    ids=lambda value: " ".join(value[:4]),
)
def test_parallelism_that_does_not_fit(refused_run, arguments, rules):
    message = refused_run("--system", "h100-sxm-4", *arguments)
    assert all(rule in message for rule in rules), message


def test_the_default_parallelism_is_blamed_on_the_system(refused_run):
    message = refused_run("--system", "h100-sxm-3")
    assert message.splitlines()[0] == "--system: parallelism: tp must divide the 8 attention heads, got tp = 3"


def test_experts_cannot_be_spread_or_placed_in_a_dense_model(refused_run):
    dense = ("--model", "llama-3.1-8b", "--system", "h100-sxm-2")
    assert "llama-3.1-8b is dense (ep = 2)" in refused_run(*dense, "--dp", "2", "--ep", "2")
    assert refused_run(*dense, "--placement", "p.json").startswith("--placement: a placement needs routed experts")


def test_a_model_that_does_not_fit_names_the_smallest_parallelism_that_does(refused_run):
    message = refused_run("--model", "mixtral-8x7b")
    assert "parallelism tp=1 dp=1 ep=1: mixtral-8x7b needs 9" in message
    assert message.endswith("but h100-sxm-1 offers 77.3 GB; the smallest that fits is 2 devices with tp=2 dp=1 ep=1")


def test_numbers_out_of_all_bounds_do_not_become_results(refused_run):
    message = refused_run("--set", "system.device.processors.gpu.dram_energy.value=1e300", "--json")
    assert message.startswith("results: ")
    assert "must be finite" in message


def test_a_timeline_needs_a_folder(refused):
    assert refused("simulate", "tiny.yaml", "--timeline") == "--timeline: needs --out DIR, where the trace is saved"


@pytest.mark.parametrize(
    ("out", "rule"),
    [
        ("tiny.yaml", "must be a folder, and is a file"),
        ("tiny.yaml/run", "must be in a folder that can be written"),
        (".", "it holds other files"),
        ("empty/..", "it holds other files"),
        ("link", "it holds other files"),
    ],
)
def test_places_where_no_result_can_be_saved(refused, folder, out, rule):
    (folder / "empty").mkdir()
    (folder / "thesis").mkdir()
    (folder / "thesis/chapter1.tex").write_text("precious")
    (folder / "link").symlink_to(folder / "thesis")
    message = refused("simulate", "tiny.yaml", "--out", out)
    assert rule in message
    assert message.split(": ")[0] in {out, "."}


def test_the_working_folder_is_not_replaced_under_the_shell(refused, folder, monkeypatch):
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder / "empty")
    assert "the working folder" in refused("simulate", "../tiny.yaml", "--out", ".")


def test_names_that_no_file_system_takes(refused):
    name = "x" * 300
    for arguments in (["latency", name, "-o", "a.png"], ["trace", "attention", name], ["simulate", "--out", name]):
        assert refused(*arguments).endswith("(File name too long)")


def test_keys_that_an_edit_makes_are_its_own(refused_run):
    assert refused_run("--set", "shedule.token_budget=9").startswith("--set shedule.token_budget: shedule: unknown key")
    assert refused_run("--set", "pools.a.role=decode").startswith("--set pools.a.role: pools: the roles must be")


@pytest.mark.parametrize(
    "arguments",
    [["--fast"], ["--tp", "x"], ["--set"], ["tiny.yaml", "more.yaml"], ["--num-requests", "1.5"]],
    ids=" ".join,
)
def test_usage_errors_of_the_command_line_itself(moesim, arguments):
    outcome = moesim("simulate", *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "─ Error ─" in outcome.err


def test_an_unknown_command(moesim):
    outcome = moesim("simulte")
    assert outcome.code == 2
    assert outcome.out == ""
    assert "No such command 'simulte'" in outcome.err


def test_a_real_process_says_one_line_and_no_traceback(folder):
    command = [sys.executable, "-c", "from moesim.cli import main; main()", "simulate", "tiny.yaml", "--seed", "-1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: --seed: must be >= 0, got -1\n")


POOLS = """\
pools:
  prompts: {role: prefill, parallelism: {tp: 1}, scheduler: {prefix_caching: true}}
  rest: {role: decode, parallelism: {tp: 1}}
"""


def test_flags_that_every_pool_overrules(refused_run, folder):
    (folder / "tiny.yaml").write_text((folder / "tiny.yaml").read_text() + POOLS)
    message = refused_run("--tp", "2")
    rule = "changes nothing, every pool has its own parallelism; edit that with --set pools.prompts.parallelism"
    assert message == f"--tp: {rule}"
    assert "needs requests with `hash_ids`" in refused_run("--scheduler", "sglang")  # `rest` takes that


def test_errors_of_a_pool_name_the_pool(refused_run, folder):
    (folder / "tiny.yaml").write_text((folder / "tiny.yaml").read_text() + POOLS)
    assert refused_run().startswith("tiny.yaml:6:62: pools.prompts.scheduler.prefix_caching: needs requests")


def test_replicas_that_do_not_divide_the_devices_are_the_ones_to_blame(refused_run):
    assert refused_run("--replicas", "3") == "--replicas: dp * tp * replicas must be the 1 devices of h100-sxm-1, got 3"
