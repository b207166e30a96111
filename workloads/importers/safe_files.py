"""Files of other tools, read without running anything in them: JSON, JSON lines (both perhaps gzipped), npz."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.workloads.npz_files import npz_members
from moesim.workloads.routing_files import refuse_pickle

_LIMIT = 2**31
_UNREADABLE = (OSError, EOFError, ValueError, RecursionError, zlib.error)


def check_file(path: Path, *suffixes: str) -> str:
    """The suffix of an existing file that is no pickle, without `.gz`.

    Raises:
        DataError: no such file, a pickle, or another suffix than `suffixes`.
    """
    if not path.is_file():
        raise DataError(str(path), "no such file")
    refuse_pickle(path)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in suffixes:
        raise DataError(str(path), f"must be a file of the kind {' or '.join(suffixes)}", suffix or "no suffix")
    return suffix


def read_json(path: Path) -> Any:
    """The document in a .json or .json.gz file.

    Raises:
        DataError: a file that is cut off or is not JSON.
    """
    try:
        return json.loads(_content(path))
    except _UNREADABLE as error:
        raise DataError(str(path), f"cannot be read as JSON ({error})") from None


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, document) of every line of a .jsonl or .jsonl.gz file that is not empty.

    Raises:
        DataError: a file that is cut off or a line that is not JSON.
    """
    try:
        lines = _content(path).splitlines()
    except _UNREADABLE as error:
        raise DataError(str(path), f"cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}", f"cannot be read as JSON ({error})") from None


def _content(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


def named_arrays(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    """Those of `names` that a .npz or .json file holds, as arrays of numbers.

    Raises:
        DataError: a broken file, or one whose entries are no regular arrays of numbers.
    """
    if check_file(path, ".npz", ".json") == ".npz":
        found: Any = npz_members(path)
    else:
        found = read_json(path)
        if not isinstance(found, dict):
            raise DataError(str(path), f"must be an object with the keys {', '.join(names)}")
    return {name: numbers(f"{path}: {name}", found[name]) for name in names if found.get(name) is not None}


def whole(place: str, value: Any) -> int:
    """`value` as a whole number from 0 to 2^31 - 1.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LIMIT:
        raise DataError(place, "must be a whole number >= 0", value)
    return value


def numbers(place: str, values: Any) -> NDArray[Any]:
    """`values`, perhaps nested lists, as an array of numbers.

    Raises:
        DataError: rows of different lengths, or something that is no number.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        raise DataError(place, "rows must be equally long") from None
    except OverflowError:
        raise DataError(place, "numbers must fit in 64 bits") from None
    if array.dtype.kind not in "iuf":
        raise DataError(place, "must hold numbers", str(array.dtype))
    return array
