"""Rows of numbers by which compiled code prices products, made of their parameters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.gpu_products import (
    ANY_TOKENS_PER_EXPERT,
    BEST_TILES,
    COMPUTE_FORMATS,
    EXPERT_PLANES,
    Format,
    GroupedGemm,
    GroupedKernels,
    HostLaunch,
    ProductBenchmark,
    Tile,
    TunedShapes,
)
from moesim.hw_models.parameters import Parameter
from moesim.workloads.operator_table import DTYPES

if TYPE_CHECKING:
    from moesim.hw_models.gpu import GpuConfig

_OPERAND_BYTES: dict[Format, float] = {"tf32": 4.0, "bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int8": 1.0, "fp4": 0.5}
_LEAST_BOOST_S = 1e-12  # where no time is stated
_MAX_SPLIT = 16


class _Runs:
    """Rows of a table, of which each user has a run; equal runs are held once."""

    def __init__(self, first: Sequence[tuple[int, ...]] = ()) -> None:
        self.rows = list(first)
        self._places = {tuple(first): (0, len(first))}

    def place(self, rows: Sequence[tuple[int, ...]]) -> tuple[int, int]:
        """First and end of a run with these rows."""
        key = tuple(rows)
        if key not in self._places:
            self._places[key] = (len(self.rows), len(self.rows) + len(key))
            self.rows.extend(key)
        return self._places[key]


def format_rows(config: "GpuConfig", kernel: Any) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """What `gpu_kernel` prices products by.

    Returns:
        float64[4, weight dtype, FORMAT_COLUMNS], of single products, of gated, ungated and sharded expert FFNs;
        int64[tile, TILE_COLUMNS], the first of which are `BEST_TILES`; int64[shape, TUNED_COLUMNS].
    """
    tiles, tuned = _Runs(_tile_rows(BEST_TILES)), _Runs()

    def menu(given: Sequence[Tile]) -> tuple[int, int]:
        return tiles.place(_tile_rows(given or BEST_TILES))

    def shapes(given: Sequence[TunedShapes]) -> tuple[int, int]:
        return tuned.place([(item.experts, outputs) for item in given for outputs in item.outputs])

    rows = [
        [[by[column] for column in range(kernel.FORMAT_COLUMNS)] for by in table]
        for table in (
            [_product_row(config, dtype, kernel, menu) for dtype in DTYPES],
            *(
                [_expert_row(config, dtype, kernel, (menu, shapes), plane) for dtype in DTYPES]
                for plane in EXPERT_PLANES
            ),
        )
    ]
    known = np.array(tuned.rows, np.int64).reshape(-1, kernel.TUNED_COLUMNS)
    return np.array(rows, np.float64), np.array(tiles.rows, np.int64), known


def _tile_rows(tiles: Sequence[Tile]) -> list[tuple[int, ...]]:
    return [
        (
            tile.most_tokens,
            tile.rows,
            tile.columns,
            tile.together,
            tile.lone,
            tile.tokens_per_expert or ANY_TOKENS_PER_EXPERT,
            tile.narrow,
        )
        for tile in tiles
    ]


def launch_rows(config: "GpuConfig") -> NDArray[np.float64]:
    """float64[launch, LAUNCH_COLUMNS]: those of all formats, one format after the other."""
    rows = [
        [_most(item.tokens), _most(item.outputs), _most(item.inputs), item.multiple, item.time.value]
        for name in config.formats
        for item in _launches(config, name)
    ]
    return np.array(rows, np.float64).reshape(len(rows), -1) if rows else np.zeros((0, 5))


def _most(count: int | None) -> float:
    return np.inf if count is None else float(count)


def _launches(config: "GpuConfig", name: Format) -> tuple[HostLaunch, ...]:
    """Of a format's benchmark; none where prices are those of a model."""
    benchmark = benchmark_of(config, name)
    return tuple(benchmark.launches.values()) if benchmark is not None and config.repeated else ()


def benchmark_of(config: "GpuConfig", name: Format) -> ProductBenchmark | None:
    """How the products of a format were measured."""
    return config.benchmark if name == "bf16" else config.formats[name].kernels.benchmark


def _number(parameter: Parameter[Any] | None, default: float = 0.0) -> float:
    return default if parameter is None else float(parameter.value)


