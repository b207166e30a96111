"""What tells the kernels of single products, and their benchmarks, apart from plain tiles and waves."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.hw_models.gpu_products import BEST_TILES, HostLaunch, LeastTraffic, ProductBenchmark, Tile
from moesim.hw_models.parameters import Parameter
from moesim.workloads.operator_table import OperatorTable
from tests.conformance.tables import gemm_table


def number(value: float) -> Any:
    return Parameter[float](value=value, source="made up")


def plain(**changes: Any) -> GpuConfig:
    """An H100 by physics alone, with changes to its products in bf16."""
    processor = load_device("h100-sxm").processor
    assert isinstance(processor, GPU)
    return processor.config.model_copy(update={"residual": None} | changes)


def seconds(config: GpuConfig, table: OperatorTable) -> NDArray[np.float64]:
    return GPU(config).price(table).time_s


def kept(megabytes: float, copies: int = 6) -> ProductBenchmark:
    return ProductBenchmark(copies=copies, kept=number(megabytes * 1e6), kept_bandwidth=number(2e13))


def test_a_benchmark_changes_nothing_in_a_model() -> None:
    slow = ProductBenchmark(launches={"any": HostLaunch(time=number(1e-3))}, copies=6, kept=number(1e8))
    work = gemm_table(np.array([1, 100, 8192]), 4096, 4096)
    assert np.array_equal(seconds(plain(benchmark=slow), work), seconds(plain(), work))


def test_the_host_is_the_least_time_of_a_benchmark() -> None:
    rules = {
        "narrow": HostLaunch(outputs=63, time=number(4e-3)),
        "few": HostLaunch(tokens=31, time=number(1e-3)),
        "aligned": HostLaunch(multiple=4, time=number(2e-3)),
        "any": HostLaunch(time=number(3e-3)),
    }
    config = plain(benchmark=ProductBenchmark(launches=rules), repeated=True)
    small = gemm_table(np.array([31, 32, 33, 33]), np.array([64, 64, 64, 63]), 128)
    assert seconds(config, small).tolist() == [1e-3, 2e-3, 3e-3, 4e-3]
    large = gemm_table(32_768, 16_384, 16_384)
    assert seconds(config, large)[0] == seconds(plain(), large)[0] > 4e-3


def test_products_start_cold_in_a_model_alone() -> None:
    work = gemm_table(np.array([1, 100, 8192]), 4096, 4096)
    cold = {"cold_start": number(2e-6)}
    assert seconds(plain(**cold), work) - seconds(plain(), work) == pytest.approx(2e-6)
    assert np.array_equal(seconds(plain(**cold, repeated=True), work), seconds(plain(repeated=True), work))


def test_weights_that_a_benchmark_keeps_in_l2_are_read_there() -> None:
    config = plain(benchmark=kept(100), repeated=True)
    work = gemm_table(1, 1024, np.array([4096, 8192, 16_384]))  # six times 8, 17 and 34 MB
    ratio = seconds(config, work) / seconds(plain(), work)
    assert ratio[0] < 0.9
    assert ratio[2] == 1.0
    between = [seconds(plain(benchmark=kept(limit), repeated=True), work)[1] for limit in (80, 92, 96, 110)]
    assert between == sorted(between, reverse=True)
    assert between[0] > between[1] > between[3]
    assert between[0] == seconds(plain(), work)[1]


def test_few_inputs_are_not_split() -> None:
    work = gemm_table(64, 64, np.array([4095, 4096]))
    whole, split = seconds(plain(splits=False), work), seconds(plain(split_from=4096), work)
    assert split[0] == whole[0]
    assert split[1] == seconds(plain(), work)[1] < whole[1]


def test_one_token_may_have_a_kernel_without_tiles() -> None:
    work = gemm_table(np.array([1, 2]), 128, 16_384)
    tiles_s, vectors_s = seconds(plain(), work), seconds(plain(vectors=True), work)
    assert vectors_s[0] < tiles_s[0]
    assert vectors_s[1] == tiles_s[1]


def test_tensor_cores_slow_down_when_busy_for_long() -> None:
    config = plain(power_slowdown=number(1.5), boost_time=number(1e-3))
    cool = plain(power_slowdown=None, boost_time=None)
    ratio = seconds(config, gemm_table(np.array([1, 8192, 65_536]), 8192, 8192)) / seconds(
        cool, gemm_table(np.array([1, 8192, 65_536]), 8192, 8192)
    )
    assert ratio[0] < 1.01
    assert 1.1 < ratio[1] < ratio[2] < 1.5


def test_lone_tiles_are_slow_in_a_single_wave_but_chosen_all_the_same() -> None:
    tiles = tuple(tile.model_copy(update={"lone": tile.rows * tile.columns >= 2**15}) for tile in BEST_TILES)
    assert any(tile.lone for tile in tiles)
    usual, slow = plain(splits=False), plain(splits=False, tiles=tiles, lone_slowdown=number(3.0))
    full, large = gemm_table(12 * 128, 11 * 256, 16_384), gemm_table(12 * 1024, 11 * 256, 16_384)
    assert seconds(slow, full)[0] > 2.5 * seconds(usual, full)[0]
    assert seconds(slow, large)[0] == seconds(usual, large)[0]


@pytest.mark.parametrize(("tokens", "inputs", "blocks"), [(16, 128, 1), (17, 128, 17), (3, 256, 3), (3, 1536, 9)])
def test_groups_that_divide_evenly_share_a_thread_block(tokens: int, inputs: int, blocks: int) -> None:
    """Thread blocks take 16, 8, 4, 2 groups of 128, or one, whichever divides the number of all of them."""
    config = plain()
    fmt = config.formats["fp8"].model_copy(update={"quantise_block": number(1e-3)})
    slow = config.model_copy(update={"formats": config.formats | {"fp8": fmt}})
    work = gemm_table(tokens, 512, inputs, "fp8")
    assert seconds(slow, work)[0] - seconds(config, work)[0] == pytest.approx(blocks * 1e-3)


def test_tiles_of_different_kinds_are_told_apart() -> None:
    menu = (Tile(rows=64, columns=64), Tile(rows=64, columns=64, lone=True))
    assert menu[0] != menu[1]
    work = gemm_table(64, 64, 4096)
    slow = number(2.0)
    first, second = (plain(tiles=(tile,), lone_slowdown=slow, splits=False) for tile in menu)
    assert seconds(second, work)[0] > seconds(first, work)[0]
    assert GPU(first).fingerprint("gemm.bf16") != GPU(second).fingerprint("gemm.bf16")


def test_models_are_known_by_what_decides_prices_in_a_model() -> None:
    base, benchmark = plain(), plain(benchmark=kept(100), repeated=True)
    assert GPU(base).fingerprint("gemm.bf16") == GPU(benchmark).fingerprint("gemm.bf16")
    assert GPU(plain(split_from=999)).fingerprint("gemm.bf16") != GPU(base).fingerprint("gemm.bf16")
    assert GPU(plain(split_from=999)).fingerprint("experts.bf16") == GPU(base).fingerprint("experts.bf16")


def test_many_tokens_are_quantised_by_warps_eight_to_a_block() -> None:
    config = plain()
    fmt = config.formats["fp8"].model_copy(update={"quantise_row": number(1e-6)})
    warps = fmt.model_copy(update={"quantise_warps_from": 2048})
    work = gemm_table(np.array([1024, 2047, 2048, 4096]), 512, 512, "fp8")
    with_blocks, with_warps = (
        seconds(config.model_copy(update={"formats": config.formats | {"fp8": item}}), work) for item in (fmt, warps)
    )
    assert with_warps[:2].tolist() == with_blocks[:2].tolist()
    assert with_blocks[2:] - with_warps[2:] == pytest.approx(np.array([2048, 4096]) * 7 / 8 * 1e-6)


def test_rows_that_tiles_load_beyond_the_tokens_take_time() -> None:
    tiles = (Tile(rows=128, columns=128),)
    usual, slow = (
        plain(tiles=tiles, splits=False, exposed=number(1.0), empty_bandwidth=rate) for rate in (None, number(1e12))
    )
    work = gemm_table(np.array([128, 129, 256]), 1280, 4096)
    extra_s = seconds(slow, work) - seconds(usual, work)
    assert extra_s[[0, 2]].tolist() == [0.0, 0.0]
    assert extra_s[1] == pytest.approx(127 * 10 * 4096 * 2 / 1e12)


def test_a_library_may_choose_tiles_by_their_traffic() -> None:
    tiles = tuple(Tile(rows=rows, columns=columns) for rows in (64, 128) for columns in (64, 96, 128))
    slowdowns = LeastTraffic(group_slowdown=number(1.0), uneven_slowdown=number(1.0))
    work = gemm_table(np.array([1, 64, 100, 4096]), np.array([512, 7168, 7168, 7168]), 4096)
    fastest, chosen = (plain(tiles=tiles, splits=False, least_traffic=item) for item in (None, slowdowns))
    assert not np.array_equal(seconds(chosen, work), seconds(fastest, work))
    assert GPU(chosen).fingerprint("gemm.bf16") != GPU(fastest).fingerprint("gemm.bf16")
    assert GPU(chosen).fingerprint("experts.bf16") == GPU(fastest).fingerprint("experts.bf16")
