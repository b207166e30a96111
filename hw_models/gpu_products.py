"""Parameters of a GPU's matrix products, single and grouped by expert, and the rows that price them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from moesim.configs.loader import Config
from moesim.hw_models.parameters import Count, Fraction, Parameter, Slowdown
from moesim.units import Bytes, BytesPerS, FlopsPerS, JoulesPerFlop, Seconds
from moesim.workloads.matrices import DTypeName
from moesim.workloads.operator_table import DTYPES

if TYPE_CHECKING:
    from moesim.hw_models.gpu import GpuConfig

Format = Literal["tf32", "bf16", "fp8", "fp8_block", "int8", "fp4"]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]

COMPUTE_FORMATS: dict[str, tuple[Format, ...]] = {
    "fp32": ("tf32", "bf16"),
    "bf16": ("bf16",),
    "fp16": ("bf16",),
    "fp8": ("fp8", "bf16"),
    "fp8_block": ("fp8_block", "fp8", "bf16"),
    "int8": ("int8", "bf16"),
    "mxfp4": ("fp4", "bf16"),
    "nvfp4": ("fp4", "bf16"),
}
"""Tensor-core formats in which weights of a format are multiplied, best first. Where only bf16 is left, other weights
are turned into it on the way (as Marlin kernels do). `fp8_block` is fp8 with a scale per block: other kernels."""

_OPERAND_BYTES: dict[Format, float] = {"tf32": 4.0, "bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int8": 1.0, "fp4": 0.5}
_ANY_TOKENS = 2**62
ANY_TOKENS_PER_EXPERT = 2**40
"""As many as any batch has, and no overflow when multiplied by experts."""
_LEAST_BOOST_S = 1e-12  # where no time is stated
_MAX_SPLIT = 16


class Tile(Config):
    """An output tile that a kernel uses."""

    tokens: Count | None = Field(
        default=None, description="Most tokens of a product that uses it; any number if empty."
    )
    tokens_per_expert: Count | None = Field(
        default=None, description="Most tokens of a batch per expert of the device (expert FFNs); any number if empty."
    )
    rows: Literal[8, 16, 32, 64, 128, 256] = Field(description="Tokens of the tile.")
    columns: Count = Field(description="Outputs of the tile.")
    together: Count = Field(default=1, description="Tiles along the tokens that run as one cluster, filled or not.")
    lone: bool = Field(default=False, description="Whether it is slow in a single wave (see `lone_slowdown`).")
    narrow: bool = Field(
        default=False, description="Whether it takes half a cache line of inputs at a time (see `narrow_slowdown`)."
    )


def _ordered(tiles: tuple[Tile, ...]) -> tuple[Tile, ...]:
    limits = [_limit(tile) for tile in tiles]
    if limits and (limits != sorted(limits) or limits[-1] != _ANY_TOKENS or tiles[-1].tokens_per_expert is not None):
        raise ValueError("tiles must stand in order of growing `tokens`, and the last must have no limit")
    return tiles


Tiles = Annotated[tuple[Tile, ...], AfterValidator(_ordered)]
"""By growing `tokens`, the last for any number."""

_BEST_ROWS: tuple[Literal[16, 32, 64, 128, 256], ...] = (16, 32, 64, 64, 64, 128, 128, 128, 256, 256)
_BEST_COLUMNS = (64, 64, 64, 128, 256, 64, 128, 256, 64, 128)
BEST_TILES = tuple(Tile(rows=rows, columns=columns) for rows, columns in zip(_BEST_ROWS, _BEST_COLUMNS, strict=True))
"""Tiles of libraries that choose by shape: those of cuBLAS and CUTLASS on tensor cores, from 16 rows (operands swapped,
for few tokens) to 256."""


class HostLaunch(Config):
    """Products that a benchmark launched one by one, so that small ones show the host."""

    tokens: Count | None = Field(default=None, description="Most tokens; any number if empty.")
    outputs: Count | None = Field(default=None, description="Most outputs; any number if empty.")
    inputs: Count | None = Field(default=None, description="Most inputs; any number if empty.")
    multiple: Count = Field(default=1, description="What the tokens are a multiple of.")
    time: Parameter[Seconds] = Field(description="Time between two launches, s.")


class ProductBenchmark(Config):
    """What the benchmark of a format added or spared; of use to compare with it, and left aside in simulations."""

    launches: dict[str, HostLaunch] = Field(
        default_factory=dict, description="By kernel, where there was no CUDA graph; the first that fits counts."
    )
    copies: Count = Field(default=1, description="Weights that it multiplied by in turn.")
    cache: Parameter[Bytes] | None = Field(default=None, description="The L2 cache by the data sheet, bytes.")
    kept: Parameter[Bytes] | None = Field(default=None, description="Weights that the L2 cache then keeps, bytes.")
    kept_bandwidth: Parameter[BytesPerS] | None = Field(default=None, description="Rate of reading them there, B/s.")
    kept_latency: Parameter[Fraction] | None = Field(
        default=None, description="Latency of a step of the main loop there, in those from DRAM (expert FFNs)."
    )


class LeastTraffic(Config):
    """Tiles of a library that takes the one with the least traffic by its own reckoning: DeepGEMM on Hopper."""

    group_slowdown: Parameter[Slowdown] = Field(
        description="How many times as long tiles of up to 64 rows multiply, which one group of warps does."
    )
    uneven_slowdown: Parameter[Slowdown] = Field(
        description="How many times as long tiles multiply whose columns are an odd multiple of 16."
    )


class ProductKernels(Config):
    """How the kernels of one number format behave; what is left out is as in bf16."""

    dram_sustained: Parameter[Fraction] | None = Field(
        default=None, description="Share of the DRAM bandwidth that large transfers reach."
    )
    l2_bandwidth: Parameter[BytesPerS] | None = Field(
        default=None, description="L2 to multiprocessors, all together, B/s."
    )
    kernel_latency: Parameter[Seconds] | None = Field(
        default=None, description="Launch of one kernel inside a CUDA graph, s."
    )
    tile_latency: Parameter[Seconds] | None = Field(
        default=None, description="Start and end of a tile on a multiprocessor, s."
    )
    split_latency: Parameter[Seconds] | None = Field(
        default=None, description="Extra time of a product that is split along k, s."
    )
    step_latency: Parameter[Seconds] | None = Field(
        default=None, description="Least time of a tile's main loop per element of k, s; 0 if empty."
    )
    exposed: Parameter[Share] | None = Field(
        default=None, description="Share of the shorter of computing and moving that the longer does not hide."
    )
    wave_tail: Parameter[Share] | None = Field(
        default=None,
        description="Share of the last wave's idle multiprocessors that find work (stream-k): 0 in whole waves.",
    )
    cached_bytes: Parameter[Bytes] | None = Field(
        default=None, description="Activations that the L2 cache holds from one kernel to the next, bytes; 0 if empty."
    )
    power_slowdown: Parameter[Slowdown] | None = Field(
        default=None,
        description="How many times as long computing takes at the clock that the power limit allows; 1 if empty.",
    )
    boost_time: Parameter[Seconds] | None = Field(
        default=None, description="Time of computing after which half of that slowdown is felt, s; 0 if empty."
    )
    lone_slowdown: Parameter[Slowdown] | None = Field(
        default=None, description="How many times as long `lone` tiles take in a single wave; 1 if empty."
    )
    cold_start: Parameter[Seconds] | None = Field(
        default=None,
        description="Start of a product among other kernels of a model, beyond that in a benchmark which repeats it, s;"
        " 0 if empty.",
    )
    tiles: Tiles = Field(default=(), description="Tiles by growing `tokens`; by default the best of all for a shape.")
    least_traffic: LeastTraffic | None = Field(
        default=None, description="How the library chooses among its tiles; the fastest for a shape if empty."
    )
    empty_bandwidth: Parameter[BytesPerS] | None = Field(
        default=None,
        description="Rate at which tiles load rows beyond the tokens, all together, B/s; unlimited if empty.",
    )
    vectors: bool | None = Field(
        default=None, description="Whether products of one token have kernels of their own (GEMV), without tiles."
    )
    split_from: Count | None = Field(default=None, description="Least inputs of a product that is split along them.")
    benchmark: ProductBenchmark | None = Field(default=None, description="How these kernels were measured.")
    splits: bool | None = Field(default=None, description="Whether kernels split products along k; by default they do.")


class TensorFormat(Config):
    """Matrix products in one number format."""

    peak: Parameter[FlopsPerS] = Field(description="Dense tensor-core rate, FLOP/s (2 per multiply-add).")
    sustained: Parameter[Fraction] = Field(description="Share of the peak that large products reach.")
    energy: Parameter[JoulesPerFlop] = Field(description="Dynamic energy per FLOP, J.")
    quantise_latency: Parameter[Seconds] | None = Field(
        default=None, description="Extra time of the kernel that turns 16-bit inputs into this format, s."
    )
    quantise_bandwidth: Parameter[BytesPerS] | None = Field(
        default=None, description="Rate at which it reads and writes, B/s."
    )
    quantise_row: Parameter[Seconds] | None = Field(default=None, description="Its time per token, s.")
    quantise_warps_from: Count | None = Field(
        default=None,
        description="Tokens from which each has a warp, eight to a thread block, rather than a thread block of its own:"
        " its time is then an eighth. Never if empty.",
    )
    quantise_block: Parameter[Seconds] | None = Field(
        default=None,
        description="Its time per thread block, s; a block takes 16 groups of 128 elements, or as many as divide them.",
    )
    kernels: ProductKernels = Field(default=ProductKernels(), description="What differs from products in bf16.")


class TunedShapes(Config):
    """Shapes of experts for which a library's authors have searched for the best tiles."""

    experts: Count = Field(description="Experts on the device.")
    outputs: tuple[Count, ...] = Field(description="Outputs of one up projection on the device.")


