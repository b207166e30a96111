from pathlib import Path

import numpy as np
import pytest

from moesim.errors import DataError
from moesim.hw_models import residual as residual_module
from moesim.hw_models.calibration.fit import Settings
from moesim.hw_models.calibration.measured import Measured, Source, group_numbers
from moesim.hw_models.calibration.plans import Plan, product_plan
from moesim.hw_models.calibration.residual_fit import learn_residual
from moesim.hw_models.calibration.tables import product_table
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.hw_models.parameters import scaled
from moesim.hw_models.residual import Trees, load_residual, save_residual
from moesim.workloads.operator_table import OperatorTable

TOKENS = np.arange(1, 400, 3)
QUICK = Settings(rows=300, starts=1, folds=3, evaluations=4)


SHIPPED = load_device("h100-sxm").processor  # before tests point to other files


def physics() -> GpuConfig:
    assert isinstance(SHIPPED, GPU)
    return SHIPPED.config.model_copy(update={"residual": None})


def table() -> OperatorTable:
    n, k, m = (part.ravel() for part in np.meshgrid([256, 2048, 8192], [512, 4096], TOKENS, indexing="ij"))
    return product_table(m, n, k, "bf16")


def stump(fingerprint: str, low: float = -0.1, high: float = 0.3) -> Trees:
    """Products of up to 32 tokens take e^-0.5 of the time, others e^0.2."""
    feature, value = np.array([0, -1, -1], np.int8), np.array([5.0, -0.5, 0.2], np.float32)
    return Trees(feature, value, np.array([1, 0, 0], np.int32), np.zeros(1, np.int32), low, high, fingerprint, 0.05)


@pytest.fixture
def with_stump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuConfig:
    monkeypatch.setattr("moesim.hw_models.gpu.FOLDER", tmp_path)
    save_residual(tmp_path / "stump.npz", {"gemm.bf16": stump(GPU(physics()).fingerprint("gemm.bf16"))})
    return physics().model_copy(update={"residual": "stump.npz"})


def test_trees_multiply_prices_within_their_range(with_stump: GpuConfig) -> None:
    work = table()
    factor = GPU(with_stump).price(work).time_s / GPU(physics()).price(work).time_s
    few = work.m <= 32
    assert factor[few] == pytest.approx(np.exp(-0.1), rel=1e-6)  # not -0.5, which nothing that was seen asked for
    assert factor[~few] == pytest.approx(np.exp(0.2), rel=1e-6)


def test_prices_never_fall_below_the_data_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.hw_models.gpu.FOLDER", tmp_path)
    trees = stump(GPU(physics()).fingerprint("gemm.bf16"), low=-5.0, high=-3.0)
    save_residual(tmp_path / "low.npz", {"gemm.bf16": trees})
    config = physics().model_copy(update={"residual": "low.npz"})
    work = product_table([8192], [8192], [8192], "bf16")
    floor_s = work.flops / config.formats["bf16"].peak.value
    assert GPU(config).price(work).time_s == pytest.approx(floor_s)


def test_outside_the_calibration_there_is_physics_alone(with_stump: GpuConfig) -> None:
    far = product_table([100], [10**6], [4096], "bf16")
    cost = GPU(with_stump).price(far)
    assert cost.extrapolated.all()
    assert cost.time_s == pytest.approx(GPU(physics()).price(far).time_s, rel=1e-12)


def test_other_parameters_and_other_formats_have_no_residual(with_stump: GpuConfig) -> None:
    work, fp8 = table(), product_table([100], [4096], [4096], "fp8")
    for name in ("dram_bandwidth", "formats.bf16.peak", "tile_latency"):
        other, plain = (GPU(scaled(config, {name: 1.25})) for config in (with_stump, physics()))
        assert np.array_equal(other.price(work).time_s, plain.price(work).time_s)
    assert GPU(with_stump).price(fp8).time_s == GPU(physics()).price(fp8).time_s


def test_files_keep_models_and_refuse_others(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    save_residual(path, {"gemm.fp8": stump("ab")})
    (loaded,) = load_residual(path).values()
    assert loaded.fingerprint == "ab"
    assert (loaded.low, loaded.high, loaded.error) == (-0.1, 0.3, 0.05)
    assert np.array_equal(loaded.value, stump("ab").value)
    path.write_bytes(b"no")
    for wrong in (path, tmp_path / "none.npz"):
        with pytest.raises(DataError, match=r"cannot be read|no such file"):
            load_residual(wrong)


def test_archives_of_something_else_are_refused(tmp_path: Path) -> None:
    path, three = tmp_path / "other.npz", np.zeros(3)
    whole = dict.fromkeys((f"gemm.bf16.{part}" for part in ("feature", "value", "left", "roots", "range")), three)
    spoilt = ({"load": three}, whole, whole | {"gemm.bf16.fingerprint": three, "gemm.bf16.range": np.zeros(2)})
    for arrays in spoilt:
        np.savez(path, allow_pickle=False, **arrays)
        with pytest.raises(DataError, match="must be a file of residuals"):
            load_residual(path)


def learned_on_a_step() -> tuple[Plan, Measured[OperatorTable]]:
    """Products of odd rows take 1.3 times as long as physics has it."""
    work = table()
    time_s = GPU(physics()).price(work).time_s * np.where(work.m % 16 == 0, 1.0, 1.3)
    data = Measured(work, time_s, group_numbers([work.n, work.k]), Source("n", "d", "vllm", "0", "x"), {})
    return product_plan(physics(), data, "bf16"), data


def test_a_learned_residual_finds_a_step_on_unseen_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    plan, data = learned_on_a_step()
    result = plan.run(QUICK)
    processor = GPU(plan.fitted(result))
    learned = learn_residual(plan, result, processor, QUICK)
    assert learned.unseen["all"].mean < 0.9 * result.unseen["all"].mean
    monkeypatch.setattr(residual_module, "FOLDER", tmp_path)
    monkeypatch.setattr("moesim.hw_models.gpu.FOLDER", tmp_path)
    save_residual(tmp_path / "step.npz", {learned.name: learned.trees})
    corrected = GPU(processor.config.model_copy(update={"residual": "step.npz"})).price(data.table).time_s
    assert np.abs(corrected / data.time_s - 1).mean() < 0.02
    factor = np.log(corrected / processor.price(data.table).time_s)
    assert learned.trees.low - 1e-9 <= factor.min() <= factor.max() <= learned.trees.high + 1e-9
