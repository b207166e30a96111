"""Host times and time scales of a serving engine, fitted to measured deployments of one framework and model.

Eight constants at most, each with a physical name and bounds. The fit uses the profiles of one replay (see
`serving_profile`), so it needs no further simulation. Its error is that on deployments it has not seen: whole groups
are left out, never single rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.calibration.errors import soft_l1
from moesim.reports.validation.serving_deployment import Deployment
from moesim.reports.validation.serving_profile import Profile
from moesim.simulator.scheduler import SchedulerSettings

Floats = NDArray[np.float64]


class Constant(NamedTuple):
    """A constant of the fit: where it starts, what it may be, and how far it strays at no cost worth mentioning."""

    name: str
    start: float
    low: float
    high: float
    spread: float


CONSTANTS = (
    Constant("time_scale.attention", 1.0, 0.5, 3.0, 0.5),
    Constant("time_scale.experts", 1.0, 0.5, 3.0, 0.5),
    Constant("time_scale.dense", 1.0, 0.5, 3.0, 0.5),
    Constant("time_scale.communication", 1.0, 0.5, 4.0, 0.5),
    Constant("time_scale.prompts", 1.0, 0.5, 4.0, 1.0),
    Constant("exposed_host_s", 2e-4, 0.0, 5e-3, 1e-3),
    Constant("eager_operator_s", 0.0, 0.0, 5e-4, 1e-4),
    Constant("request_host_s", 5e-3, 0.0, 0.5, 5e-2),
)
"""What is fitted: factors on device time by kind of operator and in steps with prompts, host seconds."""
SPECULATION = Constant("tokens_per_step", 1.85, 1.0, 2.0, 0.2)
"""With rows of speculative decoding, in place of the factor on communication: tokens of a sequence per step."""
_EAGER_STARTS_S = (0.0, 7.5e-5, 2e-4)
"""A floor below the device time has no gradient, so the fit starts from several."""
FOLDS = 5
_PRIOR = 0.05
"""Weight of staying near the start: a constant one `spread` away costs as much as a row that is 5 % off."""
_SOFT = 0.1
"""Relative error beyond which rows count linearly, so that a few odd ones do not decide."""


@dataclass(frozen=True)
class Measured:
    """Rows of one framework and model that can be fitted.

    Attributes:
        deployments, profiles: [row].
        settings: [row] of the engine, without any constant.
        measured_s: float64[row, 2], mean TTFT and TPOT.
    """

    deployments: Sequence[Deployment]
    profiles: Sequence[Profile]
    settings: Sequence[SchedulerSettings]
    measured_s: Floats

    def take(self, rows: NDArray[np.int64]) -> "Measured":
        """Some of the rows."""
        chosen = [[column[row] for row in rows] for column in (self.deployments, self.profiles, self.settings)]
        return Measured(chosen[0], chosen[1], chosen[2], self.measured_s[rows])

    def predicted_s(self, values: Mapping[str, float]) -> Floats:
        """float64[row, 2]: mean TTFT and TPOT with the given constants."""
        pairs = zip(self.profiles, self.settings, strict=True)
        engine = {name: value for name, value in values.items() if name != SPECULATION.name}
        seconds = np.array([profile.mean_s(with_constants(settings, engine)) for profile, settings in pairs])
        if SPECULATION.name in values:
            assumed = np.array([deployment.tokens_per_step for deployment in self.deployments])
            seconds[:, 1] *= np.where(assumed > 1, assumed / values[SPECULATION.name], 1.0)
        return seconds

    @property
    def constants(self) -> list[Constant]:
        """What is fitted to these rows; launches of prompts start from what the engine's preset says of them."""
        engine = self.settings[0].eager_operator_s
        known = [one._replace(start=engine) if one.name == "eager_operator_s" else one for one in CONSTANTS]
        if all(deployment.tokens_per_step == 1 for deployment in self.deployments):
            return known
        return [one for one in known if one.name != "time_scale.communication"] + [SPECULATION]


@dataclass(frozen=True)
class Calibration:
    """Constants of one framework and model.

    Attributes:
        values: by name, fitted to all rows.
        unseen: [row] constants by name, fitted without the row's deployment.
        unseen_s: float64[row, 2], mean TTFT and TPOT of each row with these, by its profile.
        groups: deployments; rows of one are left out together.
    """

    framework: str
    model: str
    values: Mapping[str, float]
    unseen: Sequence[Mapping[str, float]]
    unseen_s: Floats
    groups: int

    @property
    def assignments(self) -> list[str]:
        """The constants as edits of a scenario."""
        return edits(self.values)


def edits(values: Mapping[str, float]) -> list[str]:
    """Constants as edits of a scenario; tokens per step are none."""
    return [f"scheduler.{name}={value:.4g}" for name, value in values.items() if name != SPECULATION.name]


def with_constants(settings: SchedulerSettings, values: Mapping[str, float]) -> SchedulerSettings:
    """`settings` with constants by name."""
    scale = {name.partition(".")[2]: value for name, value in values.items() if name.startswith("time_scale.")}
    plain = {name: value for name, value in values.items() if not name.startswith("time_scale.")}
    return settings.model_copy(update={**plain, "time_scale": settings.time_scale | scale})


def calibrate(measured: Measured, seed: int = 0) -> Calibration:
    """Fit the constants, and once more without each fold of deployments.

    With a single deployment nothing can be left out: `unseen_s` is then what nothing fitted gives.
    """
    groups = sorted({deployment.group for deployment in measured.deployments})
    order = np.random.default_rng(seed).permutation(len(groups))
    fold_of = {groups[number]: place % min(FOLDS, len(groups)) for place, number in enumerate(order)}
    fold = np.array([fold_of[deployment.group] for deployment in measured.deployments])
    unseen_s, without = np.empty_like(measured.measured_s), []
    for number in range(fold.max() + 1):
        kept, left_out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        without.append(fit(measured.take(kept)) if len(kept) else {})
        unseen_s[left_out] = measured.take(left_out).predicted_s(without[-1])
    first = measured.deployments[0]
    unseen = [without[number] for number in fold]
    return Calibration(first.framework, first.model, fit(measured), unseen, unseen_s, len(groups))


def fit(measured: Measured) -> dict[str, float]:
    """The constants that fit best, by relative errors, each row of a deployment counting the same."""
    from scipy.optimize import least_squares

    constants = measured.constants
    start, low, high, spread = (np.array(column) for column in zip(*(one[1:] for one in constants), strict=True))
    rows = len(measured.deployments)
    eager = [one.name for one in constants].index("eager_operator_s")

    def residuals(steps: Floats) -> Floats:
        values = dict(zip((one.name for one in constants), (start + steps * spread).tolist(), strict=True))
        errors = np.log(measured.predicted_s(values) / measured.measured_s)
        soft = np.sign(errors) * np.sqrt(soft_l1(errors, _SOFT))
        prior = _PRIOR * steps
        return np.concatenate([soft.ravel() * np.sqrt(20.0 / max(rows, 20)), prior])

    bounds = (low - start) / spread, (high - start) / spread
    tried = []
    for eager_s in _EAGER_STARTS_S:
        first = np.zeros(len(start))
        first[eager] = (eager_s - start[eager]) / spread[eager]
        tried.append(least_squares(residuals, first, bounds=bounds))
    found = min(tried, key=lambda one: float(one.cost))
    fitted = start + found.x * spread
    return {one.name: float(value) for one, value in zip(constants, fitted, strict=True)}
