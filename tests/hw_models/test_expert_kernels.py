"""What tells the kernels of expert FFNs, and their benchmarks, apart from plain tiles and waves."""

from typing import Any

import numpy as np
import pytest

from moesim.hw_models import gpu_kernel
from moesim.hw_models.calibration.tables import Held, expert_table
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU
from moesim.hw_models.gpu_products import BEST_TILES, GroupedKernels, ProductBenchmark, Tile, TunedShapes
from moesim.hw_models.parameters import Parameter
from moesim.workloads.operator_table import OperatorTable

SMALL, LARGE = Tile(rows=16, columns=32), Tile(rows=64, columns=64)


def number(value: float) -> Any:
    return Parameter[float](value=value, source="a test")


def with_kernels(*, repeated: bool = False, **values: Any) -> GPU:
    """An H200 by physics alone whose fp8 experts have round numbers, but for `values`."""
    plain = {
        "latency": 1e-5,
        "sustained": 0.7,
        "weights_dram_sustained": 0.9,
        "moved_dram_sustained": 0.5,
        "l2_bandwidth": 2e13,
        "tile_latency": 1e-6,
        "step_latency": 1e-10,
        "exposed": 0.0,
        "wave_tail": 0.0,
        "partial_tile": 0.0,
        "shared_latency": 0.0,
    }
    processor = load_device("h200-sxm").processor
    assert isinstance(processor, GPU)
    kernels = GroupedKernels().model_copy(update={name: number(value) for name, value in plain.items()} | values)
    grouped = processor.config.grouped_gemm.model_copy(update={"weights": {"fp8": kernels}})
    changes = {"grouped_gemm": grouped, "residual": None, "repeated": repeated}
    return GPU(processor.config.model_copy(update=changes))


def work(per_expert: int, n: int = 2048, k: int = 4096, slots: int = 8, tokens: int | None = None) -> OperatorTable:
    held = Held([per_expert * slots if tokens is None else tokens], [slots], [1])
    return expert_table(np.full((1, slots), per_expert), [n], [k], "fp8", held=held)


def seconds(gpu: GPU, table: OperatorTable) -> float:
    return float(gpu.price(table).time_s[0])


def kept(megabytes: float = 50, latency: float | None = None) -> ProductBenchmark:
    values = {"kept": megabytes * 1e6, "kept_bandwidth": 4e13} | ({} if latency is None else {"kept_latency": latency})
    return ProductBenchmark(copies=1, **{name: number(value) for name, value in values.items()})


def test_best_tiles_stand_first() -> None:
    assert len(BEST_TILES) == gpu_kernel.BEST_TILES


def test_tuned_shapes_run_the_best_of_all_tiles() -> None:
    tuned = (TunedShapes(experts=8, outputs=(1024, 2048)), TunedShapes(experts=4, outputs=(4096,)))
    default, best, mixed = (
        with_kernels(**own) for own in ({"tiles": (SMALL,)}, {}, {"tiles": (SMALL,), "tuned": tuned})
    )
    for shape, as_tuned in (((2048, 8), True), ((4096, 4), True), ((4096, 8), False), ((2048, 4), False)):
        table = work(512, n=shape[0], slots=shape[1])
        assert seconds(mixed, table) == seconds(best if as_tuned else default, table)
        assert seconds(best, table) < seconds(default, table)


def test_narrow_tiles_read_weights_slowly() -> None:
    menu = (SMALL.model_copy(update={"tokens_per_expert": 4}), LARGE.model_copy(update={"narrow": True}))
    plain, slow = (with_kernels(tiles=menu, narrow_slowdown=number(value)) for value in (1.0, 2.0))
    few, many = work(4), work(5)
    latency_s, weights_s = 1e-5, 8 * 3 * 2048 * 4096 / (4.8e12 * 0.9)
    assert seconds(slow, few) == seconds(plain, few)
    assert seconds(slow, many) - seconds(plain, many) == pytest.approx(weights_s, rel=1e-6)
    assert seconds(plain, many) > latency_s + weights_s


def test_a_step_of_narrow_tiles_takes_half_the_inputs() -> None:
    tiles = [(tile.model_copy(update={"narrow": narrow}),) for tile in (LARGE,) for narrow in (False, True)]
    plain, narrow = (with_kernels(tiles=menu, step_latency=number(1e-7)) for menu in tiles)
    table = work(1, n=128, k=4096, slots=1)
    steps_s = 1e-7 * (4096 + 128)
    assert seconds(narrow, table) - seconds(plain, table) == pytest.approx(steps_s, rel=1e-6)