class GroupedKernels(Config):
    """Expert FFNs with weights of one format; what is left out is as in `GroupedGemm`."""

    format: Format | None = Field(default=None, description="Format in which these weights are multiplied.")
    latency: Parameter[Seconds] | None = Field(default=None, description="Launches, sorting and activation, s.")
    shared_latency: Parameter[Seconds] | None = Field(
        default=None, description="Launches more on devices that share the experts with others, s; 0 if empty."
    )
    sustained: Parameter[Fraction] | None = Field(default=None, description="Share of the format's peak.")
    weights_dram_sustained: Parameter[Fraction] | None = Field(
        default=None, description="Share of the DRAM bandwidth for weights."
    )
    moved_dram_sustained: Parameter[Fraction] | None = Field(
        default=None, description="Share of the DRAM bandwidth for activations."
    )
    l2_bandwidth: Parameter[BytesPerS] | None = Field(
        default=None, description="L2 to multiprocessors, all together, B/s."
    )
    tile_latency: Parameter[Seconds] | None = Field(
        default=None, description="Start and end of a tile on a multiprocessor, s."
    )
    step_latency: Parameter[Seconds] | None = Field(
        default=None, description="Least time of a tile's main loop per element of k, s."
    )
    partial_tile: Parameter[NonNegative] | None = Field(
        default=None, description="Extra time of a tile that tokens do not fill, in times of a full one; 0 if empty."
    )
    exposed: Parameter[Share] | None = Field(
        default=None, description="Share of the shorter of computing and weights that the longer does not hide."
    )
    wave_tail: Parameter[Share] | None = Field(
        default=None, description="Share of the last wave's idle multiprocessors that find work."
    )
    narrow_slowdown: Parameter[Slowdown] | None = Field(
        default=None, description="Time of weights that narrow tiles read, in times of others; 1 if empty."
    )
    unaligned_slowdown: Parameter[Slowdown] | None = Field(
        default=None,
        description="Time of the down projection's tiles where its inputs are no multiple of 16, in times of others;"
        " 1 if empty.",
    )
    resident_tiles: Parameter[Slowdown] | None = Field(
        default=None,
        description="Tiles that run on a multiprocessor at a time and hide each other's latency; 1 if empty.",
    )
    token_passes: Parameter[NonNegative] | None = Field(
        default=None,
        description="Times that a hidden state of every token of the batch is read and written beside those of experts,"
        " to quantise, sort and sum; 0 if empty.",
    )
    hidden_multiple: Count | None = Field(
        default=None, description="What the hidden size of weights is padded to a multiple of; nothing if empty."
    )
    outputs_multiple: Count | None = Field(
        default=None, description="The same of the outputs of an up projection on the device."
    )
    benchmark: ProductBenchmark | None = Field(default=None, description="How these kernels were measured.")
    tiles: Tiles = Field(
        default=(), description="Tiles by growing limits of the batch's tokens; by default the best of all."
    )
    tuned: tuple[TunedShapes, ...] = Field(
        default=(), description="Shapes that run the best of all tiles instead, as the library has tuned them."
    )


