import numpy as np
import pytest

from moesim.errors import DataError
from moesim.workloads.capture.loading import load_tokenizer
from moesim.workloads.capture.settings import CaptureSettings
from moesim.workloads.capture.texts import read_prompts


@pytest.fixture
def tokenizer(tmp_path):
    """One id per word; made, saved and loaded again."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0, "to": 1, "be": 2, "or": 3, "not": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path / "words")
    return load_tokenizer(str(tmp_path / "words"), CaptureSettings())


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def test_texts_are_tokenised_and_cut(tokenizer, tmp_path):
    play = write(tmp_path, "play.txt", b"to be or not to be\nto be not\n")
    prompts = read_prompts([play], tokenizer, 10, CaptureSettings(prompt_tokens=4))
    assert [ids.tolist() for ids in prompts.ids] == [[1, 2, 3, 4], [1, 2, 1, 2], [4]]
    assert prompts.names == (f"{play}:0", f"{play}:4", f"{play}:8")
    assert set(prompts.groups) == {str(play)}


def test_long_texts_are_read_in_blocks(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("moesim.workloads.capture.texts._BLOCK", 10)
    play = write(tmp_path, "play.txt", b"to be or not\n" * 20)
    prompts = read_prompts([play], tokenizer, 10, CaptureSettings(prompt_tokens=100))
    assert prompts.ids[0].tolist() == [1, 2, 3, 4] * 20


def test_requests_of_equal_length_run_together(tmp_path):
    first, second = write(tmp_path, "a", bytes(25)), write(tmp_path, "b", bytes(30))
    prompts = read_prompts([first, second], None, 256, CaptureSettings(prompt_tokens=10))
    assert [len(ids) for ids in prompts.ids] == [10, 10, 10, 10, 10, 5]
    assert [name[-4:] for name in prompts.names] == ["/a:0", "a:10", "/b:0", "b:10", "b:20", "a:20"]
    assert prompts.batches(2) == [range(2), range(2, 4), range(4, 5), range(5, 6)]


def test_some_requests_are_taken_from_all_texts(tmp_path):
    paths = [write(tmp_path, name, bytes(40)) for name in ("a", "b")]
    prompts = read_prompts(paths, None, 256, CaptureSettings(prompt_tokens=10, requests=4))
    assert [name[-4:] for name in prompts.names] == ["/a:0", "a:20", "/b:0", "b:20"]


def test_the_fingerprint_changes_with_a_token(tmp_path):
    one, other = (read_prompts([write(tmp_path, "a", data)], None, 256, CaptureSettings()) for data in (b"abc", b"abd"))
    assert one.fingerprint() != other.fingerprint()
    assert np.array_equal(one.ids[0][:2], other.ids[0][:2])


def test_text_that_is_not_utf8(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"latin.txt: must be UTF-8 text \(invalid continuation byte at byte 0\)"):
        read_prompts([write(tmp_path, "latin.txt", "été".encode("latin-1"))], tokenizer, 10, CaptureSettings())


def test_text_without_tokens(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"blank\.txt: must not be empty"):
        read_prompts([write(tmp_path, "blank.txt", b"\n\n")], tokenizer, 10, CaptureSettings())
