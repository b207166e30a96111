"""Where the time of saved runs went: by operator, by layer, by device, and what requests saw of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError, InputError
from moesim.reports.style import KINDS, OTHER, Kind, distinct_labels, kind_of
from moesim.simulator.result import Result, describe_pools, load_result

Floats = NDArray[np.float64]

MOST_RUNS = 12
"""Runs in one figure; more cannot be told apart."""

_NEEDED = {
    "operators": {"operator", "layer", "device", "time_s"},
    "devices": {"device", "steps", "compute_busy_s", "network_busy_s"},
    "requests": {"ttft_s", "tpot_s", "warmup"},
    "steps": {"duration_s", "repeats"},
}
_BUSY = "_busy_s"
COMPUTE, NETWORK, IDLE = "compute", "network", "idle"
"""Activities of a device; in place of the first, the names of its processors where there are several."""


@dataclass(frozen=True)
class Run:
    """A saved simulation and what figures call it."""

    label: str
    result: Result

    @property
    def description(self) -> str:
        """Model, system and parallelism."""
        what = self.result.settings["resolved"]
        load = f", {what['concurrency']} requests in flight" if what["concurrency"] else ""
        return f"{what['model']} on {describe_pools(self.result.settings)}{load}"


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Saved results, each labelled with the end of its path.

    Raises:
        InputError: no folder, more than `MOST_RUNS`, or one named twice.
        DataError: a folder that no simulation saved, or one whose files lack what figures need.
    """
    if not 1 <= len(folders) <= MOST_RUNS:
        raise InputError("RUN", f"a figure shows 1 to {MOST_RUNS} runs", len(folders))
    resolved = [folder.resolve() for folder in folders]
    twice = next((folder for folder, path in zip(folders, resolved, strict=True) if resolved.count(path) > 1), None)
    if twice is not None:
        raise InputError("RUN", "every run must be given once", str(twice))
    return [Run(label, load_run(folder)) for label, folder in zip(distinct_labels(folders), folders, strict=True)]


def load_run(folder: Path) -> Result:
    """A saved result that has what figures need.

    Raises:
        DataError: no simulation saved the folder, or its files lack something.
    """
    result = load_result(folder)
    for table, columns in _NEEDED.items():
        missing = sorted(columns - result.tables[table].keys())
        if missing:
            raise DataError(f"{folder}: {table}.parquet", "must have the column", missing[0])
        if not len(result.tables[table][min(columns)]):
            raise DataError(f"{folder}: {table}.parquet", "must have rows")
    if "pools" not in result.settings.get("resolved", {}):
        raise DataError(f"{folder}: settings.json", "must have the key resolved.pools")
    return result


def steps(result: Result) -> int:
    """Steps that the run took."""
    return int(result.tables["steps"]["repeats"].sum())


def _seconds_per_step(result: Result) -> Floats:
    """float64[operator row]: mean seconds per step and device; of the host, which a replica has one of, per step."""
    table = result.tables["operators"]
    parts = np.where(np.asarray(table["device"]) >= 0, float(result.tables["devices"]["steps"].sum()), steps(result))
    shares: Floats = np.asarray(table["time_s"], dtype=np.float64) / parts
    return shares


def step_time_by_operator(result: Result) -> dict[str, float]:
    """Mean seconds that a device (or the host) works on each operator in a step; transfers count as operators.

    Of an operator that two processors share, the longer part.
    """
    names, inverse = np.unique(np.asarray(result.tables["operators"]["operator"]).astype(str), return_inverse=True)
    sums = np.bincount(inverse.ravel(), _seconds_per_step(result), len(names))
    return dict(zip(names.tolist(), sums.tolist(), strict=True))


def step_time_by_kind(result: Result) -> dict[Kind, float]:
    """`step_time_by_operator`, summed up by kind; kinds that took no time are left out."""
    times = step_time_by_operator(result)
    sums = {kind: sum(time for name, time in times.items() if kind_of(name) == kind) for kind in (*KINDS, OTHER)}
    return {kind: time for kind, time in sums.items() if time > 0}


def mean_step_s(result: Result) -> float:
    """Mean duration of a step."""
    return float(np.sum(result.tables["steps"]["duration_s"])) / steps(result)


def waiting_s(result: Result) -> float:
    """What is left of the mean step: a device waits for others or, with several processors, for the slower part."""
    return max(0.0, mean_step_s(result) - sum(step_time_by_operator(result).values()))


def step_time_by_layer(result: Result) -> tuple[NDArray[np.int64], Floats, float]:
    """Mean seconds that a device works on each layer in a step.

    Returns:
        (layer, seconds, outside): layers ascending; `outside` is what the host and operators before and after the
        layers took.
    """
    layer, seconds = np.asarray(result.tables["operators"]["layer"]), _seconds_per_step(result)
    inside = layer >= 0
    layers, inverse = np.unique(layer[inside], return_inverse=True)
    by_layer: Floats = np.bincount(inverse.ravel(), seconds[inside], len(layers)).astype(np.float64)
    return layers, by_layer, float(seconds[~inside].sum())


def device_shares(result: Result) -> dict[str, Floats]:
    """Share of the run, first arrival to last token, that each device spent: float64[device] by activity.

    Activities are the processors (`compute` where there is one), `network` and `idle`. Processors and network can be
    busy at once and then count twice, so `idle`, what is left of the whole, is the least that it can be.
    """
    table, duration_s = result.tables["devices"], float(result.summary["duration_s"])
    busy = {name.removesuffix(_BUSY): np.asarray(values) for name, values in table.items() if name.endswith(_BUSY)}
    network, compute = busy.pop(NETWORK), busy.pop(COMPUTE)
    processors = busy if len(busy) > 1 else {COMPUTE: compute}
    shares = {name: values / duration_s for name, values in {**processors, NETWORK: network}.items()}
    return {**shares, IDLE: np.maximum(0.0, 1.0 - sum(shares.values(), np.zeros(len(network))))}


def request_ecdf(result: Result, metric: str) -> tuple[Floats, Floats]:
    """`ecdf` of a latency (`ttft_s`, `tpot_s`) over the requests that are no warm-up."""
    requests = result.tables["requests"]
    return ecdf(np.asarray(requests[metric])[~np.asarray(requests["warmup"])])


def ecdf(values: NDArray[Any]) -> tuple[Floats, Floats]:
    """Empirical distribution of the defined values.

    Returns:
        (value, fraction): values ascending, and the fraction of values that are not greater; empty if none is defined.
    """
    defined = np.sort(np.asarray(values, dtype=np.float64))
    defined = defined[~np.isnan(defined)]
    return defined, np.arange(1, len(defined) + 1) / max(1, len(defined))
