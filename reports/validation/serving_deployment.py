"""A measured server: what ran, what its client saw, and the scenario that replays it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.configs.loader import Reference
from moesim.simulator.result import Columns

OPS = ("ttft", "tpot", "e2e")
"""What is compared."""
STATISTICS = ("mean", "p50", "p90", "p95", "p99")


@dataclass(frozen=True)
class Deployment:
    """One measurement of one server at one load.

    Args:
        id: name of the measurement.
        group: names of its deployment (model, framework, GPU, parallelism, lengths), without the load: measurements of
            one deployment are never split between fitting and testing.
        framework: serving engine, such as vllm.
        model: as the data call it.
        gpu: name of the device.
        scenario: what to simulate; None if it cannot be expressed.
        assignments: edits of the scenario, `key.subkey=value`.
        measured_s: seconds by op and statistic, such as `measured_s["ttft"]["mean"]`.
        concurrency: requests in flight; None in an open loop.
        prompts_per_slot: requests of the benchmark over `concurrency`; the scenario may replay fewer, see `weights`.
        tokens_per_step: of a sequence; more than one with speculative decoding, the outputs of the scenario are shorter
            by this factor.
        from_queue: TTFT and E2E count from when the engine saw a request, which is between steps, not from its arrival.
        unanswered: why there is no scenario.
        broken: why the measurement is not to be believed.
        section: table that it belongs to.
    """

    id: str
    group: tuple[str, ...]
    framework: str
    model: str
    gpu: str
    scenario: Reference | None
    assignments: tuple[str, ...]
    measured_s: Mapping[str, Mapping[str, float]]
    concurrency: int | None = None
    prompts_per_slot: float | None = None
    tokens_per_step: float = 1.0
    from_queue: bool = False
    unanswered: str | None = None
    broken: str | None = None
    section: str = "servers"

    @property
    def calibration(self) -> tuple[str, str]:
        """(framework, model): what constants are fitted for."""
        return self.framework, self.model.partition(" with ")[0]


def request_weights(deployment: Deployment, requests: int) -> NDArray[np.float64]:
    """float64[request]: share of each simulated request in the means of the benchmark.

    A closed loop starts with a wave of all slots at once and ends with slots running dry; in between it is steady. A
    replay of fewer requests than the benchmark sent therefore gives its first and last `concurrency` requests the
    weight that they have in the benchmark, and what is between them the rest.
    """
    slots, per_slot = deployment.concurrency, deployment.prompts_per_slot
    if slots is None or per_slot is None or requests >= slots * per_slot or requests < 3 * slots:
        return np.full(requests, 1.0 / requests)
    weights = np.full(requests, (1.0 - 2.0 / per_slot) / (requests - 2 * slots))
    weights[:slots] = weights[-slots:] = 1.0 / (per_slot * slots)
    return weights


def statistics(table: Columns, weights: NDArray[np.float64], tokens_per_step: float) -> dict[str, dict[str, float]]:
    """Seconds by op and statistic of the requests of a result; percentiles are weighted as the mean is."""
    stated: dict[str, dict[str, float]] = {}
    for op in OPS:
        values = np.asarray(table[f"{op}_s"], dtype=np.float64)
        kept = ~np.isnan(values)
        seconds = values / tokens_per_step if op == "tpot" else values
        stated[op] = weighted_statistics(seconds[kept], weights[kept])
    return stated


def weighted_statistics(values: NDArray[np.float64], weights: NDArray[np.float64]) -> dict[str, float]:
    """Mean and percentiles, the latter interpolated as numpy does where all weights are equal; none without values."""
    if not len(values):
        return {}
    mean = float(np.average(values, weights=weights))
    percents = [int(name[1:]) / 100 for name in STATISTICS[1:]]
    order = np.argsort(values)
    cumulated = np.cumsum(weights[order])
    last = cumulated[-1] - weights[order[-1]]
    place = (cumulated - weights[order]) / last if last > 0 else np.zeros(len(values))
    return dict(zip(STATISTICS, [mean, *np.interp(percents, place, values[order]).tolist()], strict=True))


def measured_statistics(values: Mapping[str, ArrayLike]) -> dict[str, dict[str, float]]:
    """Seconds by op and statistic of values per request."""
    arrays = {op: np.asarray(column, dtype=np.float64) for op, column in values.items()}
    return {op: weighted_statistics(array, np.ones(len(array))) for op, array in arrays.items()}
