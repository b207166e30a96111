"""Distributions of lengths: moments, limits, files."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from moesim.configs.loader import Document, validate
from moesim.errors import ConfigError, DataError
from moesim.workloads.lengths import Length, draw_lengths
from moesim.workloads.requests import load_requests

SIZE = 20_000


def length(value: Any) -> Length:
    found: Length = TypeAdapter(Length).validate_python(value)
    return found


def draw(value: Any, folder: Path = Path()) -> np.ndarray[Any, np.dtype[np.int64]]:
    return draw_lengths(length(value), length(1), np.random.default_rng(5), SIZE, folder)[0]


def test_constant_and_its_shorthand() -> None:
    assert (draw(1024) == 1024).all()
    assert length(1024) == length({"kind": "constant", "tokens": 1024})


def test_uniform_reaches_both_ends_equally() -> None:
    counts = np.bincount(draw({"kind": "uniform", "min": 3, "max": 6}))
    assert counts[:3].sum() == 0
    assert abs(counts[3:] / SIZE - 0.25).max() < 0.02


@pytest.mark.parametrize("kind", ["normal", "lognormal"])
def test_moments_are_those_of_the_length(kind: str) -> None:
    drawn = draw({"kind": kind, "mean": 1000, "std": 200})
    assert drawn.mean() == pytest.approx(1000, rel=0.01)
    assert drawn.std() == pytest.approx(200, rel=0.03)
    assert (draw({"kind": kind, "mean": 7, "std": 0}) == 7).all()


def test_lognormal_logarithms_are_normal() -> None:
    logs = np.log(draw({"kind": "lognormal", "mean": 1e6, "std": 2e6}))
    sigma2 = np.log(1 + 4.0)
    assert logs.mean() == pytest.approx(np.log(1e6) - sigma2 / 2, abs=0.05)
    assert logs.std() == pytest.approx(np.sqrt(sigma2), rel=0.03)


def test_clipping() -> None:
    drawn = draw({"kind": "normal", "mean": 10, "std": 100, "min": 2, "max": 50})
    assert (drawn.min(), drawn.max()) == (2, 50)
    assert draw({"kind": "normal", "mean": 0, "std": 5}).min() == 0  # what the caller drops


def lengths_file(folder: Path) -> str:
    rows = [f"{prompt}\t{prompt * 2 % 9}" for prompt in range(1, 9)]
    (folder / "l.tsv.gz").write_bytes(gzip.compress("\n".join(["p\to", *rows]).encode()))
    return "l.tsv.gz"


def test_lengths_of_a_file(tmp_path: Path) -> None:
    drawn = draw({"kind": "file", "path": lengths_file(tmp_path), "column": "p"}, tmp_path)
    assert abs(np.bincount(drawn)[1:] / SIZE - 1 / 8).max() < 0.02


def test_lengths_of_one_file_come_from_the_same_row(tmp_path: Path) -> None:
    name = lengths_file(tmp_path)
    prompt, output = (length({"kind": "file", "path": name, "column": column}) for column in ("p", "o"))
    prompts, outputs = draw_lengths(prompt, output, np.random.default_rng(5), SIZE, tmp_path)
    np.testing.assert_array_equal(outputs, prompts * 2 % 9)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("p\n5\n-1\n", None, "l.csv:3: p: must be a length in tokens, >= 0, got -1"),
        ("p\n5\nnan\n", None, "l.csv:3: p: must be a length in tokens"),
        ("p\n5\nx\n", None, "l.csv:3: p: must be a number, got 'x'"),
        ("p\n", None, "l.csv: must have at least one length"),
        ("p,o\n5,6\n", None, "l.csv:1: `column` must be one of p, o"),
        ("p,o\n5,6\n", "q", "l.csv:1: `column` must be one of p, o, got 'q'"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, column: str | None, message: str) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(DataError) as error:
        draw({"kind": "file", "path": "l.csv", "column": column}, tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "uniform", "min": 9, "max": 2}, "`min <= max` must hold, but got min=9, max=2"),
        ({"kind": "normal", "mean": 9, "std": 2, "min": 5, "max": 4}, "`min <= max` must hold"),
        ({"kind": "lognormal", "mean": 0, "std": 2}, "mean: must be > 0"),
        ({"kind": "normal", "mean": 5, "std": -2}, "std: must be >= 0"),
        ({"kind": "normal", "mean": float("nan"), "std": 1}, "mean: must be finite"),
        (True, "must be a mapping"),
        (2.5, "must be a mapping"),
    ],
)
def test_wrong_distributions(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(Length, Document("l.yaml", value))  # type: ignore[arg-type]  # pydantic takes unions
    assert message in str(error.value)


@pytest.mark.reference
def test_zeros_of_sharegpt_are_dropped(reference_data: Path) -> None:
    file = {"kind": "file", "path": str(reference_data / "requests/sharegpt_lengths.tsv.gz")}
    config = {
        "kind": "synthetic",
        "num_requests": 100_000,
        "prompt_tokens": file | {"column": "input_toks"},
        "output_tokens": file | {"column": "output_toks"},
    }
    requests = load_requests(config, np.random.default_rng(0))
    assert len(requests) + requests.dropped == 100_000
    assert requests.dropped == pytest.approx(100_000 * 975 / 391_726, rel=0.25)
