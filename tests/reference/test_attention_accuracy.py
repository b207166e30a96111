"""The errors that device files state of attention kernels, taken again through the kernels as shipped."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.hw_models.calibration.aiconfigurator import gpu_folder
from moesim.hw_models.calibration.attention_cases import Case, cases, data_file
from moesim.hw_models.calibration.attention_rows import read_attention, read_latent_attention, read_mixed_attention
from moesim.hw_models.calibration.measured import Measured
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.workloads.operator_table import OperatorTable

pytestmark = pytest.mark.reference

IN_SAMPLE_SLACK = 0.01
"""Stated errors are of heads left out of the fit; those of the shipped values on all rows are not above them."""
VLLM = ("a100-sxm", "h100-sxm", "h200-sxm", "rtx-pro-6000")
SOURCES = [(device, "vllm") for device in VLLM] + [("h200-sxm", "sglang"), ("h200-sxm", "trtllm")]
MIXED = {"Llama-3.1-8B": 8, "Qwen3-30B-A3B-Instruct-2507": 4}
"""KV heads of the models whose mixed steps were measured; both have 32 query heads of 128 elements."""


def as_measured(device: str, framework: str, *, repeated: bool = True, residual: bool = False) -> GPU:
    """The GPU with a framework's kernels, as a benchmark that repeats them finds it, by physics alone or not."""
    processor = load_device(device, kernels=framework).processor
    assert isinstance(processor, GPU)
    config = processor.config
    attention = config.attention.model_copy(update={"repeated": repeated})
    learned = config.residual if residual else None
    return GPU(config.model_copy(update={"attention": attention, "residual": learned}))


def rows_of(data: Path, device: str, framework: str, case: Case) -> Measured[OperatorTable]:
    reader = read_latent_attention if case.kernel.latent else read_attention
    measured = reader(data_file(gpu_folder(data / "kernels/aiconfigurator", device), framework, case))
    return measured.take(case.rows_of(measured))


def errors_of(processor: GPU, measured: Measured[OperatorTable]) -> NDArray[np.float64]:
    cost = processor.price(measured.table)
    assert not cost.extrapolated.any()
    errors: NDArray[np.float64] = np.abs(cost.time_s / measured.time_s - 1)
    return errors


@pytest.mark.parametrize(("device", "framework"), SOURCES)
def test_kernels_meet_their_stated_errors(reference_data: Path, device: str, framework: str) -> None:
    processor = as_measured(device, framework)
    config: GpuConfig = processor.config
    measured_kernels = [kernel for kernel in config.attention.kernels if kernel.fit]
    found = cases(device, framework)
    assert [kernel.fit for kernel in measured_kernels] == [case.fit for case in found]
    total: list[NDArray[np.float64]] = []
    long: list[NDArray[np.float64]] = []
    for kernel, case in zip(measured_kernels, found, strict=True):
        measured = rows_of(reference_data, device, framework, case)
        errors = errors_of(processor, measured)
        fit = config.fits[kernel.fit or ""]
        assert fit.rows == len(measured)
        assert errors.mean() <= fit.error + IN_SAMPLE_SLACK, kernel.name
        if not kernel.latent:
            total.append(errors)
            long.append(errors[measured.time_s > 50e-6])
    assert np.concatenate(total).mean() < 0.13
    assert np.concatenate(long).mean() < 0.13


@pytest.mark.parametrize(("device", "framework"), SOURCES)
def test_residuals_reach_their_target(reference_data: Path, device: str, framework: str) -> None:
    """As stated for heads left out, and with the shipped trees on all rows, short and long."""
    processor = as_measured(device, framework, residual=True)
    models = processor.matching_models()
    stated, found, long, largest = [], [], [], 0.0
    for case in cases(device, framework):
        model = models.get(f"attention.{case.fit}")
        if model is None:
            continue
        measured = rows_of(reference_data, device, framework, case)
        errors = errors_of(processor, measured)
        # Latent kernels of vLLM were timed with the host, which varies by 15 %; Triton's single heads on two shapes.
        if not (case.kernel.latent and framework == "vllm") and len(np.unique(measured.group)) > 2:
            largest = max(largest, model.error)
        stated.append(np.full(len(measured), model.error))
        found.append(errors)
        long.append(errors[measured.time_s > 50e-6])
    assert np.concatenate(stated).mean() < 0.06
    assert largest < 0.12
    assert np.concatenate(found).mean() < 0.06
    assert np.concatenate(long).mean() < 0.06


@pytest.mark.parametrize("model", MIXED)
@pytest.mark.parametrize("shards", [1, 2])
def test_residuals_help_on_measurements_of_others(reference_data: Path, model: str, shards: int) -> None:
    """Learned on kernels repeated under vLLM 0.24; taken to prefill or decode alone by another group, under 0.19."""
    file = reference_data / f"kernels/llmservingsim/RTXPRO6000/{model}/bf16/tp{shards}/attention.csv"
    measured = read_mixed_attention(file, 32 // shards, MIXED[model] // shards, 128)
    alone = (measured.labels["tokens"] > 0) != (measured.labels["sequences"] > 0)
    physics, corrected = (
        np.abs(
            as_measured("rtx-pro-6000", "vllm", repeated=False, residual=learned).price(measured.table).time_s
            / measured.time_s
            - 1
        )[alone].mean()
        for learned in (False, True)
    )
    assert corrected < 0.8 * physics
    assert corrected < 0.08


@pytest.mark.parametrize("model", MIXED)
@pytest.mark.parametrize("shards", [1, 2])
def test_mixed_steps_which_no_parameter_was_fitted_to(reference_data: Path, model: str, shards: int) -> None:
    """Only the structure was: keys of decodes do not pass DRAM again as those of prefill do."""
    file = reference_data / f"kernels/llmservingsim/RTXPRO6000/{model}/bf16/tp{shards}/attention.csv"
    measured = read_mixed_attention(file, 32 // shards, MIXED[model] // shards, 128)
    cost = as_measured("rtx-pro-6000", "vllm", repeated=False).price(measured.table)
    error = cost.time_s / measured.time_s - 1
    mixes = (measured.labels["tokens"] > 0) & (measured.labels["sequences"] > 0)
    assert np.abs(error[mixes]).mean() < 0.19
    assert np.abs(error[~mixes]).mean() < 0.16
