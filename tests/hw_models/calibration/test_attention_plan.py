"""Attention kernels with known values make measurements; fits and residuals find them again, where they should."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.configs.yaml_reader import parse_yaml
from moesim.errors import DataError
from moesim.hw_models.attention_config import AttentionKernels
from moesim.hw_models.calibration.attention_cases import Case, cases
from moesim.hw_models.calibration.attention_fit import kernel_price
from moesim.hw_models.calibration.attention_plan import (
    AttentionPlan,
    attention_plans,
    attention_sets,
    gpu_of,
    repeating,
)
from moesim.hw_models.calibration.fit import Settings
from moesim.hw_models.calibration.measured import Measured, Source, group_numbers
from moesim.hw_models.calibration.mixed_plan import MixedPlan, mixed_plans, read_mixed_steps
from moesim.hw_models.calibration.publish import published
from moesim.hw_models.calibration.residual_fit import learn_residual
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.hw_models.parameters import scaled
from moesim.hw_models.residual import Trees, save_residual
from moesim.workloads.operator_table import OperatorTable
from tests.conformance.processor_suite import added
from tests.conformance.tables import attention_table

QUICK = Settings(rows=300, starts=1, folds=3, evaluations=8)
DECODE, PREFILL = "decode_fa3_bf16", "prefill_fa3_bf16"
FACTOR = 1.2
SHIPPED = load_device("h100-sxm").processor  # before tests point to other files


def physics() -> GpuConfig:
    assert isinstance(SHIPPED, GPU)
    return SHIPPED.config.model_copy(update={"residual": None})


def case_of(fit: str) -> Case:
    return next(case for case in cases("h100-sxm", "vllm") if case.fit == fit)


def decodes() -> OperatorTable:
    grid = np.meshgrid([4, 8, 32], [1, 2, 4], [1, 8, 64, 256], np.geomspace(16, 30_000, 12).astype(int), indexing="ij")
    kv_heads, group, sequences, context = (part.ravel() for part in grid)
    return attention_table(sequences, 1, context, heads=kv_heads * group, kv_heads=kv_heads, head_dim=128)


def measured(time_s: np.ndarray, table: OperatorTable) -> Measured[OperatorTable]:
    group = group_numbers([table.groups, table.k])
    return Measured(table, time_s, group, Source("nobody", "made up", "vllm", "0", "decode attention"), {})


def known_plan() -> AttentionPlan:
    """Decode of kernels that take 1.3 times the launch of the shipped ones."""
    case, table, config = case_of(DECODE), decodes(), physics()
    kernel = next(kernel for kernel in config.attention.kernels if kernel.fit == DECODE)
    time_s = kernel_price(kernel, gpu_of(config))({"launch": 1.3 * kernel.launch}, table)
    [plan] = attention_plans(config, case, measured(time_s, table))
    return plan


def stump(fingerprint: str) -> Trees:
    """Work with up to four KV heads takes a fifth longer."""
    feature, value = np.array([5, -1, -1], np.int8), np.array([2.5, np.log(FACTOR), 0.0], np.float32)
    return Trees(feature, value, np.array([1, 0, 0], np.int32), np.zeros(1, np.int32), -0.5, 0.5, fingerprint, 0.05)


@pytest.fixture
def with_stump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuConfig:
    monkeypatch.setattr("moesim.hw_models.gpu.FOLDER", tmp_path)
    name = f"attention.{DECODE}"
    save_residual(tmp_path / "stump.npz", {name: stump(GPU(physics()).fingerprint(name)), "attention.none": stump("")})
    return physics().model_copy(update={"residual": "stump.npz"})


def factors(config: GpuConfig, table: OperatorTable) -> np.ndarray:
    plain = config.model_copy(update={"residual": None})
    return np.asarray(GPU(config).price(table).time_s / GPU(plain).price(table).time_s)


def test_residuals_belong_to_one_kernel(with_stump: GpuConfig) -> None:
    few, many = (attention_table(16, 1, 5000, heads=32, kv_heads=kv_heads) for kv_heads in (4, 8))
    assert factors(with_stump, few) == pytest.approx(FACTOR, rel=1e-6)
    assert factors(with_stump, many) == pytest.approx(1.0)
    prefill = attention_table(2, 500, 0, heads=32, kv_heads=4)
    assert factors(with_stump, prefill) == pytest.approx(1.0)
    assert factors(with_stump, attention_table(16, 1, 5000, heads=32, kv_heads=4, dtype="fp8")) == pytest.approx(1.0)


def test_mixed_steps_have_no_residual(with_stump: GpuConfig) -> None:
    mixed = added(attention_table(1, 500, 0, heads=32, kv_heads=4), attention_table(16, 1, 5000, heads=32, kv_heads=4))
    assert factors(with_stump, mixed) == pytest.approx(1.0)


def test_energy_follows_the_corrected_time(with_stump: GpuConfig) -> None:
    table = attention_table(16, 1, 5000, heads=32, kv_heads=4)
    corrected, plain = GPU(with_stump).price(table), GPU(physics()).price(table)
    longer_s = corrected.time_s - plain.time_s
    assert corrected.energy_j - plain.energy_j == pytest.approx(longer_s * GPU(with_stump).active_w)


def test_other_hardware_and_rows_outside_have_none(with_stump: GpuConfig) -> None:
    table = attention_table(16, 1, 5000, heads=32, kv_heads=4)
    assert factors(scaled(with_stump, {"dram_bandwidth": 1.5}), table) == pytest.approx(1.0)
    far = attention_table(16, 1, 5_000_000, heads=32, kv_heads=4)
    assert GPU(with_stump).price(far).extrapolated.all()
    assert factors(with_stump, far) == pytest.approx(1.0)


def test_a_repeated_kernel_has_the_residual_that_it_has_in_a_model(with_stump: GpuConfig) -> None:
    table = decodes()
    assert factors(repeating(with_stump, repeated=True), table) == pytest.approx(factors(with_stump, table))


def test_prices_never_fall_below_the_data_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.hw_models.gpu.FOLDER", tmp_path)
    name = f"attention.{DECODE}"
    low = stump(GPU(physics()).fingerprint(name))
    low.value[1:] = -0.5
    save_residual(tmp_path / "low.npz", {name: low})
    table = attention_table(64, 1, 8000, heads=32, kv_heads=8)
    time_s = GPU(physics().model_copy(update={"residual": "low.npz"})).price(table).time_s
    assert time_s == pytest.approx((table.read_bytes + table.write_bytes) / physics().dram_bandwidth.value)


def test_values_are_found_and_written() -> None:
    plan = known_plan()
    result = plan.run(QUICK)
    assert result.unseen["all"].mean < 0.03
    fitted = plan.fitted(result)
    assert [kernel.fit for kernel in fitted.attention.kernels] == [k.fit for k in plan.config.attention.kernels]
    held = next(kernel for kernel in fitted.attention.kernels if kernel.fit == DECODE)
    text = published("processors:\n  gpu:\n    kind: gpu\n", plan, result, ("processors", "gpu"))
    data = parse_yaml(text, "text").data["processors"]["gpu"]
    section = AttentionKernels.model_validate(data["attention"])
    written = next(kernel for kernel in section.kernels if kernel.fit == DECODE)
    assert written.launch == pytest.approx(held.launch, rel=1e-2)
    assert data["fits"][DECODE]["rows"] == len(plan.measured)
    assert data["fits"][DECODE]["valid"]["m"] == [1, 256]


def test_a_new_kernel_comes_after_those_that_were_fitted_and_before_assumptions() -> None:
    config = physics()
    kernels = [kernel for kernel in config.attention.kernels if kernel.fit != DECODE]
    kernels.append(kernels[0].model_copy(update={"fit": None}))
    attention = config.attention.model_copy(update={"kernels": tuple(kernels)})
    plan = AttentionPlan(DECODE, known_plan().measured, config.model_copy(update={"attention": attention}), *_case())
    fits = [kernel.fit for kernel in plan.with_values({}).attention.kernels]
    assert fits.index(DECODE) == fits.index(None) - 1
    assert len(fits) == len(kernels) + 1


def _case() -> tuple:  # type: ignore[type-arg]
    case = case_of(DECODE)
    return case.kernel, case.space()


def test_residuals_learn_from_rows_that_are_as_in_a_model() -> None:
    pytest.importorskip("sklearn")
    plan = known_plan()
    config = plan.with_values({"kept": 50e6, "kept_bandwidth": 4e13})
    usable = plan.representative(config)
    nbytes = plan.measured.table.read_bytes
    assert usable[nbytes > 100e6].all()
    assert not usable.all()
    result = plan.run(QUICK)
    learned = learn_residual(plan, result, GPU(plan.fitted(result)), QUICK)
    assert learned.name == f"attention.{DECODE}"
    assert learned.trees.fingerprint == GPU(plan.fitted(result)).fingerprint(learned.name)


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no kernels of latent attention are known on a100-sxm with vllm"):
        next(attention_sets(tmp_path, "a100-sxm", "vllm", latent=True))
    with pytest.raises(DataError, match=r"must hold one attention/vllm/\*/context_attention_perf.parquet, got 0"):
        next(attention_sets(tmp_path, "a100-sxm", "vllm", latent=False))


def rtx() -> GpuConfig:
    processor = load_device("rtx-pro-6000").processor
    assert isinstance(processor, GPU)
    return processor.config.model_copy(update={"residual": None})


def mixed_steps() -> OperatorTable:
    grid = np.meshgrid([1, 2, 4], [16, 512], [1, 8, 64, 128], [100, 2000, 20_000], indexing="ij")
    kv_heads, chunk, sequences, context = (part.ravel() for part in grid)
    shape: dict[str, Any] = {"heads": 4 * kv_heads, "kv_heads": kv_heads, "head_dim": 128}
    return added(attention_table(1, chunk, 0, **shape), attention_table(sequences, 1, context, **shape))


def mixed_plan(config: GpuConfig, truth: dict[str, float]) -> MixedPlan:
    table = mixed_steps()
    [plan] = mixed_plans(config, measured(np.ones(len(table)), table))
    return replace(plan, measured=measured(plan.price(truth, table), table))


def test_values_of_mixed_steps_are_found_and_stated() -> None:
    truth = {"decode_block": 3e-7, "shared": 50e6, "idle_tile": 5e-9}
    plan = mixed_plan(rtx(), truth)
    result = plan.run(QUICK)
    assert result.unseen["all"].mean < 0.02
    fitted = plan.fitted(result)
    kernel = next(kernel for kernel in fitted.attention.kernels if kernel.mixed_fit == plan.name)
    assert kernel.fit == "prefill_fa2_bf16"
    assert (kernel.shared, kernel.idle_tile) == pytest.approx((50e6, 5e-9), rel=0.15)
    assert GPU(fitted).stated_errors(mixed_steps()) == pytest.approx(fitted.fits[plan.name].error)
    assert GPU(fitted).fingerprint("attention.prefill_fa2_bf16") == GPU(rtx()).fingerprint("attention.prefill_fa2_bf16")


def test_a_prefill_fit_leaves_mixed_steps_alone() -> None:
    plan = mixed_plan(rtx(), {"decode_block": 3e-7, "shared": 50e6, "idle_tile": 5e-9})
    config = plan.with_values({"shared": 5e7})
    config = config.model_copy(update={"fits": config.fits | {plan.name: next(iter(config.fits.values()))}})
    case = next(case for case in cases("rtx-pro-6000", "vllm") if case.fit == "prefill_fa2_bf16")
    [again] = attention_plans(config, case, known_plan().measured)
    kernel = next(kernel for kernel in again.with_values({"launch": 1e-5}).attention.kernels if kernel.fit == case.fit)
    assert (kernel.launch, kernel.shared, kernel.mixed_fit) == (1e-5, 5e7, plan.name)


def test_mixed_steps_are_read_from_every_shard(tmp_path: Path) -> None:
    folder = tmp_path / "RTXPRO6000" / "Llama-3.1-8B" / "bf16"
    for shards in (1, 2):
        (folder / f"tp{shards}").mkdir(parents=True)
        names = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"
        rows = f"{names}\n0,0,1,16,8\n16,0,0,0,9\n16,0,4,100,10\n32,8,4,100,11"
        (folder / f"tp{shards}" / "attention.csv").write_text(rows)
    meta = "hardware: RTXPRO6000\ngpu: RTX\nmodel: meta-llama/Llama-3.1-8B\nvllm_version: 0.19.0\n"
    (folder / "meta.yaml").write_text(meta)
    found = read_mixed_steps(tmp_path, "rtx-pro-6000")
    assert found.labels["tokens"].tolist() == [16, 32, 16, 32]
    assert found.group.tolist() == [0, 0, 1, 1]
    assert found.table.groups.tolist() == [32, 32, 16, 16]
    assert mixed_plans(physics(), found) == []  # FlashAttention-3 packs heads
