"""Recorded vLLM runs with a time stamp of every request, as LLMServingSim publishes them.

A folder per GPU and model: `<gpu>/<model>/vllm/requests.jsonl` with `input_toks`, `output_toks`, `queued_ts`,
`first_token_ts`, `last_token_ts` (seconds of one clock; `arrival_time` is another one) and `meta.json` with the
engine's arguments. Format of casys-kaist/LLMServingSim, schema_version 1.

vLLM stamps `queued_ts` when its engine takes requests in, between two steps: those of one step have the same, and most
are scheduled within 10 us. Simulated times therefore count from the same event, not from the arrival before it.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.configs.loader import find
from moesim.errors import DataError
from moesim.reports.validation.serving_deployment import Deployment, measured_statistics

_COLUMNS = ("input_toks", "output_toks", "queued_ts", "first_token_ts", "last_token_ts")
_SIZES, _DEGREES = ("max_num_batched_tokens", "max_num_seqs"), ("tensor_parallel_size", "data_parallel_size")
"""Arguments of the engine that must be there, and that may."""
_MODELS = {"Llama-3.1-8B": "llama-3.1-8b", "Qwen3-30B-A3B-Instruct-2507": "qwen3-30b-a3b"}
_GPUS = {"RTXPRO6000": "rtx-pro-6000", "H100": "h100-sxm", "H200": "h200-sxm", "A100": "a100-sxm"}
SECTION = "recorded runs"
FAST_FORWARD = 16
"""Steps played as one; changes times by 0.1 %."""


def find_runs(folder: Path) -> list[Path]:
    """Folders of recorded runs below `folder`."""
    return sorted(path.parent for path in folder.rglob("vllm/requests.jsonl"))


def read_run(folder: Path, *, calibrated: bool = True) -> Deployment:
    """One recorded run: the folder with `requests.jsonl` and `meta.json`.

    Args:
        folder: of the run.
        calibrated: with the host times fitted to one of the runs (`configs/validation/serving.yaml`).

    Raises:
        DataError: a file that is missing or broken, with its line.
    """
    meta = _read_meta(folder / "meta.json")
    rows = _read_requests(folder / "requests.jsonl")
    model, gpu = folder.parent.name, folder.parent.parent.name
    engine, settings = meta["engine_kwargs"], find("validation", "serving").data["recorded"]
    ranks = engine.get("data_parallel_size", 1)
    tensor = engine.get("tensor_parallel_size", 1)
    experts = ranks * tensor if engine.get("enable_expert_parallel") else 1
    names = (model, f"vllm {meta.get('vllm_version', '?')}", gpu, f"tp{tensor} dp{ranks} ep{experts}")
    known = model in _MODELS and gpu in _GPUS
    scenario = {
        "model": _MODELS.get(model),
        "system": f"{_GPUS.get(gpu)}-{tensor * ranks}",
        "requests": _request_mapping(rows),
        "parallelism": {"tp": tensor, "dp": ranks, "ep": experts},
        "scheduler": "vllm",
        "fast_forward": FAST_FORWARD,
        "routing": settings["routing"]["name"],
    }
    edits = [f"scheduler.token_budget={engine['max_num_batched_tokens']}"]
    edits.append(f"scheduler.max_num_seqs={engine['max_num_seqs']}")
    edits.append(f"scheduler.kernels={settings['kernels']['name']}")
    if calibrated:
        edits += [f"scheduler.{name}={value}" for name, value in settings["host"].items()]
    if ranks > 1:
        edits.append("scheduler.expert_exchange=all_reduce")  # of the gathered tokens: fits this run, others do not
    return Deployment(
        id=f"{gpu}/{model}",
        group=names,
        framework="vllm",
        model=model,
        gpu=_GPUS.get(gpu, gpu),
        scenario=scenario if known else None,
        assignments=tuple(edits),
        measured_s=_measured(rows),
        from_queue=True,
        section=SECTION,
        unanswered=None if known else "model or GPU without a shipped configuration",
    )


def read_latencies(folder: Path) -> NDArray[np.float64]:
    """float64[TTFT TPOT E2E, request] of a run, in seconds, in the order in which requests were queued.

    Raises:
        DataError: as `read_run`, or a request has a single output token.
    """
    rows = _read_requests(folder / "requests.jsonl")
    queued, first, last, outputs = (
        np.array([row[name] for row in rows])
        for name in ("queued_ts", "first_token_ts", "last_token_ts", "output_toks")
    )
    if (outputs < 2).any():  # noqa: PLR2004, a first and a last one
        raise DataError(str(folder), "every request must have two output tokens or more")
    return np.stack([first - queued, (last - first) / (outputs - 1), last - queued])


def _read_meta(path: Path) -> Mapping[str, Any]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"must be a JSON file ({error})") from error
    held = meta.get("engine_kwargs") if isinstance(meta, dict) else None
    given: dict[str, Any] = held if isinstance(held, dict) else {}
    for name in (*_SIZES, *(name for name in _DEGREES if name in given)):
        value = given.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"{path}: engine_kwargs.{name}", "must be a whole number >= 1", value)
    result: Mapping[str, Any] = meta
    return result


def _read_requests(path: Path) -> list[dict[str, float]]:
    """Requests in the order in which they were queued."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"must be a text file ({error})") from error
    rows = [_request(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(str(path), "must have at least one request")
    return sorted(rows, key=lambda row: row["queued_ts"])


def _request(place: str, line: str) -> dict[str, float]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(place, f"must be a JSON object ({error})") from error
    for name in _COLUMNS:
        value = row.get(name) if isinstance(row, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{place}: {name}", "must be a number", value)
    if not row["queued_ts"] <= row["first_token_ts"] <= row["last_token_ts"]:
        raise DataError(place, "queued_ts <= first_token_ts <= last_token_ts must hold")
    for name in ("input_toks", "output_toks"):
        if row[name] < 1 or row[name] != int(row[name]):
            raise DataError(f"{place}: {name}", "must be a whole number >= 1", row[name])
    return {name: row[name] for name in _COLUMNS}


def _request_mapping(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Arrivals and lengths of the run, as an inline kind of requests."""
    start_s = rows[0]["queued_ts"]
    return {
        "kind": "listed",
        "arrival_s": [row["queued_ts"] - start_s for row in rows],
        "prompt_tokens": [int(row["input_toks"]) for row in rows],
        "output_tokens": [int(row["output_toks"]) for row in rows],
        "source": "recorded run",
    }


def _measured(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    column = {name: np.array([row[name] for row in rows]) for name in _COLUMNS}
    later = column["output_toks"] - 1
    decode_s = column["last_token_ts"] - column["first_token_ts"]
    return measured_statistics(
        {
            "ttft": column["first_token_ts"] - column["queued_ts"],
            "tpot": decode_s[later > 0] / later[later > 0],
            "e2e": column["last_token_ts"] - column["queued_ts"],
        }
    )
