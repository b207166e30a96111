"""Work in a process of its own that can be stopped at any moment.

A solver may overrun its own time limit, crash, or print to the process's standard output; none of it may reach the
caller. The child is a fresh interpreter that imports one function by name, gets a JSON payload on standard input and
answers in JSON lines. It is killed when the time is up, when the caller stops listening, and when the caller dies.
"""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from importlib import import_module
from threading import Thread
from typing import IO, Any

from moesim.errors import MoeSimError

Send = Callable[[dict[str, Any]], None]
"""How the function in the child answers, as often as it likes."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from moesim.search.child_process import serve; serve()"
)
_BLOCK_BYTES = 1 << 16
_LONGEST_WAIT_S = 3600.0
"""Far below what the operating system can count to in milliseconds."""
_SHOWN_CHARACTERS = 400


class ChildFailedError(MoeSimError):
    """The child process ended by itself, and not well."""


def messages(target: str, payload: dict[str, Any], deadline_s: float) -> Generator[dict[str, Any]]:
    """Run a function in a child process and yield what it sends; ends when the function or the time does.

    Close the iterator (`contextlib.closing`) to be sure that the child is gone when leaving the loop early.

    Args:
        target: `package.module:function`, called as `function(payload, send)`.
        payload: JSON.
        deadline_s: `time.monotonic()` at which the child is killed.

    Raises:
        ChildFailedError: the function raised, or something killed the child.
    """
    with tempfile.TemporaryFile() as complaints:
        child = _start(complaints)
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps({"target": target, "payload": payload}).encode() + b"\n")
            child.stdin.flush()
            for line in _lines(child.stdout, deadline_s):
                yield json.loads(line)
            if time.monotonic() < deadline_s and child.wait():  # its end of the pipe is closed, so it is ending
                raise ChildFailedError(_epitaph(child.returncode, complaints))
        except BrokenPipeError:
            raise ChildFailedError(_epitaph(child.wait(), complaints)) from None
        finally:
            child.kill()
            child.communicate()


def _start(complaints: IO[bytes]) -> "subprocess.Popen[bytes]":
    # A session of its own: Ctrl-C reaches the caller alone, who then kills the child.
    return subprocess.Popen(  # noqa: S603  # this interpreter, running this package
        [sys.executable, "-c", _START, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        start_new_session=True,
    )


def _lines(stream: IO[bytes], deadline_s: float) -> Iterator[bytes]:
    """Whole lines of `stream` until it ends or the time is up."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not selector.select(timeout=min(left_s, _LONGEST_WAIT_S)):
                continue
            block = os.read(stream.fileno(), _BLOCK_BYTES)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            yield from lines


def _epitaph(code: int, complaints: IO[bytes]) -> str:
    complaints.seek(0)
    last = complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
    return f"the solver process ended with code {code}: {last[-_SHOWN_CHARACTERS:] or 'it gave no reason'}"


def serve() -> None:
    """The child's side: answer one request, then end."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # solvers print there, from C too
    request = json.loads(sys.stdin.buffer.readline())
    Thread(target=_die_with_caller, daemon=True).start()
    module, _, function = request["target"].partition(":")

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    getattr(import_module(module), function)(request["payload"], send)


def _die_with_caller() -> None:
    """The caller's end of standard input closes when the caller is gone, however that happened."""
    os.read(0, 1)  # not through sys.stdin, whose lock a thread must not hold when the interpreter ends
    os._exit(1)
