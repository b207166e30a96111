"""Routing on disk: our parquet traces, npz traces of gpt-oss as published, and npz profiles.

Nothing here unpickles: a file from elsewhere cannot run code.
"""

import csv
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, StrictBool, StrictFloat, StrictInt

from moesim.configs.loader import Config
from moesim.configs.metadata import checked_metadata
from moesim.errors import DataError
from moesim.files import whole_file
from moesim.workloads.npz_files import npz_members, npz_names
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_profile_arrays import optional_arrays, optional_fields
from moesim.workloads.routing_trace import DECODE, RoutingTrace

METADATA_KEY = b"moesim.routing_trace"
"""Key of what a trace is about, in the metadata of its file."""
FORMAT = 1
"""Of traces."""
_TRACE_COLUMNS = ("request", "position", "phase", "expert")
_WEIGHT = "gate"
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")
_PICKLE_START = b"\x80"
_TORCH_ARCHIVE = re.compile(r"(.*/)?data\.pkl")
_PROFILE_FORMAT = 1
_ROUNDING = 1e-4
"""Largest error of a sum of shares that is taken for rounding to float32."""

_NPZ_IDS = re.compile(r"(?P<stem>(?P<model>.+)_decode)_top\d+_ids\.npz$")
_KNOWN_EXPERTS = {"gpt-oss-20b": 32, "gpt-oss-120b": 128}
"""`num_local_experts` in the models' config.json."""


