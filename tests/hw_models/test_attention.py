"""Prices of attention: limits, sums over sequences, causality, and what measured kernels are known to do."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.hw_models import attention_kernel
from moesim.hw_models.attention_config import AttentionKernels
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU
from moesim.hw_models.processor import BOUNDS
from moesim.workloads.operator_table import OperatorTable
from tests.conformance.processor_suite import added
from tests.conformance.tables import attention_table, row_of


@pytest.fixture(scope="module", params=["h200-sxm", "rtx-pro-6000"])
def gpu(request: pytest.FixtureRequest) -> GPU:
    """Physics alone: a residual rises and falls with the measurements that it learned from."""
    processor = load_device(request.param).processor
    assert isinstance(processor, GPU)
    return GPU(processor.config.model_copy(update={"residual": None}))


def seconds(gpu: GPU, table: OperatorTable) -> float:
    return float(gpu.price(table).time_s[0])


def decodes(contexts: tuple[int, ...]) -> OperatorTable:
    """One row whose sequences have these contexts."""
    total = row_of(attention_table(1, 1, contexts[0]), 0)
    for context in contexts[1:]:
        longest = np.maximum(total.longest_decode, context + 1)
        total = replace(added(total, attention_table(1, 1, context)), longest_decode=longest)
    return total


def test_bounds_are_those_of_processors() -> None:
    assert BOUNDS[attention_kernel.COMPUTE] == "compute"
    assert BOUNDS[attention_kernel.MEMORY] == "memory"
    assert BOUNDS[attention_kernel.LATENCY] == "latency"


def test_equal_sequences_added_up_are_a_uniform_batch(gpu: GPU) -> None:
    assert seconds(gpu, decodes((700,) * 6)) == pytest.approx(seconds(gpu, attention_table(6, 1, 700)), rel=1e-12)


def test_a_long_sequence_among_short_ones_takes_no_less_than_equal_ones(gpu: GPU) -> None:
    contexts = (100,) * 30 + (13_000,)
    equal = (sum(contexts) // len(contexts),) * len(contexts)
    assert seconds(gpu, decodes(contexts)) >= 0.99 * seconds(gpu, decodes(equal))


def test_a_window_costs_its_keys_and_no_more(gpu: GPU) -> None:
    near, far = (seconds(gpu, attention_table(32, 1, context, window=1024)) for context in (2000, 100_000))
    assert far == pytest.approx(near, rel=0.01)
    assert far < 0.3 * seconds(gpu, attention_table(32, 1, 100_000))


def test_a_causal_prompt_costs_half_of_a_chunk_that_sees_as_much(gpu: GPU) -> None:
    prompt = seconds(gpu, attention_table(1, 16_384, 0, heads=64))
    chunk = seconds(gpu, attention_table(1, 16_384, 8192, heads=64))  # every query sees 8192 keys more, on average 2 x
    assert chunk / prompt == pytest.approx(2.0, rel=0.1)


def test_chunks_of_a_prompt_take_about_as_long_as_the_whole(gpu: GPU) -> None:
    whole = seconds(gpu, attention_table(1, 32_768, 0))
    chunks = sum(seconds(gpu, attention_table(1, 4096, context)) for context in range(0, 32_768, 4096))
    assert whole <= chunks < 1.2 * whole


def test_one_long_sequence_uses_all_multiprocessors(gpu: GPU) -> None:
    table = attention_table(1, 1, 1_000_000)
    floor_s = table.read_bytes[0] / gpu.config.dram_bandwidth.value
    assert floor_s < seconds(gpu, table) < 1.6 * floor_s


def test_mixed_steps_are_not_the_sum_of_their_parts(gpu: GPU) -> None:
    prefill, decode = attention_table(1, 512, 0), attention_table(64, 1, 1000)
    apart = seconds(gpu, prefill), seconds(gpu, decode)
    mixed = seconds(gpu, added(prefill, decode))
    assert mixed > max(apart)
    assert mixed != pytest.approx(sum(apart), rel=0.01)


def test_repeated_measurements_find_small_caches_in_l2() -> None:
    gpu = load_device("rtx-pro-6000").processor
    assert isinstance(gpu, GPU)
    attention = gpu.config.attention.model_copy(update={"repeated": True})
    repeated = GPU(gpu.config.model_copy(update={"attention": attention}))
    small, large = attention_table(8, 1, 1000), attention_table(256, 1, 4000)
    assert seconds(repeated, small) < seconds(gpu, small)
    assert seconds(repeated, large) == seconds(gpu, large)


def test_the_first_kernel_that_fits_is_used() -> None:
    gpu = load_device("h200-sxm").processor
    assert isinstance(gpu, GPU)
    wide = gpu.price(attention_table(1, 2048, 0, heads=8, kv_heads=1, head_dim=512))
    assert not wide.extrapolated.any()
    assert gpu.price(attention_table(1, 2048, 0, heads=8, kv_heads=1, head_dim=2048)).extrapolated.all()


def test_every_phase_needs_a_kernel() -> None:
    gpu = load_device("h200-sxm").processor
    assert isinstance(gpu, GPU)
    only = [kernel for kernel in gpu.config.attention.kernels if kernel.phase == "decode"]
    with pytest.raises(ValueError, match="must hold one for prefill"):
        AttentionKernels.model_validate({"kernels": only})
