"""The whole simulator: iterations per second, a peer's own example, growth with devices and experts, and memory.

Peers were measured once on two cores (Vidur with warm caches) or speak for themselves (the log of LLMServingSim 2).
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from table import Row, best_of, show

from moesim.simulator.scenario import load_scenario, prepare
from moesim.simulator.simulate import build_pipelines, run, serve
from moesim.simulator.step_simulator import StepSimulator

REFERENCE = Path(os.environ.get("MOESIM_REFERENCE_DATA", ""))
"""Folder with published traces, where they have been downloaded; else the distributions that ship stand in."""
AZURE = REFERENCE / "requests/azure/data/AzureLLMInferenceTrace_conv.csv"
SHAREGPT = REFERENCE / "serving/llmservingsim/RTXPRO6000/Qwen3-30B-A3B-Instruct-2507/vllm/requests.jsonl"

VIDUR_ITERATIONS_PER_S = 4400.0
LLMSERVINGSIM_S = 253.7
MEMORY_LIMIT_MB = 2048.0

LLAMA_2_7B = {
    "name": "llama-2-7b",
    "source": "config.json of meta-llama/Llama-2-7b-hf; arXiv 2307.09288",
    "hidden": 4096,
    "vocabulary": 32000,
    "layers": [
        {
            "repeat": 32,
            "pattern": [
                {
                    "attention": {"kind": "gqa", "heads": 32, "kv_heads": 32, "head_dim": 128},
                    "ffn": {"kind": "dense", "intermediate": 11008},
                }
            ],
        }
    ],
}


def serving() -> list[Row]:
    """Rows of the table."""
    return [chat_on_one_gpu(), qwen_on_two_gpus(), *growth_with_devices(), *memory((10_000, 100_000, 1_000_000))]


def serve_seconds(scenario: dict[str, Any], runs: int) -> tuple[float, StepSimulator]:
    """Seconds of the serving loop alone, the fastest of some runs on fresh state, and the simulator of the last."""
    fastest_s = float("inf")
    for _ in range(runs):
        setup = prepare(*load_scenario(scenario))
        pipelines = build_pipelines(setup)
        begin_s = time.perf_counter()
        serve(setup, pipelines)
        fastest_s = min(fastest_s, time.perf_counter() - begin_s)
    return fastest_s, pipelines[0].stages[0]


def chat_scenario() -> dict[str, Any]:
    """Vidur's example: 512 requests of the Azure conversation trace at 6.45 per second, Llama-2-7B on one A100."""
    prompt: dict[str, Any] = {"kind": "lognormal", "mean": 1154.7, "std": 1108.8, "min": 2, "max": 14050}
    output: dict[str, Any] = {"kind": "lognormal", "mean": 211.1, "std": 162.9, "min": 7, "max": 1000}
    if AZURE.exists():
        prompt = {"kind": "file", "path": str(AZURE), "column": "ContextTokens"}
        output = {"kind": "file", "path": str(AZURE), "column": "GeneratedTokens"}
    requests = {
        "kind": "synthetic",
        "num_requests": 512,
        "rate_per_s": 6.45,
        "prompt_tokens": prompt,
        "output_tokens": output,
    }
    scheduler = {"token_budget": 512, "max_num_seqs": 512}
    return {"model": LLAMA_2_7B, "system": "a100-sxm-1", "requests": requests, "scheduler": scheduler}


def chat_on_one_gpu() -> Row:
    """Iterations per second where a step is cheap, so what is measured is the work per step in Python."""
    seconds, simulator = serve_seconds(chat_scenario(), 5)
    name = f"Llama-2-7B, 512 chat requests, {simulator.totals.steps} iterations"
    return Row(name, simulator.totals.steps / seconds, "iterations/s", "Vidur", VIDUR_ITERATIONS_PER_S, 5000 / 4400)


def qwen_scenario() -> dict[str, Any]:
    """LLMServingSim's example: 300 ShareGPT requests for Qwen3-30B-A3B on two data-parallel GPUs."""
    requests: dict[str, Any] = {
        "kind": "synthetic",
        "num_requests": 300,
        "rate_per_s": 10,
        "prompt_tokens": {"kind": "lognormal", "mean": 880, "std": 800, "min": 4, "max": 4000},
        "output_tokens": {"kind": "lognormal", "mean": 640, "std": 300, "min": 4, "max": 2000},
    }
    return {
        "model": "qwen3-30b-a3b",
        "system": "rtx-pro-6000-2",
        "requests": str(SHAREGPT) if SHAREGPT.exists() else requests,
        "parallelism": {"dp": 2, "ep": 2},
        "scheduler": {"token_budget": 2048, "max_num_seqs": 128},
    }


def qwen_on_two_gpus() -> Row:
    """Seconds of a mixture of experts whose every token is routed in every layer."""
    seconds = best_of(lambda: run(prepare(*load_scenario(qwen_scenario()))), 3)
    name = "Qwen3-30B-A3B, 300 requests, 2 GPUs"
    return Row(name, seconds, "s", "LLMServingSim", LLMSERVINGSIM_S, 100, better="lower")


def growth_with_devices() -> list[Row]:
    """Steps per second against devices times experts; the peer is the same model on one device."""
    rows: list[Row] = []
    for devices in (1, 4, 16):
        scenario = {
            "model": "qwen3-30b-a3b",
            "system": f"h200-sxm-{devices}",
            "requests": {
                "kind": "synthetic",
                "num_requests": 32 * devices,
                "concurrency": 32 * devices,
                "prompt_tokens": {"kind": "constant", "tokens": 16},
                "output_tokens": {"kind": "constant", "tokens": 128},
            },
            "parallelism": {"dp": devices, "ep": devices},
        }
        seconds, simulator = serve_seconds(scenario, 3)
        speed = simulator.totals.steps / seconds
        name = f"decode of 32 sequences per device, {devices} x 128 experts"
        rows.append(Row(name, speed, "steps/s", "one device", rows[0].value if rows else speed))
    return rows


def memory(counts: tuple[int, ...]) -> list[Row]:
    """Peak memory of a fresh process that serves so many requests of eight tokens."""
    rows = []
    for count in counts:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(count)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peak_mb, seconds = map(float, printed.split())
        name = f"peak memory, {count} requests ({seconds:.1f} s)"
        rows.append(Row(name, peak_mb, "MB", "limit", MEMORY_LIMIT_MB, 1.0, better="lower"))
    return rows


def serve_many(count: int) -> None:
    """Serve `count` short requests, 256 at a time, and save the result; print the peak memory in MB and the seconds."""
    scenario = {
        "model": "llama-3.1-8b",
        "system": "h100-sxm-1",
        "requests": {
            "kind": "synthetic",
            "num_requests": count,
            "concurrency": 256,
            "prompt_tokens": {"kind": "constant", "tokens": 16},
            "output_tokens": {"kind": "constant", "tokens": 8},
        },
    }
    begin_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run(prepare(*load_scenario(scenario))).save(Path(folder) / "result")
    seconds = time.perf_counter() - begin_s
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds)  # Linux: KiB


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve_many(int(sys.argv[-1]))
        sys.exit()
    measured = serving()
    show(measured)
    sys.exit(not all(row.holds for row in measured))
