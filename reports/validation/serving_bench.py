"""Result files of the benchmarks that users run against their own servers.

vLLM: one JSON object, `vllm bench serve --save-result`, with every request after `--save-detailed` (keys of vLLM 0.6 to
0.19: `input_lens`, `output_lens`, `ttfts`, `itls`, `errors`, in newer versions `start_times`; before 0.10 the command
was `benchmark_serving.py`). SGLang: a JSON object per line and run, `sglang.bench_serving --output-file`, with every
request after `--output-details` (keys of SGLang 0.4 to 0.5, the same names).
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moesim.configs.loader import Reference, find
from moesim.errors import DataError
from moesim.reports.validation.serving_deployment import Deployment, measured_statistics

_DETAILS = ("input_lens", "output_lens", "ttfts", "itls")
_SUMMARIES = {
    "ttft": ("ttft_ms",),
    "tpot": ("tpot_ms",),
    "e2e": ("e2el_ms", "e2e_latency_ms"),
}
_PREFIXES = {"mean": "mean", "p50": "median", "p90": "p90", "p95": "p95", "p99": "p99"}


def read_benchmark(path: Path, scenario: Reference) -> list[Deployment]:
    """The runs of a result file, each replayed by `scenario` with the run's own requests.

    Args:
        path: .json of vLLM, or .jsonl of SGLang.
        scenario: model, system, parallelism and engine of the server.

    Raises:
        DataError: a file that is missing or broken, with its line and key.
    """
    return [_deployment(path, place, run, scenario) for place, run in _runs(path)]


def _runs(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"must be a text file ({error})") from error
    try:
        whole = json.loads(text)
        return [(str(path), _mapping(str(path), whole))]
    except ValueError:
        lines = [(f"{path}:{number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(str(path), "must have at least one run")
    return [(place, _mapping(place, _parse(place, line))) for place, line in lines]


def _parse(place: str, line: str) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(place, f"must be JSON ({error})") from error


def _mapping(place: str, run: object) -> Mapping[str, Any]:
    if not isinstance(run, dict) or not _count(run.get("completed")):
        raise DataError(f"{place}: completed", "must be a number of requests > 0, as benchmarks write it")
    limit = run.get("max_concurrency")
    if limit is not None and not _count(limit):
        raise DataError(f"{place}: max_concurrency", "must be a whole number >= 1, or null", limit)
    return run


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: object) -> bool:
    return _number(value) and value > 0  # type: ignore[operator]


def _count(value: object) -> bool:
    return _positive(value) and value == int(value)  # type: ignore[call-overload]


def _deployment(path: Path, place: str, run: Mapping[str, Any], scenario: Reference) -> Deployment:
    details = _details(place, run)
    measured = _measured(details) if details else _summary(place, run)
    limit = run.get("max_concurrency")
    slots = None if limit is None else int(limit)
    document = find("scenarios", scenario)
    replayed = document.edited(("requests",), _requests(place, run, details, slots))
    replayed = replayed.edited(("concurrency",), slots).edited(("num_requests",), None).edited(("warmup_requests",), 0)
    framework = str(run.get("backend") or run.get("endpoint_type") or "server")
    name = str(document.data.get("model")) if isinstance(document.data.get("model"), str) else "model"
    system = document.data.get("system")
    return Deployment(
        id=place.rpartition("/")[2],
        group=(str(path),),
        framework=framework,
        model=str(run.get("model_id") or name),
        gpu=system if isinstance(system, str) else "system",
        scenario=replayed,
        assignments=(),
        measured_s=measured,
        concurrency=slots,
    )


def _details(place: str, run: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """Columns of the requests that succeeded; None if the file has only summaries."""
    if not all(isinstance(run.get(name), list) and run[name] for name in _DETAILS):
        return None
    columns = {
        name: list(run[name]) for name in (*_DETAILS, "start_times", "errors") if isinstance(run.get(name), list)
    }
    lengths = {name: len(column) for name, column in columns.items() if column}
    if len(set(lengths.values())) > 1:
        raise DataError(place, "columns of requests must be equally long", lengths)
    errors = columns.pop("errors", None) or [""] * len(columns["ttfts"])
    kept = [row for row, error in enumerate(errors) if not error and columns["output_lens"][row]]
    if not kept:
        raise DataError(f"{place}: errors", "at least one request must have succeeded")
    for row in kept:
        _check_request(f"{place}: request {row}", {name: column[row] for name, column in columns.items()})
    return {name: [column[row] for row in kept] for name, column in columns.items()}


def _check_request(place: str, request: Mapping[str, Any]) -> None:
    for name in ("input_lens", "output_lens"):
        if not _count(request[name]):
            raise DataError(f"{place}: {name}", "must be a whole number >= 1", request[name])
    if not _positive(request["ttfts"]):
        raise DataError(f"{place}: ttfts", "must be > 0", request["ttfts"])
    if not isinstance(request["itls"], list) or not all(map(_number, request["itls"])):
        raise DataError(f"{place}: itls", "must be a list of seconds")
    if "start_times" in request and not _number(request["start_times"]):
        raise DataError(f"{place}: start_times", "must be seconds", request["start_times"])


def _measured(details: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, float]]:
    ttft_s = np.array(details["ttfts"], dtype=np.float64)
    decode_s = np.array([sum(gaps) for gaps in details["itls"]])
    later = np.array(details["output_lens"]) - 1
    tpot_s = decode_s[later > 0] / later[later > 0]
    return measured_statistics({"ttft": ttft_s, "tpot": tpot_s, "e2e": ttft_s + decode_s})


def _summary(place: str, run: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What the benchmark summed up itself."""
    measured: dict[str, dict[str, float]] = {}
    for op, endings in _SUMMARIES.items():
        found = {
            name: float(run[f"{prefix}_{ending}"]) * 1e-3
            for ending in endings
            for name, prefix in _PREFIXES.items()
            if _positive(run.get(f"{prefix}_{ending}"))
        }
        if found:
            measured[op] = found
    if "ttft" not in measured:
        raise DataError(f"{place}: mean_ttft_ms", "must be a number of milliseconds > 0", run.get("mean_ttft_ms"))
    return measured


