"""Fits of one GPU to a file of `moesim measure`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from moesim.errors import ConfigError, DataError
from moesim.hw_models.calibration.campaign import PRODUCTS, Outcome, device_file, plans
from moesim.hw_models.calibration.fit import STANDARD, Progress, Settings
from moesim.hw_models.calibration.measured import Measured
from moesim.hw_models.calibration.measured_file import read_measured_kernels
from moesim.hw_models.calibration.plans import Plan
from moesim.hw_models.calibration.publish import published
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU
from moesim.hw_models.measure.measured import read_measured
from moesim.workloads.operator_table import OperatorTable

_KINDS = {"gemm": "gemm", "moe": "experts"}
_PREFERRED = (("torch", "bf16"), ("cupy", "fp16"), ("moesim", "bf16"), ("moesim", "fp16"))
"""Whose kernels stand for the GPU's in 16 bits, where several were measured: a device has room for one."""
_ROWS_PER_PARAMETER = 2


def measured_campaign(
    device: str,
    file: Path,
    operators: Sequence[str] = PRODUCTS,
    settings: Settings = STANDARD,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Fit products and experts of a device to what was measured on the user's GPU.

    Args:
        device: name of a shipped device, or path of its YAML, from which the fit starts; its file must have one GPU,
            called `gpu`, with the data sheet of the GPU that was measured.
        file: of `moesim measure`.
        operators: which of `gemm` and `moe`.
        settings: of the fits.
        progress: called with the steps done and to do of the fit in progress.

    Raises:
        ConfigError: the device is no GPU.
        DataError: the file breaks a rule, is of a GPU with other multiprocessors, or has too few shapes for any fit.
    """
    processor = load_device(device).processor
    if not isinstance(processor, GPU):
        raise ConfigError(device, "must be a GPU")
    _check_machine(file, device, processor)
    chosen = list(measured_sets(file, operators))
    if not chosen:
        raise DataError(str(file), f"must hold 16-bit measurements of {', '.join(operators)}")
    text, config, fitted = device_file(device).read_text(encoding="utf-8"), processor.config, False
    for kind, dtype, measured in chosen:
        for plan in plans(config, kind, dtype, measured):
            if not _is_determined(plan):
                continue
            result = plan.run(settings, progress)
            config = plan.fitted(result)
            text = published(text, plan, result, ("processors", "gpu"))
            fitted = True
            yield Outcome(plan, result, text)
    if not fitted:
        rule = f"must hold {_ROWS_PER_PARAMETER} rows per fitted parameter, of two shapes; measure without --quick"
        raise DataError(str(file), rule, max(len(measured) for _, _, measured in chosen))


def _check_machine(file: Path, device: str, processor: GPU) -> None:
    """That the file is of a GPU like the device's."""
    machine, own = read_measured(file).about.machine, processor.config.multiprocessors.value
    if machine.multiprocessors != own:
        rule = f"{machine.gpu} must have the {own} multiprocessors of {device} (give --gpu the YAML of your GPU)"
        raise DataError(str(file), rule, machine.multiprocessors)


def measured_sets(file: Path, operators: Sequence[str]) -> Iterator[tuple[str, str, Measured[OperatorTable]]]:
    """Kind, number format of the fit, and rows: of each kind those of one library in 16 bits.

    Raises:
        DataError: the file breaks a rule.
    """
    found = read_measured_kernels(file)
    for kind in operators:
        own = {
            (item.source.framework, item.source.kernel.split()[-1]): item
            for item in found
            if item.source.kernel.split()[0] == _KINDS[kind]
        }
        measured = next((own[key] for key in _PREFERRED if key in own), None)
        if measured is not None:
            yield kind, "bf16", measured  # fp16 has the same tensor cores and bytes


def _is_determined(plan: Plan) -> bool:
    shapes = len(np.unique(plan.measured.group))
    return len(plan.measured) >= _ROWS_PER_PARAMETER * len(plan.space) and shapes > 1
