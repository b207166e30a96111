from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.errors import DataError
from moesim.hw_models.calibration.aiconfigurator import gpu_folder, read_experts, read_products

GEMM = pd.DataFrame(
    {
        "device": "A GPU",
        "kernel_source": "some",
        "gemm_dtype": ["bfloat16", "fp8", "bfloat16", "int3"],
        "m": [1, 2, 3, 4],
        "n": [64, 64, 64, 64],
        "k": [32, 32, 128, 32],
        "latency": [0.01, 0.02, 0.03, 0.04],
    }
)
MOE = pd.DataFrame(
    {
        "device": "A GPU",
        "kernel_source": ["fused_triton", "fused_triton", "cutlass", "cutlass"],
        "moe_dtype": "bfloat16",
        "num_tokens": [64, 64, 64, 64],
        "hidden_size": [256, 256, 256, 512],
        "inter_size": [128, 128, 128, 128],
        "topk": [4, 4, 4, 22],
        "num_experts": [64, 64, 64, 64],
        "moe_tp_size": [1, 2, 1, 1],
        "moe_ep_size": [1, 4, 4, 1],
        "distribution": "balanced",
        "latency": [0.1, 0.2, 0.3, 0.4],
    }
)


def write(folder: Path, operation: str, rows: pd.DataFrame, version: str = "1.0") -> None:
    place = folder / operation / "vllm" / version
    place.mkdir(parents=True)
    rows.to_parquet(place / f"{operation}_perf.parquet")


def test_products_come_by_number_format_with_exact_work(tmp_path: Path) -> None:
    write(tmp_path, "gemm", GEMM)
    bf16, fp8 = read_products(tmp_path)
    assert bf16.source.text == "aiconfigurator (NVIDIA), vllm 1.0 on A GPU, gemm bf16"
    assert (len(bf16), len(fp8)) == (2, 1)
    assert bf16.time_s.tolist() == pytest.approx([1e-5, 3e-5])
    assert bf16.table.flops.tolist() == [2 * 64 * 32, 2 * 3 * 64 * 128]
    assert fp8.table.weight_bytes_read.tolist() == [64 * 32]
    assert len(set(bf16.group)) == 2


def test_experts_are_those_of_one_rank_and_shard(tmp_path: Path) -> None:
    write(tmp_path, "moe", MOE)
    (measured,) = read_experts(tmp_path)
    table = measured.table
    assert table.m.tolist() == [256, 64, 64, 64 * 22]
    assert table.n.tolist() == [128, 64, 128, 128]
    assert [np.count_nonzero(line) for line in table.expert_tokens] == [64, 16, 16, 64]
    assert table.up_matrices.tolist() == [2, 2, 2, 1]
    assert measured.group.tolist() == [0, 0, 0, 1]


def test_kernels_that_keep_rows_of_other_ranks_move_more(tmp_path: Path) -> None:
    write(tmp_path, "moe", MOE)
    table = read_experts(tmp_path)[0].table
    per_element = table.read_bytes / (table.k + 3.0 * table.n)
    assert per_element[0] == pytest.approx(2 * 256)
    assert per_element[1] > 1.5 * per_element[2] > 1.5 * 2 * 64


def test_old_measurements_have_gated_experts_only(tmp_path: Path) -> None:
    write(tmp_path, "moe", MOE, "0.14.0")
    assert set(read_experts(tmp_path)[0].table.up_matrices) == {2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latency": -1.0}, "gemm_perf.parquet:0: latency: must be > 0, got -1.0"),
        ({"k": None}, "must have the columns .*, got 'no k'"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, change: dict[str, float | None], message: str) -> None:
    rows = GEMM.drop(columns=[name for name, value in change.items() if value is None])
    write(tmp_path, "gemm", rows.assign(**{name: value for name, value in change.items() if value is not None}))
    with pytest.raises(DataError, match=message):
        read_products(tmp_path)


def test_missing_measurements_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold gemm/sglang/<version>"):
        read_products(tmp_path, "sglang")
    (tmp_path / "a100_sxm").mkdir()
    assert gpu_folder(tmp_path, "a100-sxm") == tmp_path / "a100_sxm"
    with pytest.raises(DataError, match=r"must hold one folder h100_sxm\* \(there are: a100_sxm\)"):
        gpu_folder(tmp_path, "h100-sxm")
