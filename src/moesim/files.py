"""Places to write to, and files that are written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moesim.errors import DataError


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A file to write to in the block; it takes the place of `target` when the block succeeds, and vanishes otherwise.

    It stands in a hidden folder of its own beside `target`, so that it is on the same file system, has the same name,
    and gets the permissions of any new file.

    Raises:
        DataError: the file system refuses, in the block too.
    """
    try:
        with _work_folder(target.parent) as folder:
            yield folder / target.name
            (folder / target.name).replace(target)
    except OSError as error:
        raise DataError(str(target), f"cannot be written ({error.strerror or error})") from error


@contextmanager
def _work_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a page to `path`, whole or not at all.

    Raises:
        DataError: a folder, a folder that is missing or may not be written to, or the file system refuses.
    """
    target = check_place(Path(path))
    with whole_file(target) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return target


def check_place(target: Path) -> Path:
    """`target` as a file that may be written, before any work is done.

    Raises:
        DataError: a folder, a file in a folder that is missing or may not be written to, or a name that is none.
    """
    try:
        is_folder, has_folder = target.is_dir(), target.parent.is_dir()
    except OSError as error:  # too long, a loop of links
        raise DataError(str(target), f"cannot be written ({error.strerror})") from None
    if is_folder:
        raise DataError(str(target), "must be a file, and is a folder")
    if not has_folder:
        raise DataError(str(target), "the folder must exist", str(target.parent))
    if not os.access(target.parent, os.W_OK):
        raise DataError(str(target), "the folder must be writable", str(target.parent))
    return target


def check_output(flag: str, target: Path, *suffixes: str) -> Path:
    """`target` as a file that may be written and ends in one of `suffixes`, before any work is done.

    Raises:
        DataError: it ends in something else, or as `check_place`.
    """
    if target.suffix not in suffixes:
        raise DataError(f"{flag} {target}", f"must end in {' or '.join(suffixes)}")
    return check_place(target)


def check_folder(folder: Path, flag: str | None = None) -> Path:
    """`folder` as one that files may be written to, or that may be made, before any work is done.

    Args:
        folder: the folder.
        flag: option that named it, for errors.

    Raises:
        DataError: it is a file, or neither it nor the nearest folder above that exists can be written to.
    """
    place = str(folder) if flag is None else f"{flag} {folder}"
    try:
        holder = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        is_folder = holder.is_dir()
    except OSError as error:
        raise DataError(place, f"cannot be written ({error.strerror})") from None
    if holder == folder and not is_folder:
        raise DataError(place, "must be a folder, and is a file")
    if not is_folder or not os.access(holder, os.W_OK | os.X_OK):
        raise DataError(place, "must be in a folder that can be written to", str(holder))
    return folder


def make_folder(place: str, folder: Path) -> Path:
    """`folder`, which exists then; `place` is how errors name it.

    Raises:
        DataError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{place} {folder}", f"must be a folder that can be written ({error.strerror})") from error
    return folder
