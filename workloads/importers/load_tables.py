"""Loads without tokens: tables of loads, and load fractions of requests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.workloads.importers.recorded import ImportOptions, make_profile
from moesim.workloads.importers.safe_files import check_file, numbers, read_json
from moesim.workloads.npz_files import npz_members
from moesim.workloads.routing_profile import RoutingProfile

_KEY = "loads"
_FRACTION_AXES = ("request", "layer", "expert")
_TABLE_AXES = ("layer", "expert")


def read_loads(paths: Sequence[Path], options: ImportOptions) -> RoutingProfile:
    """A table with a row per MoE layer and a column per expert, of counts or shares.

    .csv may begin with a line of names; .json holds the rows, or an object with them under `loads`; .npz holds one
    array, or one called `loads`.

    Raises:
        InputError, DataError: as `import_routing`.
    """
    if len(paths) > 1:
        raise DataError(str(paths[1]), "a profile is made of one table of loads")
    path = paths[0]
    readers = {".csv": _csv_table, ".json": _json_table, ".npz": _npz_table}
    table = readers[check_file(path, *readers)](path)
    if table.ndim != len(_TABLE_AXES) or table.dtype.kind not in "iuf":
        raise DataError(str(path), "must hold numbers with axes [layer, expert]", (str(table.dtype), table.shape))
    return make_profile(table.astype(np.float64), str(path), paths, options, "table of loads")


def _csv_table(path: Path) -> NDArray[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read ({error})") from None
    lines = [line.split(",") for line in text.splitlines() if line.strip(" ,\t")]
    if lines and not any(_is_number(cell) for cell in lines[0]):
        del lines[0]
    rows = []
    for number, cells in enumerate(lines):
        wrong = next((cell for cell in cells if not _is_number(cell)), None)
        if wrong is not None or len(cells) != len(lines[0]):
            rule = f"must be {len(lines[0])} numbers, separated by commas"
            raise DataError(f"{path}: layer {number}", rule, wrong if wrong is not None else len(cells))
        rows.append([float(cell) for cell in cells])
    return np.array(rows)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _json_table(path: Path) -> NDArray[Any]:
    document = read_json(path)
    return numbers(str(path), document.get(_KEY, []) if isinstance(document, dict) else document)


def _npz_table(path: Path) -> NDArray[Any]:
    arrays = npz_members(path)
    if _KEY not in arrays and len(arrays) != 1:
        raise DataError(str(path), f"must hold one array, or one called `{_KEY}`", list(arrays))
    return arrays.get(_KEY, next(iter(arrays.values())))


def read_fractions(paths: Sequence[Path], options: ImportOptions) -> RoutingProfile:
    """Mean of the load fractions of requests: every request counts the same, whatever its length.

    .npz with an array float[request, layer, expert] per group, each row the share of a request's selections, as
    ajtejankar/mixtral-vis-moe published for Mixtral and MMLU (Apache-2.0). `options.group` takes one group.

    Raises:
        InputError, DataError: as `import_routing`.
    """
    parts: dict[str, NDArray[np.float64]] = {}
    for path in paths:
        check_file(path, ".npz")
        found = {f"{path}: {name}": array for name, array in npz_members(path).items() if options.group in {None, name}}
        parts |= {place: _checked(place, array) for place, array in found.items()}
    if not parts:
        raise DataError(str(paths[0]), "must hold the group", options.group or "any")
    shapes = {array.shape[1:]: place for place, array in parts.items()}
    if len(shapes) > 1:
        raise DataError(list(shapes.values())[1], "all groups must have the layers and experts", next(iter(shapes)))
    every = np.concatenate(list(parts.values()))
    group = "" if options.group is None else f", group {options.group}"
    return make_profile(
        every.mean(axis=0), str(paths[0]), paths, options, f"mean load fractions of {len(every)} requests{group}"
    )


def _checked(place: str, array: NDArray[Any]) -> NDArray[np.float64]:
    """Fractions, each row scaled to sum 1."""
    if array.ndim != len(_FRACTION_AXES) or array.dtype.kind != "f" or not array.size:
        raise DataError(place, "must be shares with axes [request, layer, expert]", (str(array.dtype), array.shape))
    exact = array.astype(np.float64)
    sums = exact.sum(axis=2)
    tolerance = 0.01  # float16 rounds eight shares by up to 0.004 together
    wrong = np.argwhere(~(np.isfinite(sums) & (abs(sums - 1) < tolerance) & (exact >= 0).all(axis=2)))
    if wrong.size:
        row, layer = (int(index) for index in wrong[0])
        raise DataError(
            f"{place}, row {row}", f"shares must be >= 0 and sum to 1 (layer {layer})", float(sums[row, layer])
        )
    return np.asarray(exact / sums[..., np.newaxis], np.float64)
