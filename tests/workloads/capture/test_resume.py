"""A capture that was stopped goes on, repeats no finished request, and writes what an undisturbed one writes."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from moesim.errors import DataError
from moesim.workloads.capture import run
from moesim.workloads.capture.run import capture
from moesim.workloads.capture.settings import CaptureSettings

SETTINGS = CaptureSettings(prompt_tokens=16, decode_tokens=4, batch=1, chunk_tokens=8, tokenizer="bytes")
REQUESTS, TOKENS = 6, 6 * 20
CAPTURE = """
import sys, time
from pathlib import Path
from moesim.workloads.capture.run import capture
from moesim.workloads.capture.settings import CaptureSettings
model, text, out, stops = sys.argv[1:]
settings = CaptureSettings(prompt_tokens=16, decode_tokens=4, batch=1, chunk_tokens=8, tokenizer="bytes")
def wait(done, total):
    if done > 50 and stops == "stops":
        print("waiting", flush=True)
        time.sleep(60)
print(capture(model, [Path(text)], Path(out), settings, progress=wait).captured_tokens)
"""


@pytest.fixture(scope="module")
def model(save_model):
    return str(save_model("olmoe"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(96)))
    return path


@pytest.fixture
def batches_run(monkeypatch):
    """Batches in the order in which they are run."""
    seen: list[int] = []
    run_batch = run.run_batch

    def noted(loaded, prompts, batch, settings, **options):
        seen.append(batch.start)
        return run_batch(loaded, prompts, batch, settings, **options)

    monkeypatch.setattr(run, "run_batch", noted)
    return seen


def stop_after(tokens: int) -> Any:
    def progress(done: int, _total: int) -> None:
        if done > tokens:
            raise KeyboardInterrupt

    return progress


def same(first: Path, second: Path) -> bool:
    one, other = pq.read_table(first), pq.read_table(second)
    return bool(one.equals(other, check_metadata=True))


def test_goes_on_where_it_was_stopped(model, text, tmp_path, batches_run):
    out, attention = tmp_path / "trace.parquet", tmp_path / "attention.parquet"
    with pytest.raises(KeyboardInterrupt):
        capture(model, [text], out, SETTINGS, attention=attention, progress=stop_after(50))
    assert not out.exists()
    report = capture(model, [text], out, SETTINGS, attention=attention)
    assert batches_run == [0, 1, 2, 2, 3, 4, 5]  # the third was under way
    assert (report.requests, report.tokens, report.captured_tokens) == (REQUESTS, TOKENS, 4 * 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention.parquet", "text.txt", "trace.parquet"]
    undisturbed = tmp_path / "undisturbed.parquet"
    capture(model, [text], undisturbed, SETTINGS, attention=tmp_path / "a.parquet")
    assert same(out, undisturbed)
    assert same(attention, tmp_path / "a.parquet")


def test_a_batch_of_which_one_file_is_missing_is_run_again(model, text, tmp_path, batches_run):
    out, attention = tmp_path / "trace.parquet", tmp_path / "attention.parquet"
    with pytest.raises(KeyboardInterrupt):
        capture(model, [text], out, SETTINGS, attention=attention, progress=stop_after(50))
    (tmp_path / "trace.parquet.parts" / "attention-000001.parquet").unlink()  # killed between the two files of a batch
    assert capture(model, [text], out, SETTINGS, attention=attention).captured_tokens == 5 * 20
    assert batches_run == [0, 1, 2, 1, 2, 3, 4, 5]
    assert pq.read_metadata(attention).num_rows == REQUESTS * (1 + 4)  # the first position, and the decoded ones


def start(*arguments: object) -> "subprocess.Popen[str]":
    """A capture in a process of its own: tests before may have set PyTorch's threads here, and sums depend on them."""
    command = [sys.executable, "-c", CAPTURE, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_goes_on_after_a_kill(model, text, tmp_path):
    out, undisturbed = tmp_path / "trace.parquet", tmp_path / "undisturbed.parquet"
    killed = start(model, text, out, "stops")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "waiting\n"
    killed.kill()
    killed.communicate()
    assert start(model, text, out, "goes on").communicate()[0] == f"{4 * 20}\n"
    assert start(model, text, undisturbed, "goes on").communicate()[0] == f"{TOKENS}\n"
    assert same(out, undisturbed)


def test_a_finished_capture_is_not_repeated(model, text, tmp_path, batches_run):
    out = tmp_path / "trace.parquet"
    capture(model, [text], out, SETTINGS)
    written = out.stat().st_mtime_ns
    time.sleep(0.01)
    assert capture(model, [text], out, SETTINGS).captured_tokens == 0
    assert out.stat().st_mtime_ns == written
    assert len(batches_run) == REQUESTS


def test_temperature_sharpens_and_flattens_the_draw_of_tokens(model, text, tmp_path):
    decoded = {}
    for temperature in (0.0, 1e-6, 1.0, 1e6):
        out = tmp_path / f"{temperature}.parquet"
        settings = CaptureSettings(
            prompt_tokens=48, decode_tokens=80, temperature=temperature, seed=3, tokenizer="bytes"
        )
        capture(model, [text], out, settings)
        table = pq.read_table(out, columns=["phase", "token"])
        decoded[temperature] = table["token"].to_numpy()[table["phase"].to_numpy() == 1].tolist()
    assert decoded[1e-6] == decoded[0.0]
    kinds = [len(set(tokens)) for tokens in decoded.values()]
    assert kinds[1] < kinds[2] < kinds[3]
    assert 100 < kinds[3] < 160  # 160 draws from 256 bytes: 119 different ones if all are equally likely


def test_a_request_does_not_depend_on_what_runs_beside_it(model, text, tmp_path):
    alone, together = tmp_path / "alone.parquet", tmp_path / "together.parquet"
    capture(model, [text], alone, SETTINGS)
    many = CaptureSettings(prompt_tokens=16, decode_tokens=4, batch=4, chunk_tokens=16, tokenizer="bytes")
    capture(model, [text], together, many)
    columns = ["request", "position", "phase", "expert", "token"]
    assert pq.read_table(alone, columns=columns).equals(pq.read_table(together, columns=columns))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0"),
        ({"prompt_tokens": 8}, "other texts"),
    ],
)
def test_another_capture_is_not_overwritten(model, text, tmp_path, change, message):
    out = tmp_path / "trace.parquet"
    capture(model, [text], out, SETTINGS)
    kept = out.read_bytes()
    with pytest.raises(DataError, match=message):
        capture(model, [text], out, CaptureSettings(**{**vars(SETTINGS), **change}))
    assert out.read_bytes() == kept


