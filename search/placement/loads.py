"""Expert loads from recordings of routing, and from tables in CSV, JSON or npz files."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.configs.documents import Document
from moesim.errors import ConfigError, DataError
from moesim.search.placement.problem import Floats
from moesim.workloads.models import Model
from moesim.workloads.npz_files import npz_members
from moesim.workloads.routing import load_routing
from moesim.workloads.routing_files import is_profile, read_routing_trace
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_trace import RoutingTrace

Row = tuple[str, Sequence[object]]
"""Where a layer's loads stand, and what stands there."""

_KEY = "loads"
_UNREADABLE = (OSError, ValueError, RecursionError, csv.Error)
"""What reading a broken CSV or JSON file raises."""


@dataclass(frozen=True, eq=False)
class ExpertLoads:
    """How much every expert has to do.

    Args:
        loads: float64[layer, expert]. Of a trace the tokens per expert; of a profile the tokens per expert for each
            token of the batch; of a table what it says.
        model: the model they were measured on, None if the file does not say.
        source: where they come from.
    """

    loads: Floats
    model: str | None
    source: str


def recorded_loads(reference: str, model: Model | None = None, place: str = "trace") -> ExpertLoads:
    """Loads of a routing trace or profile.

    Args:
        reference: file (.parquet, .npz, .yaml), or the name of a shipped profile.
        model: the model that was recorded; by default what the file says.
        place: where the reference stands, for errors.

    Raises:
        ConfigError: unknown name, or routing that is not recorded.
        DataError: a missing or broken file, or one of a model with other dimensions than `model`.
    """
    path = Path(reference)
    if model is not None and path.suffix in {".npz", ".parquet"} and not is_profile(path):
        routing: object = read_routing_trace(path, model.name, _experts(model))
    else:
        routing = load_routing(Document(place, reference))
    if isinstance(routing, RoutingTrace):
        found = ExpertLoads(routing.loads().astype(np.float64), routing.model, str(reference))
    elif isinstance(routing, RoutingProfile):
        found = ExpertLoads(routing.popularity * routing.top_k, routing.model, str(reference))
    else:
        raise ConfigError(str(reference), "must be a recorded trace or profile")
    return _of_model(found, model)


def tabled_loads(path: str | Path, model: Model | None = None) -> ExpertLoads:
    """Loads from a table with one row per MoE layer and one column per expert.

    `.csv` may begin with a line of names; `.json` holds the rows, one row alone, or an object with the key `loads` and
    perhaps `model`; `.npz` holds one array, or one called `loads`.

    Raises:
        DataError: a missing or broken file, rows of different lengths, an entry that is no load, a layer without load,
            or a table of another size than `model` has.
    """
    path = Path(path)
    readers = {".csv": _csv_rows, ".json": _json_rows, ".npz": _npz_rows}
    if path.suffix not in readers:
        raise DataError(str(path), "a table of loads must be a .csv, .json or .npz file")
    if not path.is_file():
        raise DataError(str(path), "no such file")
    try:
        rows, name = readers[path.suffix](path)
    except _UNREADABLE as error:
        raise DataError(str(path), f"cannot be read ({error})") from None
    return _of_model(ExpertLoads(_table(path, rows), name, str(path)), model)


def _csv_rows(path: Path) -> tuple[list[Row], str | None]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        rows: list[Row] = [(f"{path}:{lines.line_num}", cells) for cells in lines if any(map(str.strip, cells))]
    if rows and not any(_is_number(cell) for cell in rows[0][1]):
        del rows[0]
    return rows, None


def _json_rows(path: Path) -> tuple[list[Row], str | None]:
    document = json.loads(path.read_text(encoding="utf-8"))
    name = None
    if isinstance(document, dict):
        name = document.get("model")
        document = document.get(_KEY)
    if not isinstance(document, list):
        raise DataError(str(path), f"must be a list of rows, or an object with one under `{_KEY}`")
    if document and not any(isinstance(row, list) for row in document):
        document = [document]
    for index, row in enumerate(document):
        if not isinstance(row, list):
            raise DataError(f"{path}: layer {index}", "must be a list of loads", row)
    return _numbered(path, document), None if name is None else str(name)


def _npz_rows(path: Path) -> tuple[list[Row], str | None]:
    arrays = npz_members(path)
    if _KEY not in arrays and len(arrays) != 1:
        raise DataError(str(path), f"must hold one array, or one called `{_KEY}`", list(arrays))
    array = arrays[_KEY] if _KEY in arrays else next(iter(arrays.values()))
    if array.ndim not in {1, 2} or array.dtype.kind not in "iuf":
        raise DataError(str(path), "must hold numbers with axes [layer, expert]", (str(array.dtype), array.shape))
    return _numbered(path, np.atleast_2d(array).tolist()), None


def _numbered(path: Path, rows: Sequence[Sequence[Any]]) -> list[Row]:
    return [(f"{path}: layer {index}", row) for index, row in enumerate(rows)]


def _table(path: Path, rows: Sequence[Row]) -> Floats:
    if not rows or not rows[0][1]:
        raise DataError(str(path), "must have a row per layer and a column per expert, and is empty")
    experts = len(rows[0][1])
    for place, row in rows:
        if len(row) != experts:
            raise DataError(place, f"must have {experts} loads, as the first row has", len(row))
    table = np.array([[_load(place, column, cell) for column, cell in enumerate(row)] for place, row in rows])
    for (place, _), loads in zip(rows, table, strict=True):
        if not loads.any():
            raise DataError(place, "a layer must have load, all its experts have 0")
    return table


def _load(place: str, column: int, cell: object) -> float:
    rule = f"column {column + 1} must be a finite number >= 0"
    if isinstance(cell, bool) or not isinstance(cell, int | float | str) or not _is_number(cell):
        raise DataError(place, rule, cell if cell is not None else "null")
    value = float(str(cell))  # a whole number beyond float64 becomes infinite
    if not math.isfinite(value) or value < 0:
        raise DataError(place, rule, value)
    return value


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True


def _of_model(found: ExpertLoads, model: Model | None) -> ExpertLoads:
    """`found` under the name of `model`, if it has that model's dimensions."""
    if model is None:
        return found
    layers, experts = len(model.moe_layers), _experts(model)
    if found.loads.shape != (layers, experts):
        rule = f"must have {layers} layers with {experts} experts, as {model.name} has"
        raise DataError(found.source, rule, found.loads.shape)
    return ExpertLoads(found.loads, model.name, found.source)


def _experts(model: Model) -> int:
    if not model.moe_layers:
        raise ConfigError(model.name, "has no layers with routed experts, so nothing to place")
    return model.moe_layers[0][1].experts