def test_inputs_that_are_no_multiple_of_16_slow_the_down_projection() -> None:
    plain, slow = (with_kernels(tiles=(LARGE,), unaligned_slowdown=number(value)) for value in (1.0, 3.0))
    for n, unaligned in ((176, False), (88, True), (96, False)):
        table = work(256, n=n)
        assert (seconds(slow, table) > 1.2 * seconds(plain, table)) == unaligned


def test_tiles_that_share_a_multiprocessor_hide_latency_but_not_work() -> None:
    one, four = (with_kernels(tiles=(LARGE,), resident_tiles=number(c), step_latency=number(1e-8)) for c in (1, 4))
    few, many = work(1, n=256, slots=1), work(1, n=256, slots=64)  # up: 8 and 512 tiles on 132 multiprocessors
    assert seconds(four, few) == seconds(one, few)
    assert seconds(four, many) < 0.5 * seconds(one, many)
    busy_one, busy_four = (
        with_kernels(tiles=(LARGE,), resident_tiles=number(c), tile_latency=number(0)) for c in (1, 4)
    )
    heavy = work(64 * 132, n=2048, slots=4)
    assert seconds(busy_four, heavy) == pytest.approx(seconds(busy_one, heavy), rel=1e-9)


def test_every_token_of_the_batch_may_pass_through_memory() -> None:
    plain, passing = (with_kernels(token_passes=number(value)) for value in (0.0, 2.0))
    added_s = 2.0 * 1000 * 4096 * 4.0 / (4.8e12 * 0.5)  # 2-byte elements, read and written
    table = work(8, tokens=1000)
    assert seconds(passing, table) - seconds(plain, table) == pytest.approx(added_s, rel=1e-6)


def test_padded_weights_are_read_and_multiplied() -> None:
    padding = with_kernels(hidden_multiple=256, outputs_multiple=128)
    plain, small, large = with_kernels(), work(1, n=180, k=2880, slots=128), work(1, n=256, k=3072, slots=128)
    moved_s = 128 * 2 * 2.0 * ((3072 + 3 * 256) - (2880 + 3 * 180)) / (4.8e12 * 0.5)
    assert seconds(padding, large) == seconds(plain, large)
    assert seconds(padding, small) == pytest.approx(seconds(plain, large) - moved_s, rel=1e-9)


def test_weights_that_a_benchmark_keeps_in_l2_are_read_there() -> None:
    model, measured = (
        with_kernels(benchmark=kept(), repeated=repeated, tile_latency=number(0.0)) for repeated in (False, True)
    )
    plain = with_kernels(tile_latency=number(0.0))
    small, edge, large = (work(1, n=n) for n in (448, 512, 4096))  # 44, 50.3 and 403 MB of weights
    assert seconds(measured, small) < 0.8 * seconds(model, small)
    assert seconds(measured, small) < seconds(measured, edge) < seconds(model, edge)
    assert seconds(measured, large) == seconds(model, large) == seconds(plain, large)


def test_steps_may_be_shorter_where_l2_keeps_weights() -> None:
    table = work(1, n=512, k=4096, slots=1)
    slow, fast = (
        with_kernels(repeated=True, tiles=(LARGE,), step_latency=number(1e-8), benchmark=kept(latency=share))
        for share in (1.0, 0.5)
    )
    assert seconds(slow, table) - seconds(fast, table) == pytest.approx(0.5e-8 * (4096 + 512), rel=1e-6)


def test_models_are_known_by_what_decides_prices_in_a_model() -> None:
    plain, name = with_kernels(tiles=(SMALL,)).fingerprint("experts.fp8"), "experts.fp8"
    assert with_kernels(tiles=(SMALL,), benchmark=kept(), repeated=True).fingerprint(name) == plain
    others: list[dict[str, Any]] = [
        {"tuned": (TunedShapes(experts=8, outputs=(128,)),)},
        {"resident_tiles": number(2.0)},
        {"unaligned_slowdown": number(2.0)},
        {"token_passes": number(2.0)},
        {"hidden_multiple": 256},
        {"tiles": (SMALL.model_copy(update={"narrow": True}),)},
    ]
    found = {with_kernels(**({"tiles": (SMALL,)} | other)).fingerprint(name) for other in others}
    assert len(found | {plain}) == len(others) + 1
