"""A device with known parameters makes measurements; fits find the parameters again."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.hw_models.calibration.aiconfigurator import PUBLISHER
from moesim.hw_models.calibration.fit import Settings
from moesim.hw_models.calibration.measured import NOT_TUNED, Measured, Source, group_numbers
from moesim.hw_models.calibration.plans import Plan, elementwise_plan, expert_plan, expert_sections, product_plan
from moesim.hw_models.calibration.tables import Held, expert_table, product_table
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.hw_models.parameters import parameters, with_values
from moesim.workloads.operator_table import OperatorTable
from tests.conformance.tables import copy_table

QUICK = Settings(rows=400, starts=1, folds=2, evaluations=12)
TOKENS = np.unique(np.geomspace(1, 8192, 24).astype(np.int64))


def config() -> GpuConfig:
    processor = load_device("h100-sxm").processor
    assert isinstance(processor, GPU)
    return processor.config.model_copy(update={"residual": None})


def measured(
    truth: GpuConfig, table: OperatorTable, columns: list[NDArray[Any]], publisher: str = "nobody"
) -> Measured[OperatorTable]:
    source = Source(publisher, "made up", "vllm", "0", "test")
    return Measured(table, GPU(truth).price(table).time_s, group_numbers(columns), source, {})


def products(truth: GpuConfig, dtype: str, publisher: str = "nobody") -> Measured[OperatorTable]:
    n, k, m = (part.ravel() for part in np.meshgrid([256, 2048, 16_384], [512, 4096, 16_384], TOKENS, indexing="ij"))
    return measured(truth, product_table(m, n, k, dtype), [n, k], publisher)


def experts(truth: GpuConfig, up_matrices: int = 2) -> Measured[OperatorTable]:
    n, k, m = (part.ravel() for part in np.meshgrid([256, 1024, 4096], [2048, 7168], TOKENS, indexing="ij"))
    tokens = np.outer(m, [1, 2, 0, 3, 1, 1, 4, 0])
    return measured(truth, expert_table(tokens, n, k, "bf16", up_matrices), [n, k])


def check_recovery(plan: Plan, truth: GpuConfig, checked: set[str]) -> None:
    result = plan.run(QUICK)
    assert result.unseen["all"].mean < 0.03
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


def test_the_host_of_a_benchmark_is_found_and_leaves_the_kernels_alone() -> None:
    name = "formats.fp8_block.kernels.benchmark.launches.aligned.time"
    truth = with_values(config(), {name: 123e-6}).model_copy(update={"repeated": True})
    plan = product_plan(config(), products(truth, "fp8_block", PUBLISHER), "fp8_block")
    assert {"step_latency", "quantise_latency"}.isdisjoint(key.split(".")[-1] for key in plan.space)
    result = plan.run(QUICK)
    fitted = plan.fitted(result)
    assert dict(parameters(fitted))[name].value == pytest.approx(123e-6, rel=0.01)
    assert not fitted.repeated
    small = plan.measured.table.m == 16
    hidden, anchors = plan.hidden(fitted), plan.anchors(fitted)
    assert hidden[small & (plan.measured.table.n == 256)].all()
    assert anchors is not None
    assert len(anchors) <= hidden.sum()  # those that the host hides by more than a little
    assert GPU(fitted).price(plan.measured.table).time_s[hidden].min() < 30e-6


def test_rows_of_the_host_alone_tell_nothing_else() -> None:
    base = config()
    data = products(base.model_copy(update={"repeated": True}), "fp8_block", PUBLISHER)
    few = data.take(np.flatnonzero((data.table.n == 256) & (data.table.k == 512) & (data.table.m < 256)))
    plan = product_plan(base, few, "fp8_block")
    assert plan.space
    assert all(".launches." in name for name in plan.space)
    assert not np.any(plan.representative(base))


def test_measurements_of_others_are_no_benchmark() -> None:
    base = config()
    plan = product_plan(base, products(base, "fp8_block"), "fp8_block")
    assert not any("benchmark" in name for name in plan.space)
    assert plan.anchors(base) is None
    assert np.all(plan.representative(base))


def test_parameters_of_experts_are_found() -> None:
    truth = with_values(config(), {"grouped_gemm.latency": 21e-6, "grouped_gemm.weights_dram_sustained": 0.6})
    plan = expert_plan(config(), experts(truth), "bf16")
    check_recovery(plan, truth, {"grouped_gemm.latency", "grouped_gemm.weights_dram_sustained"})


def test_parameters_of_elementwise_layers_are_found() -> None:
    values = {"elementwise.latency": 3e-6, "elementwise.cached_bytes": 40e6, "elementwise.l2_bandwidth": 9e12}
    truth = with_values(config(), values)
    nbytes = np.tile(np.geomspace(1e4, 1e9, 40), 4)
    plan = elementwise_plan(config(), measured(truth, copy_table(nbytes), [np.repeat(np.arange(4), 40)]))
    result = plan.run(QUICK)
    assert result.unseen["all"].mean < 0.01
    assert result.values == pytest.approx(values, rel=0.05)
    entry = plan.fitted(result).fits["elementwise"]
    assert (entry.forms, entry.valid) == (("elementwise",), {"bytes": (1e4, 1e9)})
    assert not plan.residual_name


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
