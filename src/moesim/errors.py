"""Errors that moesim raises on purpose.

    MoeSimError
    ├── InputError          what the user gave is wrong; the CLI prints it and exits with code 2
    │   ├── ConfigError     a YAML or JSON configuration, or a command-line value
    │   ├── DataError       a trace, a request file, a results folder
    │   └── CapacityError   the model or a request does not fit in the memory of the devices
    └── GraphError          a task graph that cannot be played (a cycle, a negative duration)

Every message reads `place: rule, got value`.
"""

from collections.abc import Sequence


class MoeSimError(Exception):
    """Root of all errors raised by moesim."""


class InputError(MoeSimError):
    """Something the user gave breaks a rule.

    Args:
        place: where, such as `h100.yaml:7:5: memory.bandwidth` or `trace.csv:12`.
        rule: what must hold, in words.
        got: the offending value; left out of the message when None.
    """

    def __init__(self, place: str, rule: str, got: object = None) -> None:
        self.place = place
        self.rule = rule
        self.got = got
        shown = "" if got is None else f", got {got!r}"
        super().__init__(f"{place}: {rule}{shown}")


class ConfigError(InputError):
    """One or more rules of a configuration are broken; all are reported at once."""

    @classmethod
    def join(cls, errors: Sequence["ConfigError"]) -> "ConfigError":
        """One error that carries the messages of `errors` (at least one), a line each."""
        first = errors[0]
        joined = cls(first.place, first.rule, first.got)
        joined.args = ("\n".join(str(error) for error in errors),)
        return joined


class DataError(InputError):
    """A data file is missing, truncated, or holds a value that cannot be."""


class CapacityError(InputError):
    """Weights, or the KV cache of one request, exceed the memory of the devices."""


class GraphError(MoeSimError):
    """A task graph breaks the rules of the engines."""
