"""Archives of plain arrays, such as traces, profiles and learned corrections come in. Nothing is unpickled."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from moesim.errors import DataError

_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""In order: no permission; cut off; no array, or a pickled one; encrypted, or packed in a way that Python does
not know; no archive; broken inside."""


def npz_members(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file by name.

    Raises:
        DataError: a file that is missing, cut off, or no archive of plain arrays.
    """
    with _archive(path) as archive:
        return {name: archive[name] for name in archive.files}


def npz_names(path: Path) -> list[str]:
    """Names of the arrays of an .npz file, which are not read.

    Raises:
        DataError: a file that is missing, cut off, or no archive.
    """
    with _archive(path) as archive:
        return list(archive.files)


@contextmanager
def _archive(path: Path) -> Iterator[NpzFile]:
    """The archive at `path`; that it cannot be read, or something in it, is a `DataError`."""
    try:
        with path.open("rb") as file:  # left to numpy, a broken file would stay open
            if not zipfile.is_zipfile(file):
                raise DataError(str(path), "cannot be read (no archive of arrays, or one that is cut off)")
            file.seek(0)
            yield np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(str(path), "no such file") from None
    except _UNREADABLE as error:
        raise DataError(str(path), f"cannot be read ({error})") from None
