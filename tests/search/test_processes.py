import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moesim.search.processes import as_they_finish


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_has_one_outcome_under_its_position(workers):
    assert sorted(as_they_finish(operator.neg, [5, 3, 4], workers=workers)) == [(0, -5), (1, -3), (2, -4)]


@pytest.mark.parametrize("items", [[], [7]])
def test_few_items_stay_in_this_process(items):
    assert [outcome for _, outcome in as_they_finish(_process, items, workers=4)] == [os.getpid()] * len(items)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_reaches_the_caller(workers):
    with pytest.raises(ZeroDivisionError):
        list(as_they_finish(_inverse, [1, 0, 2], workers=workers))


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process by a POSIX signal")
def test_workers_do_not_outlive_a_killed_parent():
    script = "from tests.search.test_processes import sleep_for_ever; sleep_for_ever()"
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(map(_is_alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sleep_for_ever():
    """On two processes, each of which tells its number first."""
    list(as_they_finish(_sleep, [0, 1], workers=2))


def _sleep(_item):
    os.write(sys.stdout.fileno(), f"{os.getpid()}\n".encode())
    time.sleep(600)


def _is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def _process(_item):
    return os.getpid()


def _inverse(item):
    return 1 / item
