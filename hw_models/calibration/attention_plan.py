"""Fits of attention kernels as a campaign runs them: which of a device's kernels a set of rows determines."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.hw_models.attention_config import LATE, MIXED, AttentionKernel
from moesim.hw_models.calibration.attention_cases import Case, cases, data_file
from moesim.hw_models.calibration.attention_fit import Gpu, kernel_price
from moesim.hw_models.calibration.attention_publish import valid_of
from moesim.hw_models.calibration.attention_rows import read_attention, read_latent_attention
from moesim.hw_models.calibration.errors import stated_error
from moesim.hw_models.calibration.fit import STANDARD, FitResult, Free, Progress, Settings, calibrate
from moesim.hw_models.calibration.measured import Measured
from moesim.hw_models.gpu import GPU, GpuConfig, GpuFit
from moesim.workloads.operator_table import OperatorTable

LEAST_UNLIKE = 0.05
"""A row is left out of a residual if repeating it on the same data changes its price by more: what is off there is off
of caches that a model never finds warm."""


_KEPT = (*MIXED, *LATE, "mixed_fit", "late_fit", "source")
"""Of a kernel that is fitted anew: what rows of one phase, measured by repeating it, do not tell."""


@dataclass(frozen=True)
class AttentionPlan:
    """A fit of one attention kernel to be made; what `plans.Plan` is for products.

    Attributes:
        name: of the fit.
        measured: the rows that ran on the kernel.
        config: the device as it is; other kernels of its list stay.
        kernel: layout, and what is not fitted.
        space: fields of the kernel, and their bounds.
    """

    name: str
    measured: Measured[OperatorTable]
    config: GpuConfig
    kernel: AttentionKernel
    space: Mapping[str, Free]

    def anchors(self, config: GpuConfig) -> OperatorTable | None:  # noqa: ARG002
        """Work where residuals must leave physics alone (see `plans.Plan`): none."""
        return None

    def hidden(self, config: GpuConfig) -> NDArray[np.bool_]:
        """bool[row]: rows whose price no residual changes (see `plans.Plan`), as they take as long as the host does."""
        return ~GPU(self.as_measured(config)).corrected_rows(self.measured.table)

    @property
    def residual_name(self) -> str:
        """Name of its model in a file of residuals."""
        return f"attention.{self.name}"

    def run(self, settings: Settings = STANDARD, progress: Progress | None = None) -> FitResult:
        """Fit, and cross-validate."""
        held = next((kernel for kernel in self.config.attention.kernels if kernel.fit == self.name), None)
        present = (
            {}
            if held is None
            else {name: float(getattr(held, name) or free.start) for name, free in self.space.items()}
        )
        price = kernel_price(self.kernel, gpu_of(self.config))
        return calibrate(self.measured, price, self.space, settings, progress, present)

    def with_values(self, values: Mapping[str, float]) -> GpuConfig:
        """The device with some values of the kernel, in the kernel's place or after those that were fitted before."""
        held = self.config.attention.kernels
        index = next((i for i, other in enumerate(held) if other.fit == self.name), None)
        kept = {} if index is None else {name: getattr(held[index], name) for name in _KEPT}
        kernel = self.kernel.model_copy(update={**kept, **values, "fit": self.name})
        if index is None:
            index = 1 + max((i for i, other in enumerate(held) if other.fit), default=-1)
            held = (*held[:index], kernel, *held[index:])
        kernels = (*held[:index], kernel, *held[index + 1 :])
        attention = self.config.attention.model_copy(update={"kernels": kernels})
        return self.config.model_copy(update={"attention": attention})

    def fitted(self, result: FitResult) -> GpuConfig:
        """The device with the fitted values and the fit's own entry."""
        config = self.with_values(result.values)
        return config.model_copy(update={"fits": config.fits | {self.name: self.entry(result)}})

    def entry(self, result: FitResult) -> GpuFit:
        """What the device states about the fit."""
        return GpuFit(
            forms=("attention",),
            weights=self.kernel.cache,
            data=f"{self.measured.source.text}: {self.kernel.name}",
            rows=len(self.measured),
            error=stated_error(result.unseen["all"].mean),
            valid=valid_of(self.measured.table),
        )

    def as_measured(self, config: GpuConfig) -> GpuConfig:
        """`config` in the state in which it was measured: repeating a kernel on the same data."""
        return repeating(config, repeated=True)

    def representative(self, config: GpuConfig) -> NDArray[np.bool_]:
        """bool[row]: rows that `config` prices alike whether they are repeated on the same data or not."""
        table, config = self.measured.table, _never_late(config)
        repeated, once = (GPU(repeating(config, repeated=value)).price(table).time_s for value in (True, False))
        alike: NDArray[np.bool_] = np.abs(repeated / once - 1) < LEAST_UNLIKE
        return alike


def repeating(config: GpuConfig, *, repeated: bool) -> GpuConfig:
    """`config` that prices attention as in a benchmark that repeats it, or as in a model."""
    attention = config.attention.model_copy(update={"repeated": repeated})
    return config.model_copy(update={"attention": attention})


def _never_late(config: GpuConfig) -> GpuConfig:
    kernels = tuple(kernel.model_copy(update={"late": 0.0}) for kernel in config.attention.kernels)
    return config.model_copy(update={"attention": config.attention.model_copy(update={"kernels": kernels})})


def gpu_of(config: GpuConfig) -> Gpu:
    """Rates that kernels are shares of."""
    return Gpu(config.multiprocessors.value, config.formats["bf16"].peak.value, config.dram_bandwidth.value)


def attention_sets(
    folder: Path, device: str, framework: str, *, latent: bool
) -> Iterator[tuple[Case, Measured[OperatorTable]]]:
    """The kernels that were measured, with their rows.

    Args:
        folder: of a GPU, in aiconfigurator's layout.
        device: name of the GPU's device.
        framework: vllm, sglang or trtllm.
        latent: those of latent attention (MLA), or the others.

    Raises:
        DataError: it is not known which kernels ran there, or one of them has no rows.
    """
    found = [case for case in cases(device, framework) if case.kernel.latent == latent]
    if not found:
        kind = "latent attention" if latent else "attention"
        raise DataError(str(folder), f"no kernels of {kind} are known on {device} with {framework}")
    read = read_latent_attention if latent else read_attention
    for case in found:
        file = data_file(folder, framework, case)
        rows = read(file)
        own = case.rows_of(rows)
        if not len(own):
            raise DataError(str(file), f"must hold rows of {case.kernel.name}")
        yield case, rows.take(own)


def attention_plans(config: GpuConfig, case: Case, measured: Measured[OperatorTable]) -> list[AttentionPlan]:
    """The fit of a case's kernel; a list as other kinds of measurements may need several."""
    return [AttentionPlan(case.fit, measured, config, case.kernel, case.space())]
