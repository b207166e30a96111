"""The command line in this process, in a folder with a tiny scenario."""

import sys
from dataclasses import dataclass

import pytest

from moesim.cli import main

MODEL = """\
name: tiny-moe
source: made for tests
hidden: 256
vocabulary: 1000
layers:
  - repeat: 2
    pattern:
      - attention: {kind: gqa, heads: 8, kv_heads: 4, head_dim: 32}
        ffn: {kind: moe, experts: 8, top_k: 2, intermediate: 128}
"""
SCENARIO = """\
model: ./tiny-moe.yaml
system: h100-sxm-1
requests: {kind: synthetic, num_requests: 4, rate_per_s: 100 req/s, prompt_tokens: 20, output_tokens: 5}
routing: zipf:0.8
"""
_FORCES_COLOUR = ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder: it holds tiny.yaml, a scenario, and its model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-moe.yaml").write_text(MODEL)
    (tmp_path / "tiny.yaml").write_text(SCENARIO)
    return tmp_path


@pytest.fixture
def plain(folder, monkeypatch):
    """The working folder, and an environment in which nothing makes rich believe in a terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in _FORCES_COLOUR:
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def moesim(plain, monkeypatch, capsys):
    """A function that runs the command in `folder` and returns its `Outcome`."""
    monkeypatch.chdir(plain)

    def run(*arguments: object):
        monkeypatch.setattr(sys, "argv", ["moesim", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def contents(folder):
    """A function that returns every file in `folder` with its bytes, and every folder with None."""

    def found():
        return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}

    return found


@pytest.fixture
def refused(moesim, contents):
    """A function that runs the command on wrong input and returns its message.

    The exit code is 2, the message is all that is printed, and nothing is written anywhere in `folder`.
    """

    def run(*arguments: object):
        before = contents()
        outcome = moesim(*arguments)
        assert outcome.code == 2
        assert outcome.out == ""
        assert outcome.err.startswith("error: ")
        assert outcome.err.count("error: ") == 1
        assert contents() == before
        return outcome.err.removeprefix("error: ").removesuffix("\n")

    return run


@pytest.fixture
def refused_run(refused):
    """`refused` for `moesim simulate tiny.yaml --out out/run` and further arguments."""
    return lambda *arguments: refused("simulate", "tiny.yaml", "--out", "out/run", *arguments)
