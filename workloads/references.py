"""References that may name a data file where a configuration is expected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moesim.configs.documents import INLINE
from moesim.configs.loader import Document, Reference, find


def find_or_wrap(folder: str, reference: Reference, base: str | Path | None, expand: Callable[[Any], Any]) -> Document:
    """The configuration that `reference` stands for, or `reference` itself where it is a shorthand.

    Args:
        folder: where shipped names are looked up.
        reference: as in `moesim.configs.loader.find`, or a shorthand.
        base: folder that relative paths start from.
        expand: makes a mapping of a shorthand and returns anything else as it is.

    Raises:
        ConfigError: as `find` does.
    """
    held = reference.data if isinstance(reference, Document) else reference
    if not isinstance(held, str | Path) or not isinstance(expand(str(held)), dict):
        return find(folder, reference, base)
    return reference if isinstance(reference, Document) else Document(INLINE, str(held))


def folder_of(document: Document, key: str, base: str | Path | None) -> Path:
    """Folder that a relative path under `key` starts from: that of the file that holds it, else `base`."""
    holder = document if isinstance(document.data, str) else document.child(key)
    return Path(holder.folder or base or "")
