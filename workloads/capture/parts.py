"""The files of a capture: a part per batch while it runs, one file at its end.

Parts make a capture resumable: each is written whole or not at all, and `plan.json` beside them says what they are
parts of. The final file is made by copying part after part, so memory holds one of them at a time.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.files import whole_file

_PLAN = "plan.json"
PLAN_KEY = b"moesim.capture"
"""Key of the plan in the metadata of finished files."""


@dataclass(frozen=True)
class Parts:
    """The parts of one capture.

    Args:
        folder: where they are.
        kinds: `routing`, and `attention` where it is recorded.
    """

    folder: Path
    kinds: tuple[str, ...]

    def open(self, plan: Mapping[str, Any]) -> None:
        """Make the folder, or check that the parts in it belong to `plan`.

        Raises:
            DataError: they belong to another capture, or the folder cannot be made.
        """
        path = self.folder / _PLAN
        try:
            self.folder.mkdir(exist_ok=True)
            started = path.is_file() and any(self.folder.glob("*.parquet"))
            earlier = json.loads(path.read_text(encoding="utf-8")) if started else None
            if earlier is None:
                with whole_file(path) as part:
                    part.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(str(self.folder), f"cannot be used ({error})") from None
        if earlier is not None:
            check_same(f"{self.folder}: what an unfinished capture left", plan, earlier)

    def path(self, kind: str, batch: int) -> Path:
        """File of one batch."""
        return self.folder / f"{kind}-{batch:06d}.parquet"

    def done(self, batch: int) -> bool:
        """Whether all of a batch is written."""
        return all(self.path(kind, batch).is_file() for kind in self.kinds)

    def write(self, batch: int, tables: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Write the columns of one batch, by kind."""
        import pyarrow.parquet as pq  # loads slowly

        for kind in self.kinds:
            with whole_file(self.path(kind, batch)) as part:
                pq.write_table(_table(tables[kind]), part, compression="zstd")

    def join(self, kind: str, batches: int, metadata: Mapping[bytes, bytes], target: Path) -> None:
        """Copy all parts of one kind to `target`, all of them or nothing."""
        import pyarrow.parquet as pq

        schema = pq.read_schema(self.path(kind, 0)).with_metadata(dict(metadata))
        with whole_file(target) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for batch in range(batches):
                writer.write_table(pq.read_table(self.path(kind, batch)).replace_schema_metadata(schema.metadata))

    def remove(self) -> None:
        """Delete the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def check_finished(target: Path, plan: Mapping[str, Any]) -> bool:
    """Whether `target` is already the outcome of `plan`.

    Raises:
        DataError: there is a file that is not.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not target.exists():
        return False
    try:
        text = (pq.read_schema(target).metadata or {}).get(PLAN_KEY)
        earlier = json.loads(text) if text else None
    except (pa.ArrowException, OSError, ValueError):
        earlier = None
    if earlier is None:
        raise DataError(str(target), "exists, and is not the outcome of a capture; remove it or name another file")
    check_same(str(target), plan, earlier)
    return True


def check_same(place: str, plan: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """Refuse to go on with, or to overwrite, what another capture wrote.

    Raises:
        DataError: it names what differs, the model first.
    """
    for key, value in plan.items():
        if earlier.get(key) != value:
            shown = {"weights": "other weights", "prompts": "other texts"}.get(key, f"{key} {earlier.get(key)!r}")
            way_out = "remove it, name another --out, or repeat that one"
            rule = f"must be of this capture, and is of one with {shown}; {way_out}"
            raise DataError(place, rule if key in {"weights", "prompts"} else f"{rule} (now {value!r})")


def _table(columns: Mapping[str, NDArray[Any]]) -> Any:
    """A column per array; arrays of several axes become lists of fixed length."""
    import pyarrow as pa

    def column(values: NDArray[Any]) -> Any:
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), int(np.prod(values.shape[1:])))

    return pa.table({name: column(values) for name, values in columns.items()})


def json_metadata(entries: Iterable[tuple[bytes, Mapping[str, Any]]]) -> dict[bytes, bytes]:
    """Metadata of a parquet file."""
    return {key: json.dumps(value).encode() for key, value in entries}
