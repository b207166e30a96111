"""What data files say about themselves: JSON in the metadata of a parquet file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from moesim.configs.documents import Document
from moesim.configs.loader import Config, validate
from moesim.errors import ConfigError, DataError

T = TypeVar("T", bound=Config)


def checked_metadata(
    cls: type[T], path: Path, metadata: Mapping[bytes, bytes] | None, key: bytes, *, kind: str, version: int
) -> T:
    """The entry `key` of the metadata of the file `path` as a `cls`.

    Args:
        cls: what it must hold, a field `format` included.
        path: the file, for errors.
        metadata: all entries of its schema.
        key: the entry.
        kind: what the file should be, such as `a routing trace`.
        version: the format that is understood.

    Raises:
        DataError: no entry, another format, or a broken rule.
    """
    place = f"{path}: metadata {key.decode()}"
    try:
        data = json.loads((metadata or {}).get(key, b""))
    except (ValueError, RecursionError):
        raise DataError(place, f"must be that of {kind}, as JSON") from None
    if isinstance(data, dict) and data.get("format") != version:
        raise DataError(f"{place}: format", f"must be {version}", data.get("format"))
    try:
        return validate(cls, Document(place, data))
    except ConfigError as error:
        raise DataError(error.place, error.rule, error.got) from None
