"""The summary of a result: one flat dict of what people ask for first."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moesim.simulator.metrics import counted_distribution, distribution, expert_load_imbalance
from moesim.simulator.result import Columns
from moesim.simulator.tables import Served

Tables = Mapping[str, Columns]

_MOST = 0.9
"""Of the time on devices: what the greatest operators take, by whose calibrations a run is judged."""


def summarise(served: Served, tables: Tables) -> dict[str, Any]:
    """The summary; units are in the keys, None where a value is undefined."""
    measured = slice(served.setup.scenario.warmup_requests, None)
    requests = {name: column[measured] for name, column in tables["requests"].items()}
    gaps = served.record.gaps
    return {
        **_throughput(served, requests),
        **distribution("ttft", requests["ttft_s"]),
        **counted_distribution("itl", gaps["gap_s"], gaps["count"]),
        **distribution("tpot", requests["tpot_s"]),
        **distribution("e2e", requests["e2e_s"]),
        **_energy(served),
        **_load(served, tables),
        **(_transfers(requests) if served.setup.is_disaggregated else {}),
        **_time_by_operator(served, tables),
    }


def _throughput(served: Served, requests: Columns) -> dict[str, Any]:
    """Totals and rates of `requests`, the rows of the table that are no warm-up, from the first of them to arrive."""
    duration = float(requests["last_token_s"].max() - requests["arrival_s"].min())
    prompt, output = int(requests["prompt_tokens"].sum()), int(requests["output_tokens"].sum())
    hits = requests.get("prefix_hit_tokens")
    return {
        "requests": len(requests["request"]),
        "warmup_requests": served.setup.scenario.warmup_requests,
        "dropped_requests": served.setup.requests.dropped,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "duration_s": duration,
        "requests_per_s": len(requests["request"]) / duration,
        "total_tokens_per_s": (prompt + output) / duration,
        "output_tokens_per_s": output / duration,
        "output_tokens_per_s_per_device": output / duration / served.setup.devices,
        **({} if hits is None else {"prefix_hit_rate": int(hits.sum()) / prompt}),
    }


def _energy(served: Served) -> dict[str, Any]:
    """Energy of operators and links, of devices that communicate or wait, and what all draw even when idle.

    Idle power counts from first arrival to last token; requests of the warm-up are part of all of it.
    """
    setup, duration_s = served.setup, served.record.duration_s
    waiting = sum(stage.totals.waiting_j for stage in served.stages)
    work = sum(float(stage.totals.energy_j @ stage.tasks_per_row) for stage in served.stages)
    idle = sum(pool.system.idle_w * pool.system.device_count for pool in setup.pools) * duration_s
    total = work + waiting + served.record.kv_transfer_j + idle
    return {
        "energy_j": total,
        "idle_energy_j": idle,
        "waiting_energy_j": waiting,
        "energy_per_output_token_j": total / int(setup.requests.output_tokens.sum()),
        "mean_power_per_device_w": total / duration_s / setup.devices,
    }


def _load(served: Served, tables: Tables) -> dict[str, Any]:
    steps, devices, tokens = tables["steps"], tables["devices"], served.expert_tokens
    repeats = steps["repeats"]
    return {
        "steps": int(repeats.sum()),
        "step_mean_s": float(steps["duration_s"].sum() / repeats.sum()),
        "sequences_per_step_mean": float(np.average(steps["sequences"], weights=repeats)),
        "compute_utilization": float(devices["compute_utilization"].mean()),
        "network_utilization": float(devices["network_utilization"].mean()),
        "kv_capacity_bytes_per_device": min(pool.memory.kv_bytes for pool in served.setup.pools),
        "kv_used_fraction_peak": float(steps["kv_used_fraction"].max()),
        "preemptions": int(served.record.preemptions.sum()),
        "expert_load_imbalance": expert_load_imbalance(tokens.sum(axis=0)),
        "rank_load_imbalance_mean": float(np.average(steps["expert_imbalance"], weights=repeats))
        if tokens.size
        else None,
    }


def _transfers(requests: Columns) -> dict[str, Any]:
    """Caches that moved from prefill to decode, and how long they took from the end of the prompt to arrival."""
    return {
        "kv_transfer_bytes": float(requests["kv_transfer_bytes"].sum()),
        **distribution("kv_transfer", requests["kv_transfer_s"]),
    }


def _time_by_operator(served: Served, tables: Tables) -> dict[str, Any]:
    """Busy seconds per device of each operator, and the share priced outside a fitted range."""
    operators = tables["operators"]
    names, inverse = np.unique(operators["operator"].astype(str), return_inverse=True)
    # The devices of a replica wait for its one host.
    sharing = np.where(operators["device"] >= 0, served.setup.devices, len(served.pipelines))
    seconds = np.bincount(inverse, operators["time_s"] / sharing)
    order = np.argsort(-seconds)
    return {"extrapolated_time_fraction": _extrapolated_share(served), **_kernel_error(served)} | {
        f"time_{names[i]}_s": float(seconds[i]) for i in order
    }


def _extrapolated_share(served: Served) -> float:
    """Part of the priced time that lies outside the ranges of the calibrations."""
    priced = extrapolated = 0.0
    for stage in served.stages:
        totals, tasks = stage.totals, stage.tasks_per_row
        host = stage.host_rows
        priced += float(totals.time_s @ tasks) - float(totals.time_s[host] @ tasks[host])
        extrapolated += float(totals.extrapolated_s @ tasks)
    return extrapolated / priced if priced else 0.0


def _kernel_error(served: Served) -> dict[str, float | None]:
    """Errors that calibrations state of the operators and collectives that take `_MOST` of the time on devices.

    `kernel_error_of_90_percent` is the mean by time, over what was priced inside a calibrated range; None where nothing
    was. `kernel_error_time_fraction` is the share of all time on devices that it is about.
    """
    time_s, names, fitted_s, error_s = [], [], [], []
    for stage in served.stages:
        totals, tasks, errors = stage.totals, stage.tasks_per_row, stage.stated_errors()
        busy_s = totals.time_s * tasks
        busy_s[stage.host_rows] = 0.0
        inside_s = np.where(np.isnan(errors), 0.0, busy_s - totals.extrapolated_s * tasks)
        time_s.append(busy_s)
        fitted_s.append(inside_s)
        error_s.append(np.nan_to_num(errors) * inside_s)
        names += stage.names
    _, name = np.unique(names, return_inverse=True)
    busy, fitted, error = (np.bincount(name, np.concatenate(part)) for part in (time_s, fitted_s, error_s))
    order = np.argsort(-busy, kind="stable")
    before = np.cumsum(busy[order]) - busy[order]
    chosen = order[before < _MOST * busy.sum()]
    covered = float(fitted[chosen].sum())
    return {
        "kernel_error_of_90_percent": float(error[chosen].sum()) / covered if covered else None,
        "kernel_error_time_fraction": covered / float(busy.sum()) if covered else 0.0,
    }
