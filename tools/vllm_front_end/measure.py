"""How long vLLM's server takes around its engine: from a client to it, and from the end of a step to the client.

    python3 -m venv venv && venv/bin/pip install vllm==0.18.0 ./tools/vllm_front_end
    venv/bin/python tools/vllm_front_end/measure.py MODEL front_end.csv

No GPU is needed: the device only lets time pass (`null_device`), everything else is vLLM's own: `vllm serve` and
`vllm bench serve`, which streams over HTTP. MODEL is a name or folder with a `config.json` and a tokenizer; weights are
not read. Prints the mean of each load and the least squares over all loads, as `scheduler` settings of moesim, and
writes the means. The first requests of a load, which come all at once, are left out.
"""

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

BIN = Path(sys.executable).parent
PORT = 8123
START_S = 180.0
STEPS_S = (8e-3, 20e-3)
LOADS = ((1, 1024), (4, 1024), (8, 1024), (16, 1024), (32, 1024), (64, 1024), (1, 8192), (4, 8192))
"""Requests in flight and prompt tokens."""
OUTPUT_TOKENS, PROMPTS_PER_SLOT, LEAST_PROMPTS = 192, 5, 24
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "VLLM_NO_USAGE_STATS": "1"}


class Load(NamedTuple):
    """Means over the requests of one load."""

    step_ms: float
    in_flight: int
    prompt_tokens: float
    sequences: float  # that got a token with a request's first
    to_engine_ms: float
    to_client_ms: float


def main() -> None:
    """Measure all loads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("target", metavar="CSV", type=Path)
    options = parser.parse_args()
    if not options.target.parent.is_dir():
        fail(f"{options.target.parent} must be a folder")
    if not (BIN / "vllm").exists():
        fail(f"needs vllm in {BIN} (see --help)")
    loads = [load for step_s in STEPS_S for load in measure(options.model, step_s)]
    with options.target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([Load._fields, *([f"{value:.4g}" for value in load] for load in loads)])
    report(loads)


def measure(model: str, step_s: float) -> list[Load]:
    """All loads on a server, the steps of which take `step_s` and longer with prompts."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "engine.log"
        server = start(model, step_s, log)
        try:
            wait_for(server)
            return [run(model, Path(folder), log, step_s, *load) for load in LOADS]
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(START_S)


def start(model: str, step_s: float, log: Path) -> subprocess.Popen[bytes]:
    """A server that starts."""
    if answers():
        fail(f"port {PORT} is taken")
    flags = ["--max-model-len", "16384", "--no-enable-prefix-caching", "--max-num-batched-tokens", "8192"]
    command = [BIN / "vllm", "serve", model, "--port", str(PORT), "--disable-uvicorn-access-log", *flags]
    environment = os.environ | ENVIRONMENT | {"NULL_LOG": str(log), "NULL_STEP_S": str(step_s)}
    return subprocess.Popen(command, env=environment, stdout=sys.stderr, start_new_session=True)


def wait_for(server: subprocess.Popen[bytes]) -> None:
    """Until it answers."""
    end_s = time.monotonic() + START_S
    while not answers():
        if server.poll() is not None or time.monotonic() > end_s:
            fail("the server did not start; its messages are above")
        time.sleep(1.0)


def answers() -> bool:
    """Whether the server does."""
    try:
        with urllib.request.urlopen(f"http://localhost:{PORT}/health", timeout=1.0):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, HTTPException):
        return False


def fail(why: str) -> NoReturn:
    """End here."""
    print(f"measure.py: {why}", file=sys.stderr)
    sys.exit(2)


