"""Raw configuration with places: what a file says, and at which line and column it says it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moesim.errors import ConfigError

Key = str | int
KeyPath = tuple[Key, ...]

INLINE = "<inline>"

_SET = "--set "


@dataclass(frozen=True)
class Document:
    """A configuration, or a part of one, before validation.

    Args:
        file: where it was read, `<inline>` when it was given as a mapping.
        data: mappings, lists and scalars.
        marks: line and column, both from 1, of every key and list item; `()` is the start of the document.
        prefix: keys from the root of the file down to this part.
        sources: subtrees that do not come from `file`: another file, or `--set key` on the command line.
    """

    file: str
    data: Any
    marks: Mapping[KeyPath, tuple[int, int]] = field(default_factory=dict)
    prefix: KeyPath = ()
    sources: Mapping[KeyPath, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """Folder that relative paths in this document start from; None is the working folder."""
        return None if self.file == INLINE or self.is_set(()) else Path(self.file).parent

    def is_set(self, path: KeyPath) -> bool:
        """Whether `path` was given on the command line."""
        return self._source(path)[1].startswith(_SET)

    def child(self, key: Key) -> "Document":
        """The part under `key`, which still knows its places.

        Raises:
            ConfigError: there is no such key.
        """
        known = range(len(self.data)) if isinstance(self.data, list) else self.data
        if not isinstance(known, Mapping | range) or key not in known:
            raise ConfigError(self.place((key,)), "required")
        root, source = self._source((key,))
        sources = {path[1:]: name for path, name in self.sources.items() if path[:1] == (key,)}
        marks = {path[1:]: mark for path, mark in self.marks.items() if path[:1] == (key,)}
        if source.startswith(_SET):
            return Document(self.file, self.data[key], marks, (*self.prefix, key), sources | {(): source})
        if root == (key,):
            del sources[()]
            return Document(source, self.data[key], marks, (), sources)
        return Document(self.file, self.data[key], marks, (*self.prefix, key), sources)

    def at(self, path: KeyPath) -> "Document":
        """The part at `path`, as `child` for every key of it."""
        part = self
        for key in path:
            part = part.child(key)
        return part

    def position(self, path: KeyPath) -> tuple[int, int]:
        """Line and column of `path`, of its nearest parent where it has none of its own, (0, 0) where none has."""
        return next((self.marks[known] for known in _ancestors(path) if known in self.marks), (0, 0))

    def place(self, path: KeyPath = ()) -> str:
        """`file:line:col: dotted.key` of `path`; a missing key stands at its parent."""
        root, source = self._source(path)
        if source.startswith(_SET):
            return source if path == root else f"{source}: {dotted((*self.prefix, *path))}"
        if self.marks and path not in self.marks and (below := self._edit_below(path)):
            return f"{below}: {dotted((*self.prefix, *path))}"
        shown = dotted(path[len(root) :] if root else (*self.prefix, *path))
        line, column = self.position(path)
        where = f"{source}:{line}:{column}" if line else source
        return f"{where}: {shown}" if shown else where

    def graft(self, path: KeyPath, other: "Document") -> "Document":
        """This document with `other` in place of what `path` holds; errors under `path` name the file of `other`."""
        sources = {known: name for known, name in self.sources.items() if known[: len(path)] != path}
        sources |= {path: other.file} | {(*path, *known): name for known, name in other.sources.items()}
        marks = {known: mark for known, mark in self.marks.items() if known[: len(path)] != path}
        marks |= {(*path, *known): mark for known, mark in other.marks.items()}
        return replace(self, data=with_value(self.data, path, other.data), marks=marks, sources=sources)

    def edited(self, path: KeyPath, value: Any) -> "Document":
        """This document with `value` at `path`, as if given by `--set`."""
        label = _SET + dotted((*self.prefix, *path))
        return self.graft(path, Document(file=label, data=value))

    def _edit_below(self, path: KeyPath) -> str | None:
        """The first edit of something inside `path`, which made it where the file does not have it."""
        edits = (name for known, name in self.sources.items() if name.startswith(_SET) and known[: len(path)] == path)
        return next(edits, None) if path else None

    def _source(self, path: KeyPath) -> tuple[KeyPath, str]:
        """Root of the subtree that holds `path`, and where that subtree comes from."""
        for known in _ancestors(path):
            if known in self.sources:
                return known, self.sources[known]
        return (), self.file


def dotted(path: KeyPath) -> str:
    """`("memory", 0, "size")` as `memory.0.size`."""
    return ".".join(str(key) for key in path)


def with_value(data: Any, path: KeyPath, value: Any) -> Any:
    """A copy of `data` with `value` at `path`; mappings that are missing on the way are created."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(data, list):
        return [with_value(old, rest, value) if index == key else old for index, old in enumerate(data)]
    old = data or {}
    return {**old, key: with_value(old.get(key), rest, value)}


def _ancestors(path: KeyPath) -> Iterator[KeyPath]:
    """`path`, its parent, and so on up to `()`."""
    return (path[:length] for length in range(len(path), -1, -1))
