"""What a simulation returns: settings, a flat summary, tables; saved as a folder, loaded as the same object."""

import json
import os
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
_FRESH, _OLD = "fresh", "old"


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
        """A row per request: arrival, when the engine saw it, tokens, TTFT, TPOT, E2E (seconds), rank, preemptions."""
        return self.frame("requests")

    @property
    def steps(self) -> "pd.DataFrame":
        """A row per step: replica, start and duration (seconds), tokens, queue, KV use, imbalance, energy (joules)."""
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
            DataError: the folder holds something that is not a result, or it cannot be written.
        """
        target = check_target(folder)
        try:
            self._save(target)
        except OSError as error:
            raise DataError(str(folder), f"cannot be written ({error.strerror or error})") from error
        return target

    def _save(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            self._write(work / _FRESH)
            _swap(work, target)
        finally:  # also when interrupted
            _clean_up(work, target)

    def _write(self, folder: Path) -> None:
        import pyarrow as pa  # slow to import
        import pyarrow.parquet as pq

        folder.mkdir()
        (folder / _SETTINGS).write_text(_json(self.settings), encoding="utf-8")
        for name, columns in self.tables.items():
            pq.write_table(pa.table(dict(columns)), folder / f"{name}.parquet", compression="zstd")
        if self.timeline is not None:
            (folder / _TIMELINE).write_bytes(self.timeline)
        (folder / _SUMMARY).write_text(_json(self.summary), encoding="utf-8")


def describe_pools(settings: Mapping[str, Any]) -> str:
    """Systems and parallelism of the pools in `Result.settings`, such as `h100-sxm-8, tp=2 dp=4 ep=8`."""
    return " and ".join(_describe_pool(pool) for pool in settings["resolved"]["pools"])


def _describe_pool(pool: Mapping[str, Any]) -> str:
    degrees = dict(pool["parallelism"]) | {"replicas": pool["replicas"]}
    optional = ("pp", "replicas")
    shown = " ".join(f"{name}={degree}" for name, degree in degrees.items() if name not in optional or degree > 1)
    role = "" if pool["role"] == "both" else f"{pool['role']}: "
    return f"{role}{pool['system']}, {shown}"


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
    """`folder` as a place where a result may be written; asked before a long run as well as after it.

    Raises:
        DataError: it is a file, a folder with something else in it or one that cannot be replaced.
    """
    try:
        target = Path(folder).resolve()
        _check_contents(target, str(folder))
    except (OSError, RuntimeError, ValueError) as error:  # no permission, a loop of links, a null character
        raise DataError(str(folder), f"cannot be written ({getattr(error, 'strerror', None) or error})") from None
    if target.is_mount() or Path.cwd().is_relative_to(target):  # saving replaces the folder by a new one
        raise DataError(str(folder), "must not be a mount point, the working folder or one above; it is replaced")
    holder = next(parent for parent in target.parents if parent.exists())
    if not holder.is_dir() or not os.access(holder, os.W_OK | os.X_OK):
        raise DataError(str(folder), f"must be in a folder that can be written, which {holder} is not")
    return target


def _check_contents(target: Path, place: str) -> None:
    if target.exists() and not target.is_dir():
        raise DataError(place, "must be a folder, and is a file")
    if target.is_dir() and any(target.iterdir()) and not is_result(target):
        raise DataError(place, "must be a new or empty folder, or an earlier result; it holds other files")


def _swap(work: Path, target: Path) -> None:
    """Put the new result in the place of `target`; there is no half-written result at any time."""
    if target.exists():
        target.rename(work / _OLD)
    (work / _FRESH).rename(target)


def _clean_up(work: Path, target: Path) -> None:
    """Bring back the earlier result if the new one did not take its place, and remove what is left."""
    if (work / _OLD).exists() and not target.exists():
        (work / _OLD).rename(target)
    shutil.rmtree(work, ignore_errors=True)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, allow_nan=False) + "\n"
