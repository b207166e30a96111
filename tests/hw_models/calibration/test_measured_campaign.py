"""Calibration to files of `moesim measure`: made up ones of known parameters."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import DataError
from moesim.hw_models.calibration.fit import Settings
from moesim.hw_models.calibration.measured_campaign import measured_campaign
from moesim.hw_models.calibration.measured_file import read_measured_kernels
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU
from moesim.hw_models.measure.matrix_problems import Gemm
from moesim.hw_models.measure.suite import all_problems
from moesim.hw_models.parameters import parameters, with_values
from tests.hw_models.calibration.measured_files import write_as_measured

QUICK = Settings(starts=1, evaluations=12, folds=2)
NOISE = 0.03
KNOWN = {"formats.bf16.sustained": 0.6, "dram_sustained": 0.7, "kernel_latency": 4e-6, "tile_latency": 1.5e-6}


def shipped() -> GPU:
    processor = load_device("h100-sxm").processor
    assert isinstance(processor, GPU)
    return processor


def products() -> list[Gemm]:
    return [replace(one, dtype="bf16") for one in all_problems() if isinstance(one, Gemm) and one.dtype == "fp16"]


@pytest.fixture
def true() -> GPU:
    return GPU(with_values(shipped().config.model_copy(update={"residual": None}), KNOWN))


def test_known_parameters_are_found_again(tmp_path: Path, true: GPU) -> None:
    write_as_measured(tmp_path / "mine.parquet", products(), true, NOISE)
    (outcome,) = measured_campaign("h100-sxm", tmp_path / "mine.parquet", ["gemm"], QUICK)
    found = {name: float(item.value) for name, item in parameters(outcome.plan.fitted(outcome.result))}
    assert found["formats.bf16.sustained"] == pytest.approx(0.6, rel=0.12)
    assert found["dram_sustained"] == pytest.approx(0.7, rel=0.1)
    assert outcome.result.unseen["all"].mean < 1.5 * NOISE
    (tmp_path / "mine.yaml").write_text(outcome.text)
    fitted = load_device(str(tmp_path / "mine.yaml")).processor
    assert isinstance(fitted, GPU)
    (measured,) = read_measured_kernels(tmp_path / "mine.parquet")
    errors = np.abs(fitted.price(measured.table).time_s / true.price(measured.table).time_s - 1)
    assert errors.mean() < NOISE
    before = np.abs(shipped().price(measured.table).time_s / measured.time_s - 1)
    assert before.mean() > 0.2
    fit = fitted.config.fits["gemm_bf16"]
    assert (fit.rows, fit.data) == (35, "moesim measure, torch 2.13.0 on made up, gemm bf16")


def test_the_gpu_must_be_the_device(tmp_path: Path, true: GPU) -> None:
    write_as_measured(tmp_path / "other.parquet", products(), true, multiprocessors=114)
    with pytest.raises(DataError, match=r"must have the 132 multiprocessors of h100-sxm .* got 114"):
        next(measured_campaign("h100-sxm", tmp_path / "other.parquet"))


def test_a_few_rows_determine_no_fit(tmp_path: Path, true: GPU) -> None:
    write_as_measured(tmp_path / "few.parquet", [Gemm(m, 4096, 4096, "bf16") for m in (1, 256)], true)
    with pytest.raises(DataError, match=r"must hold 2 rows per fitted parameter, of two shapes.*, got 2"):
        next(measured_campaign("h100-sxm", tmp_path / "few.parquet"))
    with pytest.raises(DataError, match="must hold 16-bit measurements of moe"):
        next(measured_campaign("h100-sxm", tmp_path / "few.parquet", ["moe"]))