def read_routing_trace(path: str | Path, model: str | None = None, experts: int | None = None) -> RoutingTrace:
    """Read a routing trace.

    `.parquet` is the format of `write_routing_trace`; `source` of the trace is the file, for errors, and where the file
    says the recording comes from stands in `capture`. `.npz` is the layout of the published gpt-oss recordings: one
    array uint8[step, layer, k] per request, and beside `<model>_decode_top<k>_ids.npz` a table
    `<model>_decode_samples.csv` whose columns `key`, `first_decode_pos` and, where present, `n_decode` and `dataset`
    describe the requests.

    Args:
        path: the file.
        model: overrides the name of the model in the file or its name.
        experts: routed experts per layer; needed for npz recordings of models other than gpt-oss.

    Raises:
        DataError: missing or cut off file, missing table, or contents that break the rules of `RoutingTrace`.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(str(path), "no such file")
    refuse_pickle(path)
    if path.suffix == ".npz":
        return _read_npz_trace(path, model, experts)
    if path.suffix == ".parquet":
        return _read_parquet_trace(path, model, experts)
    raise DataError(str(path), "a routing trace must be a .parquet or .npz file")


def refuse_pickle(path: Path) -> None:
    """Stop before anything tries to read a pickled file, whatever it is called.

    Raises:
        DataError: the file is a pickle, or what `torch.save` writes, which holds one.
    """
    if path.suffix.lower() in _PICKLES or _is_pickle(path):
        raise DataError(
            str(path),
            "is a pickle, which can run code when it is read, so moesim never does; convert it where you trust it: "
            'data = torch.load(FILE, weights_only=True), then numpy.savez("x.npz", NAME=data[NAME].numpy(), ...)',
        )


def _is_pickle(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(1) == _PICKLE_START:
                return True
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(_TORCH_ARCHIVE.fullmatch(name) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False  # the reader of the format says what is wrong


def write_routing_trace(trace: RoutingTrace, path: str | Path) -> None:
    """Write `trace` as parquet, all of it or nothing.

    Columns: request int32, position int32, phase uint8 (0 prefill, 1 decode), expert list<uint8 or uint16>[layers x
    top_k], layer by layer, and where recorded gate list<halffloat or float>[layers x top_k],
    the weights, likewise. Other columns may follow and are not read. The file's
    metadata holds, as JSON under `moesim.routing_trace`: format, model, experts, top_k, source, names, groups,
    first_decode_position, licence, capture.
    """
    import pyarrow as pa  # loads slowly
    import pyarrow.parquet as pq

    about = {
        "format": FORMAT,
        "model": trace.model,
        "experts": trace.experts,
        "top_k": trace.top_k,
        "source": trace.source,
        "names": trace.names,
        "groups": trace.groups,
        "first_decode_position": trace.first_decode_position.tolist(),
        "licence": trace.licence,
        "capture": dict(trace.capture),
    }

    def lists(values: NDArray[Any]) -> Any:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, trace.layers * trace.top_k)

    columns = [pa.array(trace.request), pa.array(trace.position), pa.array(trace.phase), lists(trace.expert)]
    table = pa.table(dict(zip(_TRACE_COLUMNS, columns, strict=True)))
    if trace.weight is not None:
        table = table.append_column(_WEIGHT, lists(trace.weight))
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(about).encode()})
    with whole_file(Path(path)) as part:
        pq.write_table(table, part, compression="zstd")


def read_routing_profile(path: str | Path) -> RoutingProfile:
    """Read a profile that `write_routing_profile` wrote.

    Raises:
        DataError: missing or cut off file, missing arrays, or contents that break the rules of `RoutingProfile`.
    """
    path = Path(path)
    members = npz_members(path)
    try:
        about = json.loads(str(members["about"]))
        if about["format"] != _PROFILE_FORMAT:
            raise DataError(f"{path}: format", f"must be {_PROFILE_FORMAT}", about["format"])
        fields: dict[str, Any] = {"popularity": _normalised(members["popularity"])}
        if "transitions" in members:
            fields["transitions"] = _normalised(members["transitions"])
        fields |= _optional_fields(path, members, int(about["top_k"]), fields["popularity"])
        return RoutingProfile(str(about["model"]), str(about["source"]), int(about["top_k"]), **fields)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(str(path), f"is no routing profile ({error})") from None


def _optional_fields(
    path: Path, members: dict[str, NDArray[Any]], top_k: int, popularity: NDArray[np.float64]
) -> dict[str, Any]:
    """States, reuse and domains; errors name the file."""
    try:
        return optional_fields(members, top_k, popularity)
    except DataError as error:
        raise DataError(f"{path}: {error.place}", error.rule, error.got) from None


def write_routing_profile(profile: RoutingProfile, path: str | Path, dtype: DTypeLike = np.float64) -> None:
    """Write `profile` as npz, all of it or nothing.

    Args:
        profile: what to write.
        path: the file.
        dtype: of the shares on disk; float32 halves the file, and keeps states to 16 bits.
    """
    about = {"format": _PROFILE_FORMAT, "model": profile.model, "source": profile.source, "top_k": profile.top_k}
    arrays = {"about": np.array(json.dumps(about)), "popularity": profile.popularity.astype(dtype)}
    if profile.transitions is not None:
        arrays["transitions"] = profile.transitions.astype(dtype)
    arrays |= optional_arrays(profile, dtype)
    with whole_file(Path(path)) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def is_profile(path: str | Path) -> bool:
    """Whether the file is a routing profile (else it should be a trace).

    Raises:
        DataError: an npz file that is missing or cut off.
    """
    path = Path(path)
    if path.suffix != ".npz":
        return False
    return "popularity" in npz_names(path)


def _normalised(shares: NDArray[Any]) -> NDArray[np.float64]:
    """Undo what rounding to float32 did to the sums of rows; a row that is wrong stays wrong."""
    exact = shares.astype(np.float64)
    sums = exact.sum(axis=-1, keepdims=True)
    return np.where(abs(sums - 1.0) < _ROUNDING, exact / np.where(sums == 0, 1.0, sums), exact)


def _read_npz_trace(path: Path, model: str | None, experts: int | None) -> RoutingTrace:
    match = _NPZ_IDS.fullmatch(path.name)
    if match is None:
        raise DataError(str(path), "an npz trace must be named <model>_decode_top<k>_ids.npz")
    model = model or match["model"]
    experts = experts or _KNOWN_EXPERTS.get(model)
    if experts is None:
        raise DataError(str(path), "the number of `experts` must be given for this model", model)
    arrays = npz_members(path)
    if not arrays:
        raise DataError(str(path), "must not be empty")
    _check_arrays(path, arrays)
    first, groups = _read_samples(path.with_name(f"{match['stem']}_samples.csv"), arrays)
    lengths = np.array([len(ids) for ids in arrays.values()])
    ends = np.cumsum(lengths)
    step = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    return RoutingTrace(
        model=model,
        experts=experts,
        source=str(path),
        names=tuple(arrays),
        groups=groups,
        first_decode_position=first,
        request=np.repeat(np.arange(len(arrays), dtype=np.int32), lengths),
        position=(np.repeat(first, lengths) + step).astype(np.int32),
        phase=np.full(ends[-1], DECODE, np.uint8),
        expert=np.concatenate(list(arrays.values())),
    )


def _check_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    axes = ("step", "layer", "k")
    shape = next(iter(arrays.values())).shape[1:]
    for key, ids in arrays.items():
        if ids.ndim != len(axes) or ids.shape[1:] != shape or ids.dtype not in (np.uint8, np.uint16):
            raise DataError(
                f"{path}: {key}", f"must be uint8[step, layer, k] with {shape} as layer, k", (str(ids.dtype), ids.shape)
            )
        if len(ids) == 0:
            raise DataError(f"{path}: {key}", "must have at least one step")


def _read_samples(path: Path, arrays: dict[str, NDArray[Any]]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """First decode position and data set of the requests that `arrays` holds."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = {row.get("key"): (number, row) for number, row in enumerate(csv.DictReader(file), start=2)}
    except FileNotFoundError:
        raise DataError(
            str(path), "no such file; it must stand beside the npz file and describe its requests"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(str(path), f"cannot be read ({error})") from None
    first = np.empty(len(arrays), np.int64)
    groups = []
    for index, (key, ids) in enumerate(arrays.items()):
        if key not in rows:
            raise DataError(str(path), "must have a row for every request of the npz file, none for", key)
        number, row = rows[key]
        first[index] = _whole(f"{path}:{number}: first_decode_pos", row.get("first_decode_pos"))
        if row.get("n_decode") is not None and _whole(f"{path}:{number}: n_decode", row["n_decode"]) != len(ids):
            raise DataError(
                f"{path}:{number}: n_decode", f"must be {len(ids)}, the steps in the npz file", row["n_decode"]
            )
        groups.append(row.get("dataset") or "")
    return first, tuple(groups)


def _whole(place: str, text: str | None) -> int:
    if text is None or not text.isdecimal():
        raise DataError(place, "must be a whole number >= 0", "" if text is None else text)
    return int(text)


def _read_parquet_trace(path: Path, model: str | None, experts: int | None) -> RoutingTrace:
    import pyarrow as pa  # loads slowly
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(str(path), f"cannot be read ({error})") from None
    metadata = table.schema.metadata
    about = checked_metadata(_TraceMetadata, path, metadata, METADATA_KEY, kind="a routing trace", version=FORMAT)
    missing = [name for name in _TRACE_COLUMNS if name not in table.column_names or table[name].null_count]
    if missing:
        raise DataError(
            str(path), "must have the columns request, position, phase and expert without nulls, lacks", missing
        )
    text = [name for name in _TRACE_COLUMNS[:3] if not pa.types.is_integer(table[name].type)]
    if text:
        raise DataError(f"{path}: {text[0]}", "must be whole numbers", str(table[text[0]].type))
    columns = {name: table[name].to_numpy() for name in _TRACE_COLUMNS[:3]}
    return RoutingTrace(
        model=model or about.model,
        experts=experts or about.experts,
        source=str(path),
        names=about.names,
        groups=about.groups,
        first_decode_position=np.array(about.first_decode_position, dtype=np.int64),
        expert=_lists(path, table, "expert", about.top_k),
        weight=_lists(path, table, _WEIGHT, about.top_k) if _WEIGHT in table.column_names else None,
        licence=about.licence,
        capture={"source": about.source} | about.capture,
        **columns,
    )


def _lists(path: Path, table: Any, name: str, top_k: int) -> NDArray[Any]:
    """A column of lists as an array [token, layer, k]."""
    import pyarrow as pa  # loads slowly

    column = table[name]
    if not pa.types.is_fixed_size_list(column.type) or column.type.list_size % top_k or column.null_count:
        raise DataError(f"{path}: {name}", "must be lists of layers x top_k values", str(column.type))
    values: NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(table.num_rows, column.type.list_size // top_k, top_k)


class _TraceMetadata(Config):
    """What a trace file says about itself."""

    format: int
    model: str
    experts: PositiveInt
    top_k: PositiveInt
    source: str
    names: tuple[str, ...]
    groups: tuple[str, ...]
    first_decode_position: tuple[NonNegativeInt, ...]
    licence: str = ""
    capture: dict[str, StrictBool | StrictInt | StrictFloat | str] = Field(default_factory=dict)