def run(model: str, folder: Path, log: Path, step_s: float, in_flight: int, prompt_tokens: int) -> Load:
    """The client at one load."""
    name = f"n{in_flight}p{prompt_tokens}"
    prompts = max(LEAST_PROMPTS, PROMPTS_PER_SLOT * in_flight)
    lengths = ["--random-input-len", str(prompt_tokens), "--random-output-len", str(OUTPUT_TOKENS)]
    counts = ["--max-concurrency", str(in_flight), "--num-prompts", str(prompts), "--random-range-ratio", "0.2"]
    saved = ["--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", f"{name}.json"]
    target = ["--base-url", f"http://localhost:{PORT}", "--dataset-name", "random", "--ignore-eos", "--disable-tqdm"]
    named = ["--model", model, "--request-id-prefix", f"{name}_"]
    command = [BIN / "vllm", "bench", "serve", *target, *named, *lengths, *counts, *saved]
    print(f"steps of {step_s * 1e3:g} ms, {in_flight} in flight, {prompt_tokens} tokens", file=sys.stderr)
    ended = subprocess.run(command, env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL, check=False)
    saved_file = folder / f"{name}.json"
    client = json.loads(saved_file.read_text()) if saved_file.exists() else {"failed": prompts}
    if ended.returncode or client["failed"]:
        fail(f"{client['failed']} of {prompts} requests failed")
    rows = matched(client, log, name, in_flight)
    return Load(step_s * 1e3, in_flight, *np.mean(rows, axis=0).tolist())


def matched(client: dict[str, Any], log: Path, name: str, first: int) -> list[tuple[float, ...]]:
    """Of each request after so many: prompt tokens, sequences, and the two times, ms."""
    arrived_s, firsts = read_log(log, name)
    rows = []
    for number, (start_s, ttft_s) in enumerate(zip(client["start_times"], client["ttfts"], strict=True)):
        if number >= first:
            end_s, sequences = firsts[number]
            times_s = arrived_s[number] - start_s, start_s + ttft_s - end_s
            rows.append((client["input_lens"][number], sequences, *(1e3 * value for value in times_s)))
    return rows


def read_log(log: Path, name: str) -> tuple[dict[int, float], dict[int, tuple[float, float]]]:
    """By request: when the engine had it; when the step ended that gave its first token, and that step's sequences."""
    number = re.compile(rf"^cmpl-{name}_(\d+)-")
    arrived_s, firsts = {}, {}
    for line in map(json.loads, log.read_text().splitlines()):
        for request in [line["request"]] if "request" in line else line["first"]:
            if found := number.match(request):
                if "request" in line:
                    arrived_s[int(found[1])] = line["arrived_s"]
                else:
                    firsts[int(found[1])] = line["end_s"], line["sequences"]
    return arrived_s, firsts


def report(loads: list[Load]) -> None:
    """A table, and least squares over the loads: times of a request, of a prompt token and of a sequence beside."""
    print("| step, ms | in flight | prompt tokens | to the engine, ms | to the client, ms |\n|--:|--:|--:|--:|--:|")
    for load in loads:
        ways_ms = f"{load.to_engine_ms:.1f} | {load.to_client_ms:.1f}"
        print(f"| {load.step_ms:g} | {load.in_flight} | {load.prompt_tokens:.0f} | {ways_ms} |")
    table = np.array(loads)
    columns = np.column_stack([np.ones(len(table)), table[:, 2], table[:, 3]])
    to_engine, to_client = (solve(columns, table[:, way]) for way in (4, 5))
    used = np.array([to_engine[0] + to_client[0], to_engine[1] + to_client[1], to_client[2]])
    error_ms = np.sqrt(np.mean((columns @ used - table[:, 4] - table[:, 5]) ** 2))
    print(f"\nscheduler.request_host_s={to_engine[0]:.2g} ms scheduler.tokenise_s={1e3 * used[1]:.2g} us")
    print(f"scheduler.stream_s={to_client[0]:.2g} ms scheduler.stream_token_s={to_client[2]:.2g} ms")
    print(f"error of both ways together with these settings: {error_ms:.2g} ms")
    print(f"in tokenise_s, but on the way to the client: {1e3 * to_client[1]:.2g} us per prompt token")
    print(f"in no setting: {1e3 * to_engine[2]:.2g} us per sequence on the way to the engine")


def solve(columns: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of a least-squares fit."""
    found: NDArray[np.float64] = np.linalg.lstsq(columns, values, rcond=None)[0]
    return found


if __name__ == "__main__":
    main()
