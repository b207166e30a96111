"""The child answers, and is gone afterwards, whatever happens."""

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from moesim.search.child_process import ChildFailedError, messages

MODULE = """
import os, sys, time
def count(payload, send):
    print("noise on stdout")
    os.system("echo noise of a program")
    for number in range(payload["to"]):
        send({"pid": os.getpid(), "number": number})
def sleep(payload, send):
    send({"pid": os.getpid()})
    time.sleep(60)
def fail(payload, send):
    send({"pid": os.getpid()})
    raise ValueError("no such luck")
def vanish(payload, send):
    os._exit(3)
"""
ORPHAN = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from moesim.search.child_process import messages
for message in messages("in_the_child:sleep", {}, time.monotonic() + 60):
    print(message["pid"], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module that the child can import, because this process could."""
    (tmp_path / "in_the_child.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def is_gone(pid: int, within_s: float = 5.0) -> bool:
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.usefixtures("functions")
def test_all_messages_arrive_and_what_the_child_prints_does_not(capfd):
    answers = list(messages("in_the_child:count", {"to": 1000}, time.monotonic() + 30))
    assert [answer["number"] for answer in answers] == list(range(1000))
    assert answers[0]["pid"] != os.getpid()
    assert is_gone(answers[0]["pid"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("functions")
def test_it_is_killed_when_the_time_is_up():
    began_s = time.monotonic()
    (answer,) = messages("in_the_child:sleep", {}, began_s + 2)
    assert time.monotonic() - began_s < 3
    assert is_gone(answer["pid"])


@pytest.mark.usefixtures("functions")
def test_it_is_killed_when_nobody_listens():
    with closing(messages("in_the_child:sleep", {}, time.monotonic() + 60)) as answers:
        pid = next(answers)["pid"]
    assert is_gone(pid, within_s=0.1)


def test_it_dies_with_its_caller(functions):
    done = subprocess.run([sys.executable, "-c", ORPHAN, str(functions)], capture_output=True, text=True, check=False)
    assert is_gone(int(done.stdout))


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("in_the_child:fail", "code 1: ValueError: no such luck"),
        ("in_the_child:vanish", "code 3: it gave no reason"),
        ("in_no_module:fail", "ModuleNotFoundError"),
    ],
)
def test_its_failure_is_told_with_the_reason(function, reason):
    with pytest.raises(ChildFailedError, match=reason):
        list(messages(function, {}, time.monotonic() + 30))
