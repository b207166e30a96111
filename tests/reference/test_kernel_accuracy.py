"""The errors that device and system files state, taken again on the measurements, through the public `price`.

Shapes of the data sets are turned into operator tables here; nothing is fitted here.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from moesim.hw_models.calibration.aiconfigurator import gpu_folder, read_experts, read_products
from moesim.hw_models.calibration.campaign import PRODUCTS, measured_sets, plans
from moesim.hw_models.calibration.fit import Settings
from moesim.hw_models.calibration.measured import Measured
from moesim.hw_models.calibration.transfer import CHIPS, Sample, transfer
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU
from moesim.hw_models.residual import FOLDER, load_residual
from moesim.workloads.operator_table import OperatorTable
from tests.conformance.tables import gemm_table

pytestmark = pytest.mark.reference

VLLM = {"a100-sxm": "0.14.0", "h100-sxm": "0.24.0", "h200-sxm": "0.24.0", "rtx-pro-6000": "0.24.0"}
FOLDERS = {"rtx-pro-6000": "rtx_pro_6000_server"}
"""Folders of the data set whose names are not those of the devices."""
ROUNDING = 1e-3
IN_SAMPLE_SLACK = 0.01
"""Stated errors are of shapes left out of the fit; those of the shipped values on all rows are not above them."""
Errors = NDArray[np.float64]


def measured(data: Path, device: str, operation: str, file: str, source: tuple[str, str] | None = None) -> pd.DataFrame:
    """A table of the data set; `source` is framework and version, by default vLLM."""
    folder = data / "kernels/aiconfigurator" / FOLDERS.get(device, device.replace("-", "_")) / operation
    return pd.read_parquet(folder.joinpath(*(source or ("vllm", VLLM[device]))) / f"{file}_perf.parquet")


def kernel_errors(device: str, framework: str, measured: Measured[OperatorTable], *, residual: bool) -> Errors:
    """Of prices as in the benchmark that measured the rows."""
    processor = load_device(device, kernels=framework).processor
    assert isinstance(processor, GPU)
    changes: dict[str, object] = {"repeated": True} | ({} if residual else {"residual": None})
    processor = GPU(processor.config.model_copy(update=changes))
    errors: Errors = processor.price(measured.table).time_s / measured.time_s - 1
    return errors


HOPPER = {
    "gemm_bf16": 0.1,
    "gemm_fp8": 0.1,
    "gemm_fp8_block": 0.1,
    "experts_bf16": 0.15,
    "experts_fp8": 0.15,
    "experts_fp8_block": 0.15,
    "experts_mxfp4": 0.12,
    "sharded_experts_fp8_block": 0.12,
}
KERNELS = {
    "a100-sxm": {"vllm": {"gemm_bf16": 0.1, "experts_bf16": 0.3}},
    "h100-sxm": {"vllm": HOPPER},
    "h200-sxm": {
        "vllm": HOPPER,
        "sglang": {
            "gemm_bf16": 0.1,
            "gemm_fp8": 0.1,
            "gemm_fp8_block": 0.1,
            "experts_bf16": 0.12,
            "ungated_experts_bf16": 0.15,
            "experts_fp8_block": 0.15,
            "experts_mxfp4": 0.2,
        },
        "trtllm": {
            "gemm_bf16": 0.1,
            "gemm_fp8": 0.1,
            "gemm_fp8_block": 0.1,
            "experts_bf16": 0.15,
            "ungated_experts_bf16": 0.15,
            "experts_fp8": 0.15,
            "ungated_experts_fp8": 0.15,
            "experts_fp8_block": 0.15,
            "experts_mxfp4": 0.1,
        },
    },
    "rtx-pro-6000": {
        "vllm": {
            "gemm_bf16": 0.105,
            "gemm_fp8": 0.1,
            "gemm_fp8_block": 0.1,
            "gemm_fp4": 0.1,
            "experts_bf16": 0.15,
            "experts_fp8": 0.15,
            "experts_mxfp4": 0.1,
            "experts_nvfp4": 0.15,
        },
    },
}
"""Most that the fits of each framework's kernels may be off on shapes that they did not see, by physics alone."""
FITTED = [(device, framework) for device, sets in KERNELS.items() for framework in sets]


