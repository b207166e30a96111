"""Which prompts start alike: hashes of the blocks of every prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError

Ints = NDArray[np.int64]

MOONCAKE_BLOCK_TOKENS = 512
"""Tokens per hash in the published Mooncake traces (their README)."""


@dataclass(frozen=True, eq=False)
class PrefixBlocks:
    """Hashes of prompt blocks. A hash stands for its block and all before it, so equal ones mean equal prefixes.

    Args:
        ids: int64[block] hashes of all requests, one request after the other.
        offsets: int64[request + 1]: request r has `ids[offsets[r] : offsets[r + 1]]`, in order of its prompt.
        block_tokens: tokens per block; the last block of a prompt may hold fewer.
    """

    ids: Ints
    offsets: Ints
    block_tokens: int = MOONCAKE_BLOCK_TOKENS

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Self:
        """Blocks of requests given as a list of hashes each."""
        offsets = np.cumsum([0, *map(len, lists)])
        return cls(np.fromiter(chain.from_iterable(lists), np.int64, int(offsets[-1])), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def head(self, n: int) -> Self:
        """Those of the first `n` requests, or of all if there are fewer."""
        offsets = self.offsets[: n + 1]
        return type(self)(self.ids[: offsets[-1]], offsets, self.block_tokens)

    def full_blocks(self, prompt_tokens: Ints) -> list[list[int]]:
        """Hashes of the blocks that each prompt fills, request by request."""
        counts = np.minimum(np.diff(self.offsets), prompt_tokens // self.block_tokens)
        ids, offsets = self.ids.tolist(), self.offsets.tolist()
        return [ids[start : start + count] for start, count in zip(offsets, counts.tolist(), strict=False)]

    def check(self, prompt_tokens: Ints, source: str) -> None:
        """Check that every prompt has the hashes of all its blocks, the last one filled or not.

        Raises:
            DataError: the first prompt that has not.
        """
        counts = np.diff(self.offsets)
        least, most = prompt_tokens // self.block_tokens, -(-prompt_tokens // self.block_tokens)
        wrong = np.flatnonzero((counts < least) | (counts > most))
        if wrong.size:
            row = int(wrong[0])
            rule = f"must be one per {self.block_tokens} tokens of the prompt (`prefix_block_tokens`), here {most[row]}"
            raise DataError(f"{source}: request {row}: hash_ids", rule, int(counts[row]))


def is_hashes(value: Any) -> bool:
    """Whether `value` is a list of whole numbers that 64 bits hold."""
    return isinstance(value, list) and all(type(one) is int and -(2**63) <= one < 2**63 for one in value)
