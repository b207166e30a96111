import math
from typing import Any

import numpy as np
import pytest

from moesim.configs.loader import shipped
from moesim.hw_models import gpu_kernel
from moesim.hw_models.calibration.tables import Held, expert_table
from moesim.hw_models.device import DeviceConfig, load_device
from moesim.hw_models.gpu import GPU, Elementwise, GpuConfig
from moesim.hw_models.gpu_products import COMPUTE_FORMATS, Tile
from moesim.hw_models.parameters import Parameter, scaled, with_values
from moesim.hw_models.processor import BOUNDS
from moesim.units import Seconds
from moesim.workloads.operator_table import (
    ATTENTION,
    DTYPES,
    ELEMENTWISE,
    FORMS,
    GEMM,
    GROUPED_GEMM,
    OperatorTable,
)
from tests.conformance.tables import attention_table, copy_table, experts_table, gemm_table

TILES = ((16, 64), (32, 64), (64, 64), (64, 128), (64, 256), (128, 64), (128, 128), (128, 256), (256, 64), (256, 128))


@pytest.fixture(scope="module")
def h200() -> GPU:
    processor = load_device("h200-sxm").processor
    assert isinstance(processor, GPU)
    return GPU(processor.config.model_copy(update={"residual": None}))


def test_kernel_constants_are_those_of_the_tables() -> None:
    assert tuple(range(len(FORMS))) == (GEMM, GROUPED_GEMM, ATTENTION, ELEMENTWISE)
    assert FORMS == ("gemm", "grouped_gemm", "attention", "elementwise")
    assert tuple(range(4)) == (gpu_kernel.GEMM, gpu_kernel.GROUPED_GEMM, gpu_kernel.ATTENTION, gpu_kernel.ELEMENTWISE)
    assert [BOUNDS[code] for code in (gpu_kernel.COMPUTE, gpu_kernel.MEMORY, gpu_kernel.LATENCY)] == [
        "compute",
        "memory",
        "latency",
    ]


def test_every_weight_format_has_a_compute_format() -> None:
    assert set(COMPUTE_FORMATS) == set(DTYPES)


def value(parameter: Any) -> float:
    return 0.0 if parameter is None else parameter.value


def price_by_hand(config: GpuConfig, m: int, n: int, k: int) -> float:
    """The equations of a bf16 product, written out."""
    units = config.multiprocessors.value
    flops_per_s = config.formats["bf16"].peak.value * config.formats["bf16"].sustained.value / units
    l2_bytes_per_s = config.l2_bandwidth.value / units
    dram_bytes_per_s = config.dram_bandwidth.value * config.dram_sustained.value
    nbytes = 2.0 * (n * k + m * k + m * n)
    best_s = math.inf
    for split in (1, 2, 3, 4, 6, 8, 12, 16):
        compute_s = math.inf
        for tile_m, tile_n in TILES:
            tiles = math.ceil(m / tile_m) * math.ceil(n / tile_n) * split
            if split > 1 and (k <= 64 or tiles > 4 * units):
                continue
            step_s = max(
                2.0 * tile_m * tile_n / flops_per_s,
                2.0 * (min(tile_m, m) + tile_n) / l2_bytes_per_s,
                value(config.step_latency),
            )
            waves = float(math.ceil(tiles / units))
            if waves > 1:
                waves -= value(config.wave_tail) * (waves - tiles / units)
            compute_s = min(compute_s, waves * (step_s * max(64.0, k / split) + config.tile_latency.value))
        if math.isinf(compute_s):
            break
        power = value(config.power_slowdown) or 1.0
        compute_s *= 1 + (power - 1) * compute_s / (compute_s + max(value(config.boost_time), 1e-12))
        memory_s = (nbytes + (8.0 * m * n * split if split > 1 else 0.0)) / dram_bytes_per_s
        total_s = max(compute_s, memory_s) + value(config.exposed) * min(compute_s, memory_s)
        best_s = min(best_s, total_s + (config.split_latency.value if split > 1 else 0.0))
    return best_s + config.kernel_latency.value


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 32, 32), (1, 4096, 16_384), (7, 100, 99_999), (300, 5000, 700), (8192, 8192, 8192)]
)
def test_product_price_is_the_equation(h200: GPU, m: int, n: int, k: int) -> None:
    assert h200.price(gemm_table(m, n, k)).time_s[0] == pytest.approx(price_by_hand(h200.config, m, n, k), rel=1e-12)


