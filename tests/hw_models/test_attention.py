"""Prices of attention: limits, sums over sequences, causality, and what measured kernels are known to do."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moesim.hw_models import attention_kernel
from moesim.hw_models.attention_config import AttentionKernel, AttentionKernels
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU
from moesim.hw_models.processor import BOUNDS
from moesim.workloads.operator_table import DTYPE_CODES, OperatorTable
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
    late = next(kernel.late for kernel in gpu.config.attention.kernels if kernel.late_fit)
    assert seconds(gpu, large) - seconds(repeated, large) == pytest.approx(late, rel=0.1)  # its residual aside


def test_decodes_end_late_by_tiles_and_bytes() -> None:
    plain, late = ({"phase": "decode", "late_bytes": 1e8, "late": value} for value in (0.0, 3e-5))

    def more(sequences: int, context: int) -> float:
        table = attention_table(sequences, 1, context, heads=8, kv_heads=8)
        return seconds(with_kernels(late), table) - seconds(with_kernels(plain), table)

    assert more(132, 20_000) == pytest.approx(3e-5)
    assert more(132 // 8 // 2, 200_000) == pytest.approx(3e-5 * 64 / 132)  # half of the multiprocessors
    assert more(132, 99) == pytest.approx(3e-5 * 132 * 100 * 2 * 8 * 128 * 2 / 1e8)


def test_a_launch_has_tiles_without_queries_for_decodes() -> None:
    chunk, decodes = attention_table(1, 640, 0, heads=32, kv_heads=8), attention_table(50, 1, 100, heads=32, kv_heads=8)
    layout = {"takes_decodes": True, "query_tile": 64}
    plain, idle = (with_kernels(layout | {"idle_tile": value}) for value in (0.0, 1e-8))
    more = seconds(idle, added(chunk, decodes)) - seconds(plain, added(chunk, decodes))
    assert more == pytest.approx(9 * 50 * 32 * 1e-8)
    assert seconds(idle, chunk) == seconds(plain, chunk)


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


def with_kernels(*changes: dict[str, Any], repeated: bool = False) -> GPU:
    """An H200 with a plain prefill kernel and a plain decode kernel, and copies of both with changes before them."""
    processor = load_device("h200-sxm").processor
    assert isinstance(processor, GPU)
    tile = {"query_tile": 64, "key_tile": 64, "launch": 1e-6, "tile": 1e-6, "sustained": 0.5, "dram_sustained": 0.9}
    given = {"name": "plain", "source": "test", "cache": ("bf16",), "packs_heads": False, "splits_keys": False} | tile
    plain = [AttentionKernel.model_validate(given | {"phase": phase}) for phase in ("prefill", "decode")]
    changed = [AttentionKernel.model_validate(given | {"phase": "prefill"} | change) for change in changes]
    section = AttentionKernels(kernels=(*changed, *plain), repeated=repeated)
    return GPU(processor.config.model_copy(update={"residual": None, "attention": section}))


def test_kernels_are_chosen_by_queries_per_sequence() -> None:
    short = with_kernels({"queries": (1, 128), "launch": 5e-6})
    longer_s = [
        seconds(short, attention_table(2, n, 0)) - seconds(with_kernels(), attention_table(2, n, 0)) for n in (128, 129)
    ]
    assert longer_s == pytest.approx([4e-6, 0.0], abs=1e-12)


def test_kernels_are_chosen_by_bits_of_queries() -> None:
    narrow, table = with_kernels({"query_bits": 8, "launch": 5e-6}), attention_table(2, 100, 0)
    in_fp8 = replace(table, query_dtype=np.full(1, DTYPE_CODES["fp8"], np.int8))
    assert seconds(narrow, in_fp8) - seconds(narrow, table) == pytest.approx(4e-6)


def test_blocks_outside_a_window_take_a_share_of_the_time() -> None:
    windowed, whole = attention_table(1, 8192, 0, window=1024), attention_table(1, 8192, 0)
    prices = [seconds(with_kernels({"outside_window": share}), windowed) for share in (0.0, 0.4, 1.0)]
    assert prices[1] == pytest.approx(0.6 * prices[0] + 0.4 * prices[2], rel=1e-3)
    assert prices[2] == pytest.approx(seconds(with_kernels(), whole), rel=0.01)
    short = attention_table(1, 512, 0, window=1024)
    assert seconds(with_kernels({"outside_window": 1.0}), short) == seconds(with_kernels(), short)


def test_splits_are_limited_per_tile() -> None:
    table = attention_table(1, 1, 1_000_000, heads=4, kv_heads=4)
    splits = {"phase": "decode", "splits_keys": True, "block": 5e-6}
    free, eight = (seconds(with_kernels(splits | {"max_splits": most}), table) for most in (0, 8))
    assert eight / free == pytest.approx(132 / 1.1 / (4 * 8), rel=0.05)


def test_keys_are_cut_by_their_number_while_there_is_room() -> None:
    cut = {"phase": "decode", "part_keys": 128, "parts_per_multiprocessor": 8.0, "tile": 20e-6, "merge": 0.0}
    tables = [attention_table(132 * 2, 1, n - 1, heads=1, kv_heads=1, head_dim=64) for n in (128, 256, 512, 4096)]
    prices = [seconds(with_kernels(cut), table) for table in tables]
    plain = [seconds(with_kernels({"phase": "decode", "tile": 20e-6}), table) for table in tables]
    assert np.subtract(prices, plain) == pytest.approx(np.array([0, 2, 6, 6]) * 20e-6, rel=0.03, abs=1e-9)


def test_few_tiles_have_the_keys_of_all_sequences_cut_alike() -> None:
    alike = {"phase": "decode", "max_splits": 16, "split_tiles": 8, "key_tile": 16, "block": 1e-6, "launch": 0.0}
    usual = {"phase": "decode", "key_tile": 16, "block": 1e-6, "launch": 0.0}
    few, many = (attention_table(count, 1, 16 * 1600 - 1, heads=1, kv_heads=1) for count in (8, 9))
    ratio = seconds(with_kernels(usual), few) / seconds(with_kernels(alike), few)
    assert 12 < ratio <= 16
    assert seconds(with_kernels(alike), many) == seconds(with_kernels(usual), many)
    merged = seconds(with_kernels(alike | {"merge": 1e-5, "merge_tile": 1e-6}), few)
    assert merged - seconds(with_kernels(alike), few) == pytest.approx(1e-5 + 8e-6, rel=1e-4)
    inside = attention_table(8, 1, 16 * 1600 - 1, heads=1, kv_heads=1, window=100)  # in one part of 1,600 keys
    assert seconds(with_kernels(alike), inside) == seconds(with_kernels(usual), inside)


def test_multiprocessors_may_run_several_tiles_at_a_time() -> None:
    table = attention_table(132 * 8, 1, 100, heads=1, kv_heads=1)
    slow = {"phase": "decode", "tile": 1e-3, "launch": 0.0}
    one, four = (seconds(with_kernels(slow | {"resident": count}), table) for count in (1.0, 4.0))
    assert one == pytest.approx(4 * four, rel=0.01)


def test_a_kernel_that_cuts_all_sequences_says_in_how_many_parts() -> None:
    with pytest.raises(ValueError, match="split_tiles needs max_splits"):
        AttentionKernel.model_validate(with_kernels().config.attention.kernels[0].model_dump() | {"split_tiles": 4})


def test_decodes_in_a_prefill_kernel_read_keys_again_for_heads_that_share_them() -> None:
    mixed = {"takes_decodes": True, "sustained": 1.0, "tile": 0.0, "shared": 60e6}
    chunk = attention_table(1, 16, 0, heads=32, kv_heads=8)

    def price(sequences: int, context: int, **change: Any) -> float:
        table = added(chunk, attention_table(sequences, 1, context, heads=32, kv_heads=8))
        return seconds(with_kernels(mixed | change), table)

    assert price(256, 100) == price(256, 100, shared=None)  # the keys of a KV head stay in L2
    assert price(8, 100_000) == price(8, 100_000, shared=None)  # heads run together
    key_bytes = 256 * 20_001 * 2 * 8 * 128 * 2
    assert price(256, 20_000) == pytest.approx(4 * key_bytes / (0.9 * 4.8e12), rel=0.02)
    assert price(256, 20_000) > 1.5 * price(256, 20_000, shared=None)


def test_no_residual_corrects_the_hosts_time() -> None:
    table = attention_table([1, 64], 1, 2000)
    slow_host = {"phase": "decode", "floor": 50e-6}
    assert with_kernels(slow_host).corrected_rows(table).all()
    repeated = with_kernels(slow_host, repeated=True)
    assert repeated.price(table).time_s[0] == 50e-6
    assert repeated.corrected_rows(table).tolist() == [False, True]
