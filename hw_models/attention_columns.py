"""What the compiled price of attention takes and works with: columns of tables, parts of rows, tiles."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Columns(NamedTuple):
    """The columns of an operator table that decide prices of attention; see `OperatorTable`."""

    form: NDArray[np.int8]
    weight_dtype: NDArray[np.int8]
    m: Ints
    n: Ints
    k: Ints
    groups: Ints
    flops: Floats
    weight_bytes_read: Floats
    read_bytes: Floats
    write_bytes: Floats
    decode_m: Ints
    decode_flops: Floats
    decode_read_bytes: Floats
    window: Ints
    prefill_pair_flops: Floats
    decode_pair_flops: Floats
    query_dtype: NDArray[np.int8]
    prefill_sequences: Ints
    longest_prefill: Ints
    longest_decode: Ints


class Work(NamedTuple):
    """The prefill or the decode part of a row: sums over its sequences, and what a head is."""

    sequences: float
    tokens: float
    pairs: float  # of a query and a key it sees
    longest: float  # most keys that the last query of a sequence sees, were there no window
    window: float  # most keys that any query sees; inf without a limit
    heads: float
    kv_heads: float
    pair_flops: float  # per head
    query_bytes: float  # queries read and results written
    key_bytes: float


class Tiles(NamedTuple):
    """How a part is cut: tiles, blocks of keys of a mean tile, and of the longest one."""

    number: float
    blocks: float
    longest_blocks: float
