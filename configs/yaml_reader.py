"""YAML and JSON files as documents.

YAML is read by the core schema of YAML 1.2: `1e9` is a number, `no`, `on` and `3:20` are text, and there are no dates.
Anchors and merge keys (`<<`) work. JSON is a subset of YAML and goes through the same reader.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from moesim.configs.documents import Document, Key, KeyPath
from moesim.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_MAX_VALUES = 250_000
"""Aliases may repeat a block; more values than this is a mistake, or an attack (the "billion laughs")."""


def read_yaml(path: str | Path) -> Document:
    """Read a YAML or JSON file.

    Raises:
        ConfigError: the file is missing, empty, not UTF-8, cut off, not YAML, or has the same key twice.
    """
    file = str(path)
    text = _read_text(Path(path))
    if file.endswith(".json"):
        text = text.replace("\t", " ")  # PyYAML refuses tabs; JSON allows them, but only between tokens
    document = parse_yaml(text, file)
    if document.data is None:
        raise ConfigError(file, "must not be empty")
    return document


def parse_yaml(text: str, file: str) -> Document:
    """Read YAML from `text`; `file` is what errors name. Empty text is None.

    Raises:
        ConfigError: the text is not YAML, has the same key twice, an unknown tag, or an alias of itself.
    """
    try:
        node = _compose(text)
        builder = _Builder(file)
        data = None if node is None else builder.build(node, (), ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = file if mark is None else f"{file}:{mark.line + 1}:{mark.column + 1}"
        raise ConfigError(where, f"must be YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line, column = _line_and_column(text, error.position)
        raise ConfigError(f"{file}:{line}:{column}", "must not hold control characters", error.character) from None
    except RecursionError:
        raise ConfigError(file, "is nested too deeply") from None
    return Document(file, data, builder.marks)


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(str(path), "no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}", "must be UTF-8 text", raw[error.start : error.start + 1]) from None


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1


class _CoreLoader(yaml.BaseLoader):
    """PyYAML's reader with the implicit types of YAML 1.2 in place of those of YAML 1.1."""


_PATTERNS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
_EXPECTED = {name: re.compile(f"(?:{pattern})\\Z") for name, (pattern, _) in _PATTERNS.items()}
for _name, (_, _first) in _PATTERNS.items():
    _CoreLoader.add_implicit_resolver(_TAG + _name, _EXPECTED[_name], [*_first, *([""] if _name == "null" else [])])


def _compose(text: str) -> yaml.Node | None:
    loader = _CoreLoader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
    finally:
        loader.dispose()
    return node


class _Builder:
    """Turns composed nodes into values and notes where each stands."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.marks: dict[KeyPath, tuple[int, int]] = {}
        self._visited = 0

    def build(self, node: yaml.Node, path: KeyPath, parents: tuple[int, ...], key: yaml.Node | None = None) -> Any:
        """Value of `node`, which stands at `path`; its mark is that of its key when it has one."""
        self._check(node, parents)
        self.marks[path] = _mark(key or node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        inside = (*parents, id(node))
        if isinstance(node, yaml.SequenceNode):
            self._expect_tag(node, "seq")
            return [self.build(item, (*path, index), inside) for index, item in enumerate(node.value)]
        self._expect_tag(node, "map")
        entries = self._entries(node, inside)
        return {name: self.build(value, (*path, name), inside, at) for name, (at, value) in entries.items()}

    def error(self, node: yaml.Node, rule: str, got: object = None) -> ConfigError:
        line, column = _mark(node)
        return ConfigError(f"{self.file}:{line}:{column}", rule, got)

    def _check(self, node: yaml.Node, parents: tuple[int, ...]) -> None:
        if id(node) in parents:
            raise self.error(node, "an alias must not stand inside what it names")
        self._visited += 1
        if self._visited > _MAX_VALUES:
            raise self.error(node, f"must hold at most {_MAX_VALUES} values")

    def _expect_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != _TAG + kind:
            raise self.error(node, "must not have a YAML tag", node.tag)

    def _entries(self, node: yaml.Node, parents: tuple[int, ...]) -> dict[Key, tuple[yaml.Node, yaml.Node]]:
        """Key and value nodes by key: own entries win over merged ones, the first merged one over later ones."""
        own: dict[Key, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[Key, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                merged = self._merged(value, parents) | merged
                continue
            name = self._key(key)
            if name in own:
                first_line, _ = _mark(own[name][0])
                raise self.error(key, f"key {name!r} stands here for the second time, first in line {first_line}")
            own[name] = (key, value)
        return {**merged, **own}

    def _merged(self, value: yaml.Node, parents: tuple[int, ...]) -> dict[Key, tuple[yaml.Node, yaml.Node]]:
        found: dict[Key, tuple[yaml.Node, yaml.Node]] = {}
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if not isinstance(source, yaml.MappingNode):
                raise self.error(source, "`<<` must name a mapping or a list of mappings")
            self._check(source, parents)
            found = self._entries(source, (*parents, id(source))) | found
        return found

    def _key(self, node: yaml.Node) -> Key:
        name = self._scalar(node) if isinstance(node, yaml.ScalarNode) else None
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise self.error(node, "a key must be text or a whole number", name)
        return name

    def _scalar(self, node: yaml.ScalarNode) -> object:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        if kind in {"str", "merge"}:
            return text
        if kind not in _EXPECTED:
            raise self.error(node, "must not have a YAML tag", node.tag)
        if not _EXPECTED[kind].match(text):
            raise self.error(node, f"must be a YAML {kind}", text)
        return self._value(node, kind, text)

    def _value(self, node: yaml.ScalarNode, kind: str, text: str) -> object:
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "float":
            return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))
        try:
            return int(text, 0) if text[:2] in {"0x", "0o"} else int(text)
        except ValueError:  # Python refuses whole numbers of more than 4300 digits
            raise self.error(node, "must be a whole number of at most 4300 digits") from None


def _mark(node: yaml.Node) -> tuple[int, int]:
    mark = node.start_mark
    return mark.line + 1, mark.column + 1
