"""A replay boiled down to what calibration needs: where the time of the mean request went, step kind by step kind.

In a closed loop a step's sequences do not depend on how long steps take: a completion brings the next request. So mean
TTFT and TPOT are sums over steps, `sum(weight[step] * duration[step])`, with weights that stay as they are when
durations are scaled. That makes trying other constants a matter of microseconds (`mean_s`), and exact; with
data-parallel ranks nearly so, as waiting for the slowest rank is scaled with the experts.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.replica import Passage
from moesim.simulator.scheduler import SchedulerSettings
from moesim.simulator.serving_record import ServingRecord
from moesim.simulator.step_simulator import StepSimulator

Floats = NDArray[np.float64]
KINDS = ("attention", "experts", "dense", "communication", "other")
"""Kinds of operators whose time is scaled."""
_SAME_S = 1e-9
"""Events that are not further apart are one."""


class ProfileRecorder:
    """Observes a run: seconds on one device by kind of operator, for every step of a single replica."""

    def __init__(self, stage: StepSimulator) -> None:
        """Observe the steps of `stage`."""
        graph = stage.step_graph.graph
        kinds = np.array([KINDS.index(stage.kind_of(name)) if name != "host" else -1 for name in graph.kinds])
        first = graph.device == stage.devices[0]
        self._tasks = np.flatnonzero(first & (graph.stream >= 0) & (kinds[graph.kind] >= 0))
        self._kind = kinds[graph.kind[self._tasks]]
        self.launches = stage.launches
        self.request_host_s = stage.settings.request_host_s
        self.steps: list[tuple[float, ...]] = []

    def note_step(self, _number: int, _replica: int, passage: Passage) -> None:
        """A step starts."""
        outcome, step = passage.outcomes[0], passage.step
        seconds = np.bincount(self._kind, outcome.graph.duration_s[self._tasks], len(KINDS))
        devices_s = outcome.timeline.finish_s[outcome.graph.device >= 0].max() - _blocking_s(outcome.graph)
        seconds[KINDS.index("experts")] += max(0.0, devices_s - seconds.sum())  # waiting for other ranks
        self.steps.append((passage.repeats, step.longest_batch, not step.decodes.all(), *seconds))


def _blocking_s(graph: Any) -> float:
    """When the devices start."""
    first = int(np.flatnonzero((graph.device >= 0) & (graph.stream >= 0))[0])
    before = graph.duration_s[:first]
    return float(before[0]) if len(before) and graph.predecessor_count[first] else 0.0


@dataclass(frozen=True)
class Profile:
    """Steps of a replay, those that only decode summed up into one row.

    Attributes:
        weights: float64[row, 2], how much a row's duration counts in mean TTFT and mean TPOT.
        seconds: float64[row, kind], device time before any scaling.
        sequences: float64[row], of the rank that has most.
        prompts: float64[row], 1 where the step has prompts.
        launches: operators and collectives that a step runs on a device.
        between_s: float64[2], what mean TTFT and TPOT hold beside steps: requests on their way to an idle engine,
            and tokens to clients.
    """

    weights: Floats
    seconds: Floats
    sequences: Floats
    prompts: Floats
    launches: int
    between_s: Floats

    @classmethod
    def of(cls, recorder: ProfileRecorder, record: ServingRecord, request_weights: Floats, later: Floats) -> Self:
        """From an observed run.

        Args:
            recorder: that observed it.
            record: of the run.
            request_weights: float64[request], share of each request in the means.
            later: float64[request], output tokens after the first, as the client counts them.
        """
        columns = np.array(recorder.steps)
        repeats, sequences, prompts, seconds = columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3:]
        each = np.stack(_step_weights(record, request_weights, later), axis=1)
        between_s = _means_s(record, request_weights, later) - each.T @ record.steps["duration_s"]
        between_s[0] -= recorder.request_host_s  # `mean_s` adds what is asked for
        weights = each * repeats[:, None]
        decodes = prompts == 0
        rows = [(weights[~decodes], seconds[~decodes], sequences[~decodes], prompts[~decodes])]
        for op in range(2):  # the steps that only decode, as one row of the mean for each op
            share = weights[decodes, op]
            total = share.sum()
            mean = share / total if total > 0 else share
            one = np.zeros((1, 2))
            one[0, op] = total
            rows.append((one, (mean @ seconds[decodes])[None], np.array([mean @ sequences[decodes]]), np.zeros(1)))
        joined = [np.concatenate([row[column] for row in rows]) for column in range(4)]
        return cls(joined[0], joined[1], joined[2], joined[3], recorder.launches, between_s)

    def mean_s(self, settings: SchedulerSettings) -> Floats:
        """float64[2]: mean TTFT and TPOT under the host times and time scales of `settings`."""
        scale = np.array([settings.time_scale.get(kind, 1.0) for kind in KINDS])  # type: ignore[call-overload]
        prompts_scale = settings.time_scale.get("prompts", 1.0)
        means = self._mean_s(settings.host, scale, prompts_scale) + self.between_s
        means[0] += settings.request_host_s
        return means

    def _mean_s(self, host: Any, scale: Floats, prompts_scale: float) -> Floats:
        devices_s = (self.seconds @ scale) * np.where(self.prompts > 0, prompts_scale, 1.0)
        beside_s, blocking_s = (
            np.where(self.prompts > 0, of(has_prompts=True), of(has_prompts=False))
            for of in (partial(host.beside_s, self.launches), partial(host.blocking_s, 0))
        )
        blocking_s = blocking_s + host.per_sequence_s * self.sequences
        duration_s: Floats = blocking_s + np.maximum(devices_s, beside_s)
        means: Floats = duration_s @ self.weights
        return means


def _means_s(record: ServingRecord, shares: Floats, later: Floats) -> Floats:
    """float64[2]: mean TTFT and TPOT of a run."""
    tpot_s = _per_token(shares, later) @ (record.last_received_s - record.first_received_s)
    return np.array([shares @ (record.first_received_s - record.arrival_s), tpot_s])


def _per_token(shares: Floats, later: Floats) -> Floats:
    """float64[request]: weight of each request's time per later token in mean TPOT; 0 if none has a second token."""
    decodes = later > 0
    weight: Floats = np.divide(shares, later, out=np.zeros(len(shares)), where=decodes)
    return weight / shares[decodes].sum() if decodes.any() else weight


def _step_weights(record: ServingRecord, shares: Floats, later: Floats) -> tuple[Floats, Floats]:
    """float64[step] each: share of the requests that wait for their first token in a step, and that decode in it."""
    steps = record.steps
    end_s = steps["start_s"] + steps["duration_s"]
    edges = [np.searchsorted(end_s, time_s - _SAME_S) for time_s in (record.arrival_s, record.first_token_s)]
    arrived, first = edges[0], edges[1] + 1
    arrived = np.where(np.append(end_s, np.inf)[arrived] <= record.arrival_s + _SAME_S, arrived + 1, arrived)
    last = np.searchsorted(end_s, record.last_token_s - _SAME_S) + 1
    spans = (arrived, first, shares), (first, last, _per_token(shares, later))
    return _spread(*spans[0], len(end_s)), _spread(*spans[1], len(end_s))


def _spread(start: NDArray[np.int64], stop: NDArray[np.int64], value: Floats, steps: int) -> Floats:
    """float64[step]: sum of the values of all spans [start, stop) that hold a step."""
    change = np.bincount(start, value, steps + 1) - np.bincount(stop, value, steps + 1)
    total: Floats = np.cumsum(change)[:steps]
    return total
