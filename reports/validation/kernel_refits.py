"""Errors on shapes that a fit did not see: every row predicted by parameters fitted without its group of shapes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moesim.hw_models.calibration.campaign import plans
from moesim.hw_models.calibration.fit import Settings
from moesim.hw_models.calibration.measured import Ints
from moesim.hw_models.calibration.plans import Plan
from moesim.hw_models.calibration.residual_fit import learn_residual
from moesim.hw_models.gpu import GPU
from moesim.reports.validation.kernel_prices import without_residual
from moesim.reports.validation.kernels import PHYSICS, RESIDUAL, Kernels
from moesim.workloads.operator_table import OperatorTable

FITTED = ("gemm", "moe")
"""Operators that can be refitted here."""
FEWEST_ROWS = 200


def can_refit(kernels: Kernels) -> bool:
    """Whether there is a fit of these kernels, with rows enough to leave some out."""
    groups = len(np.unique(kernels.measured.group))
    return kernels.op in FITTED and len(kernels.measured) >= FEWEST_ROWS and groups > 1 and kernels.stated is not None


def refitted(
    kernels: Kernels, processor: GPU, settings: Settings, progress: Callable[[int, int], None] | None = None
) -> Kernels:
    """`kernels` with predictions of refits; the residual is learned anew too where the device has one.

    Args:
        kernels: products or experts.
        processor: whose parameters the fits start from.
        settings: folds, rows and starts of the fits.
        progress: called with the fits done and to do of one fit.

    Raises:
        ConfigError: the device has a residual, and scikit-learn is not installed.
    """
    physics_s, corrected_s = np.empty(len(kernels.measured)), np.empty(len(kernels.measured))
    dtype = kernels.measured.source.kernel.split()[-1]
    config = without_residual(processor).config
    made = plans(config, kernels.op, dtype, kernels.measured)
    for plan in made:
        rows = _rows_of(plan, made, kernels.measured.table)
        result = plan.run(settings, progress)
        physics_s[rows] = corrected_s[rows] = result.unseen_s
        if processor.config.residual is not None:
            learned = learn_residual(plan, result, GPU(config), settings)
            # As in calibration: a residual that does not help is not shipped.
            if learned.unseen["all"].mean < result.unseen["all"].mean:
                corrected_s[rows] = learned.unseen_s
    return replace(kernels, unseen_s={PHYSICS: physics_s, RESIDUAL: corrected_s})


def _rows_of(plan: Plan, made: list[Plan], table: OperatorTable) -> Ints | slice:
    """Rows of `table` that a plan is about: all, or those of gated or ungated experts."""
    if len(made) == 1:
        return slice(None)
    return np.flatnonzero((table.up_matrices > 1) == (plan is made[0]))
