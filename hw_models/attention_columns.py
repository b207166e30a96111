"""What the compiled price of attention works with: parts of rows, and tiles."""

from typing import NamedTuple


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
