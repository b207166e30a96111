"""Host times of vLLM, fitted to one recorded run: what its steps take beside the kernels that are priced.

Means and percentiles are what a run is judged by, and every request counts besides: those that wait for a place say
little about single steps, and most percentiles of TTFT are of nothing else.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.calibration.errors import soft_l1
from moesim.reports.validation.serving_deployment import OPS, STATISTICS, Deployment, measured_statistics
from moesim.reports.validation.serving_recorded import read_latencies, read_run
from moesim.reports.validation.serving_replay import request_times

Floats = NDArray[np.float64]
HOST_CONSTANTS = ("exposed_host_s", "sequence_host_s", "prompts_host_s")
"""Settings of the scheduler that are fitted."""
_STARTS_S = (5e-4, 2e-6, 3e-3)
_STEPS_S = (4e-4, 2e-6, 2e-3)
_SOFT = 0.05
"""Errors (of the logarithm) above this weigh linearly rather than as squares: a request that just misses a step waits
for a whole one more."""
_RUNS, _SEARCHES = 60, 3
"""Replays of a search, and searches: each from what the one before found, as a replay is no smooth function."""


def fit_host(folder: Path) -> dict[str, float]:
    """Exposed host time per step, per sequence and per step with prompts, by replaying a run again and again.

    Deterministic. What is least is a sum over TTFT, TPOT and E2E of logarithmic errors: squares of those of mean and
    percentiles, and the mean of a robust loss of those of requests.

    Raises:
        DataError: as `read_run`.
    """
    from scipy.optimize import minimize

    deployment, measured_s = read_run(folder, calibrated=False), read_latencies(folder)

    def loss(values: Floats) -> float:
        predicted_s = _predicted_s(deployment, np.abs(values))
        robust = soft_l1(np.log(predicted_s / measured_s), _SOFT)
        summed = np.log(_statistics(predicted_s) / _statistics(measured_s))
        return float(robust.mean(axis=1).sum() + np.square(summed).sum())

    best = np.array(_STARTS_S)
    for search in range(_SEARCHES):
        simplex = np.vstack([best, best + np.diag(_STEPS_S) / 2.0**search])
        best = np.abs(
            minimize(
                loss,
                best,
                method="Nelder-Mead",
                options={"initial_simplex": simplex, "xatol": np.inf, "fatol": 1e-5, "maxfev": _RUNS},
            ).x
        )
    return dict(zip(HOST_CONSTANTS, best.tolist(), strict=True))


def _statistics(times_s: Floats) -> Floats:
    """float64[mean and percentiles, op] of float64[op, request]."""
    stated = measured_statistics(dict(zip(OPS, times_s, strict=True)))
    return np.array([[stated[op][name] for op in OPS] for name in STATISTICS])


def _predicted_s(deployment: Deployment, values: Floats) -> Floats:
    """float64[op, request]."""
    edits = [f"scheduler.{name}={value:.6g}" for name, value in zip(HOST_CONSTANTS, values, strict=True)]
    table = request_times(replace(deployment, assignments=(*deployment.assignments, *edits)))
    return np.stack([table["ttft_s"], table["tpot_s"], table["e2e_s"]])
