"""Files of `moesim measure`, under the names by which errors are told."""

from pathlib import Path

from moesim.hw_models.calibration.measured_file import read_measured_kernels
from moesim.reports.validation.kernel_files import MeasuredSet

_OPS = {
    "gemm": "gemm",
    "experts": "moe",
    "copy": "elementwise",
    "decode attention": "decode_attention",
    "prefill attention": "prefill_attention",
}


def read_measured_sets(path: Path) -> list[MeasuredSet]:
    """Every operator that was measured; `model` is the number format, the framework the library.

    Raises:
        DataError: the file breaks a rule, or no measurement in it is an operator.
    """
    sets = []
    for measured in read_measured_kernels(path):
        kernel, dtype = measured.source.kernel.rsplit(" ", 1)
        sets.append(MeasuredSet(_OPS[kernel], measured.source.framework, dtype, measured, len(measured)))
    return sets
