"""From a name, a path or a mapping to a validated configuration.

`find` reads text and remembers where each key stands (`moesim.configs.documents`), `override` applies `--set a.b=c`
to the raw mapping, and `validate` hands it to pydantic and reports every error with its place (`moesim.configs.rules`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from moesim.configs.documents import INLINE, Document, Key, KeyPath, dotted
from moesim.configs.rules import config_errors, did_you_mean
from moesim.configs.yaml_reader import parse_yaml, read_yaml
from moesim.errors import ConfigError

__all__ = [
    "Config",
    "Document",
    "Finder",
    "KeyPath",
    "Reference",
    "find",
    "load",
    "override",
    "read_yaml",
    "shipped",
    "take_over",
    "validate",
]

T = TypeVar("T")

Reference = str | Path | Mapping[str, Any] | Document
"""Name of a shipped configuration, path of a file, inline mapping, or a document that holds one of these."""

Finder = str | Callable[[Document], Document]
"""Folder in which a reference is looked up, or a function that looks it up."""

_HERE = Path(__file__).parent
_SUFFIXES = (".yaml", ".yml", ".json")
_NUMBERS: tuple[Any, ...] = (int, float, int | None, float | None)


class Config(BaseModel):
    """Base of all configuration classes: no unknown keys, no changes after loading, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_truth_as_number(cls, data: Any) -> Any:
        """Make `true` the text it was written as in fields that are numbers, else pydantic would take it for 1."""
        if not isinstance(data, dict) or not any(isinstance(value, bool) for value in data.values()):
            return data
        numbers = {name for name, field in cls.model_fields.items() if field.annotation in _NUMBERS}
        return {
            name: str(value).lower() if isinstance(value, bool) and name in numbers else value
            for name, value in data.items()
        }


def load(cls: type[T], folder: str, reference: Reference, base: str | Path | None = None) -> T:
    """Find `reference` among the configurations of `folder` and validate it as `cls`.

    Raises:
        ConfigError: as `find` and `validate` do.
    """
    return validate(cls, find(folder, reference, base))


def validate(cls: type[T], document: Document) -> T:
    """`document` as an instance of `cls`, a pydantic model or any type pydantic knows.

    Raises:
        ConfigError: one or more rules are broken; all are in the message, a line each.
    """
    try:
        return TypeAdapter(cls).validate_python(document.data)
    except ValidationError as error:
        raise ConfigError.join(config_errors(cls, document, error.errors(include_url=False))) from None


def shipped(folder: str) -> tuple[str, ...]:
    """Sorted names of the configurations that ship in `folder` (`models`, `devices`, ...)."""
    return tuple(sorted(path.stem for path in (_HERE / folder).glob("*.yaml")))


def find(folder: str, reference: Reference, base: str | Path | None = None) -> Document:
    """The configuration that `reference` stands for.

    Args:
        folder: `models`, `devices`, `systems`, ...: where shipped names are looked up.
        reference: a name; a path (it has a slash or ends in .yaml, .yml or .json); a mapping, taken as it is; or a
            document that holds one of these, which is how a scenario refers to its model.
        base: folder that relative paths start from; by default the folder of the file that holds the reference, else
            the working folder.

    Raises:
        ConfigError: there is no such name or file, or the file is not YAML.
    """
    if isinstance(reference, Mapping):
        return Document(INLINE, dict(reference))
    if not isinstance(reference, Document):
        return read_yaml(_locate(folder, reference, base, None))
    if isinstance(reference.data, Mapping):
        return reference
    if not isinstance(reference.data, str):
        rule = f"must be the name of one of configs/{folder}, a path, or a mapping"
        raise ConfigError(reference.place(), rule)
    base = reference.folder if base is None else base
    return read_yaml(_locate(folder, reference.data, base, reference.place()))