def test_one_more_tile_than_multiprocessors_takes_a_second_wave(h200: GPU) -> None:
    assert h200.config.multiprocessors.value == 12 * 11
    whole = GPU(with_values(h200.config, {"wave_tail": 0.0, "exposed": 0.0}))
    full, over = whole.price(gemm_table(12 * 128, np.array([11, 12]) * 256, 16_384)).time_s
    assert over > 1.13 * full  # for a twelfth more work


def test_batched_products_fill_the_device(h200: GPU) -> None:
    single, batched = gemm_table(128, 512, 128), gemm_table(128, 512, 128)
    batched.groups[:] = 8
    assert h200.price(batched).time_s[0] < 8 * h200.price(single).time_s[0]


def test_fp8_computes_faster_and_pays_for_quantising(h200: GPU) -> None:
    bf16, fp8 = (h200.price(gemm_table([1, 8192], 8192, 8192, dtype)).time_s for dtype in ("bf16", "fp8"))
    assert fp8[1] < bf16[1]
    small = [h200.price(gemm_table(1, 64, 64, dtype)).time_s[0] for dtype in ("bf16", "fp8")]
    assert small[1] > small[0]


def test_formats_that_the_device_lacks_are_computed_in_bf16(h200: GPU) -> None:
    a100 = load_device("a100-sxm").processor
    shape = (8192, 8192, 8192)
    for processor, dtype in ((a100, "fp8"), (a100, "fp8_block"), (h200, "mxfp4")):
        times = [processor.price(gemm_table(*shape, name)).time_s[0] for name in ("bf16", dtype)]
        assert times[1] == pytest.approx(times[0], rel=0.05)  # fewer bytes of weights
    narrow = [h200.price(gemm_table(1, 16_384, 16_384, name)).time_s[0] for name in ("bf16", "mxfp4")]
    assert narrow[1] < 0.45 * narrow[0]  # 0.27 of the bytes, and the launch


def test_experts_read_weights_once_and_tiles_are_counted_per_expert(h200: GPU) -> None:
    config, n, k = h200.config, 1024, 2048
    cost = h200.price(experts_table([[1, 0, 1, 0]], 14_336, 4096))
    weight_bytes = 2 * 3 * 2.0 * 14_336 * 4096
    weights_s = weight_bytes / (config.dram_bandwidth.value * config.grouped_gemm.weights_dram_sustained.value)
    least_s = config.grouped_gemm.latency.value + weights_s
    assert least_s < cost.time_s[0] < 1.2 * least_s  # computing is not hidden altogether
    spread, packed = experts_table([[257] * 64, [256] * 64], n, k), experts_table([[64 * 256]], n, k)
    uneven_s, even_s = h200.price(spread).time_s
    assert uneven_s > even_s >= h200.price(packed).time_s[0] - cost.time_s[0]


def _with_kernels(h200: GPU, **values: object) -> GPU:
    grouped = h200.config.grouped_gemm
    kernels = grouped.weights["fp8"].model_copy(update=values)
    grouped = grouped.model_copy(update={"weights": {"fp8": kernels}})
    return GPU(h200.config.model_copy(update={"grouped_gemm": grouped, "residual": None}))


def _of_batch(per_expert: int, tokens: int, slots: int = 8, ranks: int = 1) -> OperatorTable:
    held = Held(np.array([tokens]), np.array([slots]), np.array([ranks]))
    return expert_table(np.full((1, slots), per_expert), [4096], [4096], "fp8", held=held)


def test_tiles_of_experts_go_by_the_tokens_of_the_batch(h200: GPU) -> None:
    small, large = Tile(rows=16, columns=64), Tile(rows=256, columns=256)
    alone = [_with_kernels(h200, tiles=(tile,)) for tile in (small, large)]
    first = small.model_copy(update={"tokens": 100})
    by_tokens = _with_kernels(h200, tiles=(first, large))
    by_experts = _with_kernels(h200, tiles=(small.model_copy(update={"tokens_per_expert": 4}), large))
    for tokens, of_tokens, of_experts in ((8, 0, 0), (32, 0, 0), (64, 0, 1), (101, 1, 1)):
        table = _of_batch(4, tokens)
        times = [gpu.price(table).time_s[0] for gpu in alone]
        assert times[0] != times[1]
        assert by_tokens.price(table).time_s[0] == times[of_tokens]
        assert by_experts.price(table).time_s[0] == times[of_experts]