def _product_row(config: "GpuConfig", dtype: str, kernel: Any, menu: Any) -> dict[int, float]:
    used = next(name for name in COMPUTE_FORMATS[dtype] if name in config.formats)
    fmt = config.formats[used]
    own = fmt.kernels

    def value(name: str) -> float:
        return _number(getattr(own, name), _number(getattr(config, name)))

    per_byte = 1 / (config.dram_bandwidth.value * value("dram_sustained"))
    splits = config.splits if own.splits is None else own.splits
    traffic = own.least_traffic or config.least_traffic
    first, end = menu(own.tiles or config.tiles)
    quantised = 2.0 + _OPERAND_BYTES[used]  # bytes read and written per element
    return _benchmark_columns(config, used, kernel) | {
        kernel.S_PER_EMPTY_BYTE: 1 / value("empty_bandwidth") if value("empty_bandwidth") else 0.0,
        kernel.QUANTISED_BY_WARPS: fmt.quantise_warps_from or 0,
        kernel.GROUP_SLOWDOWN: traffic.group_slowdown.value if traffic else 0.0,
        kernel.UNEVEN_SLOWDOWN: traffic.uneven_slowdown.value if traffic else 0.0,
        kernel.HAS_VECTORS: bool(config.vectors if own.vectors is None else own.vectors),
        kernel.SPLIT_FROM: _first_of(own.split_from, config.split_from, 0),
        kernel.LONE_SLOWDOWN: value("lone_slowdown") or 1.0,
        kernel.POWER_SLOWDOWN: value("power_slowdown") or 1.0,
        kernel.BOOST_S: max(value("boost_time"), _LEAST_BOOST_S),
        kernel.S_PER_QUANTISED_BLOCK: _number(fmt.quantise_block),
        kernel.S_PER_FLOP: 1 / (fmt.peak.value * fmt.sustained.value),
        kernel.S_PER_PEAK_FLOP: 1 / fmt.peak.value,
        kernel.ACTIVATION_BYTES: _OPERAND_BYTES[used],
        kernel.WEIGHT_BYTES: DTYPES[dtype].bytes,
        kernel.J_PER_FLOP: fmt.energy.value,
        kernel.LATENCY_S: value("kernel_latency") + _number(fmt.quantise_latency),
        kernel.S_PER_WEIGHT_BYTE: per_byte,
        kernel.S_PER_MOVED_BYTE: per_byte,
        kernel.S_PER_L2_BYTE: 1 / value("l2_bandwidth"),
        kernel.TILE_LATENCY_S: value("tile_latency"),
        kernel.STEP_LATENCY_S: value("step_latency"),
        kernel.SPLIT_LATENCY_S: value("split_latency"),
        kernel.EXPOSED: value("exposed"),
        kernel.WAVE_TAIL: value("wave_tail"),
        kernel.CACHED_BYTES: value("cached_bytes"),
        kernel.S_PER_QUANTISED_ELEMENT: quantised / fmt.quantise_bandwidth.value if fmt.quantise_bandwidth else 0.0,
        kernel.S_PER_QUANTISED_ROW: _number(fmt.quantise_row),
        kernel.MAX_SPLIT: 1 if splits is False else _MAX_SPLIT,
        kernel.FIRST_TILE: first,
        kernel.END_TILE: end,
    }


def traffic_tables(formats: NDArray[np.float64], tiles: NDArray[np.int64], kernel: Any, own: Any) -> tuple[Any, Any]:
    """What `gpu_tiles` (`own`) chooses by, of the tables that `gpu_kernel` (`kernel`) has.

    Returns:
        float64[weight dtype, TRAFFIC_COLUMNS], int64[tile, TILE_COLUMNS].
    """
    names = (
        "S_PER_FLOP", "S_PER_L2_BYTE", "STEP_LATENCY_S", "TILE_LATENCY_S", "WAVE_TAIL", "LONE_SLOWDOWN",
        "GROUP_SLOWDOWN", "UNEVEN_SLOWDOWN", "ACTIVATION_BYTES", "WEIGHT_BYTES", "FIRST_TILE", "END_TILE",
    )  # fmt: skip
    table = np.zeros((formats.shape[1], own.TRAFFIC_COLUMNS))
    for name in names:
        table[:, getattr(own, name)] = formats[0, :, getattr(kernel, name)]
    kept = np.zeros((len(tiles), own.TILE_COLUMNS), np.int64)
    for mine, theirs in ((own.ROWS, kernel.TILE_M), (own.COLUMNS, kernel.TILE_N), (own.LONE, kernel.LONE)):
        kept[:, mine] = tiles[:, theirs]
    return table, kept