class GroupedGemm(Config):
    """Expert FFNs: grouped products, with the sorting and gathering of tokens around them."""

    latency: Parameter[Seconds] = Field(description="Launches, sorting and activation of one expert FFN, s.")
    shared_latency: Parameter[Seconds] | None = Field(
        default=None, description="Launches more on devices that share the experts with others, s; 0 if empty."
    )
    sustained: dict[Format, Parameter[Fraction]] = Field(description="Share of each format's peak.")
    weight_only: tuple[Format, ...] = Field(
        default=(), description="Formats without expert kernels of their own: weights are turned into bf16 on the way."
    )
    dequantise_sustained: Parameter[Fraction] = Field(
        description="Share of the bf16 peak with weights turned into bf16 on the way."
    )
    weights_dram_sustained: Parameter[Fraction] = Field(description="Share of the DRAM bandwidth for weights.")
    moved_dram_sustained: Parameter[Fraction] = Field(description="Share of the DRAM bandwidth for activations.")
    tile_latency: Parameter[Seconds] = Field(description="Start and end of a tile on a multiprocessor, s.")
    l2_bandwidth: Parameter[BytesPerS] | None = Field(
        default=None, description="L2 to multiprocessors, all together, B/s; by default that of single products."
    )
    step_latency: Parameter[Seconds] | None = Field(
        default=None, description="Least time of a tile's main loop per element of k, s; 0 if empty."
    )
    partial_tile: Parameter[NonNegative] | None = Field(
        default=None, description="Extra time of a tile that tokens do not fill, in times of a full one; 0 if empty."
    )
    exposed: Parameter[Share] | None = Field(
        default=None, description="Share of the shorter of computing and weights that the longer does not hide."
    )
    wave_tail: Parameter[Share] | None = Field(
        default=None, description="Share of the last wave's idle multiprocessors that find work."
    )
    weights: dict[DTypeName, GroupedKernels] = Field(
        default_factory=dict, description="Kernels by format of the weights, where they differ from the above."
    )
    ungated: dict[DTypeName, GroupedKernels] = Field(
        default_factory=dict, description="Kernels of experts with one up projection, where these have others."
    )
    sharded: dict[DTypeName, GroupedKernels] = Field(
        default_factory=dict, description="Kernels of gated experts that several ranks share, where these have others."
    )


EXPERT_PLANES = ("weights", "ungated", "sharded")
"""Sections of `GroupedGemm` with the kernels of expert FFNs: gated ones, ungated ones, and those on several ranks."""


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


def _limit(tile: Tile) -> int:
    return _ANY_TOKENS if tile.tokens is None else tile.tokens


def _tile_rows(tiles: Sequence[Tile]) -> list[tuple[int, ...]]:
    return [
        (
            _limit(tile),
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
