"""Profiles of LLMServingSim as measured operators."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import DataError, InputError
from moesim.hw_models.calibration.llmservingsim import (
    find_profiles,
    profiles_of,
    read_cold_products,
    read_elementwise,
    read_profile,
    read_routed,
    stays_in_l2,
)
from moesim.workloads.operator_table import ELEMENTWISE, GEMM, GROUPED_GEMM

META = "hardware: RTXPRO6000\ngpu: NVIDIA RTX PRO 6000\nmodel: Qwen/Qwen3-30B-A3B-Instruct-2507\nvllm_version: 0.19.0\n"
DENSE = "layer,tokens,time_us\nqkv_proj,8,20\nqkv_proj,64,30\no_proj,8,10\nlayernorm,8,2\nqk_norm,8,3\n"
PER_SEQUENCE = "layer,sequences,time_us\nlm_head,4,400\nsampler,4,20\n"
EXPERTS = "tokens,activated_experts,time_us\n1,8,50\n16,32,200\n16,128,800\n"
HIDDEN, INNER, EXPERT_COUNT, TOP_K, VOCABULARY = 2048, 768, 128, 8, 151_936  # Qwen3-30B-A3B


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A profile on one and on two GPUs, as the publisher lays it out."""
    profile = tmp_path / "perf" / "RTXPRO6000" / "Qwen" / "Qwen3-30B-A3B-Instruct-2507" / "bf16"
    for shards in (1, 2):
        (profile / f"tp{shards}").mkdir(parents=True)
        (profile / f"tp{shards}" / "dense.csv").write_text(DENSE)
        (profile / f"tp{shards}" / "per_sequence.csv").write_text(PER_SEQUENCE)
    (profile / "tp1" / "moe.csv").write_text(EXPERTS)
    (profile / "meta.yaml").write_text(META)
    return profile


def read(folder: Path):
    (profile,) = find_profiles(folder)
    return {measured.source.kernel.split()[0]: measured for measured in read_profile(profile)}


def test_layers_are_the_operators_of_the_model(folder: Path) -> None:
    found = read(folder.parents[4])
    assert set(found) == {"gemm", "elementwise", "experts"}
    products = found["gemm"]
    assert (products.table.form == GEMM).all()
    assert products.labels["layer"].tolist() == ["qkv_proj", "qkv_proj", "o_proj", "lm_head"] * 2
    heads, kv_heads, head_dim = 32, 4, 128
    whole = [(heads + 2 * kv_heads) * head_dim] * 2 + [HIDDEN, VOCABULARY]
    assert products.table.n.tolist() == [*whole, *(n // 2 if n != HIDDEN else n for n in whole)]
    assert products.table.k.tolist() == [HIDDEN, HIDDEN, 4096, HIDDEN, HIDDEN, HIDDEN, 2048, HIDDEN]
    assert products.table.m.tolist() == [8, 64, 8, 4] * 2
    np.testing.assert_allclose(products.time_s, np.array([20, 30, 10, 400] * 2) * 1e-6)
    np.testing.assert_allclose(products.table.flops, 2.0 * products.table.m * products.table.n * products.table.k)
    assert len(np.unique(products.group)) == 6
    assert (found["elementwise"].table.form == ELEMENTWISE).all()
    assert found["elementwise"].labels["layer"].tolist() == ["layernorm", "sampler"] * 2


def test_pairs_of_tokens_and_experts_are_spread_over_the_activated_ones(folder: Path) -> None:
    experts = read(folder)["experts"]
    tokens = experts.table.expert_tokens
    assert (experts.table.form == GROUPED_GEMM).all()
    assert tokens.sum(axis=1).tolist() == [TOP_K, 16 * TOP_K, 16 * TOP_K]
    assert np.count_nonzero(tokens, axis=1).tolist() == [8, 32, 128]
    assert (tokens.max(axis=1) - np.array([1, 4, 1]) == 0).all()
    np.testing.assert_allclose(experts.table.weight_bytes_read, np.array([8, 32, 128]) * 3 * HIDDEN * INNER * 2)
    assert experts.source.text == "LLMServingSim (KAIST), vllm 0.19.0 on NVIDIA RTX PRO 6000, experts bf16"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "tp1/dense.csv",
            "layer,time_us\nqkv_proj,3\n",
            "dense.csv: must have the columns layer, tokens, time_us, got",
        ),
        ("tp1/dense.csv", "", "dense.csv: must be a CSV file"),
        ("tp1/dense.csv", DENSE.replace(",30", ",-30"), r"dense.csv:3: time_us: must be > 0, got '-30'"),
        ("tp1/dense.csv", DENSE.replace(",30", ",fast"), r"dense.csv:3: time_us: must be > 0, got 'fast'"),
        (
            "tp1/moe.csv",
            EXPERTS.replace(",128,", ",129,"),
            r"moe.csv:4: activated_experts: must be 1 to .* 128, got 129",
        ),
        *(
            (
                "meta.yaml",
                text,
                f"meta.yaml: must have the keys hardware, gpu, model, vllm_version, .* got 'no {missing}",
            )
            for text, missing in (("hardware: RTXPRO6000\n", "gpu"), ("- RTXPRO6000\n", "hardware"))
        ),
    ],
)
def test_what_breaks_a_rule_is_refused(folder: Path, file: str, text: str, message: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=message):
        read(folder)


def test_other_models_have_no_operators(folder: Path) -> None:
    (folder / "meta.yaml").write_text(META.replace("Qwen3-30B-A3B", "Phantom-1B"))
    (profile,) = find_profiles(folder)
    assert profile.model is None
    with pytest.raises(InputError, match="must be of a shipped model, got 'Phantom-1B-Instruct-2507'"):
        read_profile(profile)


def test_elementwise_layers_of_all_models_are_read_together_without_samplers(folder: Path) -> None:
    other = folder.parents[1] / "Another-Qwen3" / "bf16"
    shutil.copytree(folder, other)
    measured = read_elementwise(folder.parents[4], "rtx-pro-6000")
    assert measured.labels["layer"].tolist() == ["layernorm"] * 4
    assert (measured.table.form == ELEMENTWISE).all()
    assert measured.group.tolist() == [0, 0, 1, 1]
    assert len(measured.table) == len(measured.time_s) == 4


def test_profiles_belong_to_the_device_whose_name_theirs_goes_on_from(folder: Path) -> None:
    assert [profile.folder for profile in profiles_of(folder.parents[4], "rtx-pro-6000")] == [folder]
    with pytest.raises(DataError, match=r"must hold LLMServingSim's profiles of h200-sxm \(there are: RTXPRO6000\)"):
        profiles_of(folder.parents[4], "h200-sxm")


def test_experts_whose_weights_stay_in_l2_tell_nothing_of_a_model(folder: Path) -> None:
    rows = read_routed(folder, "rtx-pro-6000")
    assert rows.labels["tokens"].tolist() == [16, 16]  # 8 experts have 75 MB
    assert len(set(rows.group.tolist())) == 2
    experts = read(folder)["experts"]
    assert stays_in_l2(experts).tolist() == [True, False, False]


def test_products_beside_few_experts_tell_nothing_of_a_model(folder: Path) -> None:
    with pytest.raises(DataError, match=r"must hold rows of dense\.csv"):
        read_cold_products(folder, "rtx-pro-6000")
    text = "layer,tokens,time_us\nqkv_proj,64,20\nqkv_proj,128,30\n"
    (folder / "tp2" / "dense.csv").write_text(text)
    assert read_cold_products(folder, "rtx-pro-6000").labels["tokens"].tolist() == [128]
