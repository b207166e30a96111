"""Errors that moesim raises on purpose.

    MoeSimError
    ├── InputError          what the user gave is wrong; the CLI prints it and exits with code 2
    │   ├── ConfigError     a YAML or JSON configuration, or a command-line value
    │   ├── DataError       a trace, a request file, a results folder
    │   └── CapacityError   the model or a request does not fit in the memory of the devices
    ├── GraphError          a task graph that cannot be played (a cycle, a negative duration)
    └── StalledError        a simulation that ended before its requests did; a fault of the simulator

Every message reads `place: rule, got value`.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any


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

    def __reduce__(self) -> tuple[Any, ...]:
        """How it travels between processes: an exception is otherwise made anew from its message alone."""
        return _remade, (type(self), self.args, self.__dict__)


def _remade(kind: type[InputError], args: tuple[Any, ...], held: dict[str, Any]) -> InputError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(held)
    return error


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


class StalledError(MoeSimError):
    """Nothing is left to happen, and yet requests are unfinished."""


class NotedErrors:
    """Notes the input errors of `with` blocks and goes on, so that a user sees everything at once."""

    def __init__(self) -> None:
        self.errors: list[InputError] = []

    def __enter__(self) -> None:
        """Start of a block."""

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        """End of a block; its input error is noted, another one goes its way."""
        if isinstance(error, InputError):
            self.errors.append(error)
        return isinstance(error, InputError)

    def raise_all(self) -> None:
        """Raise the error, or one with the messages of all; nothing if there is none."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            first = self.errors[0]
            kind = type(first) if len(set(map(type, self.errors))) == 1 else InputError
            joined = kind(first.place, first.rule, first.got)
            joined.args = ("\n".join(str(error) for error in self.errors),)
            raise joined