def _requests(
    place: str, run: Mapping[str, Any], details: Mapping[str, Sequence[Any]] | None, slots: int | None
) -> dict[str, Any]:
    """The run's requests: one by one where the file has them, else with their mean lengths."""
    if details is None:
        return _mean_requests(place, run, slots)
    count = len(details["ttfts"])
    arrival_s = np.zeros(count)
    if slots is None and details.get("start_times"):
        arrival_s = np.array(details["start_times"], dtype=np.float64)
    elif slots is None:
        rate = _rate(run)
        arrival_s = np.zeros(count) if rate is None else np.arange(count) / rate
    order = np.argsort(arrival_s, kind="stable")
    return {
        "kind": "listed",
        "arrival_s": (arrival_s[order] - arrival_s.min()).tolist(),
        "prompt_tokens": [int(details["input_lens"][row]) for row in order],
        "output_tokens": [int(details["output_lens"][row]) for row in order],
        "source": place,
    }


def _mean_requests(place: str, run: Mapping[str, Any], slots: int | None) -> dict[str, Any]:
    for name in ("total_input_tokens", "total_output_tokens"):
        if not _positive(run.get(name)):
            raise DataError(f"{place}: {name}", "must be > 0", run.get(name))
    count = int(run["completed"])
    rate = None if slots else _rate(run)
    return {
        "kind": "synthetic",
        "num_requests": count,
        "prompt_tokens": max(1, round(run["total_input_tokens"] / count)),
        "output_tokens": max(1, round(run["total_output_tokens"] / count)),
        **({} if rate is None else {"rate_per_s": rate}),
    }


def _rate(run: Mapping[str, Any]) -> float | None:
    """Requests per second; None where all were sent at once."""
    rate = run.get("request_rate")
    return float(rate) if _positive(rate) and np.isfinite(float(rate)) else None  # type: ignore[arg-type]
