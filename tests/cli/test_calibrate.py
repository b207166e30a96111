import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.errors import InputError
from moesim.hw_models.calibration.tables import product_table
from moesim.hw_models.device import load_device


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Products of a GPU that is as the shipped A100, in the layout of the measurements."""
    n, k, m = (
        part.ravel() for part in np.meshgrid([256, 2048, 8192], [512, 4096], np.arange(1, 400, 2), indexing="ij")
    )
    time_s = load_device("a100-sxm").processor.price(product_table(m, n, k, "bf16")).time_s
    folder = tmp_path / "a100_sxm" / "gemm" / "vllm" / "1.0"
    folder.mkdir(parents=True)
    columns = {"gemm_dtype": "bfloat16", "m": m, "n": n, "k": k, "latency": time_s * 1e3, "kernel_source": "made up"}
    pd.DataFrame(columns).to_parquet(folder / "gemm_perf.parquet")
    return tmp_path


def test_a_device_is_fitted_and_written(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "a100-sxm-mine.yaml"
    arguments = ["calibrate", "--data", str(data), "--gpu", "a100-sxm", "--operators", "gemm", "--rows", "150"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(output), "--json"])
    assert result.exit_code == 0, result.output
    errors = json.loads(result.stdout)["results"]["errors"]["gemm_bf16"]
    assert errors["all"]["rows"] == 1200
    assert errors["all"]["mean"] < 0.1
    fit = load_device(str(output)).config.processors["gpu"].fits["gemm_bf16"]
    assert fit.data == "aiconfigurator (NVIDIA), vllm 1.0 on a100_sxm, gemm bf16"
    assert fit.rows == 1200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["--operators", "gemm,softmax"],
            "--operators: must be some of gemm, moe, attention, mla, elementwise",
        ),
        (["--operators", "attention"], r"must hold one attention/vllm/\*/context_attention_perf.parquet"),
        (["--operators", "deepep"], "intra_node.fits: must hold a calibration of deepep"),
        (["--framework", "sglang"], "must hold measurements of sglang"),
        (
            ["--framework", "vlm"],
            "--framework: must be one of vllm, sglang, trtllm, vllm_marlin, vllm_triton, got 'vlm'",
        ),
        (["--gpu", "a100"], "--gpu: must be a path or one of the"),
        (["-o", "device.txt"], "must end in .yaml"),
        (["--gpu", "h100-sxm"], r"must hold one folder h100_sxm\*"),
    ],
)
def test_what_cannot_be_done_is_said(data: Path, tmp_path: Path, change: list[str], message: str) -> None:
    arguments = ["calibrate", "--data", str(data), "--gpu", "a100-sxm", "--operators", "gemm"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "out.yaml"), *change])
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=message):
        raise result.exception


def test_residuals_without_the_learner_are_refused_before_anything_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.hw_models.calibration.residual_fit.find_spec", lambda _: None)
    arguments = ["calibrate", "--data", str(tmp_path / "none"), "--gpu", "a100-sxm", "-o", str(tmp_path / "out.yaml")]
    result = CliRunner().invoke(app, [*arguments, "--residual"])
    assert "--residual: needs scikit-learn" in str(result.exception)
