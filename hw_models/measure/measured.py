"""Files of measured kernels: a parquet table, a row per measurement, with the machine in the metadata.

`docs/measuring.md` describes the format. Whatever reads a file checks all of it first.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from moesim.configs.loader import Config
from moesim.configs.metadata import checked_metadata
from moesim.errors import DataError
from moesim.files import whole_file
from moesim.hw_models.measure.problem import ELEMENT_BYTES, KERNEL_SHAPES

_KEY = b"moesim.measured_kernels"
_FORMAT = 1
SHAPE_NAMES = (
    *("elements", "m", "n", "k", "tokens", "experts", "top_k", "hidden", "intermediate"),
    *("sequences", "prompt_tokens", "heads", "kv_heads", "head_dim", "page_tokens"),
)
_LENGTHS = {
    "grouped_gemm": "experts",
    "expert_ffn": "experts",
    "decode_attention": "sequences",
    "permute": "experts",
    "unpermute": "experts",
    "routing_histogram": "experts",
}
"""The dimension that counts `lengths`, for kernels that have them."""
_ROUNDING = 1e-9


class Clocks(Config):
    """Clocks and power as nvidia-smi reports them; null where it is silent."""

    sm_mhz: float | None = Field(default=None, description="Clock of the multiprocessors, MHz.")
    memory_mhz: float | None = Field(default=None, description="Memory clock, MHz.")
    power_w: float | None = Field(default=None, description="Power draw, W.")
    temperature_c: float | None = Field(default=None, description="Temperature of the GPU, degrees Celsius.")


class Machine(Config):
    """The GPU and the software that were measured."""

    gpu: str = Field(min_length=1, description="Name of the GPU, as its driver says it.")
    compute_capability: str = Field(description="Such as 9.0.")
    multiprocessors: PositiveInt
    l2_bytes: NonNegativeInt
    memory_bytes: PositiveInt
    driver: str | None = Field(default=None, description="Version of the NVIDIA driver.")
    max_sm_mhz: float | None = Field(default=None, description="Highest clock of the multiprocessors, MHz.")
    max_memory_mhz: float | None = Field(default=None, description="Highest memory clock, MHz.")
    power_limit_w: float | None = Field(default=None, description="Power limit, W.")
    clocks_before: Clocks = Field(default=Clocks(), description="Before the first measurement.")
    clocks_after: Clocks = Field(default=Clocks(), description="Right after the last measurement.")
    libraries: dict[str, str] = Field(description="Versions by name: numba, torch, ...")


class Skipped(Config):
    """A measurement that was planned and is not there."""

    kernel: str
    implementation: str
    dtype: str
    shape: str
    reason: str


class About(Config):
    """Everything in a file but the measurements."""

    machine: Machine
    moesim: str = Field(description="Version of moesim.")
    started: str = Field(description="Date and time of the start, ISO 8601, UTC.")
    seed: int = Field(description="Seed of the random inputs.")
    planned: NonNegativeInt = Field(description="Measurements that the run set out to make.")
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One kernel at one shape.

    Attributes:
        kernel: what was computed, a key of `KERNEL_SHAPES`.
        implementation: whose kernel: `moesim`, `torch`, `cupy`.
        dtype: format of operands and caches.
        shape: dimensions by name.
        lengths: tokens per expert, or cached tokens per sequence.
        flops: of the algorithm.
        read_bytes: of the algorithm.
        write_bytes: of the algorithm.
        buffer_sets: sets of buffers that launches took in turn.
        launches: launches behind each sample.
        samples_s: mean seconds of a launch, a value per repetition.
        error: greatest error against float64, relative to the largest value.
    """

    kernel: str
    implementation: str
    dtype: str
    shape: Mapping[str, int]
    lengths: tuple[int, ...]
    flops: float
    read_bytes: float
    write_bytes: float
    buffer_sets: int
    launches: int
    samples_s: tuple[float, ...]
    error: float

    @property
    def median_s(self) -> float:
        """Median of the samples."""
        return float(np.median(self.samples_s))

    @property
    def spread(self) -> float:
        """Interquartile range over median."""
        low, high = np.quantile(self.samples_s, (0.25, 0.75))
        return float((high - low) / self.median_s)

    @property
    def flops_per_s(self) -> float:
        """Achieved rate."""
        return self.flops / self.median_s

    @property
    def bytes_per_s(self) -> float:
        """Achieved rate of the bytes that the algorithm must move."""
        return (self.read_bytes + self.write_bytes) / self.median_s


@dataclass(frozen=True)
class MeasuredKernels:
    """The contents of a file."""

    about: About
    rows: tuple[Measurement, ...]

    @property
    def is_complete(self) -> bool:
        """Whether the run came to its end."""
        return len(self.rows) + len(self.about.skipped) == self.about.planned


def write_measured(measured: MeasuredKernels, path: str | Path) -> None:
    """Write parquet, all of it or nothing.

    Raises:
        DataError: the place cannot be written to.
    """
    import pyarrow as pa  # loads slowly
    import pyarrow.parquet as pq

    rows = measured.rows
    columns: dict[str, Any] = {name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in _TEXTS}
    columns |= {name: pa.array([row.shape.get(name) for row in rows], pa.int64()) for name in SHAPE_NAMES}
    columns["lengths"] = pa.array([row.lengths for row in rows], pa.list_(pa.int64()))
    columns |= {name: pa.array([getattr(row, name) for row in rows], pa.float64()) for name in _NUMBERS}
    columns |= {name: pa.array([getattr(row, name) for row in rows], pa.int64()) for name in _COUNTS}
    columns["samples_s"] = pa.array([row.samples_s for row in rows], pa.list_(pa.float64()))
    about = {"format": _FORMAT} | measured.about.model_dump(mode="json")
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about).encode()})
    with whole_file(Path(path)) as part:
        pq.write_table(table, part, compression="zstd")


