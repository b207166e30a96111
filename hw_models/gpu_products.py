"""Parameters of a GPU's matrix products, single and grouped by expert."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from moesim.configs.loader import Config
from moesim.hw_models.parameters import Count, Fraction, Parameter, Slowdown
from moesim.units import Bytes, BytesPerS, FlopsPerS, JoulesPerFlop, Seconds
from moesim.workloads.matrices import DTypeName

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

_ANY_TOKENS = 2**62
ANY_TOKENS_PER_EXPERT = 2**40
"""As many as any batch has, and no overflow when multiplied by experts."""


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

    @property
    def most_tokens(self) -> int:
        """Of a product that uses it."""
        return _ANY_TOKENS if self.tokens is None else self.tokens


def _ordered(tiles: tuple[Tile, ...]) -> tuple[Tile, ...]:
    limits = [tile.most_tokens for tile in tiles]
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
