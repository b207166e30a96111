"""Prefix caching on one data-parallel rank: prompts that start alike share the KV blocks of what they have in common.

The rules are those of vLLM's v1 engine. A full block of a prompt can be found from the step that computes it. An
admitted request starts behind its leading blocks that are found, but always computes its last known token, which it
needs to sample from. Blocks that no running request uses stay until their memory is needed: the one unused longest
goes first, and of one request the last block first, so that what remains is a prefix.

Only prompts have hashes, so what was generated is never found again.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np

from moesim.errors import ConfigError
from moesim.simulator.memory import KvCache
from moesim.workloads.requests import Requests

Blocks = Sequence[Sequence[int]]
"""[request][block]: hashes of the blocks that a prompt fills."""


class PrefixCache:
    """Which blocks are in the KV cache of a rank, and how many running requests use each.

    Memory is counted by the scheduler: it charges every request for all its tokens, the prefix included, and this
    class says how much of that is charged twice. Blocks that nobody uses count as free memory.
    """

    def __init__(self, blocks: Blocks, block_tokens: int, block_bytes: float) -> None:
        """Start empty.

        Args:
            blocks: hashes by request.
            block_tokens: tokens per block.
            block_bytes: KV bytes of a block on each device of the rank.
        """
        self.blocks, self.block_tokens, self.block_bytes = blocks, block_tokens, block_bytes
        self._users: Counter[int] = Counter()
        self._unused: OrderedDict[int, None] = OrderedDict()  # the one unused longest first
        self._held: dict[int, int] = {}  # leading blocks that a running request uses

    @property
    def unused_bytes(self) -> float:
        """Bytes of blocks that no running request uses."""
        return len(self._unused) * self.block_bytes

    @property
    def used_blocks(self) -> int:
        """Different blocks that running requests use."""
        return len(self._users)

    def find(self, request: int, known_tokens: int) -> tuple[int, float]:
        """What a request that starts need not compute of its `known_tokens`.

        Returns:
            (tokens, bytes): leading tokens in the cache; bytes of them that running requests hold already.
        """
        found = shared = 0
        for block in self.blocks[request][: (known_tokens - 1) // self.block_tokens]:
            if block in self._users:
                shared += 1
            elif block not in self._unused:
                break
            found += 1
        return found * self.block_tokens, shared * self.block_bytes

    def hold(self, request: int, tokens: int) -> float:
        """Note that a request uses the full blocks among its first `tokens`, from now on found by others.

        Returns:
            Bytes of blocks, not noted before, that other running requests hold as well.
        """
        shared, held = 0, self._held.get(request, 0)
        new = self.blocks[request][held : tokens // self.block_tokens]
        for block in new:
            shared += block in self._users
            self._users[block] += 1
            self._unused.pop(block, None)
        self._held[request] = held + len(new)
        return shared * self.block_bytes

    def release(self, request: int) -> float:
        """A request stops; its blocks stay in the cache.

        Returns:
            Bytes of its blocks that other running requests still hold.
        """
        shared = 0
        for block in reversed(self.blocks[request][: self._held.pop(request, 0)]):
            self._users[block] -= 1
            if self._users[block]:
                shared += 1
            else:
                del self._users[block]
                self._unused[block] = None
        return shared * self.block_bytes

    def evict(self, free_bytes: float) -> None:
        """Drop unused blocks until the others fit in `free_bytes`."""
        while self._unused and self.unused_bytes > free_bytes:
            self._unused.popitem(last=False)


def check_prefix_caching(requests: Requests, cache: KvCache, place: str) -> None:
    """Check that prefixes can be cached: prompts have hashes, and the memory of a prefix is that of its blocks.

    Raises:
        ConfigError: the requests have no hashes, blocks of KV cache do not divide those of the hashes, or layers do
            not keep every token (sliding windows, recurrent states).
        DataError: a prompt has too many or too few hashes.
    """
    if requests.prefix is None:
        raise ConfigError(place, "needs requests with `hash_ids`, as Mooncake traces have", requests.source)
    requests.prefix.check(requests.prompt_tokens, requests.source)
    if requests.prefix.block_tokens % cache.block_tokens:
        rule = f"needs block_tokens that divide the {requests.prefix.block_tokens} tokens of a hash"
        raise ConfigError(place, rule, cache.block_tokens)
    if cache.state_bytes or any(window is not None for window in cache.windows):
        raise ConfigError(place, "needs a model whose layers all keep every token: no windows, no recurrent states")


def block_bytes(cache: KvCache, block_tokens: int) -> float:
    """KV bytes of `block_tokens` tokens, for caches that `check_prefix_caching` lets pass."""
    return float(cache.bytes(np.array([block_tokens]))[0])
