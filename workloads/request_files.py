"""Tables of requests and lengths as users have them: CSV, TSV and JSON lines, also gzipped.

A row is one request; the columns that are not needed are ignored. Line numbers in errors are those of the file.
"""

import csv
import gzip
import json
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.workloads.prefix_blocks import PrefixBlocks, is_hashes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
T = TypeVar("T")

MAX_TOKENS = 2**31 - 1
"""Longest prompt or output that is taken for one."""

_CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = ".jsonl"
_HASHES = "hash_ids"
_CHUNK = 8192
SUFFIXES = (*_CSV_DELIMITERS, _JSON_LINES, *(f"{suffix}.gz" for suffix in (*_CSV_DELIMITERS, _JSON_LINES)))


class RequestColumns(NamedTuple):
    """What a request file holds."""

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    prefix: PrefixBlocks | None = None


class _Layout(NamedTuple):
    """Columns of one kind of request file, and how its arrivals become seconds."""

    arrival: str
    prompt: str
    output: str
    seconds: Callable[["Table", str], Floats]


@dataclass(frozen=True)
class Table:
    """A table as text (CSV) or JSON values, before any conversion.

    Args:
        path: the file, for errors.
        columns: values by column name.
        lines: line of each row, from 1.
    """

    path: Path
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int]

    def place(self, row: int, column: str) -> str:
        """`file:line: column`, for errors."""
        return f"{self.path}:{self.lines[row]}: {column}"


def read_requests(path: Path) -> RequestColumns:
    """Read a request file; which columns it has says which kind it is.

    | arrival | prompt | output | kind |
    |---|---|---|---|
    | `arrival_s` | `prompt_tokens` | `output_tokens` | our own: seconds from the start of the run |
    | `TIMESTAMP` | `ContextTokens` | `GeneratedTokens` | Azure LLM inference traces: date and time |
    | `timestamp` | `input_length` | `output_length` | Mooncake traces: milliseconds |
    | `arrival_time` | `input_toks` | `output_toks` | recorded vLLM runs: seconds of a clock |

    Arrivals of the last three count from the first row. Rows must be in order of arrival. JSON lines of any kind may
    have `hash_ids`, as Mooncake traces do: a list of hashes, one per block of the prompt (see `PrefixBlocks`).

    Raises:
        DataError: missing, empty or cut off file, unknown columns, or a row that breaks the rules of `check_columns`.
    """
    table = read_table(path)
    layout = next((known for known in _LAYOUTS if set(known[:3]) <= table.columns.keys()), None)
    if layout is None:
        known = " or ".join(",".join(columns[:3]) for columns in _LAYOUTS)
        raise DataError(f"{path}:1", f"must have the columns {known}", ",".join(table.columns))
    if not table.lines:
        raise DataError(str(path), "must have at least one request")
    arrival_s = layout.seconds(table, layout.arrival)
    names = ("arrival_s" if layout.seconds is numbers else layout.arrival, layout.prompt, layout.output)
    prompt, output = numbers(table, layout.prompt), numbers(table, layout.output)
    check_columns(arrival_s, prompt, output, lambda row, column: table.place(row, names[column]))
    return RequestColumns(arrival_s, prompt.astype(np.int64), output.astype(np.int64), _prefix_blocks(table))


def check_columns(
    arrival_s: Floats, prompt_tokens: NDArray[Any], output_tokens: NDArray[Any], place: Callable[[int, int], str]
) -> None:
    """Check the rules of requests: arrivals are finite, >= 0 and in order; lengths are whole numbers >= 1.

    Args:
        arrival_s: float64[request].
        prompt_tokens: [request].
        output_tokens: [request].
        place: names row and column (0 arrival, 1 prompt, 2 output) for errors.

    Raises:
        DataError: the first row that breaks a rule.
    """
    unknown = ~(np.isfinite(arrival_s) & (arrival_s >= 0))
    _refuse(unknown, arrival_s, "must be finite and >= 0", place, 0)
    late = np.diff(arrival_s, prepend=0.0) < 0
    _refuse(late, arrival_s, "must not be earlier than in the row before", place, 0)
    for column, lengths in ((1, prompt_tokens), (2, output_tokens)):
        whole = (lengths >= 1) & (lengths <= MAX_TOKENS) & (lengths == np.floor(lengths))
        _refuse(~whole, lengths, f"must be a whole number from 1 to {MAX_TOKENS}", place, column)


def _prefix_blocks(table: Table) -> PrefixBlocks | None:
    """The hashes of the prompts' blocks, if the file has any."""
    if _HASHES not in table.columns or _JSON_LINES not in table.path.suffixes:
        return None
    lists = table.columns[_HASHES]
    for row, value in enumerate(lists):
        if not is_hashes(value):
            raise DataError(table.place(row, _HASHES), "must be a list of whole numbers", value)
    return PrefixBlocks.of(lists)


