"""Distributions of prompt and output lengths."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from moesim.configs.loader import Config
from moesim.errors import DataError
from moesim.workloads.request_files import MAX_TOKENS, numbers, read_table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class ConstantLength(Config):
    """Always the same length; a bare number means this."""

    kind: Literal["constant"]
    tokens: PositiveInt = Field(description="length in tokens")

    def sample(self, rng: np.random.Generator, size: int) -> Floats:  # noqa: ARG002  # same signature as the others
        """`size` lengths in tokens."""
        return np.full(size, float(self.tokens))


class UniformLength(Config):
    """Every whole number from min to max equally often."""

    kind: Literal["uniform"]
    min: NonNegativeInt = Field(description="shortest length in tokens")
    max: NonNegativeInt = Field(description="longest length in tokens")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.min, self.max)
        return self

    def sample(self, rng: np.random.Generator, size: int) -> Floats:
        """`size` lengths in tokens."""
        return rng.integers(self.min, self.max, size, endpoint=True).astype(np.float64)


class NormalLength(Config):
    """Normal distribution, clipped to min and max; lengths that round to less than one token are dropped."""

    kind: Literal["normal"]
    mean: NonNegativeFloat = Field(description="mean in tokens, before clipping")
    std: NonNegativeFloat = Field(description="standard deviation in tokens, before clipping")
    min: NonNegativeInt | None = Field(None, description="shorter lengths become this one, in tokens")
    max: PositiveInt | None = Field(None, description="longer lengths become this one, in tokens")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.min, self.max)
        return self

    def sample(self, rng: np.random.Generator, size: int) -> Floats:
        """`size` lengths in tokens."""
        return _clip(rng.normal(self.mean, self.std, size), self.min, self.max)


class LogNormalLength(Config):
    """Log-normal distribution with the given mean and deviation of the length itself, clipped to min and max."""

    kind: Literal["lognormal"]
    mean: PositiveFloat = Field(description="mean in tokens, before clipping")
    std: NonNegativeFloat = Field(description="standard deviation in tokens, before clipping")
    min: NonNegativeInt | None = Field(None, description="shorter lengths become this one, in tokens")
    max: PositiveInt | None = Field(None, description="longer lengths become this one, in tokens")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.min, self.max)
        return self

    def sample(self, rng: np.random.Generator, size: int) -> Floats:
        """`size` lengths in tokens; sigma^2 = ln(1 + (std / mean)^2), mu = ln(mean) - sigma^2 / 2."""
        variance = math.log1p((self.std / self.mean) ** 2)
        return _clip(rng.lognormal(math.log(self.mean) - variance / 2, math.sqrt(variance), size), self.min, self.max)


class EmpiricalLength(Config):
    """Lengths of a file, drawn with replacement; zeros are dropped.

    Where prompts and outputs name the same file, both come from the same row.
    """

    kind: Literal["file"]
    path: str = Field(description=".csv, .tsv or .jsonl, also with .gz; relative to the file that names it")
    column: str | None = Field(None, description="column to read; needed where there are several")


Length = Annotated[
    ConstantLength | UniformLength | NormalLength | LogNormalLength | EmpiricalLength,
    Field(discriminator="kind"),
    BeforeValidator(lambda value: {"kind": "constant", "tokens": value} if _is_whole(value) else value),
]


def draw_lengths(
    prompt: Length, output: Length, rng: np.random.Generator, size: int, folder: Path
) -> tuple[Ints, Ints]:
    """Lengths of `size` requests; those below 1 stand for draws that the caller drops.

    Args:
        prompt: distribution of prompt lengths.
        output: distribution of output lengths.
        rng: source of random numbers.
        size: how many.
        folder: where relative paths start.

    Raises:
        DataError: a file of lengths that is missing, cut off or broken, or a length beyond `MAX_TOKENS`.
    """
    if isinstance(prompt, EmpiricalLength) and isinstance(output, EmpiricalLength) and prompt.path == output.path:
        known = [_read_lengths(length, folder) for length in (prompt, output)]
        row = rng.integers(len(known[0]), size=size)
        drawn = [lengths[row] for lengths in known]
    else:
        drawn = [_draw(length, rng, size, folder) for length in (prompt, output)]
    prompts, outputs = (_whole(lengths) for lengths in drawn)
    return prompts, outputs


def _draw(length: Length, rng: np.random.Generator, size: int, folder: Path) -> Floats:
    if isinstance(length, EmpiricalLength):
        return rng.choice(_read_lengths(length, folder), size)
    return length.sample(rng, size)


def _read_lengths(length: EmpiricalLength, folder: Path) -> Floats:
    """float64[row]: a column of a file, finite and >= 0."""
    table = read_table(folder / Path(length.path).expanduser())
    column = length.column or next(iter(table.columns))
    if column not in table.columns or (length.column is None and len(table.columns) > 1):
        raise DataError(f"{table.path}:1", f"`column` must be one of {', '.join(table.columns)}", length.column)
    lengths = numbers(table, column)
    bad = np.flatnonzero(~((lengths >= 0) & (lengths <= MAX_TOKENS)))
    if bad.size:
        raise DataError(table.place(int(bad[0]), column), "must be a length in tokens, >= 0", lengths[bad[0]].item())
    if lengths.size == 0:
        raise DataError(str(table.path), "must have at least one length")
    return lengths


def _whole(lengths: Floats) -> Ints:
    return np.clip(np.rint(lengths), 0, MAX_TOKENS).astype(np.int64)


def _clip(lengths: Floats, low: int | None, high: int | None) -> Floats:
    return np.clip(lengths, -np.inf if low is None else low, np.inf if high is None else high)


def _check_order(low: int | None, high: int | None) -> None:
    if low is not None and high is not None and low > high:
        raise ValueError(f"`min <= max` must hold, but got min={low}, max={high}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
