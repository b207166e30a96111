"""A device with known parameters makes measurements; fits find the parameters again."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.hw_models.calibration.fit import Settings
from moesim.hw_models.calibration.measured import NOT_TUNED, Measured, Source, group_numbers
from moesim.hw_models.calibration.plans import Plan, expert_plan, expert_sections, product_plan
from moesim.hw_models.calibration.tables import Held, expert_table, product_table
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.hw_models.parameters import parameters, with_values
from moesim.workloads.operator_table import OperatorTable

QUICK = Settings(rows=400, starts=1, folds=2, evaluations=12)
TOKENS = np.unique(np.geomspace(1, 8192, 24).astype(np.int64))


def config() -> GpuConfig:
    processor = load_device("h100-sxm").processor
    assert isinstance(processor, GPU)
    return processor.config.model_copy(update={"residual": None})


def measured(truth: GpuConfig, table: OperatorTable, columns: list[NDArray[Any]]) -> Measured[OperatorTable]:
    source = Source("nobody", "made up", "vllm", "0", "test")
    return Measured(table, GPU(truth).price(table).time_s, group_numbers(columns), source, {})


def products(truth: GpuConfig, dtype: str) -> Measured[OperatorTable]:
    n, k, m = (part.ravel() for part in np.meshgrid([256, 2048, 16_384], [512, 4096, 16_384], TOKENS, indexing="ij"))
    return measured(truth, product_table(m, n, k, dtype), [n, k])


def experts(truth: GpuConfig, up_matrices: int = 2) -> Measured[OperatorTable]:
    n, k, m = (part.ravel() for part in np.meshgrid([256, 1024, 4096], [2048, 7168], TOKENS, indexing="ij"))
    tokens = np.outer(m, [1, 2, 0, 3, 1, 1, 4, 0])
    return measured(truth, expert_table(tokens, n, k, "bf16", up_matrices), [n, k])


def check_recovery(plan: Plan, truth: GpuConfig, checked: set[str]) -> None:
    result = plan.run(QUICK)
    assert result.unseen["all"].mean < 0.02
    found = dict(parameters(plan.fitted(result)))
    wanted = dict(parameters(truth))
    for name in checked:
        assert found[name].value == pytest.approx(wanted[name].value, rel=0.05)
        assert found[name].fit == plan.name
    entry = plan.fitted(result).fits[plan.name]
    assert entry.rows == len(plan.measured)
    assert entry.valid["m"] == (float(plan.measured.table.m.min()), float(plan.measured.table.m.max()))


def test_parameters_of_products_are_found() -> None:
    truth = with_values(config(), {"formats.bf16.sustained": 0.71, "dram_sustained": 0.66, "kernel_latency": 3.3e-6})
    plan = product_plan(config(), products(truth, "bf16"), "bf16")
    check_recovery(plan, truth, {"formats.bf16.sustained", "dram_sustained"})


def test_parameters_of_quantised_products_are_found() -> None:
    truth = with_values(config(), {"formats.fp8.sustained": 0.55, "formats.fp8.quantise_bandwidth": 0.9e12})
    plan = product_plan(config(), products(truth, "fp8"), "fp8")
    assert not any("split" in name for name in plan.space)
    check_recovery(plan, truth, {"formats.fp8.sustained"})


def test_parameters_of_experts_are_found() -> None:
    truth = with_values(config(), {"grouped_gemm.latency": 21e-6, "grouped_gemm.weights_dram_sustained": 0.6})
    plan = expert_plan(config(), experts(truth), "bf16")
    check_recovery(plan, truth, {"grouped_gemm.latency", "grouped_gemm.weights_dram_sustained"})


def test_ungated_experts_may_have_kernels_of_their_own() -> None:
    base = config()
    data = experts(base, 1)
    plan = expert_plan(base, data, "bf16", "ungated")
    values = {name: free.start for name, free in plan.space.items()} | {"grouped_gemm.ungated.bf16.latency": 9e-5}
    slow, gated = plan.price(values, data.table), experts(base).table
    assert np.all(slow > 9e-5)
    assert np.array_equal(plan.price(values, gated), GPU(base).price(gated).time_s)


def test_kernels_of_their_own_are_fitted_apart() -> None:
    held = Held(np.full(4, 8), np.full(4, 2), [1, 1, 2, 2])
    table = expert_table(np.full((4, 2), 4), np.full(4, 64), np.full(4, 64), "bf16", [2, 1, 2, 2], 0.0, held)
    source = Source("nobody", "made up", "vllm", "0", "test")
    for kernels, wanted in (
        (["a", "a", "a", "a"], {"weights": [0, 1, 2, 3]}),
        (["a", "a", "b", "b"], {"weights": [0, 1], "sharded": [2, 3]}),
        (["a", "c", "b", "b"], {"weights": [0], "ungated": [1], "sharded": [2, 3]}),
    ):
        data = Measured(table, np.ones(4), np.arange(4), source, {"kernel": np.array(kernels)})
        assert {name: rows.tolist() for name, rows in expert_sections(data).items()} == wanted


def test_cases_that_were_not_tuned_are_no_part_of_the_fit() -> None:
    data = experts(config())
    broken = np.arange(len(data)) % 5 == 0
    plan = expert_plan(config(), replace(data, labels={NOT_TUNED: broken}), "bf16")
    assert len(plan.measured) == (~broken).sum()


def test_fits_cover_what_they_say() -> None:
    base = config()
    plan = product_plan(base, products(base, "bf16"), "bf16")
    assert plan.forms == ("gemm", "elementwise")
    assert plan.weights == ("bf16", "fp16")
    assert product_plan(base, products(base, "fp8"), "fp8").weights == ("fp8",)
