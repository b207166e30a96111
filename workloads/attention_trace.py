"""Attention traces: how few keys hold the attention of recorded tokens, and where these keys are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from moesim.configs.loader import Config
from moesim.configs.metadata import checked_metadata
from moesim.errors import DataError

SHARES = {"keys_90": 0.90, "keys_95": 0.95, "keys_99": 0.99}
COUNTS = tuple(SHARES)
MASSES = ("sink_mass", "local_mass", "entropy", "off_mass")
INDEX = ("request", "position", "phase")
METADATA_KEY = b"moesim.attention_trace"
FORMAT = 1


class AttentionTraceHeader(Config):
    """What an attention trace says about itself."""

    format: int
    model: str
    layers: PositiveInt
    heads: PositiveInt
    sink_keys: PositiveInt
    local_keys: PositiveInt
    every: PositiveInt
    window_tokens: tuple[NonNegativeInt, ...]
    source: str
    names: tuple[str, ...]
    groups: tuple[str, ...]
    first_decode_position: tuple[NonNegativeInt, ...]


@dataclass(frozen=True, eq=False)
class AttentionTrace:
    """Statistics of the attention of sampled tokens, sorted by request and position.

    All shares are of the mass on keys; learned sinks, which are no keys, take `off_mass` before.

    Args:
        header: model, layers, heads; `sink_keys` first and `local_keys` last positions; every how many prompt positions
            were sampled; sliding window of each layer (0: none); requests as in the routing trace of the capture.
        request: int32[token] index of the request.
        position: int32[token] position of the query in the request, from 0.
        phase: uint8[token] 0 for prefill, 1 for decode.
        keys: by share (`keys_90`, `keys_95`, `keys_99`), [token, layer, head]: fewest keys that hold it.
        masses: by name, float16[token, layer, head]: `sink_mass`, `local_mass`, `off_mass`, and `entropy` in nats.
    """

    header: AttentionTraceHeader
    request: NDArray[np.int32]
    position: NDArray[np.int32]
    phase: NDArray[np.uint8]
    keys: dict[str, NDArray[np.uint16] | NDArray[np.uint32]]
    masses: dict[str, NDArray[np.float16]]

    def visible_keys(self) -> NDArray[np.int64]:
        """int64[token, layer]: keys that each token could attend to."""
        seen = self.position.astype(np.int64)[:, np.newaxis] + 1
        windows = np.array(self.header.window_tokens, dtype=np.int64)
        return np.where(windows > 0, np.minimum(seen, windows), seen)


def read_attention_trace(path: str | Path) -> AttentionTrace:
    """Read an attention trace that `moesim trace capture` wrote.

    Raises:
        DataError: missing or cut off file, or one that is no attention trace.
    """
    import pyarrow as pa  # loads slowly
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise DataError(str(path), "no such file")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(str(path), f"cannot be read ({error})") from None
    metadata = table.schema.metadata
    header = checked_metadata(
        AttentionTraceHeader, path, metadata, METADATA_KEY, kind="an attention trace", version=FORMAT
    )
    columns = (*INDEX, *COUNTS, *MASSES)
    missing = [name for name in columns if name not in table.column_names or table[name].null_count]
    if missing:
        raise DataError(str(path), f"must have the columns {', '.join(columns)} without nulls, lacks", missing)

    def cube(name: str) -> NDArray[Any]:
        width = header.layers * header.heads
        if not pa.types.is_fixed_size_list(table[name].type) or table[name].type.list_size != width:
            raise DataError(f"{path}: {name}", f"must be lists of {width} values", str(table[name].type))
        flat: NDArray[Any] = table[name].combine_chunks().flatten().to_numpy()
        return flat.reshape(table.num_rows, header.layers, header.heads)

    index = {name: table[name].to_numpy() for name in INDEX}
    return AttentionTrace(
        header, **index, keys={name: cube(name) for name in COUNTS}, masses={name: cube(name) for name in MASSES}
    )
