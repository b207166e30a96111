"""What would be measured, which needs no GPU."""

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.hw_models.measure.measured import SHAPE_NAMES, Skipped
from moesim.hw_models.measure.memory_problems import Triad
from moesim.hw_models.measure.problem import KERNEL_SHAPES
from moesim.hw_models.measure.runner import Effort, buffer_sets, measure
from moesim.hw_models.measure.suite import Planned, all_problems, build, plan, select


class Device:
    def __init__(self, l2_bytes, free_bytes):
        self.l2_bytes = l2_bytes
        self._free_bytes = free_bytes

    def free_bytes(self):
        return self._free_bytes


@pytest.mark.parametrize("quick", [False, True])
def test_every_kernel_is_measured_at_its_own_dimensions(quick):
    problems = all_problems(quick=quick)
    assert {problem.kernel for problem in problems} == set(KERNEL_SHAPES)
    for problem in problems:
        assert set(problem.shape) <= set(SHAPE_NAMES)
        assert min(problem.shape.values()) >= 1


def test_nothing_is_measured_twice():
    planned = plan(all_problems(), ("torch", "cupy"))
    keys = {
        (one.implementation, one.problem.kernel, one.problem.dtype, *one.problem.shape.values(), one.problem.lengths)
        for one in planned
    }
    assert len(keys) == len(planned)


def test_vendors_get_the_formats_they_are_made_for():
    planned = plan(all_problems(quick=True), ("torch", "cupy"))
    formats = {
        name: {one.problem.dtype for one in planned if one.implementation == name}
        for name in ("moesim", "torch", "cupy")
    }
    assert formats == {"moesim": {"fp32", "fp16"}, "torch": {"bf16"}, "cupy": {"fp16"}}
    assert {one.implementation for one in plan(all_problems(quick=True), ())} == {"moesim"}


def test_some_experts_have_no_tokens():
    assert any(0 in problem.lengths for problem in all_problems() if problem.kernel == "grouped_gemm")


def test_kernels_can_be_selected():
    chosen = select(all_problems(quick=True), " gemm, copy ")
    assert {problem.kernel for problem in chosen} == {"gemm", "copy"}
    with pytest.raises(ConfigError, match=r"--only: must be some of .*, got 'gem'"):
        select([], "gemm,gem")


@pytest.mark.parametrize(
    ("moved", "size", "l2", "free", "expected"),
    [
        (10, 10, 100, 10_000, 30),  # three caches
        (1000, 1000, 100, 10_000, 2),  # larger than the cache: another set all the same
        (1, 1, 100, 10_000, 64),  # no more than 64
        (10, 10, 100, 100, 8),  # four fifths of what is free
        (10, 10, 100, 12, 0),  # not even one
    ],
)
def test_sets_of_buffers(moved, size, l2, free, expected):
    assert buffer_sets(moved, size, Device(l2, free)) == expected


def test_contexts_and_prompts_stay_within_what_fits_and_what_the_reference_can_check():
    for problem in all_problems():
        if problem.kernel == "decode_attention":
            assert np.sum(problem.lengths) <= 2**19
        if problem.kernel == "prefill_attention":
            assert problem.shape["prompt_tokens"] <= 4096


@pytest.mark.parametrize("vendor", ["torch", "cupy"])
def test_what_a_vendor_has_no_kernel_for_is_skipped(vendor):
    planned = [Planned(Triad(10), vendor)]
    (outcome,) = measure(planned, lambda one: build(one, 1), Device(1, 1), lambda *_: 1.0, Effort())
    assert isinstance(outcome, Skipped)
    assert outcome.reason == f"{vendor} has no kernel for triad"
