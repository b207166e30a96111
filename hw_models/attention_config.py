"""Parameters of attention kernels: for what work a kernel is, how it is laid out, and how long its parts take."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from moesim.configs.loader import Config
from moesim.hw_models.parameters import Count, Fit, Fraction, ParameterRow
from moesim.units import Bytes, BytesPerS, Seconds
from moesim.workloads.matrices import DTypeName
from moesim.workloads.operator_table import DTYPES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Range = tuple[int, int]
MIXED = ("decode_block", "shared", "together", "idle_tile")
"""Fields that only steps with prefill and decode tell; residuals of other steps do not depend on them."""
LATE = ("late", "late_bytes")
"""Fields that only decodes inside a model tell; residuals come before them."""
_NUMBERS = (
    *("latent", "query_bits", "query_tile", "key_tile", "packs_heads", "splits_keys", "takes_decodes", "absorbs"),
    *("outside_window", "max_splits", "part_keys", "parts_per_multiprocessor", "split_fill", "scheduled_sequences"),
    *("softmax_flops", "whole_waves", "overlap", "together", "resident", "split_tiles"),
)
_SECONDS = ("launch", "tile", "block", "merge", "decode_block", "merge_tile", "idle_tile")
"""Fields that compiled code takes as they are, in columns of the same names, times with `_S`."""
_NAMES = {"name", "source", "fit", "mixed_fit", "late_fit", "cache"}
_NOT_PRICED = {*_NAMES, "floor", "kept", "kept_bandwidth", *MIXED, *LATE}


class AttentionKernel(Config):
    """One kernel; `attention_kernel` has the equations. Where it was fitted, `fit` names the calibration."""

    name: str = Field(min_length=1, description="What runs.")
    phase: Literal["prefill", "decode"] = Field(description="What it is measured for.")
    source: str = Field(min_length=1, description="Where the values come from.")
    fit: str | None = Field(default=None, description="Name of the calibration that set the values.")
    mixed_fit: str | None = Field(
        default=None, description="Prefill: name of the calibration that set the values of mixed steps."
    )
    late_fit: str | None = Field(default=None, description="Decode: name of the calibration that set `late`.")
    cache: tuple[DTypeName, ...] = Field(description="Formats of keys and values that it reads.")
    latent: bool = Field(default=False, description="It reads one latent key per token for all heads, or rebuilt ones.")
    head_dim: Range = Field(default=(1, 1024), description="Least and greatest elements of a query's head.")
    heads_per_kv_head: Range = Field(default=(1, 1024), description="Least and greatest query heads per KV head.")
    window: Literal["any", "none", "only"] = Field(
        default="any", description="Whether it takes queries that see a limited number of keys."
    )
    query_bits: Literal[0, 8, 16] = Field(default=0, description="Bits of queries that it takes; 0 for any.")
    queries: Range = Field(default=(1, 2**31), description="Prefill: least and greatest new tokens per sequence.")
    query_tile: Count = Field(description="Rows of a tile.")
    key_tile: Count = Field(description="Keys of a block.")
    packs_heads: bool = Field(description="A tile's rows are of all query heads of a KV head, rather than of one.")
    splits_keys: bool = Field(description="It shares the keys of a sequence among multiprocessors where that pays.")
    takes_decodes: bool = Field(
        default=False, description="Prefill: a mixed step's decodes run as its tiles, rather than in the decode kernel."
    )
    scheduled_sequences: int = Field(
        default=0,
        ge=0,
        description="Most sequences that a scheduler plans for, which `sequence`, spent on each KV head, `head`, `sort`"
        " and `sort_head` are the time of; 0 if it plans for any number, without a look at KV heads.",
    )
    absorbs: bool = Field(
        default=False, description="Latent prefill: it attends in the latent space, without rebuilding keys per head."
    )
    max_splits: int = Field(default=0, ge=0, description="Most parts that a tile's keys are split in; 0 without limit.")
    part_keys: int = Field(
        default=0,
        ge=0,
        description="Keys of a part, where a kernel splits by their number alone, in the window or not; 0 elsewhere.",
    )
    parts_per_multiprocessor: float = Field(default=8.0, gt=0, description="Most parts for which it does so.")
    split_tiles: int = Field(
        default=0,
        ge=0,
        description="Most tiles with which a kernel splits the keys of every sequence in `max_splits`; 0 elsewhere.",
    )
    resident: float = Field(default=1.0, gt=0, description="Tiles that a multiprocessor runs at a time.")
    split_fill: Fraction = Field(
        default=1 / 1.1,
        description="Share of the multiprocessors that splits of unequal length fill; FlashAttention plans for 0.91.",
    )
    floor: Seconds = Field(
        default=0.0, ge=0, description="Repeated measurements without a CUDA graph: the host's time per call, s."
    )
    launch: Seconds = Field(ge=0, description="Launches and set-up, s.")
    launch_per_element: Seconds = Field(default=0.0, ge=0, description="More of it per element of a head, s.")
    sequence: Seconds = Field(default=0.0, ge=0, description="More of it per sequence, s.")
    token: Seconds = Field(default=0.0, ge=0, description="Prefill: more of it per new token, s.")
    sort: Seconds = Field(default=0.0, ge=0, description="More of it per pair of sequences, as sorting takes, s.")
    sort_head: Seconds = Field(default=0.0, ge=0, description="More of it per pair of sequences and query head, s.")
    head: Seconds = Field(default=0.0, ge=0, description="More of it per sequence and query head, s.")
    query_passes: float = Field(default=0.0, ge=0, description="Further passes of queries and results through DRAM.")
    key_passes: float = Field(default=0.0, ge=0, description="Further passes of keys and values through DRAM.")
    tile: Seconds = Field(ge=0, description="Start and end of a tile, s.")
    tile_per_element: Seconds = Field(default=0.0, ge=0, description="More of it per element of a head, s.")
    block: Seconds = Field(default=0.0, ge=0, description="Start and end of a block of keys, s.")
    sustained: float = Field(gt=0, le=2, description="Share of the bf16 peak (up to 2 where it multiplies in fp8).")
    outside_window: float = Field(
        default=0.0, ge=0, le=1, description="Share of a block's time that one outside the window takes; 0 if skipped."
    )
    softmax_flops: float = Field(default=0.0, ge=0, description="FLOPs that a pair's exponential takes as long as.")
    whole_waves: float = Field(default=1.0, ge=0, le=1, description="1 where a wave of few tiles takes as a full one.")
    dram_sustained: Fraction = Field(description="Share of the DRAM bandwidth.")
    overlap: float = Field(default=8.0, ge=1, description="Exponent p of (compute^p + memory^p)^(1/p); 1 is a sum.")
    kept: Bytes | None = Field(default=None, description="Data that repeated measurements find in L2, B.")
    kept_bandwidth: BytesPerS = Field(default=1e13, gt=0, description="Rate of reading it from there, B/s.")
    merge: Seconds = Field(default=0.0, ge=0, description="Merging the results of split keys, s.")
    merge_tile: Seconds = Field(default=0.0, ge=0, description="More of it per tile, parts without keys included, s.")
    decode_block: Seconds = Field(
        default=0.0, ge=0, description="Mixed steps: more time per block of keys of a tile that is a decode, s."
    )
    shared: Bytes | None = Field(
        default=None,
        description="Mixed steps: keys and values of one KV head and all decodes that L2 keeps for its other query"
        " heads, B; any number if empty.",
    )
    together: float = Field(
        default=1.0,
        gt=0,
        description="Mixed steps: tiles that run together, so that heads share what they read, in"
        " multiples of the multiprocessors.",
    )
    idle_tile: Seconds = Field(
        default=0.0,
        ge=0,
        description="Mixed steps: a tile of a decode without queries, as a launch has as many for each sequence, s.",
    )
    late: Seconds = Field(
        default=0.0,
        ge=0,
        description="Decode: how much later than in a benchmark that repeats it its last tiles end in a model, s;"
        " less by as much as tiles are fewer than multiprocessors, and keys and values less than `late_bytes`.",
    )
    late_bytes: Bytes | None = Field(default=None, description="Keys and values of which that is so, B; any if empty.")

    @model_validator(mode="after")
    def _split_in_parts(self) -> "AttentionKernel":
        if self.split_tiles > 0 and self.max_splits == 0:
            raise ValueError("split_tiles needs max_splits")
        return self


class AttentionKernels(Config):
    """Attention of prefill chunks and decode sequences: the first kernel that fits a row is used."""

    kernels: tuple[AttentionKernel, ...] = Field(description="In order of preference.")
    repeated: bool = Field(
        default=False,
        description="Price as in a benchmark that repeats a kernel on the same data, which L2 then keeps. In a model,"
        " other layers' data come between.",
    )

    @model_validator(mode="after")
    def _both_phases(self) -> "AttentionKernels":
        missing = {"prefill", "decode"} - {kernel.phase for kernel in self.kernels if not kernel.latent}
        if missing:
            raise ValueError(f"kernels must hold one for {min(missing)} that is not latent")
        return self


def kernel_rows(section: AttentionKernels, fits: Mapping[str, Fit], prefix: str = "") -> Iterator[ParameterRow]:
    """A line per kernel for a parameter table: its phase and name, main figures, source, error of its calibration."""
    for kernel in section.kernels:
        fit = fits.get(kernel.fit or "")
        error = "" if fit is None else f"{fit.error:.1%} on {fit.rows} rows of {fit.data}"
        value = f"{kernel.launch * 1e6:.3g} us, {kernel.sustained:.2g} of bf16, {kernel.dram_sustained:.2g} of DRAM"
        yield ParameterRow(f"{prefix}attention.{kernel.phase}: {kernel.name}", value, kernel.source, error)


def kernel_table(section: AttentionKernels, bf16_flops_per_s: float, dram_bytes_per_s: float) -> "NDArray[np.float64]":
    """float64[kernel, column]: the kernels as `attention_kernel` takes them."""
    import numpy as np

    rows = [
        kernel_row(kernel, bf16_flops_per_s, dram_bytes_per_s, repeated=section.repeated) for kernel in section.kernels
    ]
    return np.array(rows)


def kernel_row(
    kernel: AttentionKernel, bf16_flops_per_s: float, dram_bytes_per_s: float, *, repeated: bool
) -> list[float]:
    """One kernel as `attention_kernel` takes it."""
    from moesim.hw_models import attention_kernel as columns

    windows = {"any": columns.ANY_WINDOW, "none": columns.NO_WINDOW, "only": columns.ONLY_WINDOW}
    values: dict[int, Any] = {getattr(columns, name.upper()): getattr(kernel, name) for name in _NUMBERS}
    values |= {getattr(columns, f"{name.upper()}_S"): getattr(kernel, name) for name in _SECONDS}
    values |= {
        columns.PHASE: columns.PREFILL if kernel.phase == "prefill" else columns.DECODE,
        columns.HEAD_DIM_LOW: kernel.head_dim[0],
        columns.HEAD_DIM_HIGH: kernel.head_dim[1],
        columns.GROUP_LOW: kernel.heads_per_kv_head[0],
        columns.GROUP_HIGH: kernel.heads_per_kv_head[1],
        columns.WINDOW: windows[kernel.window],
        columns.QUERIES_LOW: kernel.queries[0],
        columns.QUERIES_HIGH: kernel.queries[1],
        columns.FLOOR_S: kernel.floor if repeated else 0.0,
        columns.LAUNCH_S_PER_ELEMENT: kernel.launch_per_element,
        columns.S_PER_SEQUENCE: kernel.sequence,
        columns.S_PER_TOKEN: kernel.token,
        columns.S_PER_SORTED_PAIR: kernel.sort,
        columns.S_PER_SORTED_HEAD: kernel.sort_head,
        columns.S_PER_HEAD: kernel.head,
        columns.S_PER_QUERY_BYTE: kernel.query_passes / dram_bytes_per_s,
        columns.S_PER_KEY_BYTE: kernel.key_passes / dram_bytes_per_s,
        columns.TILE_S_PER_ELEMENT: kernel.tile_per_element,
        columns.S_PER_FLOP: 1 / (bf16_flops_per_s * kernel.sustained),
        columns.S_PER_DRAM_BYTE: 1 / (dram_bytes_per_s * kernel.dram_sustained),
        columns.KEPT_BYTES: kernel.kept or 0.0 if repeated else 0.0,
        columns.S_PER_KEPT_BYTE: 1 / kernel.kept_bandwidth,
        columns.SHARED_BYTES: kernel.shared or 0.0,
        columns.LATE_S: 0.0 if repeated else kernel.late,
        columns.LATE_BYTES: kernel.late_bytes or 0.0,
    }
    return [float(values[column]) for column in range(columns.KERNEL_COLUMNS)]


def pricing_values(kernel: AttentionKernel, *, mixed: bool = False) -> list[str]:
    """Names and values that decide prices in a model, where they are not the defaults: new ones change no old names.

    Those of `MIXED` are left out unless prices are of steps that prefill and decode.
    """
    fields = type(kernel).model_fields
    passed = _NOT_PRICED.difference(MIXED if mixed else ())
    given = {name: value for name, value in kernel if name not in passed and value != fields[name].default}
    return [f"{name}={value:.5g}" if isinstance(value, float) else f"{name}={value}" for name, value in given.items()]


def cover_table(section: AttentionKernels) -> "NDArray[np.bool_]":
    """bool[cache dtype, kernel]: which kernels read which cache formats."""
    import numpy as np

    return np.array([[name in kernel.cache for kernel in section.kernels] for name in DTYPES])