def read_table(path: Path) -> Table:
    """Read a CSV or TSV file with a header, or JSON lines with the same keys in every line.

    Raises:
        DataError: missing, empty or cut off file, another suffix, or rows that do not fit the first.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in _CSV_DELIMITERS and suffix != _JSON_LINES:
        raise DataError(str(path), f"must end in {', '.join(SUFFIXES)}")
    try:
        with _open(path) as file:
            if suffix == _JSON_LINES:
                return _read_json_lines(path, file)
            return _read_csv(path, file, _CSV_DELIMITERS[suffix])
    except FileNotFoundError:
        raise DataError(str(path), "no such file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(str(path), f"cannot be read ({error})") from None


def numbers(table: Table, column: str) -> Floats:
    """A column as float64.

    Raises:
        DataError: the first value that is no number.
    """
    values = table.columns[column]
    try:
        if set(map(type, values)) <= {int, float, str}:
            return np.array(values, dtype=np.float64)
    except (ValueError, OverflowError):
        pass
    for row, value in enumerate(values):
        if not _is_number(value):
            raise DataError(table.place(row, column), "must be a number", value)
    return np.array([float(value) for value in values])


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def _refuse(
    bad: NDArray[np.bool_], values: NDArray[Any], rule: str, place: Callable[[int, int], str], column: int
) -> None:
    """Raise for the first row that is `bad`."""
    rows = np.flatnonzero(bad)
    if rows.size:
        got = values[rows[0]].item()
        shown = int(got) if isinstance(got, float) and got.is_integer() else got
        raise DataError(place(int(rows[0]), column), rule, shown)


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_csv(path: Path, file: TextIO, delimiter: str) -> Table:
    reader = csv.reader(file, delimiter=delimiter)
    header = [name.strip() for name in next(reader, [])]
    if not header:
        raise DataError(str(path), "must start with a line of column names")
    columns: list[list[str]] = [[] for _ in header]
    lines: list[int] = []
    last = 1
    for rows in _chunks(reader):
        found: Sequence[int] = range(last + 1, last + 1 + len(rows))
        last += len(rows)
        if not all(rows):  # blank lines, as a rule at the end
            found = [line for line, row in zip(found, rows, strict=True) if row]
            rows = [row for row in rows if row]  # noqa: PLW2901  # the same rows
        if set(map(len, rows)) - {len(header)}:
            bad = next(index for index, row in enumerate(rows) if len(row) != len(header))
            raise DataError(f"{path}:{found[bad]}", f"must have {len(header)} fields ({','.join(header)})", rows[bad])
        lines += found
        for column, values in zip(columns, zip(*rows, strict=True), strict=False):
            column.extend(values)
    return Table(path, dict(zip(header, columns, strict=True)), lines)


def _read_json_lines(path: Path, file: TextIO) -> Table:
    columns: dict[str, list[Any]] = {}
    lines: list[int] = []
    for numbered in _chunks((number, line) for number, line in enumerate(file, start=1) if line.strip()):
        rows = [_json_object(path, number, line) for number, line in numbered]
        columns = columns or {name: [] for name in rows[0]}
        lines += [number for number, _ in numbered]
        for name, column in columns.items():
            try:
                column += [row[name] for row in rows]
            except KeyError:
                bad = next(number for (number, _), row in zip(numbered, rows, strict=True) if name not in row)
                raise DataError(f"{path}:{bad}: {name}", "required, as in the first line") from None
    if not lines:
        raise DataError(str(path), "must not be empty")
    return Table(path, columns, lines)


def _chunks(rows: Iterable[T]) -> Iterator[list[T]]:
    """`rows` in lists of some thousand: a million small objects at once would keep the garbage collector busy."""
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number}", "must be a JSON object", line.strip()[:60])
    return row


def _dates_s(table: Table, column: str) -> Floats:
    """Seconds from the first row of a column of dates and times, in UTC or without a zone."""
    values = table.columns[column]
    try:
        nanoseconds = _nanoseconds(values)
    except ValueError:
        row = next(row for row, value in enumerate(values) if not _is_date(value))
        raise DataError(table.place(row, column), "must be a date and time", values[row]) from None
    seconds: Floats = (nanoseconds - nanoseconds[0]) * 1e-9
    return seconds


def _nanoseconds(dates: Sequence[Any]) -> Ints:
    """int64[date]: nanoseconds since 1970.

    Raises:
        ValueError: one is no date, or not in UTC.
    """
    if set(map(type, dates)) != {str}:
        raise ValueError("must be text")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy converts time zones with a warning
        try:
            found = np.array([date.removesuffix("+00:00") for date in dates], dtype="datetime64[ns]")
        except Warning:
            raise ValueError("must be in UTC") from None
    if np.isnat(found).any():
        raise ValueError("must not be empty")
    return found.astype(np.int64)


def _is_date(value: object) -> bool:
    try:
        _nanoseconds([value])
    except ValueError:
        return False
    return True


def _since_first(unit_s: float) -> Callable[[Table, str], Floats]:
    def seconds(table: Table, column: str) -> Floats:
        values = numbers(table, column)
        return (values - values[:1]) * unit_s

    return seconds


_LAYOUTS = (
    _Layout("arrival_s", "prompt_tokens", "output_tokens", numbers),
    _Layout("TIMESTAMP", "ContextTokens", "GeneratedTokens", _dates_s),
    _Layout("timestamp", "input_length", "output_length", _since_first(1e-3)),
    _Layout("arrival_time", "input_toks", "output_toks", _since_first(1.0)),
)
