"""The example that trains a small model and records it, with two steps of training."""

import argparse
import email
import json
import subprocess
import sys
from pathlib import Path

import pytest

from moesim.workloads.attention_trace import read_attention_trace
from moesim.workloads.routing_files import read_routing_trace

EXAMPLE = Path(__file__).resolve().parents[3] / "examples/train_small_moe.py"


@pytest.mark.slow
def test_trains_and_records(tmp_path):
    texts = [argparse.__file__, Path(email.__file__).with_name("message.py")]
    options = ["--steps", "2", "--vocabulary", "400", "--requests", "3", "--threads", "1", "--out", str(tmp_path)]
    command = [sys.executable, str(EXAMPLE), *options, "--text", *map(str, texts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "small-moe.json").read_text())
    assert about["final_tokens"] == 2 * 4 * 256
    assert about["bigram_loss"] < about["unigram_loss"]
    trace = read_routing_trace(tmp_path / "trace.parquet")
    assert (trace.model, trace.layers, trace.experts, trace.top_k, len(trace.names)) == ("small-moe", 8, 32, 4, 3)
    assert trace.tokens == about["capture"]["tokens"]
    assert read_attention_trace(tmp_path / "attention.parquet").header.heads == 4
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
