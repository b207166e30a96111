"""`moesim models` and `moesim hardware`."""

import json

import pytest

from moesim.configs.loader import shipped
from moesim.workloads.models import load_model

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    "command",
    [["models", "list"], ["hardware", "list"], ["models", "show", "gpt-oss-20b"], ["hardware", "show", "h100-sxm-4"]],
    ids=" ".join,
)
def test_tables_fit_80_columns(moesim, command):
    outcome = moesim(*command)
    assert (outcome.code, outcome.err) == (0, "")
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_every_shipped_model_is_listed(moesim):
    text = moesim("models", "list").out
    assert [name for name in shipped("models") if f"\n {name} " not in text] == []


def test_every_shipped_device_and_system_is_listed(moesim):
    text = moesim("hardware", "list").out
    assert [name for name in shipped("devices") if f"\n {name} " not in text] == []
    assert [name for name in shipped("systems") if f"\n {name}-N " not in text] == []


def test_a_model_shows_its_sizes(moesim):
    text = moesim("models", "show", "mixtral-8x7b").out
    assert f"{load_model('mixtral-8x7b').parameters:,}" in text
    assert "moe, experts=8, top_k=2" in text


def test_a_config_json_of_hugging_face_is_shown(moesim, folder):
    (folder / "config.json").write_text(json.dumps(MIXTRAL))
    found, known = (
        json.loads(moesim("models", "show", name, "--json").out)["results"]
        for name in ("./config.json", "mixtral-8x7b")
    )
    keys = ("parameters", "active_parameters", "weight_bytes", "kv_bytes_per_token", "experts", "top_k")
    assert {key: found[key] for key in keys} == {key: known[key] for key in keys}


def test_a_device_shows_values_and_numbered_sources(moesim):
    text = moesim("hardware", "show", "h100-sxm").out
    row = next(line for line in text.splitlines() if line.startswith(" gpu.dram_bandwidth "))
    *_, value, unit, source = row.split()
    assert (value, unit) == ("3.35", "TB/s")
    assert f"\n {source} NVIDIA H100 data sheet (2023)\n" in text.replace("]  ", "] ")


def test_a_system_shows_its_links_and_its_device(moesim):
    text = moesim("hardware", "show", "h100-sxm-4").out
    assert text.startswith("h100-sxm-4  HGX H100")
    assert "\n intra_node.bandwidth " in text
    assert "\n gpu.dram_bandwidth " in text


def test_a_device_of_ones_own_is_shown(moesim, folder):
    document = load_text("devices", "a100-sxm").replace("title: ", "title: My ", 1)
    (folder / "mine.yaml").write_text(document)
    text = moesim("hardware", "show", "mine.yaml").out
    assert text.startswith("mine  My NVIDIA A100")


def load_text(kind, name):
    from moesim.configs import loader

    return (loader._HERE / kind / f"{name}.yaml").read_text()
