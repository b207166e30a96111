"""`moesim trace capture` from the shell: what it prints, what it writes, what it refuses."""

import json

import pytest

pytest.importorskip("torch", reason="needs the extra `capture`")
pytest.importorskip("transformers", reason="needs the extra `capture`")

from moesim.workloads.attention_trace import read_attention_trace
from moesim.workloads.routing_files import read_routing_trace

CONFIG = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture
def prepared(plain):
    """The working folder, with a model and a text."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("olmoe", **CONFIG)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(plain / "tiny-olmoe")
    (plain / "text.txt").write_text("to be or not to be, that is the question\n" * 3)
    return plain


COMMAND = ("trace", "capture", "--model", "tiny-olmoe", "--text", "text.txt", "--tokenizer", "bytes", "--prompt", "32")


def test_capture_with_attention(prepared, moesim):
    outcome = moesim(*COMMAND, "--decode", "3", "--out", "t.parquet", "--attention", "a.parquet")
    assert (outcome.code, outcome.err) == (0, "")
    assert "tiny-olmoe: 2 MoE layers, top 2 of 8 experts\n4 requests, 135 tokens, 135 of them run now\n" in outcome.out
    assert "use it with moesim simulate --routing t.parquet" in outcome.out
    trace = read_routing_trace(prepared / "t.parquet")
    assert (trace.model, trace.layers, trace.experts, trace.top_k, trace.tokens) == ("tiny-olmoe", 2, 8, 2, 135)
    assert trace.groups == ("text.txt",) * 4
    assert read_attention_trace(prepared / "a.parquet").header.heads == 4


def test_json_and_name(prepared, moesim):
    outcome = moesim(*COMMAND, "--out", "t.parquet", "--name", "mine", "--json")
    results = json.loads(outcome.out)["results"]
    assert (results["model"], results["captured_tokens"], len(results["max_over_mean_load"])) == ("mine", 123, 2)
    again = json.loads(moesim(*COMMAND, "--out", "t.parquet", "--name", "mine", "--json").out)["results"]
    assert again == results | {"captured_tokens": 0}
    assert read_routing_trace(prepared / "t.parquet").model == "mine"


@pytest.mark.usefixtures("prepared")
def test_the_trace_drives_a_simulation(moesim):
    moesim(*COMMAND, "--out", "t.parquet")
    arguments = ("--model", "tiny-olmoe/config.json", "--system", "h100-sxm-1", "--routing", "t.parquet", "--json")
    outcome = moesim("simulate", "--num-requests", "2", *arguments)
    assert outcome.code == 0, outcome.err
    assert "t.parquet" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "t.csv"), "--out t.csv: must end in .parquet"),
        (("--out", "t.parquet", "--attention", "t.parquet"), "--attention t.parquet: must be another file than --out"),
        (("--out", "t.parquet", "--decode", "-1"), "--decode: must be >= 0, got -1"),
        (("--out", "t.parquet", "--every", "0"), "--every: must be >= 1, got 0"),
        (("--out", "t.parquet", "--dtype", "int3"), "--dtype: must be one of auto, float32"),
    ],
)
@pytest.mark.usefixtures("prepared")
def test_wrong_arguments(refused, arguments, message):
    assert refused(*COMMAND, *arguments).startswith(message)


def test_another_model_of_the_same_output(prepared, moesim, refused):
    moesim(*COMMAND, "--out", "t.parquet")
    (prepared / "tiny-olmoe").rename(prepared / "other")
    command = [argument.replace("tiny-olmoe", "other") for argument in COMMAND]
    message = refused(*command, "--out", "t.parquet")
    assert message.startswith("t.parquet: must be of this capture, and is of one with model 'tiny-olmoe'; remove it")


def test_an_interrupt_says_how_to_go_on(prepared, moesim, monkeypatch):
    from moesim.workloads.capture import run

    def stop(*_arguments: object, **_options: object):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_batch", stop)
    outcome = moesim(*COMMAND, "--out", "t.parquet")
    assert outcome.code == 130
    assert outcome.err.startswith("finished batches are kept in t.parquet.parts; the same command goes on from there\n")
    assert not (prepared / "t.parquet").exists()
