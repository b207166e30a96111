"""Errors on shapes that a fit did not see: every row predicted by parameters fitted without its group of shapes.

Groups are weight shapes, MoE shapes, head configurations, and message sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from moesim.hw_models.calibration.attention_cases import Case, cases
from moesim.hw_models.calibration.attention_fit import Gpu, kernel_price
from moesim.hw_models.calibration.campaign import plans
from moesim.hw_models.calibration.fit import Settings, calibrate
from moesim.hw_models.calibration.links import fitted_names, unseen_times
from moesim.hw_models.calibration.measured import Floats, Ints
from moesim.hw_models.calibration.plans import Plan
from moesim.hw_models.calibration.residual_fit import learn_residual
from moesim.hw_models.collective_table import COLLECTIVES, CollectiveTable
from moesim.hw_models.gpu import GPU
from moesim.hw_models.interconnect import SECTIONS
from moesim.hw_models.link_config import LinkConfig
from moesim.reports.validation.kernel_prices import Prices, without_residual
from moesim.reports.validation.kernels import PHYSICS, RESIDUAL, Kernels
from moesim.workloads.operator_table import OperatorTable

_PRODUCTS = ("gemm", "moe")
_FEWEST_ROWS = 40
_FITS = {"ring": "nccl", "exchange": "nccl_all_to_all"}
"""Calibrations of links that have another name than the section of `LinkConfig` which they set."""
Advance = Callable[[int, int], None]


def can_refit(kernels: Kernels) -> bool:
    """Whether there is a fit of these kernels, with rows and groups enough to leave some out."""
    groups = len(np.unique(kernels.measured.group))
    if len(kernels.measured) < _FEWEST_ROWS or groups < 2 or kernels.stated is None:  # noqa: PLR2004
        return False
    if kernels.op in _PRODUCTS or isinstance(kernels.measured.table, CollectiveTable):
        return True
    return bool(_own_cases(kernels))


def refitted(kernels: Kernels, prices: Prices, settings: Settings, progress: Advance | None = None) -> Kernels:
    """`kernels` with predictions of refits; a residual that the device has is learned anew too.

    Args:
        kernels: for which `can_refit` holds.
        prices: whose parameters the fits start from.
        settings: folds, rows and starts of the fits.
        progress: called with the fits done and to do of one fit.

    Raises:
        ConfigError: the device has a residual, and scikit-learn is not installed.
    """
    if isinstance(kernels.measured.table, CollectiveTable):
        assert prices.interconnect is not None  # else there were no prices
        unseen_s = _links(kernels, prices.interconnect.intra_node, settings)
        return replace(kernels, unseen_s={PHYSICS: unseen_s, RESIDUAL: unseen_s})
    if kernels.op in _PRODUCTS:
        return _products(kernels, prices.processor, settings, progress)
    unseen_s = _attention(kernels, prices.processor, settings, progress)
    return replace(kernels, unseen_s={PHYSICS: unseen_s, RESIDUAL: unseen_s})


def _products(kernels: Kernels, processor: GPU, settings: Settings, progress: Advance | None) -> Kernels:
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


def _rows_of(plan: Plan, made: Sequence[Plan], table: OperatorTable) -> Ints:
    """Rows of `table` that a plan is about: all, or those of gated or ungated experts."""
    if len(made) == 1:
        return np.arange(len(table))
    return np.flatnonzero((table.up_matrices > 1) == (plan is made[0]))


def _own_cases(kernels: Kernels) -> list[tuple[Case, Ints]]:
    """Attention kernels that were fitted to some of these rows, and the rows."""
    phase, _, kind = kernels.op.partition("_")
    own = []
    for case in cases(kernels.gpu, kernels.framework):
        if case.kernel.phase == phase and case.kernel.latent == (kind == "mla"):
            rows = case.rows_of(kernels.measured)
            if len(np.unique(kernels.measured.group[rows])) > 1:
                own.append((case, rows))
    return own


def _attention(kernels: Kernels, processor: GPU, settings: Settings, progress: Advance | None) -> Floats:
    unseen_s = np.full(len(kernels.measured), np.nan)
    config = processor.config
    gpu = Gpu(config.multiprocessors.value, config.formats["bf16"].peak.value, config.dram_bandwidth.value)
    for case, rows in _own_cases(kernels):
        part = kernels.measured.take(rows)
        unseen_s[rows] = calibrate(part, kernel_price(case.kernel, gpu), case.space(), settings, progress).unseen_s
    return unseen_s


def _links(kernels: Kernels, link: LinkConfig, settings: Settings) -> Floats:
    """Of fits to this collective alone."""
    kind = COLLECTIVES[int(kernels.measured.table.kind[0])]
    section = SECTIONS[COLLECTIVES.index(kind)]
    way = f"{section}.{kind.rsplit('_', 1)[-1]}" if section.startswith("deepep") else ""
    return unseen_times(link, fitted_names(link, _FITS.get(section, section), way), kernels.measured, settings)