def test_parts_of_another_model_are_refused(model, save_model, text, tmp_path):
    out = tmp_path / "trace.parquet"
    with pytest.raises(KeyboardInterrupt):
        capture(model, [text], out, SETTINGS, progress=stop_after(50))
    with pytest.raises(DataError, match="must be of this capture, and is of one with model 'olmoe'"):
        capture(str(save_model("mixtral")), [text], out, SETTINGS)
    with pytest.raises(DataError, match="is of one with other weights"):
        capture(str(save_model("olmoe", seed=1)), [text], out, SETTINGS)


def test_a_file_of_something_else_is_not_overwritten(model, text, tmp_path):
    out = tmp_path / "trace.parquet"
    out.write_bytes(b"precious")
    with pytest.raises(DataError, match="is not the outcome of a capture"):
        capture(model, [text], out, SETTINGS)
    assert out.read_bytes() == b"precious"


def test_a_plan_without_parts_holds_nobody_up(model, text, tmp_path):
    out = tmp_path / "trace.parquet"
    with pytest.raises(KeyboardInterrupt):
        capture(model, [text], out, SETTINGS, progress=stop_after(-1))
    assert (tmp_path / "trace.parquet.parts").is_dir()
    capture(model, [text], out, CaptureSettings(**{**vars(SETTINGS), "seed": 1}))
    assert out.is_file()
