"""What pydantic found wrong, in the words of moesim: `file:line:col: dotted.key: rule, got value`."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from moesim.configs.documents import Document, KeyPath
from moesim.errors import ConfigError

_MAX_SHOWN = 60
_MAX_LISTED = 12
_SAME_LIKENESS = 0.1

_RULES: Mapping[str, str] = {
    "missing": "required",
    "invalid_key": "a key must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be finite",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "none_required": "must be null",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dataclass_type": "must be a mapping",
    "greater_than": "must be > {gt}",
    "greater_than_equal": "must be >= {ge}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be <= {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "too_short": "must have at least {min_length} items, has {actual_length}",
    "too_long": "must have at most {max_length} items, has {actual_length}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "union_tag_invalid": "must be one of {expected_tags}",
    "union_tag_not_found": "required",
    "value_error": "{error}",
    "assertion_error": "{error}",
}
"""Rule by pydantic error type, with the names of pydantic's context; other types keep pydantic's own sentence."""

_WITHOUT_VALUE = {"missing", "invalid_key", "extra_forbidden", "union_tag_not_found"}


def config_errors(cls: Any, document: Document, details: Sequence[ErrorDetails]) -> list[ConfigError]:
    """One error per broken rule of `document`, in the order of the file.

    Args:
        cls: the class that `document` was validated against; its fields are what misspelt keys are compared with.
        document: what was validated.
        details: what pydantic reports, not empty.
    """
    found = [_Finding(document.data, detail) for detail in details]
    kept = [finding for finding in found if not _is_echo(finding, found)]
    merged: dict[KeyPath, list[_Finding]] = {}
    for finding in kept:
        merged.setdefault(finding.path, []).append(finding)
    ordered = sorted(merged.items(), key=lambda item: document.position(item[0]))
    return [_error(cls, document, group) for _, group in ordered]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?` when names of `known` are near, all of them about as near as the nearest; else empty."""
    near = difflib.get_close_matches(name, list(known), n=3)
    likeness = [difflib.SequenceMatcher(None, other, name).ratio() for other in near]
    best = [f"`{other}`" for other, value in zip(near, likeness, strict=True) if value > likeness[0] - _SAME_LIKENESS]
    return f"did you mean {' or '.join(best)}?" if best else ""


class _Finding:
    """An error of pydantic with its path through the data.

    pydantic puts names of union members and discriminator tags between the keys; what does not lead further into the
    data is such a name, except the last part of a missing key.
    """

    def __init__(self, data: Any, detail: ErrorDetails) -> None:
        self.detail = detail
        self.kind = detail["type"]
        location = detail["loc"]
        path: list[str | int] = []
        dropped_last = False
        for index, part in enumerate(location):
            is_missing_key = self.kind == "missing" and index == len(location) - 1
            dropped_last = not (_leads_on(data, part) or is_missing_key)
            if not dropped_last:
                path.append(part)
                data = None if is_missing_key else data[part]
        self.of_alternative = dropped_last
        self.path: KeyPath = (*path, *self._discriminator())

    def _discriminator(self) -> KeyPath:
        """The key that says which kind of mapping this is, when that is what is wrong."""
        if not self.kind.startswith("union_tag"):
            return ()
        return (str(self.detail.get("ctx", {}).get("discriminator", "")).strip("'"),)


def _leads_on(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def _is_echo(finding: _Finding, all_findings: Sequence[_Finding]) -> bool:
    """Whether `finding` only echoes what others say about the inside of its value.

    A mapping for a union of text and mapping is reported as "not text" too, and a list is "too short" when its broken
    items do not count.
    """
    length = len(finding.path)
    return (finding.of_alternative or finding.kind == "too_short") and any(
        len(other.path) > length and other.path[:length] == finding.path for other in all_findings
    )


def _error(cls: Any, document: Document, group: Sequence[_Finding]) -> ConfigError:
    """One error for everything said about one key (a union has a rule per member)."""
    first = group[0]
    rule = ", or ".join(dict.fromkeys(_rule(cls, finding) for finding in group))
    value = _value(first)
    if value is None:
        return ConfigError(document.place(first.path), rule)
    shown = repr(value)
    if len(shown) <= _MAX_SHOWN:
        return ConfigError(document.place(first.path), rule, value)
    return ConfigError(document.place(first.path), f"{rule}, got {shown[: _MAX_SHOWN - 3]}...")


def _value(finding: _Finding) -> Any:
    """The offending value, None where the rule says it all (a mapping whose parts do not fit together)."""
    value = finding.detail["input"]
    if finding.kind in _WITHOUT_VALUE or (finding.kind == "value_error" and isinstance(value, dict | list)):
        return None
    if finding.kind == "union_tag_invalid":
        return finding.detail.get("ctx", {}).get("tag")
    return value


def _rule(cls: Any, finding: _Finding) -> str:
    if finding.kind == "extra_forbidden":
        return _unknown_key(cls, finding)
    context = finding.detail.get("ctx", {})
    template = _RULES.get(finding.kind)
    if template is None:
        message = finding.detail["msg"].removeprefix("Input should be ").removeprefix("Value should be ")
        return message if message == finding.detail["msg"] else f"must be {message}"
    rule = template.format_map(context).replace(" 1 items", " 1 item").replace(" 1 characters", " 1 character")
    return _with_suggestion(rule, finding, context)


def _with_suggestion(rule: str, finding: _Finding, context: Mapping[str, Any]) -> str:
    """Add the nearest of the allowed words to the rule when the value is a misspelt one."""
    expected = context.get("expected_tags") or context.get("expected")
    value = _value(finding)
    if not isinstance(expected, str) or not isinstance(value, str):
        return rule
    hint = did_you_mean(value, expected.replace(" or ", ", ").replace("'", "").split(", "))
    return f"{rule} ({hint})" if hint else rule


def _unknown_key(cls: Any, finding: _Finding) -> str:
    *parents, name = finding.detail["loc"]
    models = list(_models(cls))
    for part in parents:
        models = _below(models, part)
    known = sorted({_shown_name(model, field) for model in models for field in model.model_fields})
    hint = did_you_mean(str(name), known)
    if not hint and 0 < len(known) <= _MAX_LISTED:
        hint = f"known are {', '.join(known)}"
    return f"unknown key; {hint}" if hint else "unknown key"


def _below(models: Sequence[type[BaseModel]], part: str | int) -> list[type[BaseModel]]:
    """Models that may stand under `part` of `models`; a tag of a union narrows them, an index changes nothing."""
    annotations = [
        info.annotation for model in models for name, info in model.model_fields.items() if part in {name, info.alias}
    ]
    if annotations:
        return [found for annotation in annotations for found in _models(annotation)]
    tagged = [model for model in models if part == model.__name__ or part in _tags(model)]
    return tagged or list(models)


def _tags(model: type[BaseModel]) -> Iterator[object]:
    for info in model.model_fields.values():
        if get_origin(info.annotation) is Literal:
            yield from get_args(info.annotation)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every pydantic model that `annotation` mentions: itself, members of a union, items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _shown_name(model: type[BaseModel], field: str) -> str:
    return model.model_fields[field].alias or field
