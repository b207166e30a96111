"""Prices of measured rows by every variant, with the parameters of a device as they are."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moesim.errors import ConfigError
from moesim.hw_models.calibration.aiconfigurator import PUBLISHER
from moesim.hw_models.calibration.measured import Floats, Measured
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.hw_models.gpu_products import COMPUTE_FORMATS
from moesim.hw_models.parameters import Fit
from moesim.reports.validation.kernels import OTHER, PHYSICS, RESIDUAL, ROOFLINE, SEEN, Kernels
from moesim.workloads.operator_table import ATTENTION, DTYPES, OperatorTable


def load_gpu(gpu: str, framework: str) -> GPU:
    """The GPU of a device, with the kernels of a framework.

    Raises:
        ConfigError: there is no such device, it breaks a rule, or its main processor is no GPU.
    """
    processor = load_device(gpu, kernels=framework).processor
    if not isinstance(processor, GPU):
        raise ConfigError(gpu, "must be a GPU")
    return processor


def without_residual(processor: GPU) -> GPU:
    """The same GPU by physics alone."""
    return GPU(processor.config.model_copy(update={"residual": None}))


def roofline_s(config: GpuConfig, table: OperatorTable) -> Floats:
    """float64[row]: the greater of FLOPs over the data sheet's peak and bytes over its DRAM bandwidth.

    The peak is that of the format in which weights are multiplied; attention is computed in bf16.
    """
    formats = [next(name for name in COMPUTE_FORMATS[dtype] if name in config.formats) for dtype in DTYPES]
    peaks = np.array([config.formats[name].peak.value for name in formats])[table.weight_dtype]
    peaks = np.where(table.form == ATTENTION, config.formats["bf16"].peak.value, peaks)
    nbytes = table.weight_bytes_read + table.read_bytes + table.write_bytes
    seconds: Floats = np.maximum(table.flops / peaks, nbytes / config.dram_bandwidth.value)
    return seconds


def priced(gpu: str, op: str, model: str, measured: Measured[OperatorTable], processor: GPU) -> Kernels:
    """The rows with the prices of all variants."""
    cost = processor.price(measured.table)
    predictions = {
        ROOFLINE: roofline_s(processor.config, measured.table),
        PHYSICS: without_residual(processor).price(measured.table).time_s,
        RESIDUAL: cost.time_s,
    }
    source = measured.source
    stated = stated_mean(processor.stated_errors(measured.table))
    shapes = shapes_of(measured, processor.config.fits)
    outside = float(cost.extrapolated.mean())
    return Kernels(gpu, op, source.framework, source.version, model, measured, predictions, shapes, outside, stated)


def shapes_of(measured: Measured[Any], fits: Mapping[str, Fit]) -> str:
    """`SEEN` where fits name this very set of rows as their data, and have no more rows than it."""
    text = measured.source.text
    rows = sum(fit.rows for fit in fits.values() if fit.data == text or fit.data.startswith(f"{text}:"))
    return SEEN if 0 < rows <= len(measured) else OTHER


def is_repeated(measured: Measured[Any]) -> bool:
    """Whether the benchmark repeats a kernel on the same data, which the L2 cache then holds in part."""
    return measured.source.publisher == PUBLISHER


def stated_mean(errors: Floats) -> float | None:
    """Mean of the stated errors of rows; None unless every row has one."""
    return None if np.isnan(errors).any() or not len(errors) else float(errors.mean())
