"""What is wrong with models, texts and values is said in a message, not in a traceback."""

import json
import shutil
from pathlib import Path

import pytest

from moesim.errors import DataError, InputError
from moesim.workloads.capture.run import capture
from moesim.workloads.capture.settings import CaptureSettings

BYTES = CaptureSettings(tokenizer="bytes", prompt_tokens=16)


@pytest.fixture(scope="module")
def model(save_model):
    return save_model("olmoe")


@pytest.fixture
def refused(tmp_path):
    """A function that captures and returns the message of the error; nothing is written."""

    def run(model, texts, settings=BYTES, out="trace.parquet"):
        with pytest.raises(InputError) as caught:
            capture(str(model), texts, tmp_path / "out" / out, settings)
        assert not list((tmp_path / "out").iterdir())
        return str(caught.value)

    (tmp_path / "out").mkdir()
    return run


def test_no_such_model(refused, text, tmp_path):
    assert refused(tmp_path / "none", [text]).endswith("none: no such folder, and no name of the form owner/model")
    assert "must be a folder with config.json" in refused(tmp_path, [text])


def test_a_name_on_a_hub_that_cannot_be_reached(refused, text, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused("nobody/nothing", [text]).startswith("nobody/nothing: the model's config.json cannot be loaded (")


def test_not_a_mixture_of_experts(refused, save_model, text):
    message = refused(save_model("llama"), [text])
    assert message.endswith("must be a Mixture-of-Experts model; it has no experts, got 'llama'")


def test_a_family_that_is_not_supported(refused, save_model, text):
    message = refused(save_model("granitemoe", num_local_experts=4, num_experts_per_tok=2), [text])
    assert "the family must be one of mixtral, olmoe," in message
    assert message.endswith("got 'granitemoe'")


def test_incomplete_weights(refused, model, text, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "bigger"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    assert "the weights must be complete, 11 lack or do not fit" in refused(folder, [text])
    (folder / "model.safetensors").unlink()
    assert "the model cannot be loaded (" in refused(folder, [text])


def test_broken_config(refused, model, text, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "broken"))
    (folder / "config.json").write_text("{")
    assert "config.json cannot be loaded" in refused(folder, [text])


def test_no_tokenizer(refused, model, text):
    message = refused(model, [text], CaptureSettings())
    assert "has no tokenizer that can be loaded; name one with --tokenizer, or --tokenizer bytes" in message


def test_texts(refused, model, text, tmp_path):
    assert refused(model, [text, tmp_path / "none.txt"]).endswith("none.txt: no such file")
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b"")
    assert refused(model, [empty]).endswith("empty.txt: must not be empty")


def test_ids_of_another_tokenizer(refused, save_model, tmp_path):
    path = tmp_path / "high.txt"
    path.write_bytes(b"abc\xff")
    message = refused(save_model("olmoe", vocab_size=128), [path])
    assert message.endswith("high.txt: token ids must be below 128, the model's; bytes gave, got 255")


def test_longer_than_the_context(refused, model, text):
    settings = CaptureSettings(tokenizer="bytes", prompt_tokens=64, decode_tokens=100)
    assert "prompt and decoded tokens must fit in 128 positions, got 164" in refused(model, [text], settings)


def test_a_device_that_is_not_there(refused, model, text):
    assert refused(model, [text], CaptureSettings(tokenizer="bytes", device="nonsense")).startswith("device: cannot be")


def test_no_folder_for_the_output(model, text, tmp_path):
    with pytest.raises(DataError, match="cannot be used"):
        capture(str(model), [text], tmp_path / "none" / "trace.parquet", BYTES)


def test_routers_of_another_version(model, text, tmp_path, monkeypatch):
    from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

    forward = OlmoeTopKRouter.forward
    monkeypatch.setattr(OlmoeTopKRouter, "forward", lambda self, states: (*forward(self, states), None))
    with pytest.raises(DataError, match="OlmoeTopKRouter of this version"):
        capture(str(model), [text], tmp_path / "trace.parquet", BYTES)


def test_routers_that_are_passed_by(model, text, tmp_path, monkeypatch):
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    monkeypatch.setattr(OlmoeSparseMoeBlock, "forward", lambda _self, states: states)
    with pytest.raises(DataError, match="must run each of its 3 routers once per pass"):
        capture(str(model), [text], tmp_path / "trace.parquet", BYTES)


def test_torch_missing(model, text, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'moesim\[capture\]'"):
        capture(str(model), [text], tmp_path / "trace.parquet", BYTES)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_tokens", 0),
        ("batch", 0),
        ("requests", 0),
        ("decode_tokens", -1),
        ("temperature", float("nan")),
        ("dtype", "int8"),
    ],
)
def test_values_out_of_range(field, value):
    with pytest.raises(InputError, match=f"^{field}: must be"):
        CaptureSettings(**{field: value})
