"""What the calibrations of a GPU say about the error of its prices, row by row.

Products and experts: the error of the fit, or of the learned residual where one applies, on shapes that neither saw.
Attention: that of the kernel's fit on heads left out. Elementwise operators: that of a fit of their own; a fit of
products that gives them latency and bandwidth measured none.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.residual import Trees
from moesim.workloads.operator_table import DTYPES, GEMM, GROUPED_GEMM, OperatorTable

if TYPE_CHECKING:
    from moesim.hw_models.gpu import GpuConfig, GpuFit

PLANES = ("gemm", "experts", "ungated_experts", "sharded_experts", "attention")
"""What residuals tell apart: single products; gated, ungated and sharded experts by weight format; attention by kernel.
Sharded are gated experts of several ranks, where these run other kernels."""
_FORMS = {
    "gemm": "gemm",
    "experts": "grouped_gemm",
    "ungated_experts": "grouped_gemm",
    "sharded_experts": "grouped_gemm",
}
_OWN_KERNELS = ("ungated_experts", "sharded_experts")
_GATED_MATRICES = 2


def product_errors(fits: "Mapping[str, GpuFit]", models: Iterable[tuple[int, int, Trees]]) -> NDArray[np.float64]:
    """float64[plane, weight dtype]: stated error of products; NaN where nothing was calibrated.

    Args:
        fits: calibrations of a GPU by name.
        models: residuals that apply, with their plane and weight format.
    """
    errors = np.full((len(_FORMS), len(DTYPES)), np.nan)
    for name, fit in fits.items():
        own = next((plane for plane in _OWN_KERNELS if name.startswith(plane)), None)
        for plane, (kind, form) in enumerate(_FORMS.items()):
            if form in fit.forms and own == (kind if kind in _OWN_KERNELS else None):
                for dtype in fit.weights:
                    errors[plane, list(DTYPES).index(dtype)] = fit.error
    has_own = {kind: ~np.isnan(errors[PLANES.index(kind)]) for kind in _OWN_KERNELS}
    for plane, column, model in models:
        if plane < len(_FORMS):
            errors[plane, column] = model.error
    for kind, own_fit in has_own.items():
        errors[PLANES.index(kind)] = np.where(own_fit, errors[PLANES.index(kind)], errors[PLANES.index("experts")])
    return errors


def product_rows(errors: NDArray[np.float64], table: OperatorTable) -> NDArray[np.float64]:
    """float64[row]: the entry of `errors` that belongs to each row; NaN for rows that are no products."""
    gated = np.where(table.expert_ranks > 1, PLANES.index("sharded_experts"), PLANES.index("experts"))
    experts = np.where(table.up_matrices < _GATED_MATRICES, PLANES.index("ungated_experts"), gated)
    plane = np.where(table.form == GEMM, 0, experts)
    is_product = (table.form == GEMM) | (table.form == GROUPED_GEMM)
    rows: NDArray[np.float64] = np.where(is_product, errors[plane, table.weight_dtype], np.nan)
    return rows


def elementwise_error(fits: "Mapping[str, GpuFit]") -> float:
    """Stated error of elementwise operators; NaN where no calibration is about them alone."""
    return next((fit.error for fit in fits.values() if fit.forms == ("elementwise",)), np.nan)


def attention_errors(config: "GpuConfig", models: Iterable[tuple[int, int, Trees]]) -> NDArray[np.float64]:
    """float64[kernel, 3]: stated error of each of `attention.kernels`.

    By physics, as it prices rows of one phase, and of mixed steps; NaN where it was not fitted.

    Args:
        config: of the GPU.
        models: residuals that apply, with their plane and column (of attention: kernel, or kernels and that of mixed).
    """
    known = {name: fit.error for name, fit in config.fits.items()}
    fitted = [known.get(kernel.fit or "", np.nan) for kernel in config.attention.kernels]
    mixed = [known.get(kernel.mixed_fit or "", np.nan) for kernel in config.attention.kernels]
    errors = np.stack([fitted, fitted, mixed], axis=1)
    for plane, column, model in models:
        if PLANES[plane] == "attention":
            is_mixed, kernel = divmod(column, len(errors))
            errors[kernel, 1 + is_mixed] = model.error
    return errors


def attention_rows(
    errors: NDArray[np.float64], prefills: NDArray[np.int64], decodes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """float64[row]: error of the part that a row has, the greater of both if it has both or none.

    Where mixed steps were fitted, their error is that of the prefill kernel's fit to them.

    Args:
        errors: float64[row, part, 3], of the kernels of prefill and of decode, as `attention_errors`.
        prefills: int64[row], tokens of prefill.
        decodes: int64[row], tokens that decode.
    """
    mixed = (prefills > 0) & (decodes > 0)  # residuals of one phase leave such rows alone
    neither = (prefills <= 0) & (decodes <= 0)
    one = np.where(prefills > 0, errors[:, 0, 1], errors[:, 1, 1])
    greater = np.where(mixed[:, None], errors[:, :, 0], errors[:, :, 1]).max(axis=1)
    fitted = mixed & ~np.isnan(errors[:, 0, 2])
    rows: NDArray[np.float64] = np.where(fitted, errors[:, 0, 2], np.where(mixed | neither, greater, one))
    return rows
