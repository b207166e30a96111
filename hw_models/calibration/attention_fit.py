"""What is fitted of an attention kernel, and its price as a function of that."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from moesim.hw_models.attention_config import AttentionKernel, kernel_row
from moesim.hw_models.calibration.fit import Free
from moesim.hw_models.calibration.measured import Floats
from moesim.workloads.operator_table import DTYPES, OperatorTable

US = 1e-6
_COMMON = {
    "launch": Free(8 * US, 0.5 * US, 30 * US),
    "launch_per_element": Free(5e-9, 1e-11, 1e-7),
    "query_passes": Free(1.0, 1e-2, 200.0),
    "tile": Free(2 * US, 0.01 * US, 20 * US),
    "dram_sustained": Free(0.85, 0.3, 1.0),
    "overlap": Free(4.0, 1.2, 20.0),
}
PREFILL_SPACE = _COMMON | {
    "key_passes": Free(1.0, 1e-3, 50.0),
    "block": Free(0.05 * US, 1e-3 * US, 10 * US),
    "sustained": Free(0.7, 0.1, 1.0),
    "softmax_flops": Free(100.0, 0.1, 600.0),
    "whole_waves": Free(0.5, 1e-3, 1.0),
    "sequence": Free(0.01 * US, 1e-4 * US, 20 * US),
}
"""What is fitted of a prefill kernel, and the physical bounds."""
DECODE_SPACE = _COMMON | {
    "tile_per_element": Free(1e-9, 1e-11, 1e-7),
    "sustained": Free(0.5, 0.02, 1.0),
    "softmax_flops": Free(100.0, 0.1, 2000.0),
    "kept": Free(30e6, 4e6, 200e6),
    "kept_bandwidth": Free(1e13, 2e12, 4e13),
    "merge": Free(2 * US, 0.01 * US, 20 * US),
    "sort": Free(1e-5 * US, 1e-8 * US, 1e-3 * US),
    "head": Free(1e-3 * US, 1e-6 * US, 0.2 * US),
}
"""What is fitted of a decode kernel."""


class Gpu(NamedTuple):
    """Rates of a GPU that kernels are shares of."""

    multiprocessors: int
    bf16_flops_per_s: float
    dram_bytes_per_s: float


def kernel_price(kernel: AttentionKernel, gpu: Gpu) -> Callable[[Mapping[str, float], OperatorTable], Floats]:
    """Times of rows when all run on `kernel` with some values replaced, repeated on the same data."""
    from moesim.hw_models import attention_kernel as compiled
    from moesim.hw_models.gpu_columns import columns_of

    element_bytes = np.array([dtype.bytes for dtype in DTYPES.values()])
    covers = np.ones((len(DTYPES), 1), np.bool_)

    def price(values: Mapping[str, float], table: OperatorTable) -> Floats:
        changed = kernel.model_copy(update=dict(values))
        row = kernel_row(changed, gpu.bf16_flops_per_s, gpu.dram_bytes_per_s, repeated=True)
        time_s = np.zeros(len(table))
        compiled.price_rows(
            columns_of(table),
            np.arange(len(table)),
            np.array([row]),
            covers,
            element_bytes,
            float(gpu.multiprocessors),
            (time_s, np.zeros(len(table), np.int8), np.zeros(len(table), np.bool_)),
            (np.empty(len(table), np.int64), np.empty((0, compiled.RESIDUAL_FEATURES))),
        )
        return time_s

    return price