def read_measured(path: str | Path) -> MeasuredKernels:
    """Read and check a file that `write_measured` wrote.

    Raises:
        DataError: missing or cut off file, another format, missing columns, or a value that cannot be.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise DataError(str(path), "no such file")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError):
        raise DataError(str(path), "must be a whole parquet file") from None
    metadata = table.schema.metadata
    checked = checked_metadata(_Metadata, path, metadata, _KEY, kind="measured kernels", version=_FORMAT)
    about = About(**{name: getattr(checked, name) for name in About.model_fields})
    missing = sorted({*_TEXTS, *SHAPE_NAMES, "lengths", *_NUMBERS, *_COUNTS, "samples_s"} - set(table.column_names))
    if missing:
        raise DataError(f"{path}: columns", "must hold those of measured kernels", f"none named {missing[0]}")
    rows = tuple(_measurement(f"{path}: row {number}", row) for number, row in enumerate(table.to_pylist(), 1))
    return MeasuredKernels(about, rows)


_TEXTS = ("kernel", "implementation", "dtype")
_NUMBERS = ("flops", "read_bytes", "write_bytes", "median_s", "spread", "error")
_COUNTS = ("buffer_sets", "launches")


class _Metadata(About):
    format: Literal[1]


def _measurement(place: str, row: Mapping[str, Any]) -> Measurement:
    """One row, checked."""
    if row["kernel"] not in KERNEL_SHAPES:
        raise DataError(f"{place}: kernel", f"must be one of {', '.join(KERNEL_SHAPES)}", row["kernel"])
    if row["dtype"] not in ELEMENT_BYTES:
        raise DataError(f"{place}: dtype", f"must be one of {', '.join(ELEMENT_BYTES)}", row["dtype"])
    if not row["implementation"]:
        raise DataError(f"{place}: implementation", "required")
    shape = {name: row[name] for name in KERNEL_SHAPES[row["kernel"]]}
    for name, size in shape.items():
        _check_number(f"{place}: {name}", size, least=1, whole=True)
    _check_shape(place, shape)
    for name in (*_NUMBERS, *_COUNTS):
        _check_number(f"{place}: {name}", row[name], least=1 if name in _COUNTS else 0, whole=name in _COUNTS)
    lengths = _lengths(f"{place}: lengths", row["kernel"], shape, row["lengths"])
    samples_s = _samples(f"{place}: samples_s", row["samples_s"])
    texts = {name: row[name] for name in _TEXTS}
    numbers = {name: row[name] for name in (*_NUMBERS, *_COUNTS) if name not in {"median_s", "spread"}}
    read = Measurement(**texts, **numbers, shape=shape, lengths=lengths, samples_s=samples_s)
    for name in ("median_s", "spread"):
        if not np.isclose(row[name], getattr(read, name), rtol=_ROUNDING, atol=_ROUNDING * read.median_s):
            raise DataError(f"{place}: {name}", f"must be that of samples_s, {getattr(read, name):g}", row[name])
    return read


def _check_number(place: str, value: Any, *, least: int, whole: bool) -> None:
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not np.isfinite(value) or value < least:
        raise DataError(place, f"must be a {'whole' if whole else 'finite'} number >= {least}", _shown(value))


def _check_shape(place: str, shape: Mapping[str, int]) -> None:
    """Rules between dimensions."""
    if "heads" in shape and shape["heads"] % shape["kv_heads"]:
        raise DataError(f"{place}: heads", f"must be a multiple of kv_heads, {shape['kv_heads']}", shape["heads"])
    if "top_k" in shape and shape["top_k"] > shape["experts"]:
        raise DataError(f"{place}: top_k", f"must be <= experts, {shape['experts']}", shape["top_k"])


def _lengths(place: str, kernel: str, shape: Mapping[str, int], value: Any) -> tuple[int, ...]:
    """As many as experts or sequences; tokens of experts may be 0, and add up to the rows of the product."""
    counted_by = _LENGTHS.get(kernel)
    expected = shape[counted_by] if counted_by else 0
    if not isinstance(value, Sequence) or len(value) != expected:
        raise DataError(place, f"must hold {expected} numbers", _shown(value))
    for item in value:
        _check_number(place, item, least=1 if counted_by == "sequences" else 0, whole=True)
    if counted_by == "experts":
        total = shape["m"] if "m" in shape else shape["tokens"] * shape["top_k"]
        if sum(value) != total:
            raise DataError(place, f"must add up to {total}", sum(value))
    return tuple(value)


def _samples(place: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or not value:
        raise DataError(place, "must hold at least one number", _shown(value))
    for item in value:
        if not isinstance(item, float) or not np.isfinite(item) or item <= 0:
            raise DataError(place, "must be finite numbers > 0", _shown(item))
    return tuple(value)


def _shown(value: Any) -> Any:
    return "nothing" if value is None else value
