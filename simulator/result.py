"""What a simulation returns: settings, a flat summary, tables; saved as a folder, loaded as the same object."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from moesim.errors import DataError

if TYPE_CHECKING:  # importing pandas takes a second; only those who look at tables pay it
    import pandas as pd

Columns = Mapping[str, NDArray[Any]]
TABLES = ("requests", "steps", "experts", "operators", "devices")
_SETTINGS, _SUMMARY, _TIMELINE = "settings.json", "summary.json", "timeline.perfetto-trace"


@dataclass(frozen=True, eq=False)
class Result:
    """One simulation.

    Attributes:
        settings: everything it depended on, as plain data.
        summary: one flat dict; units are in the keys, None where a value is undefined.
        tables: columns by table name, see `TABLES`.
        timeline: a Perfetto trace, if one was asked for.
    """

    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    tables: Mapping[str, Columns]
    timeline: bytes | None = field(default=None, repr=False)

    @property
    def requests(self) -> "pd.DataFrame":
        """A row per request: arrival, first and last token, TTFT, TPOT, E2E (seconds), rank, preemptions."""
        return self.frame("requests")

    @property
    def steps(self) -> "pd.DataFrame":
        """A row per step: start, duration (seconds), tokens, queue, KV use, expert imbalance, energy (joules)."""
        return self.frame("steps")

    @property
    def experts(self) -> "pd.DataFrame":
        """Tokens by phase, layer and expert."""
        return self.frame("experts")

    @property
    def operators(self) -> "pd.DataFrame":
        """Time, energy, FLOPs and bytes by operator, layer and device, summed over steps."""
        return self.frame("operators")

    @property
    def devices(self) -> "pd.DataFrame":
        """Busy seconds of each device's compute and network stream."""
        return self.frame("devices")

    def frame(self, table: str) -> "pd.DataFrame":
        """One of `TABLES` as a data frame."""
        import pandas as pd  # see above

        return pd.DataFrame(dict(self.tables[table]))

    def save(self, folder: str | Path) -> Path:
        """Write everything to `folder`, all or nothing; an earlier result there is replaced.

        Raises:
            DataError: the folder holds something that is not a result.
        """
        target = check_target(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            self._write(fresh)
            _swap(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return target

    def _write(self, folder: Path) -> None:
        import pyarrow as pa  # slow to import
        import pyarrow.parquet as pq

        folder.chmod(0o755)  # mkdtemp makes private folders; results are for sharing
        (folder / _SETTINGS).write_text(_json(self.settings), encoding="utf-8")
        for name, columns in self.tables.items():
            pq.write_table(pa.table(dict(columns)), folder / f"{name}.parquet", compression="zstd")
        if self.timeline is not None:
            (folder / _TIMELINE).write_bytes(self.timeline)
        (folder / _SUMMARY).write_text(_json(self.summary), encoding="utf-8")


def load_result(folder: str | Path) -> Result:
    """Read what `Result.save` wrote.

    Raises:
        DataError: the folder is none, or a file in it is missing or broken.
    """
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    source = Path(folder)
    if not is_result(source):
        raise DataError(str(folder), "must be a folder that a simulation saved")
    try:
        settings, summary = (json.loads((source / name).read_text(encoding="utf-8")) for name in (_SETTINGS, _SUMMARY))
        read = {name: pq.read_table(source / f"{name}.parquet") for name in TABLES}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(str(folder), f"must hold complete files of a result ({error})") from error
    tables = {name: {column: table[column].to_numpy() for column in table.column_names} for name, table in read.items()}
    timeline = source / _TIMELINE
    return Result(settings, summary, tables, timeline.read_bytes() if timeline.exists() else None)


def is_result(folder: Path) -> bool:
    """Whether `folder` looks like a saved result."""
    return (folder / _SUMMARY).is_file() and (folder / _SETTINGS).is_file()


def check_target(folder: str | Path) -> Path:
    """`folder` as a place where a result may be written.

    Raises:
        DataError: it is a file, or a folder with something else in it.
    """
    target = Path(folder).absolute()
    if target.is_file():
        raise DataError(str(folder), "must be a folder, and is a file")
    if target.is_dir() and any(target.iterdir()) and not is_result(target):
        raise DataError(str(folder), "must be a new or empty folder, or an earlier result; it holds other files")
    return target


def _swap(fresh: Path, target: Path) -> None:
    """Put `fresh` in the place of `target`; two renames, so there is no half-written result at any time."""
    if not target.exists():
        fresh.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    target.rename(old / target.name)
    fresh.rename(target)
    shutil.rmtree(old)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, allow_nan=False) + "\n"