def test_shared_experts_may_launch_more(h200: GPU) -> None:
    few, more = (
        _with_kernels(h200, shared_latency=Parameter[Seconds](value=value, source="a test")) for value in (1e-5, 3e-5)
    )
    alone, shared = _of_batch(4, 32), _of_batch(4, 32, ranks=4)
    assert more.price(alone).time_s[0] == few.price(alone).time_s[0]
    assert few.price(shared).time_s[0] == pytest.approx(few.price(alone).time_s[0] + 1e-5)
    assert more.price(shared).time_s[0] == pytest.approx(few.price(shared).time_s[0] + 2e-5)


def test_tiles_that_are_not_full_may_take_longer(h200: GPU) -> None:
    tiles = (Tile(rows=128, columns=128),)
    plain, slow = (
        _with_kernels(h200, tiles=tiles, partial_tile=Parameter[float](value=value, source="a test"))
        for value in (0.0, 1.0)
    )
    full, partial = _of_batch(256, 2048), _of_batch(250, 2000)
    assert slow.price(full).time_s[0] == plain.price(full).time_s[0]
    assert slow.price(partial).time_s[0] > 1.2 * plain.price(partial).time_s[0]


def test_sharded_experts_may_run_other_kernels(h200: GPU) -> None:
    grouped = h200.config.grouped_gemm
    own = grouped.weights["fp8"].model_copy(update={"latency": Parameter[Seconds](value=1e-3, source="a test")})
    other = grouped.model_copy(update={"sharded": {"fp8": own}})
    gpu = GPU(h200.config.model_copy(update={"grouped_gemm": other, "residual": None}))
    assert gpu.price(_of_batch(4, 32)).time_s[0] < 1e-3 < gpu.price(_of_batch(4, 32, ranks=2)).time_s[0]


def test_ungated_experts_do_two_thirds_of_the_work(h200: GPU) -> None:
    gated, plain = (h200.price(experts_table([[4096] * 8], 8192, 4096, up_matrices=up)) for up in (2, 1))
    assert plain.energy_j[0] == pytest.approx(gated.energy_j[0] * 2 / 3, rel=0.05)
    assert plain.time_s[0] == pytest.approx(gated.time_s[0] * 2 / 3, rel=0.1)


def test_long_decode_streams_the_cache(h200: GPU) -> None:
    config = h200.config
    table = attention_table(64, 1, 100_000)
    kernel = next(kernel for kernel in config.attention.kernels if kernel.phase == "decode")
    bytes_per_s = config.dram_bandwidth.value * kernel.dram_sustained
    assert h200.price(table).time_s[0] == pytest.approx(table.read_bytes[0] / bytes_per_s, rel=0.15)
    assert BOUNDS[h200.price(table).bound[0]] == "memory"


def test_latent_decode_with_many_heads_is_bound_by_computing(h200: GPU) -> None:
    heads, sequences, context = 128, 64, 10_000
    table = attention_table(sequences, 1, context, heads=heads, kv_heads=1, head_dim=320)
    table.k[:] = 576
    table.flops[:] = table.decode_flops[:] = 2.0 * heads * (576 + 512) * sequences * context
    table.decode_pair_flops[:] = 2.0 * heads * (576 + 512)
    table.read_bytes[:] = table.decode_read_bytes[:] = 2.0 * 576 * sequences * context
    assert BOUNDS[h200.price(table).bound[0]] == "compute"


def test_long_prefill_nears_its_sustained_rate(h200: GPU) -> None:
    table = attention_table(1, 100_000, 0, heads=64)
    bf16 = h200.config.formats["bf16"].peak.value
    rate = table.flops[0] / h200.price(table).time_s[0]
    assert 0.5 * bf16 < rate < 0.8 * bf16


def test_power_at_full_load_stays_within_the_design_power() -> None:
    for name in shipped("devices"):
        device = load_device(name)
        tables = [gemm_table(16_384, 16_384, 16_384, dtype) for dtype in ("bf16", "fp8")] + [copy_table(1e11)]
        for table in tables:
            cost = device.processor.price(table)
            assert device.idle_w < device.idle_w + cost.energy_j[0] / cost.time_s[0] <= device.config.design_power.value


def test_energy_is_computing_plus_memory_plus_being_active(h200: GPU) -> None:
    config, table = h200.config, gemm_table(100, 3000, 2000)
    nbytes = table.weight_bytes_read[0] + table.read_bytes[0] + table.write_bytes[0]
    cost = h200.price(table)
    expected = table.flops[0] * config.formats["bf16"].energy.value + nbytes * config.dram_energy.value
    expected += cost.time_s[0] * config.active_power.value
    assert cost.energy_j[0] == pytest.approx(expected, rel=1e-12)


