"""Bisection on the load of the fullest device, with the exact model as judge.

Runs in a child process (`moesim.search.child_process`), because a solver may overrun its time.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moesim.search.child_process import Send
from moesim.search.placement.pattern_model import Answer, ask
from moesim.search.placement.patterns import TooManyPatternsError, find_patterns
from moesim.search.placement.problem import Floats, Ints, device_loads
from moesim.search.solution import EQUAL, relative_gap

_NARROW = 1e-3
"""Below this gap the question is whether anything better exists at all, above it whether the middle can be kept."""
_FINEST = 1e-4
"""Limits nearer than this fraction to one without an answer are not asked about: they are as hard."""
_SHARE_OF_TIME = 0.4
"""Part of the time left that one limit may take, so that a hard one leaves time for easier ones."""
_LEAST_S = 0.02
_FIRST_LIMIT = 1 / 8
"""How far from the bound towards the best placement a model must be small enough for a layer to be tried."""


class LayerSearch:
    """Closes in on the optimum of one layer from both sides.

    Args:
        weight: float64[expert] load of each expert.
        slots: int64[device, slot] a placement to start from; afterwards the best one known.
        bound: a lower bound on the load of the fullest device; afterwards the best one known.
        most_patterns: larger models are not built.
    """

    def __init__(self, weight: Floats, slots: Ints, bound: float, most_patterns: int) -> None:
        self.weight = weight
        self.slots = slots
        self.bound = bound
        self.most_patterns = most_patterns
        self.fullest = float(device_loads(weight, slots).max())
        self.too_large = False
        self._unanswered: tuple[float, float] | None = None  # lowest and highest limit that got no answer
        self._upwards = False

    @property
    def gap(self) -> float:
        """Relative gap between the best placement and the bound."""
        return relative_gap(self.fullest, self.bound)

    def run(self, gap: float, deadline_s: float, on_progress: Callable[[], None] = lambda: None) -> None:
        """Work until the gap is reached, no limit is worth asking about, or it is `deadline_s` (`time.monotonic()`)."""
        self._unanswered = None
        while self.gap > gap and (left_s := deadline_s - time.monotonic()) > _LEAST_S:
            limit = self._next_limit()
            if limit is None:
                return
            answer = self._ask(limit, deadline_s - left_s * (1 - _SHARE_OF_TIME))
            self._learn(limit, answer)
            if answer.refuted or answer.slots is not None:
                on_progress()

    def _next_limit(self) -> float | None:
        if self._unanswered is None:
            middle = (self.bound + self.fullest) / 2
            return max(middle, self.fullest * (1 - EQUAL / 2)) if self.gap < _NARROW else middle
        lowest, highest = self._unanswered
        sides = [(self.bound, lowest)]
        if not self.too_large:  # a higher limit has more patterns
            sides.insert(0 if self._upwards else 1, (highest, self.fullest))
        self._upwards = not self._upwards
        worth = [low + (high - low) / 2 for low, high in sides if high - low > 2 * _FINEST * self.fullest]
        return worth[0] if worth else None

    def _ask(self, limit: float, deadline_s: float) -> Answer:
        try:
            devices, slots_per_device = self.slots.shape
            patterns = find_patterns(self.weight, devices, slots_per_device, limit, self.most_patterns)
        except TooManyPatternsError:
            self.too_large = True
            return Answer(None, refuted=False)
        if patterns is None or len(patterns.options) == 0:
            return Answer(None, refuted=True)
        return ask(patterns, self.slots, deadline_s)

    def _learn(self, limit: float, answer: Answer) -> None:
        if answer.refuted:
            self.bound = limit
        elif answer.slots is not None:
            self.slots = answer.slots
            self.fullest = float(device_loads(self.weight, self.slots).max())
        else:
            lowest, highest = self._unanswered or (limit, limit)
            self._unanswered = min(lowest, limit), max(highest, limit)
        if self._unanswered is not None:
            lowest, highest = max(self._unanswered[0], self.bound), min(self._unanswered[1], self.fullest)
            self._unanswered = (lowest, highest) if lowest <= highest else None


def is_tractable(weight: Floats, slots: Ints, bound: float, most_patterns: int) -> bool:
    """Whether a first question about a layer, whose limit is near its bound, has a model of reasonable size."""
    devices, slots_per_device = slots.shape
    fullest = float(device_loads(weight, slots).max())
    try:
        find_patterns(weight, devices, slots_per_device, bound + (fullest - bound) * _FIRST_LIMIT, most_patterns)
    except TooManyPatternsError:
        return False
    return True


def solve_layers(payload: dict[str, Any], send: Send) -> None:
    """Solve the layers of `payload`, which `moesim.search.placement.balance` made, and send what is found at once.

    Args:
        payload: `layers`, a list of {index, weight, slots, bound}; `gap`; `most_patterns`; `deadline_s`.
        send: gets {index, slots, bound, too_large} whenever a layer has a better placement or bound.
    """
    searches = {
        layer["index"]: LayerSearch(
            np.array(layer["weight"]), np.array(layer["slots"]), layer["bound"], payload["most_patterns"]
        )
        for layer in payload["layers"]
    }
    for share in (0.5, 1.0):  # first half of the time for all, then the rest for those that need it
        _run_all(searches, payload, share, send)


def _run_all(searches: dict[int, LayerSearch], payload: dict[str, Any], share: float, send: Send) -> None:
    waiting = [index for index, search in searches.items() if search.gap > payload["gap"]]
    for done, index in enumerate(waiting):
        now_s = time.monotonic()
        left_s = payload["deadline_s"] - now_s
        slice_s = left_s if len(waiting) == 1 else left_s * share / (len(waiting) - done)
        search = searches[index]

        def report(index: int = index, search: LayerSearch = search) -> None:
            send(_found(index, search))

        search.run(payload["gap"], now_s + slice_s, report)
        report()


def _found(index: int, search: LayerSearch) -> dict[str, Any]:
    slots: Sequence[Sequence[int]] = search.slots.tolist()
    return {"index": index, "slots": slots, "bound": search.bound, "too_large": search.too_large}