@pytest.mark.parametrize(("device", "framework"), FITTED)
def test_products_and_experts(reference_data: Path, device: str, framework: str) -> None:
    processor = load_device(device, kernels=framework).processor
    assert isinstance(processor, GPU)
    checked = set()
    folder = gpu_folder(reference_data / "kernels/aiconfigurator", device)
    for kind, dtype, measured in measured_sets(folder, framework, PRODUCTS):
        for plan in plans(processor.config, kind, dtype, measured):
            fit = processor.config.fits[plan.name]
            assert fit.rows == len(plan.measured)
            assert fit.data == plan.measured.source.text
            assert fit.error <= KERNELS[device][framework][plan.name]
            physics = kernel_errors(device, framework, plan.measured, residual=False)
            assert np.abs(physics).mean() <= fit.error + IN_SAMPLE_SLACK
            corrected = kernel_errors(device, framework, plan.measured, residual=True)
            assert np.abs(corrected).mean() <= np.abs(physics).mean() + ROUNDING
            checked.add(plan.name)
    assert checked == set(KERNELS[device][framework])


TWO_CONFIGURATIONS = {"attention.decode_triton_fp8_single_heads"}
"""Residuals of kernels that were measured on two configurations of heads: what is left out is half of the data."""


@pytest.mark.parametrize(("device", "framework"), FITTED)
def test_residuals_state_no_more_than_physics(device: str, framework: str) -> None:
    processor = load_device(device, kernels=framework).processor
    assert isinstance(processor, GPU)
    assert processor.config.residual is not None
    models = load_residual(FOLDER / processor.config.residual)
    for name, model in models.items():
        assert model.fingerprint == processor.fingerprint(name)
        assert model.error < (0.22 if name in TWO_CONFIGURATIONS else 0.15)


TRANSFERS = (
    ("gemm", ("a100-sxm", "h100-sxm", "h200-sxm"), "rtx-pro-6000", 0.2),
    ("gemm", ("a100-sxm", "rtx-pro-6000"), "h200-sxm", 0.2),
    ("experts", ("a100-sxm", "h100-sxm", "h200-sxm"), "rtx-pro-6000", 0.2),
    ("experts", ("a100-sxm", "rtx-pro-6000"), "h200-sxm", 0.22),
)


@pytest.mark.parametrize(("kind", "sources", "target", "limit"), TRANSFERS)
def test_families_predict_each_other(
    reference_data: Path, kind: Literal["gemm", "experts"], sources: tuple[str, ...], target: str, limit: float
) -> None:
    read = read_products if kind == "gemm" else read_experts

    def sample(device: str) -> Sample:
        processor = load_device(device).processor
        assert isinstance(processor, GPU)
        tables = read(gpu_folder(reference_data / "kernels/aiconfigurator", device), "vllm")
        bf16 = next(table for table in tables if table.source.kernel.endswith("bf16"))
        return Sample(processor.config, bf16, CHIPS[device])

    settings = Settings(rows=1000, starts=1, evaluations=15)
    found = transfer([sample(device) for device in sources], sample(target), kind, settings)
    assert found.shared_physics is not None
    assert found.shared_baseline is not None
    assert found.physics.mean <= limit
    assert found.shared_physics.mean < found.shared_baseline.mean


@pytest.mark.parametrize("device", VLLM)
def test_every_calibration_is_checked_here(device: str) -> None:
    checked = set(KERNELS[device]["vllm"])
    inside_models = {"cold_start"}  # fitted to another publisher's measurements, see tests/hw_models/calibration
    processor = load_device(device).processor
    assert isinstance(processor, GPU)
    fits = processor.config.fits
    kernels = {name for name, fit in fits.items() if fit.forms not in {("attention",), ("elementwise",)}}
    assert checked == kernels - inside_models


def test_the_tile_model_beats_a_plain_roofline(reference_data: Path) -> None:
    rows = measured(reference_data, "h200-sxm", "gemm", "gemm")
    rows = rows[rows.gemm_dtype == "bfloat16"]
    table = gemm_table(rows.m, rows.n, rows.k)
    nbytes = table.weight_bytes_read + table.read_bytes + table.write_bytes
    roofline_s = np.maximum(table.flops / 989.4e12, nbytes / 4.8e12)
    plain = np.abs(roofline_s / (rows.latency.to_numpy() * 1e-3) - 1).mean()
    processor = load_device("h200-sxm").processor
    assert isinstance(processor, GPU)
    assert plain > 4 * processor.config.fits["gemm_bf16"].error
