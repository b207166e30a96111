"""A capture of 100,000 tokens needs no more memory than one of 25,000."""

import subprocess
import sys

import pytest

# 8 layers x (4 heads x 14 bytes of attention + 8 ranks x 3 bytes of routing) = 640 bytes per token.
BYTES_PER_TOKEN = 640
FEW, MANY = 25_000, 100_000
SCRIPT = """
import resource, sys
from pathlib import Path
import torch
from moesim.workloads.capture.run import capture
from moesim.workloads.capture.settings import CaptureSettings
torch.set_num_threads(1)
model, text, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
settings = CaptureSettings(prompt_tokens=64, batch=64, chunk_tokens=64, tokenizer="bytes", attention_every=1)
report = capture(model, [text], folder / "t.parquet", settings, attention=folder / "a.parquet")
print(report.tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_bytes(model, folder, tokens):
    """Peak resident memory of a process that captures so many tokens."""
    folder.mkdir()
    (folder / "text").write_bytes(bytes(index * index % 251 for index in range(tokens)))
    command = [sys.executable, "-c", SCRIPT, str(model), str(folder / "text"), str(folder)]
    captured, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(captured) == tokens
    return int(peak)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_does_not_grow_with_tokens(save_model, tmp_path):
    model = save_model("olmoe", num_hidden_layers=8, num_experts=16, num_experts_per_tok=8, hidden_size=16)
    few, many = (peak_bytes(model, tmp_path / str(tokens), tokens) for tokens in (FEW, MANY))
    assert many - few < (MANY - FEW) * BYTES_PER_TOKEN / 2
