"""The RTX PRO 6000 as another laboratory measured it (LLMServingSim, vLLM 0.19); nothing was fitted on these rows.

There, other layers run between repetitions, so that weights and caches come from DRAM as in serving.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from moesim.hw_models.device import load_device
from moesim.workloads.operator_table import OperatorTable
from tests.conformance.tables import attention_table, experts_table, gemm_table

pytestmark = pytest.mark.reference

LLAMA, QWEN = "Llama-3.1-8B", "Qwen3-30B-A3B-Instruct-2507"
HIDDEN, EXPERT, EXPERTS, TOP_K = 2048, 768, 128, 8  # Qwen3-30B-A3B
HEADS = {LLAMA: (32, 8), QWEN: (32, 4)}
"""Heads of queries and of keys, of 128 elements each."""
PRODUCTS = {
    (LLAMA, "qkv_proj"): (6144, 4096),
    (LLAMA, "o_proj"): (4096, 4096),
    (LLAMA, "gate_up_proj"): (28_672, 4096),
    (LLAMA, "down_proj"): (4096, 14_336),
    (QWEN, "qkv_proj"): (5120, 2048),
    (QWEN, "o_proj"): (2048, 4096),
}
"""Outputs and inputs."""
DRAM_BYTES_PER_S = 1.597e12


def measured(data: Path, model: str, file: str, shards: int = 1) -> pd.DataFrame:
    folder = data / "kernels/llmservingsim/RTXPRO6000" / model / f"bf16/tp{shards}"
    return pd.read_csv(folder / f"{file}.csv")


def mean_error(table: OperatorTable, time_us: pd.Series) -> float:
    price_s: NDArray[np.float64] = load_device("rtx-pro-6000").processor.price(table).time_s
    return float(np.abs(price_s / (time_us.to_numpy() * 1e-6) - 1).mean())


@pytest.mark.parametrize(("model", "layer"), PRODUCTS)
def test_products(reference_data: Path, model: str, layer: str) -> None:
    rows = measured(reference_data, model, "dense")
    rows = rows[rows.layer == layer]
    n, k = PRODUCTS[model, layer]
    rows = rows[rows.time_us > 2e6 * n * k / DRAM_BYTES_PER_S]  # else L2 kept the weights from the run before
    assert mean_error(gemm_table(rows.tokens, *PRODUCTS[model, layer]), rows.time_us) < 0.25


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("shards", [1, 2])
def test_decode_attention(reference_data: Path, model: str, shards: int) -> None:
    rows = measured(reference_data, model, "attention", shards)
    rows = rows[(rows.prefill_chunk == 0) & (rows.n_decode > 0)]
    heads, kv_heads = HEADS[model]
    table = attention_table(
        rows.n_decode, 1, rows.kv_decode, heads=heads // shards, kv_heads=kv_heads // shards, decode=True
    )
    assert mean_error(table, rows.time_us) < 0.15


def test_experts(reference_data: Path) -> None:
    rows = measured(reference_data, QWEN, "moe")
    tokens = np.zeros((len(rows), EXPERTS), np.int64)
    for line, batch, active in zip(tokens, rows.tokens, rows.activated_experts, strict=True):
        line[:active] = np.diff(np.linspace(0, batch * TOP_K, active + 1).astype(np.int64))
    assert mean_error(experts_table(tokens, EXPERT, HIDDEN), rows.time_us) < 0.25
