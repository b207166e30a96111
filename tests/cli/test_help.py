"""`--help` is quick, because it imports nothing heavy, and shows examples."""

import json
import os
import subprocess
import sys

import pytest

COMMANDS = [
    "",
    "simulate",
    "compare",
    "sweep",
    "roofline",
    "latency",
    "measure",
    "calibrate",
    "validate",
    "validate kernels",
    "search",
    "search placement",
    "trace",
    "trace stats",
    "trace import",
    "trace attention",
    "trace capture",
    "models",
    "models list",
    "models show",
    "hardware",
    "hardware list",
    "hardware show",
]
HEAVY = {
    "matplotlib",
    "numba",
    "numpy",
    "pandas",
    "pyarrow",
    "pyomo",
    "scipy",
    "simpy",
    "torch",
    "transformers",
    "yaml",
}
SCRIPT = """
import contextlib, io, json, sys
from moesim.cli import main
shown = {}
for command in json.loads(sys.argv[1]):
    sys.argv = ["moesim", *command.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    shown[command] = out.getvalue()
print(json.dumps({"shown": shown, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def help_texts():
    """Help by command, and the modules that printing all of them imported."""
    keep = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "PYTHONPATH"}}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(COMMANDS)],
        env=keep | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_nothing_heavy_is_imported(help_texts):
    assert not HEAVY & {module.partition(".")[0] for module in help_texts["modules"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_examples_in_80_columns(help_texts, command):
    text = help_texts["shown"][command]
    assert f"Usage: moesim {command}".rstrip() in text
    assert "Examples" in text
    assert f"\n moesim {command}".rstrip() in text
    assert max(map(len, text.splitlines())) <= 80


def test_version(moesim):
    outcome = moesim("--version")
    assert outcome.code == 0
    assert outcome.out.startswith("moesim ")
