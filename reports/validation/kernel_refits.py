"""Errors on shapes that a fit did not see: every row predicted by parameters fitted without its group of shapes.

Groups are weight shapes, MoE shapes, head configurations, and message sizes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from moesim.hw_models.calibration.attention_cases import Case, cases
from moesim.hw_models.calibration.attention_plan import AttentionPlan, attention_plans
from moesim.hw_models.calibration.campaign import plans
from moesim.hw_models.calibration.fit import Settings
from moesim.hw_models.calibration.links import fitted_names, unseen_times
from moesim.hw_models.calibration.measured import Floats, Ints
from moesim.hw_models.calibration.plans import Plan, expert_sections
from moesim.hw_models.calibration.residual_fit import learn_residual
from moesim.hw_models.collective_table import COLLECTIVES, CollectiveTable
from moesim.hw_models.gpu import GPU
from moesim.hw_models.interconnect import SECTIONS
from moesim.hw_models.link_config import LinkConfig
from moesim.reports.validation.kernel_prices import Prices, without_residual
from moesim.reports.validation.kernels import PHYSICS, RESIDUAL, Kernels

_PRODUCTS = ("gemm", "moe")
_FEWEST_ROWS = 40
_FITS = {"ring": "nccl", "exchange": "nccl_all_to_all"}
"""Calibrations of links that have another name than the section of `LinkConfig` which they set."""
Advance = Callable[[int, int], None]


def can_refit(kernels: Kernels) -> bool:
    """Whether there is a fit of these kernels, with rows and groups enough to leave some out."""
    groups = len(np.unique(kernels.measured.group))
    if not kernels.is_tuned:
        return False
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
    physics_s = np.full(len(kernels.measured), np.nan)
    corrected_s = physics_s.copy()
    for plan, rows in _plans(kernels, without_residual(prices.processor)):
        result = plan.run(settings, progress)
        physics_s[rows] = corrected_s[rows] = result.unseen_s
        if plan.residual_name in prices.processor.matching_models():
            corrected_s[rows] = learn_residual(plan, result, prices.processor, settings).unseen_s
    return replace(kernels, unseen_s={PHYSICS: physics_s, RESIDUAL: corrected_s})


def _plans(kernels: Kernels, processor: GPU) -> Iterator[tuple[Plan | AttentionPlan, Ints]]:
    """Fits, and the rows that each is about."""
    if kernels.op not in _PRODUCTS:
        for case, rows in _own_cases(kernels):
            yield attention_plans(processor.config, case, kernels.measured.take(rows))[0], rows
        return
    dtype = kernels.measured.source.kernel.split()[-1]
    made = plans(processor.config, kernels.op, dtype, kernels.measured)
    if kernels.op == "moe":
        yield from zip(made, expert_sections(kernels.measured).values(), strict=True)
    else:
        yield made[0], np.arange(len(kernels.measured))


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


def _links(kernels: Kernels, link: LinkConfig, settings: Settings) -> Floats:
    """Of fits to this collective alone."""
    kind = COLLECTIVES[int(kernels.measured.table.kind[0])]
    section = SECTIONS[COLLECTIVES.index(kind)]
    way = f"{section}.{kind.rsplit('_', 1)[-1]}" if section.startswith("deepep") else ""
    return unseen_times(link, fitted_names(link, _FITS.get(section, section), way), kernels.measured, settings)
