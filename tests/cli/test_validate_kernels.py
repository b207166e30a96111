"""`moesim validate kernels` on folders made for tests."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.hw_models.calibration.tables import product_table
from moesim.hw_models.measure.matrix_problems import Gemm
from moesim.reports.validation.kernel_prices import load_gpu
from tests.hw_models.calibration.measured_files import write_as_measured

SLOWER = 1.25


def products(folder: Path, gpu: str, framework: str = "vllm") -> Path:
    """Products that take so many times what the shipped device says; one table."""
    n, k, m = (part.ravel() for part in np.meshgrid([1024, 4096], [2048, 4096], [1, 16, 256, 4096], indexing="ij"))
    name = {"a100_sxm": "a100-sxm", "h200_sxm": "h200-sxm", "rtx_pro_6000_server": "rtx-pro-6000"}[gpu]
    time_s = SLOWER * load_gpu(name, framework).price(product_table(m, n, k, "bf16")).time_s
    place = folder / gpu / "gemm" / framework / "9.9"
    place.mkdir(parents=True)
    columns = {"gemm_dtype": "bfloat16", "m": m, "n": n, "k": k, "latency": time_s * 1e3, "kernel_source": "made up"}
    pd.DataFrame(columns).to_parquet(place / "gemm_perf.parquet")
    return place / "gemm_perf.parquet"


@pytest.fixture
def data(folder: Path) -> Path:
    products(folder / "data", "a100_sxm")
    products(folder / "data", "h200_sxm")
    products(folder / "data", "h200_sxm", "sglang")
    return folder / "data"


def test_a_row_per_group(moesim, data: Path) -> None:
    outcome = moesim("validate", "kernels", "--data", str(data), "--json", "--out", "out")
    assert outcome.code == 0, outcome.err
    groups = json.loads(outcome.out)["results"]["groups"]
    assert [(row["gpu"], row["framework"]) for row in groups] == [
        ("a100-sxm", "vllm"), ("h200-sxm", "sglang"), ("h200-sxm", "vllm"),
    ]  # fmt: skip
    for row in groups:
        assert (row["op"], row["model"], row["rows"], row["shapes"]) == ("gemm", "bf16", 16, "other")
        for name in ("mean_abs_error", "median_abs_error", "p90_abs_error"):
            assert row[name] == pytest.approx(1 - 1 / SLOWER)
        assert row["bias"] == pytest.approx(1 / SLOWER - 1)
    written = sorted(path.name for path in Path("out").iterdir())
    assert written == [
        "kernels-a100-sxm-gemm.png",
        "kernels-h200-sxm-gemm.png",
        "kernels.csv",
        "kernels.json",
        "kernels.md",
    ]


def test_filters(moesim, data: Path) -> None:
    chosen = ("--gpu", "h200-sxm", "--framework", "sglang", "--operators", "gemm,moe")
    groups = json.loads(moesim("validate", "kernels", "--data", str(data), *chosen, "--json").out)["results"]["groups"]
    assert [(row["gpu"], row["framework"], row["op"]) for row in groups] == [("h200-sxm", "sglang", "gemm")]


def test_tables_for_people(moesim, data: Path) -> None:
    outcome = moesim("validate", "kernels", "--data", str(data))
    assert outcome.code == 0
    for text in ("a100-sxm: gemm", "h200-sxm: gemm", "sglang bf16 †", "roofline", "30-100", "20.0%"):
        assert text in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_files_of_moesim_measure(moesim, folder: Path) -> None:
    problems = [Gemm(m, 4096, 4096, "bf16") for m in (1, 8, 64, 512)]
    write_as_measured(folder / "mine.parquet", problems, load_gpu("h100-sxm", ""))
    outcome = moesim("validate", "kernels", "--measured", "mine.parquet", "--gpu", "h100-sxm", "--json")
    (row,) = json.loads(outcome.out)["results"]["groups"]
    assert (row["framework"], row["rows"]) == ("torch", 4)
    assert row["mean_abs_error"] < 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "validate kernels: needs either --data or --measured"),
        (["--data", "missing"], "missing: must be a folder"),
        (["--data", "empty"], "empty: must hold <gpu>/<operation>/<framework>/<version>/*_perf.parquet or"),
        (["--data", "data", "--gpu", "h100-sxm"], "must hold measurements of --gpu (there are: a100-sxm, h200-sxm)"),
        (["--data", "data", "--operators", "gem"], "--operators: must be some of gemm, moe"),
        (["--data", "data", "--operators", "moe"], "data: must hold measurements of moe on a100-sxm, h200-sxm"),
        (["--data", "data", "--framework", "trtllm"], "of trtllm on a100-sxm"),
        (["--data", "data", "--out", "file"], "--out file: must be a folder, and is a file"),
        (["--measured", "missing.parquet", "--gpu", "h100-sxm"], "missing.parquet: no such file"),
        (["--measured", "missing.parquet"], "--gpu: is needed with --measured"),
    ],
)
def test_what_cannot_be_done_is_said(moesim, folder: Path, data: Path, arguments: list[str], message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "file").touch()
    outcome = moesim("validate", "kernels", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""
    assert data.is_dir()


def test_broken_files_are_named(moesim, data: Path) -> None:
    file = data / "a100_sxm" / "gemm" / "vllm" / "9.9" / "gemm_perf.parquet"
    rows = pd.read_parquet(file)
    for content, message in (
        (
            rows.drop(columns="latency"),
            "must have the columns gemm_dtype, m, n, k, latency, kernel_source, got 'no latency'",
        ),
        (rows.assign(latency=0.0), "0: latency: must be > 0, got 0.0"),
        (rows.iloc[:0], "must have rows"),
    ):
        content.to_parquet(file)
        outcome = moesim("validate", "kernels", "--data", str(data))
        assert outcome.code == 2
        assert str(file) in outcome.err
        assert message in outcome.err
    file.write_bytes(b"PAR1 cut off")
    outcome = moesim("validate", "kernels", "--data", str(data))
    assert outcome.code == 2
    assert f"{file}: must be a parquet file" in outcome.err
