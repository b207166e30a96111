"""Readers of measured collectives on files of a few rows."""

from math import comb
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.errors import DataError
from moesim.hw_models.calibration.link_readers import read_custom_all_reduce, read_deepep, read_nccl
from moesim.hw_models.collective_table import COLLECTIVES


def write(folder, library, name, rows, version="1.0"):
    path = folder / "comm" / library / version
    path.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path / f"{name}_perf.parquet")


@pytest.fixture
def nccl(tmp_path):
    rows = {
        "device": "GPU",
        "op_name": ["all_reduce", "alltoall", "all_gather"],
        "nccl_dtype": ["half", "int8", "int8"],
        "num_gpus": [8, 4, 2],
        "message_size": [1024, 1024, 4096],
        "latency": [0.016, 0.0065, 0.0052],
    }
    write(tmp_path, "nccl", "nccl", rows)
    return tmp_path


def test_messages_are_counted_in_elements(nccl):
    ring, exchange = read_nccl(nccl)
    assert ring.table.payload_bytes.tolist() == [2048.0, 4096.0]
    assert ring.table.element_bytes.tolist() == [2.0, 1.0]
    assert ring.time_s == pytest.approx([16e-6, 5.2e-6])
    assert [COLLECTIVES[kind] for kind in ring.table.kind] == ["all_reduce", "all_gather"]
    assert exchange.table.sent_bytes.tolist() == exchange.table.received_bytes.tolist() == [1024 * 3 / 4]
    assert ring.source.text == "aiconfigurator (NVIDIA), NCCL 1.0 on GPU, collectives of one node"


def test_rows_of_one_size_are_one_group(tmp_path):
    rows: dict[str, Any] = {"device": "GPU", "op_name": "all_gather", "nccl_dtype": ["half", "int8", "half", "half"]}
    rows |= {"num_gpus": [2, 4, 2, 8], "message_size": [512, 1024, 1024, 2048], "latency": 0.01}
    write(tmp_path, "nccl", "nccl", rows)
    ring, _ = read_nccl(tmp_path)
    assert ring.group.tolist() == [0, 0, 1, 2]


def test_the_newest_version_is_read(nccl):
    rows: dict[str, Any] = {
        "device": "GPU",
        "op_name": ["all_reduce"],
        "nccl_dtype": "half",
        "num_gpus": 2,
        "message_size": 1,
    }
    write(nccl, "nccl", "nccl", rows | {"latency": 1.0}, version="2.0")
    assert len(read_nccl(nccl)[0]) == 1


def test_graphs_and_eager_calls_are_apart(tmp_path):
    rows: dict[str, Any] = {
        "device": "GPU",
        "allreduce_dtype": "bfloat16",
        "num_gpus": 2,
        "message_size": [512, 512, 1024],
    }
    rows |= {"backend": ["vllm_graph", "vllm_eager", "vllm_graph"], "latency": [0.004, 0.02, 0.0041]}
    write(tmp_path, "vllm", "custom_allreduce", rows)
    assert read_custom_all_reduce(tmp_path).table.payload_bytes.tolist() == [1024.0, 2048.0]
    assert read_custom_all_reduce(tmp_path, "vllm_eager").time_s == pytest.approx([20e-6])
    with pytest.raises(DataError, match=r"comm/vllm/1.0: must hold an all-reduce by sglang"):
        read_custom_all_reduce(tmp_path, "sglang")


@pytest.mark.parametrize("low_latency", [False, True])
def test_deepep_copies_follow_from_experts_at_random(tmp_path, low_latency):
    rows: dict[str, Any] = {
        "device": "GPU",
        "num_token": [1, 64],
        "hidden_size": 4096,
        "num_topk": 8,
        "num_experts": 256,
    }
    suffix = "avg_t_us" if low_latency else "transmit_us"
    rows |= {f"dispatch_{suffix}": [8.0, 30.0], f"combine_{suffix}": [10.0, 40.0], "dispatch_sms": 20}
    write(tmp_path, "sglang", "wideep_deepep_ll" if low_latency else "wideep_deepep_normal", rows)
    dispatch, combine = read_deepep(tmp_path, low_latency=low_latency)
    fan_out = 8.0 if low_latency else 8 * (1 - comb(224, 8) / comb(256, 8))
    assert dispatch.table.fan_out == pytest.approx([fan_out] * 2)
    assert dispatch.table.copies == pytest.approx(np.array([1, 64]) * fan_out)
    assert dispatch.table.copy_bytes.tolist() == [4096 + 128] * 2
    assert combine.table.copy_bytes.tolist() == [8192] * 2
    assert combine.table.sent_bytes == pytest.approx(np.array([1, 64]) * fan_out * 8192 * 7 / 8)
    assert combine.time_s == pytest.approx([10e-6, 40e-6])
    assert dispatch.table.multiprocessors.tolist() == ([0.0, 0.0] if low_latency else [20.0, 20.0])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"comm/nccl/VERSION/nccl_perf\.parquet"):
        read_nccl(tmp_path)
    write(tmp_path, "nccl", "nccl", {"op_name": ["all_reduce"]})
    with pytest.raises(DataError, match="must have a column nccl_dtype, got"):
        read_nccl(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("latency", 0.0, r"nccl_perf\.parquet:1: latency: must be > 0, got 0\.0"),
        ("latency", float("nan"), r"nccl_perf\.parquet:1: latency: must be > 0, got nan"),
        ("nccl_dtype", "fp4", r"parquet:1: nccl_dtype: must be one of half, int8, bfloat16, got 'fp4'"),
        ("op_name", "bcast", r"parquet:1: op_name: must be one of all_reduce, .*alltoall, got 'bcast'"),
    ],
)
def test_rows_that_cannot_be(nccl, column, value, message):
    path = nccl / "comm" / "nccl" / "1.0" / "nccl_perf.parquet"
    rows = pd.read_parquet(path)
    rows.loc[1, column] = value
    rows.to_parquet(path)
    with pytest.raises(DataError, match=message):
        read_nccl(nccl)


def test_versions_are_numbers(nccl):
    rows: dict[str, Any] = {"device": "GPU", "op_name": ["all_reduce"], "nccl_dtype": "half", "num_gpus": 2}
    rows |= {"message_size": 1, "latency": 1.0}
    for version in ("2.9", "2.29"):
        write(nccl, "nccl", "nccl", rows, version=version)
    assert read_nccl(nccl)[0].source.text.startswith("aiconfigurator (NVIDIA), NCCL 2.29 ")
