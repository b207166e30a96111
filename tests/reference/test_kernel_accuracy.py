"""The errors that device and system files state, taken again on the measurements, through the public `price`.

Shapes of the data sets are turned into operator tables here; nothing is fitted here.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU
from moesim.workloads.operator_table import OperatorTable
from tests.conformance.tables import experts_table, gemm_table

pytestmark = pytest.mark.reference

VLLM = {"a100-sxm": "0.14.0", "h100-sxm": "0.24.0", "h200-sxm": "0.24.0", "rtx-pro-6000": "0.24.0"}
FOLDERS = {"rtx-pro-6000": "rtx_pro_6000_server"}
"""Folders of the data set whose names are not those of the devices."""
IN_SAMPLE_SLACK = 0.01
"""Stated errors are of shapes left out of the fit; those of the shipped values on all rows are not above them."""
MEASURED_WEIGHTS = {"bf16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block", "mxfp4": "w4a16_mxfp4"}
NVFP4_BYTES = 9 / 16
"""Per weight: 16 four-bit values share an 8-bit scale."""
Errors = NDArray[np.float64]


def measured(data: Path, device: str, operation: str, file: str, source: tuple[str, str] | None = None) -> pd.DataFrame:
    """A table of the data set; `source` is framework and version, by default vLLM."""
    folder = data / "kernels/aiconfigurator" / FOLDERS.get(device, device.replace("-", "_")) / operation
    return pd.read_parquet(folder.joinpath(*(source or ("vllm", VLLM[device]))) / f"{file}_perf.parquet")


def relative_errors(device: str, table: OperatorTable, latency_ms: pd.Series) -> Errors:
    cost = load_device(device).processor.price(table)
    assert not cost.extrapolated.any()
    errors: Errors = cost.time_s / (latency_ms.to_numpy() * 1e-3) - 1
    return errors


def gemm_errors(data: Path, device: str, weights: str) -> Errors:
    deep_gemm = ("sglang", "0.5.14") if weights == "fp8_block" else None
    rows = measured(data, device, "gemm", "gemm", deep_gemm)
    kernel, weight_bytes = ("nvfp4", NVFP4_BYTES) if weights == "mxfp4" else (MEASURED_WEIGHTS[weights], None)
    rows = rows[rows.gemm_dtype == kernel]
    return relative_errors(device, gemm_table(rows.m, rows.n, rows.k, weights, weight_bytes), rows.latency)


def balanced_tokens(tokens: int, experts: int, top_k: int) -> NDArray[np.int64]:
    """Tokens of each expert when token i chooses experts i, i + s, i + 2s, ... with s = experts / top_k, rounded up."""
    chosen = np.arange(tokens)[:, None] + np.arange(top_k) * -(-experts // top_k)
    counts: NDArray[np.int64] = np.bincount(chosen.ravel() % experts, minlength=experts)
    return counts


def skewed_tokens(
    rng: np.random.Generator, tokens: int, experts: int, top_k: int, exponent: float
) -> NDArray[np.int64]:
    """A draw of tokens per expert from a truncated power law; what an expert cannot take goes to the others."""
    low, high = (1.0, tokens * 0.8) if tokens * top_k > experts else (0.01, 2.0)
    ends = np.array([low, high]) ** (1 - exponent)
    popularity = (ends[0] + rng.random(experts) * (ends[1] - ends[0])) ** (1 / (1 - exponent))
    expected = popularity / popularity.sum() * tokens * top_k
    counts: NDArray[np.int64] = np.minimum(np.rint(expected).astype(np.int64), tokens)
    most_popular = np.argsort(-popularity)
    counts[most_popular[: max(0, counts.sum() - tokens * top_k)]] -= 1
    while missing := tokens * top_k - counts.sum():
        room = tokens - counts
        counts += missing * room // room.sum()
        takers = most_popular[counts[most_popular] < tokens]
        counts[takers[: tokens * top_k - counts.sum()]] += 1
    return counts


def expert_errors(data: Path, device: str, weights: str) -> Errors:
    """Rows of one rank that holds all experts: elsewhere the measured kernel also handles tokens of other ranks."""
    rows = measured(data, device, "moe", "moe")
    rows = rows[(rows.moe_dtype == MEASURED_WEIGHTS[weights]) & (rows.moe_ep_size == 1)]
    if device != "a100-sxm":
        # Top-22 shapes are of a model whose experts are not gated; its rows do not say what was run.
        rows = rows[(rows.distribution == "balanced") & (rows.topk != 22)]
    if weights == "fp8_block":
        rows = rows[rows.kernel_source.str.contains("triton")]
    rng = np.random.default_rng(0)
    tokens = np.zeros((len(rows), rows.num_experts.max()), np.int64)
    shapes = zip(rows.num_tokens, rows.num_experts, rows.topk, rows.distribution, strict=True)
    for line, (batch, experts, top_k, distribution) in zip(tokens, shapes, strict=True):
        if distribution == "balanced":
            line[:experts] = balanced_tokens(batch, experts, top_k)
        else:
            line[:experts] = skewed_tokens(rng, batch, experts, top_k, float(distribution.split("_")[-1]))
    table = experts_table(tokens, rows.inter_size // rows.moe_tp_size, rows.hidden_size, weights)
    return relative_errors(device, table, rows.latency)


WITH_FP8 = ("h100-sxm", "h200-sxm", "rtx-pro-6000")
GEMMS = [(device, "bf16", 0.15) for device in VLLM] + [(device, "fp8", 0.25) for device in WITH_FP8]
EXPERTS = [(device, "bf16", 0.25) for device in VLLM]
EXPERTS += [(device, weights, 0.15) for device in ("h100-sxm", "h200-sxm") for weights in ("fp8_block", "mxfp4")]
EXPERTS += [("rtx-pro-6000", "fp8", 0.15), ("rtx-pro-6000", "mxfp4", 0.2)]
GEMMS += [("h200-sxm", "fp8_block", 0.25), ("rtx-pro-6000", "mxfp4", 0.25)]


def gemm_fit(weights: str) -> str:
    """Name of the calibration of products."""
    return "gemm_fp4" if weights == "mxfp4" else f"gemm_{weights}"


def check(device: str, fit_name: str, errors: Errors, limit: float) -> None:
    processor = load_device(device).processor
    assert isinstance(processor, GPU)
    fit = processor.config.fits[fit_name]
    assert fit.rows == len(errors)
    assert fit.error <= limit
    assert np.abs(errors).mean() <= fit.error + IN_SAMPLE_SLACK


@pytest.mark.parametrize(("device", "weights", "limit"), GEMMS)
def test_products(reference_data: Path, device: str, weights: str, limit: float) -> None:
    check(device, gemm_fit(weights), gemm_errors(reference_data, device, weights), limit)


@pytest.mark.parametrize(("device", "weights", "limit"), EXPERTS)
def test_experts(reference_data: Path, device: str, weights: str, limit: float) -> None:
    check(device, f"experts_{weights}", expert_errors(reference_data, device, weights), limit)


@pytest.mark.parametrize("device", VLLM)
def test_every_calibration_is_checked_here(device: str) -> None:
    checked = {gemm_fit(weights) for name, weights, _ in GEMMS if name == device}
    checked |= {f"experts_{weights}" for name, weights, _ in EXPERTS if name == device}
    processor = load_device(device).processor
    assert isinstance(processor, GPU)
    fits = processor.config.fits
    assert checked == {name for name, fit in fits.items() if "attention" not in fit.forms}


def test_the_tile_model_beats_a_plain_roofline(reference_data: Path) -> None:
    rows = measured(reference_data, "h200-sxm", "gemm", "gemm")
    rows = rows[rows.gemm_dtype == "bfloat16"]
    table = gemm_table(rows.m, rows.n, rows.k)
    nbytes = table.weight_bytes_read + table.read_bytes + table.write_bytes
    roofline_s = np.maximum(table.flops / 989.4e12, nbytes / 4.8e12)
    plain = np.abs(roofline_s / (rows.latency.to_numpy() * 1e-3) - 1).mean()
    assert plain > 4 * np.abs(gemm_errors(reference_data, "h200-sxm", "bf16")).mean()
