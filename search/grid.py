"""Grids of scenarios: `key=a,b` stands for one variant with each value."""

import itertools
from collections.abc import Iterable, Sequence

from moesim.errors import ConfigError


def expand(assignments: Sequence[str]) -> list[list[str]]:
    """Every combination of the values of `assignments`.

    Args:
        assignments: `key=value` or `key=a,b,c`. Commas inside `[list]`, `{mapping}` or quotes do not separate values.

    Returns:
        One list of single-valued assignments per combination, the last key varying fastest; [[]] for none.

    Raises:
        ConfigError: an assignment without `=` or without a value.
    """
    return [list(combination) for combination in itertools.product(*(_values(text) for text in assignments))]


def varied_keys(assignments: Iterable[str]) -> list[str]:
    """Keys of the assignments that have more than one value."""
    return [text.partition("=")[0] for text in assignments if len(_values(text)) > 1]


def _values(assignment: str) -> list[str]:
    key, equals, text = assignment.partition("=")
    values = _split(text)
    if not equals or not key or not all(values):
        raise ConfigError(f"--set {assignment}", "must read `key=value` or `key=a,b,...`")
    return [f"{key}={value}" for value in values]


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
