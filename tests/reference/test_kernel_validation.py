"""Errors that `moesim validate kernels` finds in the published measurements, by the way a user reads them."""

from pathlib import Path

import pytest

from moesim.hw_models.calibration.fit import Settings
from moesim.hw_models.calibration.measured import NOT_TUNED
from moesim.reports.validation.kernel_files import OPERATORS, GpuData, find_gpus, read_sets
from moesim.reports.validation.kernel_prices import priced, prices_of
from moesim.reports.validation.kernel_refits import can_refit, refitted
from moesim.reports.validation.kernels import OTHER, RESIDUAL, ROOFLINE, SEEN, UNSEEN, Kernels, group_errors, group_rows

pytestmark = pytest.mark.reference

GPUS = ("a100-sxm", "h100-sxm", "h200-sxm", "rtx-pro-6000")
LAUNCH_BOUND = "fp8_block"
"""Of vLLM, timed launch by launch."""


def found(data: Path, gpu: str, *, profiles: bool = False) -> GpuData:
    gpus, _ = find_gpus(data / "kernels")
    (own,) = [one for one in gpus if one.gpu == gpu]
    return GpuData(gpu, () if profiles else own.folders, own.profiles if profiles else ())


def kernels(data: GpuData, operators: tuple[str, ...]) -> list[Kernels]:
    return [priced(data.gpu, one, prices_of(data.gpu, one.framework)) for one in read_sets(data, operators)]


@pytest.mark.parametrize("gpu", GPUS)
def test_what_was_fitted_is_priced_far_better_than_by_a_roofline(reference_data: Path, gpu: str) -> None:
    checked = kernels(found(reference_data, gpu), OPERATORS)
    for item in checked:
        if (item.op, item.framework, item.model) == ("gemm", "vllm", LAUNCH_BOUND):
            continue
        errors = {error.variant: error.errors for error in group_errors([item]) if error.time == "all"}
        if item.model.endswith(NOT_TUNED):
            continue  # no fit is about such rows
        assert item.shapes == SEEN or item.op == "gemm", (item.op, item.framework, item.model)
        assert errors[RESIDUAL].mean < 0.28
        assert errors[RESIDUAL].mean < errors[ROOFLINE].mean / 1.9
    assert {item.op for item in checked} >= {"gemm", "moe", "prefill_attention", "decode_attention", "all_reduce"}


def test_layers_of_another_laboratory(reference_data: Path) -> None:
    rows = group_rows(kernels(found(reference_data, "rtx-pro-6000", profiles=True), OPERATORS))
    limits = {"gemm": 0.2, "moe": 0.03, "mixed_attention": 0.05, "elementwise": 0.25}
    assert {row["op"] for row in rows} == set(limits)
    for row in rows:
        in_cache = row["model"].endswith("in L2")  # of a profiler of single layers, unlike a model
        assert row["shapes"] == (OTHER if row["op"] == "gemm" or in_cache else SEEN)
        assert row["mean_abs_error"] < (0.35 if in_cache else limits[row["op"]]), row


def test_refits_repeat_what_calibrations_state(reference_data: Path) -> None:
    settings = Settings(folds=5, starts=1)
    for op in ("gemm", "prefill_attention", "all_gather"):
        operators = {"gemm": ("gemm",), "prefill_attention": ("attention",), "all_gather": ("comm",)}[op]
        item = next(one for one in kernels(found(reference_data, "a100-sxm"), operators) if one.op == op)
        assert can_refit(item)
        again = refitted(item, prices_of("a100-sxm", item.framework), settings)
        unseen = next(e.errors.mean for e in group_errors([again]) if (e.shapes, e.variant) == (UNSEEN, RESIDUAL))
        assert item.stated is not None
        assert unseen == pytest.approx(item.stated, rel=0.25)
