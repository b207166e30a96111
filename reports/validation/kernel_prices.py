"""Prices of measured rows by every variant, with the parameters of a device as they are."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moesim.configs.loader import shipped
from moesim.errors import ConfigError
from moesim.hw_models.calibration.aiconfigurator import PUBLISHER
from moesim.hw_models.calibration.measured import Floats, Measured, Source
from moesim.hw_models.calibration.measured_file import PUBLISHER as OWN_PUBLISHER
from moesim.hw_models.calibration.measured_file import streaming
from moesim.hw_models.collective_table import COLLECTIVES, CollectiveTable
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.hw_models.gpu_products import COMPUTE_FORMATS
from moesim.hw_models.interconnect import Interconnect
from moesim.hw_models.link_config import LinkConfig
from moesim.hw_models.parameters import Fit
from moesim.hw_models.system import load_system
from moesim.reports.validation.kernel_files import MeasuredSet
from moesim.reports.validation.kernels import OTHER, PHYSICS, RESIDUAL, ROOFLINE, SEEN, Kernels
from moesim.workloads.operator_table import ATTENTION, DTYPES, OperatorTable

ALL_REDUCE, CUSTOM_ALL_REDUCE = (COLLECTIVES.index(name) for name in ("all_reduce", "custom_all_reduce"))
_LATENT = "Latent attention"
_DEVICES = 8
"""Of the systems whose links were measured."""


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


def priced(gpu: str, one: MeasuredSet, prices: "Prices") -> Kernels:
    """The rows with the prices of all variants."""
    measured, config = one.measured, prices.processor.config
    if isinstance(measured.table, CollectiveTable):
        interconnect = prices.interconnect
        if interconnect is None:
            raise ConfigError(gpu, "must be the device of a shipped system, for its links")
        link = interconnect.intra_node
        cost, stated = interconnect.price(measured.table), interconnect.stated_errors(measured.table)
        predictions = {ROOFLINE: link_roofline_s(link, measured.table), PHYSICS: cost.time_s, RESIDUAL: cost.time_s}
        fits: Mapping[str, Fit] = link.fits
    else:
        processor = prices.repeated if is_repeated(measured) else prices.processor
        if measured.source.publisher == OWN_PUBLISHER:
            processor = streaming(processor)
        cost, stated = processor.price(measured.table), processor.stated_errors(measured.table)
        physics_s = without_residual(processor).price(measured.table).time_s
        predictions = {ROOFLINE: roofline_s(config, measured.table), PHYSICS: physics_s, RESIDUAL: cost.time_s}
        fits = config.fits
    outside, shapes = (
        float(cost.extrapolated.mean()),
        shapes_of(measured.source, one.published, fits, latent=one.op.endswith("_mla")),
    )
    version = measured.source.version
    names = (gpu, one.op, one.framework, version, one.model)
    kernels = Kernels(*names, measured, predictions, shapes, outside, stated_mean(stated))
    return kernels if kernels.is_tuned else replace(kernels, stated=None)  # no fit says anything of these


@dataclass(frozen=True)
class Prices:
    """What prices the rows of one GPU and framework.

    Attributes:
        processor: as in simulations.
        repeated: as in a benchmark that repeats a kernel on the same data, which the L2 cache then holds in part, and
            whose host may be slower than small kernels.
        interconnect: of eight such GPUs; None where no system ships with them.
    """

    processor: GPU
    repeated: GPU
    interconnect: Interconnect | None


def prices_of(gpu: str, framework: str) -> Prices:
    """Prices of a shipped device or a YAML file.

    Raises:
        ConfigError: as `load_gpu`.
    """
    processor = load_gpu(gpu, framework)
    attention = processor.config.attention.model_copy(update={"repeated": True})
    repeated = GPU(processor.config.model_copy(update={"attention": attention, "repeated": True}))
    interconnect = load_system(f"{gpu}-{_DEVICES}").interconnect if gpu in shipped("systems") else None
    return Prices(processor, repeated, interconnect)


def link_roofline_s(link: LinkConfig, table: CollectiveTable) -> Floats:
    """float64[row]: bytes that a member sends over the data sheet's bandwidth: those of a ring, or of its exchange."""
    members = table.ranks.astype(np.float64)
    rounds = np.where(np.isin(table.kind, (ALL_REDUCE, CUSTOM_ALL_REDUCE)), 2.0, 1.0)
    ring = rounds * table.payload_bytes * (members - 1) / members
    exchanged = np.maximum(np.maximum(table.sent_bytes, table.received_bytes), 0.0)
    seconds: Floats = np.maximum(ring, exchanged) / link.bandwidth.value
    return seconds


def shapes_of(source: Source, published: int, fits: Mapping[str, Fit], *, latent: bool = False) -> str:
    """`SEEN` where fits name this source as their data, none with more rows than were `published` here.

    Args:
        source: of the rows.
        published: rows of the whole set.
        fits: calibrations by name.
        latent: the rows are of latent attention, whose source is otherwise that of any attention.
    """
    text = source.text
    rows = [
        fit.rows
        for fit in fits.values()
        if (fit.data == text or fit.data.startswith(f"{text}:")) and (_LATENT in fit.data) == latent
    ]
    return SEEN if 0 < max(rows, default=0) <= published else OTHER


def is_repeated(measured: Measured[Any]) -> bool:
    """Whether the benchmark repeats a kernel on the same data, which the L2 cache then holds in part."""
    return measured.source.publisher == PUBLISHER


def stated_mean(errors: Floats) -> float | None:
    """Mean of the stated errors of rows; None unless every row has one."""
    return None if np.isnan(errors).any() or not len(errors) else float(errors.mean())