def take_over(document: Document, folder: str, path: KeyPath) -> Document:
    """`document` with the text `name.key.key` at `path` replaced by that part of a shipped configuration.

    So that a link or a processor that two configurations share is written once. Anything but text is left as it is.

    Raises:
        ConfigError: no such configuration, or no such part of it.
    """
    holder = document.at(path)
    if not isinstance(holder.data, str):
        return document
    name, *keys = holder.data.split(".")
    source = read_yaml(_locate_shipped(folder, name, holder.place()))
    return document.graft(path, source.at(tuple(keys)))


def _locate(folder: str, reference: str | Path, base: str | Path | None, place: str | None) -> Path:
    """File of a name or a path; `place` is where the reference stands, for errors."""
    if isinstance(reference, str) and not _is_path(reference):
        return _locate_shipped(folder, reference, place)
    path = Path(base or "") / Path(reference).expanduser()
    if place is not None and not path.is_file():
        raise ConfigError(place, "no such file", str(path))
    return path


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.endswith(_SUFFIXES)


def _locate_shipped(folder: str, name: str, place: str | None) -> Path:
    names = shipped(folder)
    if name in names:
        return _HERE / folder / f"{name}.yaml"
    hint = did_you_mean(name, names)
    rule = f"must be a path or one of the {len(names)} shipped names{f' ({hint})' if hint else ''}"
    raise ConfigError(place or folder, rule, name)


def override(
    document: Document, assignments: Sequence[str], references: Mapping[str, Finder] | None = None
) -> Document:
    """Edit the raw mapping before validation.

    Args:
        document: what to edit; it is not changed.
        assignments: `key.subkey=value` each, in order. A value is a YAML scalar, `[list]` or `{mapping}`; an item of a
            list goes by its index; mappings that are missing are created.
        references: keys whose text names another configuration, with the folder of it, such as
            `{"model": "models"}`, or with a function that finds it; `*` in a key stands for any one key.
            `model.hidden=4096` then reads that configuration in and edits it.

    Raises:
        ConfigError: an assignment has no `=`, no YAML value, a key inside a scalar, or an index outside the list.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"--set {assignment}", "must read `key.subkey=value`")
        document, path = _follow(document, parts, references or {})
        document = document.edited(path, _parse_value(f"--set {key.strip()}", text))
    return document


def _matches(reference: str, path: KeyPath) -> bool:
    """Whether `path` is the key `reference`, in which `*` stands for any one key."""
    keys = reference.split(".")
    return len(keys) == len(path) and all(key in ("*", str(part)) for key, part in zip(keys, path, strict=True))


def _parse_value(place: str, text: str) -> Any:
    value = parse_yaml(text, place).data
    if isinstance(value, dict | list) and not text.lstrip().startswith(("{", "[")):
        raise ConfigError(place, "must be a YAML scalar, [list] or {mapping}", text)
    return value


def _follow(document: Document, parts: Sequence[str], references: Mapping[str, Finder]) -> tuple[Document, KeyPath]:
    """Path that `parts` spell in `document`, and the document with the references on the way read in."""
    path: KeyPath = ()
    data = document.data
    for part in parts:
        finder = next((found for key, found in references.items() if _matches(key, path)), None)
        if finder is not None and isinstance(data, str):
            held = document.at(path)
            document = document.graft(path, find(finder, held) if isinstance(finder, str) else finder(held))
            data = document.at(path).data
        key = _key(data, part, f"--set {'.'.join(parts)}", dotted(path))
        data = data[key] if isinstance(data, list) and isinstance(key, int) else (data or {}).get(key)
        path = (*path, key)
    return document, path


def _key(data: Any, part: str, place: str, parent: str) -> Key:
    """`part` as a key of `data`: an index of a list, a whole number where the mapping has that key, else text."""
    number = int(part) if part.isdecimal() else None
    if isinstance(data, list):
        if number is None or number >= len(data):
            raise ConfigError(place, f"{parent} is a list of {len(data)}, so its key must be an index below that", part)
        return number
    if data is not None and not isinstance(data, dict):
        raise ConfigError(place, f"{parent} must be a mapping to have keys", data)
    return number if number is not None and number in (data or {}) else part