def test_elementwise_work_finds_in_l2_what_fits_there(h200: GPU) -> None:
    own, dram = h200.config.elementwise, h200.config.dram_bandwidth.value * h200.config.dram_sustained.value
    assert own.latency
    assert own.cached_bytes
    assert own.l2_bandwidth
    kept = own.cached_bytes.value
    cost = h200.price(copy_table([1e3, kept, kept + 1e9]))
    expected = own.latency.value + np.array([1e3, kept, kept]) / own.l2_bandwidth.value + np.array([0, 0, 1e9]) / dram
    assert cost.time_s == pytest.approx(expected, rel=1e-12)
    energy_j = np.array([0, 0, 1e9]) * h200.config.dram_energy.value + cost.time_s * h200.config.active_power.value
    assert cost.energy_j == pytest.approx(energy_j, rel=1e-12)
    assert [BOUNDS[code] for code in cost.bound] == ["latency", "memory", "memory"]


def test_without_a_section_elementwise_work_comes_from_dram(h200: GPU) -> None:
    plain = GPU(h200.config.model_copy(update={"elementwise": Elementwise()}))
    dram = h200.config.dram_bandwidth.value * h200.config.dram_sustained.value
    assert plain.price(copy_table(1e6)).time_s[0] == pytest.approx(h200.config.kernel_latency.value + 1e6 / dram)


def test_only_a_fit_of_elementwise_layers_states_their_error(h200: GPU) -> None:
    assert np.isnan(h200.stated_errors(copy_table(1e6))).all()
    measured = load_device("rtx-pro-6000").processor
    assert isinstance(measured, GPU)
    assert measured.stated_errors(copy_table(1e6))[0] == measured.config.fits["elementwise"].error


def test_what_was_not_measured_is_extrapolated(h200: GPU) -> None:
    assert not h200.price(attention_table([1, 256], 1, 1000)).extrapolated.any()
    assert h200.price(attention_table(1, 1, 10**9)).extrapolated.all()
    assert not h200.price(experts_table([[3, 4]], 1024, 4096)).extrapolated.any()
    assert h200.price(experts_table([[3, 4]], 1024, 4096, "int8")).extrapolated.all()
    assert not h200.price(copy_table(1e6)).extrapolated.any()
    assert h200.price(copy_table(1e12)).extrapolated.all()


def test_scaled_parameters_change_prices_and_say_so(h200: GPU) -> None:
    faster: Any = scaled(h200.config, {"dram_bandwidth": 2.0})
    assert faster.dram_bandwidth.source.startswith("2 times: ")
    assert GPU(faster).price(copy_table(1e11)).time_s[0] < 0.51 * h200.price(copy_table(1e11)).time_s[0]
    with pytest.raises(KeyError):
        scaled(h200.config, {"dram": 2.0})


def test_weights_without_expert_kernels_are_turned_into_bf16() -> None:
    device = load_device("rtx-pro-6000")
    assert isinstance(device.processor, GPU)
    config = device.processor.config
    grouped = config.grouped_gemm.model_copy(update={"weights": {}})
    converting, native = (
        GPU(config.model_copy(update={"grouped_gemm": grouped.model_copy(update={"weight_only": formats})}))
        for formats in (grouped.weight_only, ())
    )
    experts, product = experts_table([[4096] * 8], 8192, 4096, "mxfp4"), gemm_table(4096, 8192, 8192, "mxfp4")
    assert native.price(product).time_s == converting.price(product).time_s
    converted_s = converting.price(experts).time_s[0]
    assert experts.flops[0] / converted_s < config.formats["bf16"].peak.value * grouped.dequantise_sustained.value
    assert native.price(experts).time_s[0] < 0.7 * converted_s


def test_bf16_is_required() -> None:
    config = load_device("h100-sxm").config.model_dump()
    config["processors"]["gpu"]["grouped_gemm"]["weight_only"] = ["bf16"]
    with pytest.raises(ValueError, match="weight_only must not hold bf16"):
        DeviceConfig.model_validate(config)
    del config["processors"]["gpu"]["formats"]["bf16"]
    with pytest.raises(ValueError, match="formats must hold bf16"):
        DeviceConfig.model_validate(config)
