"""The search for a balanced placement: baselines, heuristic, bounds, and the exact solver where it pays."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.configs.rules import did_you_mean
from moesim.errors import ConfigError, DataError
from moesim.search.child_process import ChildFailedError, messages
from moesim.search.placement.baselines import contiguous, eplb
from moesim.search.placement.bounds import lower_bounds
from moesim.search.placement.problem import Floats, Problem, device_loads
from moesim.search.solution import Solution, Status, relative_gap, worst
from moesim.simulator.placement import Placement

METHODS = ("auto", "milp", "lpt", "eplb", "contiguous")
"""`contiguous` and `eplb` are baselines, `lpt` the heuristic; `milp` and `auto` begin with `lpt` and go on with the
exact solver, `auto` only where the model of a layer is small enough to be solved within seconds."""

TIME_LIMIT_S = 10.0
GAP = 1e-4
"""Default gap: a hundredth of a percent of a layer's time is far below what loads change from hour to hour."""

_MOST_PATTERNS = {"auto": 20_000, "milp": 60_000}
"""Largest exact model. HiGHS solved models with 10,000 patterns in a second, with 25,000 in some ten seconds or not."""
_SOLVER = "moesim.search.placement.exact:solve_layers"

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)` with layers."""


@dataclass(frozen=True, eq=False)
class BalancedPlacement:
    """A placement with its loads and what is known about them.

    Args:
        placement: expert of every slot, grouped by device; the devices are the expert-parallel ranks.
        max_load_tokens: float64[layer] load of the fullest device.
        mean_load_tokens: float64[layer] load of a device if all had the same.
        bound_tokens: float64[layer] no placement has a smaller `max_load_tokens`.
        status: why the search of each layer ended.
        note: what went wrong with the solver, empty if nothing did.
    """

    placement: Placement
    max_load_tokens: Floats
    mean_load_tokens: Floats
    bound_tokens: Floats
    status: tuple[Status, ...]
    note: str = ""

    @property
    def gap_fraction(self) -> Floats:
        """float64[layer]: by which fraction the load of the fullest device could still fall."""
        pairs = zip(self.max_load_tokens, self.bound_tokens, strict=True)
        return np.array([relative_gap(objective, bound) for objective, bound in pairs])

    @property
    def imbalance(self) -> Floats:
        """float64[layer]: load of the fullest device over the mean."""
        ratio: Floats = self.max_load_tokens / self.mean_load_tokens
        return ratio


def search_placement(
    loads: ArrayLike,
    devices: int,
    slots: int | None = None,
    method: str = "auto",
    *,
    time_limit_s: float = TIME_LIMIT_S,
    gap: float = GAP,
    seed: int = 0,
    on_progress: Progress = lambda *_: None,
) -> Solution[BalancedPlacement]:
    """A placement whose fullest devices have little to do.

    The objective is the sum over the layers of the load of the fullest device, in tokens.

    Args:
        loads: float64[layer, expert] tokens per expert; one row for one layer.
        devices: devices that share each layer.
        slots: slots per layer on all devices together; by default one per expert.
        method: one of `METHODS`.
        time_limit_s: seconds for the exact solver, all layers and its start included; it is killed then.
        gap: relative gap at which a layer is good enough.
        seed: of the heuristic's random numbers. Without the exact solver equal calls give equal results.
        on_progress: told how many layers are done.

    Raises:
        ConfigError: slots that do not fit experts and devices, a setting out of range, an unknown method.
        DataError: loads that are no loads.
    """
    began_s = time.monotonic()
    _check_settings(method, time_limit_s, gap, seed)
    table = _table(loads)
    problem = Problem(table, devices, table.shape[-1] if slots is None else slots)
    run = _Run(problem, lower_bounds(problem), gap, on_progress)
    if method == "contiguous":
        run.start(contiguous(problem))
    else:
        run.start(eplb(problem))
    if method in {"lpt", *_MOST_PATTERNS}:
        run.improve(seed)
    if method in _MOST_PATTERNS:
        run.prove(_MOST_PATTERNS[method], time_limit_s)
    return run.solution(time.monotonic() - began_s)


@dataclass
class _Run:
    """A search under way: the best placement of every layer so far."""

    problem: Problem
    bounds: Floats
    gap: float
    on_progress: Progress
    slots: list[NDArray[np.int64]] = field(default_factory=list)
    stopped: dict[int, Status] = field(default_factory=dict)
    note: str = ""

    def start(self, slots: NDArray[np.int32]) -> None:
        """Begin with int32[layer, slot]."""
        shape = self.problem.devices, self.problem.slots_per_device
        self.slots = [row.reshape(shape).astype(np.int64) for row in slots]

    def fullest(self, layer: int) -> float:
        return float(device_loads(self.problem.loads[layer], self.slots[layer]).max())

    def is_open(self, layer: int) -> bool:
        return relative_gap(self.fullest(layer), self.bounds[layer]) > self.gap

    def improve(self, seed: int) -> None:
        """The heuristic, from the present placement."""
        from moesim.search.placement.heuristic import improve_layer  # numba loads slowly

        streams = np.random.default_rng(seed).spawn(self.problem.layers)
        in_order = contiguous(self.problem)[0].reshape(self.slots[0].shape).astype(np.int64)
        for layer, rng in enumerate(streams):
            self.take(layer, in_order)
            start, bound = self.slots[layer], float(self.bounds[layer])
            self.take(layer, improve_layer(self.problem.loads[layer], start, bound, self.gap, rng))
            self.on_progress("heuristic", layer + 1, self.problem.layers)

    def take(self, layer: int, slots: NDArray[np.int64]) -> None:
        """Keep a placement if it is better than the present one."""
        if device_loads(self.problem.loads[layer], slots).max() < self.fullest(layer):
            self.slots[layer] = slots

    def prove(self, most_patterns: int, time_limit_s: float) -> None:
        """The exact solver, for layers that are not good enough."""
        from moesim.search.placement.exact import is_tractable  # numba loads slowly

        unsolved = [layer for layer in range(self.problem.layers) if self.is_open(layer)]
        chosen = []
        for layer in unsolved:
            small = is_tractable(self.problem.loads[layer], self.slots[layer], self.bounds[layer], most_patterns)
            self.stopped[layer] = Status.TIME_LIMIT_HEURISTIC if small else Status.TOO_LARGE
            if small:
                chosen.append(layer)
        if chosen:
            self._listen(chosen, most_patterns, time.monotonic() + time_limit_s)

    def _listen(self, chosen: Sequence[int], most_patterns: int, deadline_s: float) -> None:
        payload = {
            "layers": [self._layer(layer) for layer in chosen],
            "gap": self.gap,
            "most_patterns": most_patterns,
            "deadline_s": deadline_s,
        }
        self.on_progress("solver", 0, len(chosen))
        try:
            with closing(messages(_SOLVER, payload, deadline_s)) as answers:
                for answer in answers:
                    self._hear(answer)
                    self.on_progress("solver", sum(not self.is_open(layer) for layer in chosen), len(chosen))
        except ChildFailedError as error:
            self.note = str(error)
            self.stopped |= {layer: Status.SOLVER_FAILED for layer in chosen if self.is_open(layer)}

    def _layer(self, layer: int) -> dict[str, Any]:
        return {
            "index": layer,
            "weight": self.problem.loads[layer].tolist(),
            "slots": self.slots[layer].tolist(),
            "bound": float(self.bounds[layer]),
        }

    def _hear(self, answer: dict[str, Any]) -> None:
        layer = answer["index"]
        self.take(layer, np.array(answer["slots"], dtype=np.int64))
        self.bounds[layer] = max(self.bounds[layer], answer["bound"])
        self.stopped[layer] = Status.TOO_LARGE if answer["too_large"] else Status.TIME_LIMIT

    def status(self, layer: int) -> Status:
        gap = relative_gap(self.fullest(layer), self.bounds[layer])
        if gap == 0:
            return Status.OPTIMAL
        return Status.WITHIN_GAP if gap <= self.gap else self.stopped.get(layer, Status.HEURISTIC)

    def solution(self, wall_s: float) -> Solution[BalancedPlacement]:
        layers = range(self.problem.layers)
        fullest = np.array([self.fullest(layer) for layer in layers])
        gaps = [relative_gap(*pair) for pair in zip(fullest, self.bounds, strict=True)]
        bounds = np.where(np.array(gaps) == 0, fullest, self.bounds)
        slots = np.stack([np.sort(layer, axis=1).reshape(-1) for layer in self.slots]).astype(np.int32)
        value = BalancedPlacement(
            placement=Placement(slots, self.problem.devices),
            max_load_tokens=fullest,
            mean_load_tokens=self.problem.mean_load,
            bound_tokens=bounds,
            status=tuple(self.status(layer) for layer in layers),
            note=self.note,
        )
        return Solution.of(value, float(fullest.sum()), float(bounds.sum()), worst(value.status), wall_s)


def _check_settings(method: str, time_limit_s: float, gap: float, seed: int) -> None:
    if method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise ConfigError("method", f"must be one of {', '.join(METHODS)}{f'; {hint}' if hint else ''}", method)
    if not time_limit_s > 0 or not np.isfinite(time_limit_s):
        raise ConfigError("time_limit_s", "must be a number of seconds > 0", time_limit_s)
    if not 0 <= gap < 1:
        raise ConfigError("gap", "must be a fraction >= 0 and < 1", gap)
    if seed < 0:
        raise ConfigError("seed", "must be >= 0", seed)


def _table(loads: ArrayLike) -> Floats:
    try:
        return np.atleast_2d(np.asarray(loads, dtype=np.float64))
    except (TypeError, ValueError):
        raise DataError("loads", "must be a table of numbers, equally many per layer") from None