def _first_of(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def _benchmark_columns(config: "GpuConfig", used: Format, kernel: Any) -> dict[int, float]:
    """What a benchmark added and spared, or a model adds to it."""
    names = list(config.formats)
    first = sum(len(_launches(config, name)) for name in names[: names.index(used)])
    columns = {
        kernel.FIRST_LAUNCH: first,
        kernel.END_LAUNCH: first + len(_launches(config, used)),
        kernel.COPIES: 0.0,
        kernel.KEPT_BYTES: 0.0,
        kernel.S_PER_KEPT_BYTE: 0.0,
        kernel.COLD_S: 0.0 if config.repeated else _cold_s(config, used),
        kernel.KEPT_LATENCY: 1.0,
    }
    return columns | _kept_columns(config, benchmark_of(config, used), kernel)


def _kept_columns(config: "GpuConfig", benchmark: ProductBenchmark | None, kernel: Any) -> dict[int, float]:
    """Weights that L2 keeps in a benchmark; nothing where prices are those of a model."""
    if benchmark is None or not config.repeated or benchmark.kept is None:
        return {}
    per_byte = 1 / benchmark.kept_bandwidth.value if benchmark.kept_bandwidth is not None else 0.0
    return {
        kernel.COPIES: benchmark.copies,
        kernel.KEPT_BYTES: benchmark.kept.value,
        kernel.S_PER_KEPT_BYTE: per_byte,
        kernel.KEPT_LATENCY: _number(benchmark.kept_latency, 1.0),
    }


def _cold_s(config: "GpuConfig", used: Format) -> float:
    return _number(config.formats[used].kernels.cold_start, _number(config.cold_start))


def _own_kernels(grouped: GroupedGemm, dtype: str, section: str) -> GroupedKernels:
    """What is particular to weights of `dtype`, in a section of its own or else in `weights`."""
    known: dict[Any, GroupedKernels] = grouped.weights | getattr(grouped, section)
    return next((own for name, own in known.items() if name == dtype), GroupedKernels())


def _expert_row(config: "GpuConfig", dtype: str, kernel: Any, made: Any, section: str) -> dict[int, float]:
    grouped, own = config.grouped_gemm, _own_kernels(config.grouped_gemm, dtype, section)
    formats = (own.format,) if own.format else COMPUTE_FORMATS[dtype]
    without = () if own.format else grouped.weight_only
    used = next(name for name in formats if name in config.formats and name not in without)
    fmt = config.formats[used]
    native = used != "bf16" or dtype in {"bf16", "fp16"}
    sustained = grouped.sustained.get(used, fmt.sustained) if native else grouped.dequantise_sustained
    dram = config.dram_bandwidth.value
    menu, shapes = made
    (first, end), (first_tuned, end_tuned) = menu(own.tiles), shapes(own.tuned)
    columns: dict[int, float] = dict.fromkeys(range(kernel.FORMAT_COLUMNS), 0.0)
    columns |= _kept_columns(config, own.benchmark, kernel)
    return columns | {
        kernel.S_PER_FLOP: 1 / (fmt.peak.value * (own.sustained or sustained).value),
        kernel.S_PER_PEAK_FLOP: 1 / fmt.peak.value,
        kernel.ACTIVATION_BYTES: _OPERAND_BYTES[used],
        kernel.WEIGHT_BYTES: DTYPES[dtype].bytes,
        kernel.J_PER_FLOP: fmt.energy.value,
        kernel.LATENCY_S: (own.latency or grouped.latency).value,
        kernel.S_PER_WEIGHT_BYTE: 1 / (dram * (own.weights_dram_sustained or grouped.weights_dram_sustained).value),
        kernel.S_PER_MOVED_BYTE: 1 / (dram * (own.moved_dram_sustained or grouped.moved_dram_sustained).value),
        kernel.S_PER_L2_BYTE: 1 / (own.l2_bandwidth or grouped.l2_bandwidth or config.l2_bandwidth).value,
        kernel.TILE_LATENCY_S: (own.tile_latency or grouped.tile_latency).value,
        kernel.STEP_LATENCY_S: _number(own.step_latency or grouped.step_latency),
        kernel.SHARED_LATENCY_S: _number(own.shared_latency or grouped.shared_latency),
        kernel.EXPOSED: _number(own.exposed or grouped.exposed),
        kernel.WAVE_TAIL: _number(own.wave_tail or grouped.wave_tail),
        kernel.CACHED_BYTES: 0.0,
        kernel.K_MULTIPLE: own.hidden_multiple or 1,
        kernel.N_MULTIPLE: own.outputs_multiple or 1,
        kernel.TOKEN_PASSES: _number(own.token_passes),
        kernel.RESIDENT_TILES: _number(own.resident_tiles, 1.0),
        kernel.PARTIAL_TILE: _number(own.partial_tile or grouped.partial_tile),
        kernel.MAX_SPLIT: 1,
        kernel.FIRST_TILE: first,
        kernel.END_TILE: end,
        kernel.FIRST_TUNED: first_tuned,
        kernel.END_TUNED: end_tuned,
        kernel.NARROW_SLOWDOWN: _number(own.narrow_slowdown, 1.0),
        kernel.UNALIGNED_SLOWDOWN: _number(own.unaligned_slowdown, 1.0),
    }
