"""Bisection on the load of the fullest device, with the exact model as judge.

Runs in a child process (`moesim.search.child_process`), because a solver may overrun its time.
"""

import time
from typing import Any

import numpy as np

from moesim.search.child_process import Send
from moesim.search.placement.pattern_model import Answer, ask
from moesim.search.placement.patterns import TooManyPatternsError, find_patterns
from moesim.search.placement.problem import Floats, Ints, device_loads
from moesim.search.solution import EQUAL, relative_gap

_NARROW = 1e-3
"""Below this gap the question is whether anything is better at all, rather than than the middle."""
_SHARE_OF_TIME = 0.4
"""Part of the time left that one limit may take, so that a hard one leaves time for easier ones."""
_LEAST_S = 0.02
_PASSES = 2


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
        self._lowest_open = self.fullest
        self._highest_open = bound

    @property
    def gap(self) -> float:
        """Relative gap between the best placement and the bound."""
        return relative_gap(self.fullest, self.bound)

    def run(self, gap: float, deadline_s: float) -> None:
        """Work until the gap is reached, nothing can be asked any more, or it is `deadline_s` (`time.monotonic()`)."""
        upwards = False
        while self.gap > gap and (left_s := deadline_s - time.monotonic()) > _LEAST_S:
            limit = self._next_limit(upwards=upwards)
            if limit is None:
                return
            answer = self._ask(limit, left_s)
            self._learn(limit, answer)
            upwards = answer.slots is None and not answer.refuted and not upwards

    def _next_limit(self, *, upwards: bool) -> float | None:
        """The limit to ask about; None if all that are worth it have been asked.

        Limits between `_lowest_open` and `_highest_open` were asked about without an answer.
        """
        if self._highest_open <= self._lowest_open and self._lowest_open > self.bound:
            pass
        if self._lowest_open == self.fullest:
            if self.gap < _NARROW:
                return self.fullest * (1 - EQUAL)
            return (self.bound + self.fullest) / 2
        sides = [(self._highest_open, self.fullest), (self.bound, self._lowest_open)]
        worth = [side for side in (sides if upwards else sides[::-1]) if side[1] - side[0] > _NARROW * self.fullest]
        return sum(worth[0]) / 2 if worth else None

    def _ask(self, limit: float, left_s: float) -> Answer:
        try:
            patterns = find_patterns(self.weight, *self.slots.shape, limit, self.most_patterns)
        except TooManyPatternsError:
            self.too_large = True
            return Answer(None, refuted=False)
        if patterns is None or len(patterns.options) == 0:
            return Answer(None, refuted=True)
        return ask(patterns, self.slots, max(_LEAST_S, left_s * _SHARE_OF_TIME))
