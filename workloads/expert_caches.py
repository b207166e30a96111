"""How often an expert that a token needs is already in a cache, for every size of cache and several rules.

Each MoE layer has a cache of C >= k experts. A token's k experts are looked up together; those that are missing are
loaded, and each load puts out one expert that this token does not need. The rules differ in which:

- `lru`: the one that was used longest ago.
- `lfu`: the one that was used least often since the cache was empty, of several the one used longest ago.
- `belady`: the one that is needed again last (Belady, 1966). No rule has more hits.
- `segment`: the one that the next m tokens use least often, of several the one used longest ago. Its hit rate is the
  SCH, segment cache best hit rate, of "Not All Models Suit Expert Offloading" (arXiv 2505.16056 v4), which writes cache
  sizes as rho x top-k. (Version 1 of the paper meant something else: the share of a segment's uses that its C most used
  experts cover.)

Caches are empty where a request begins, as in the paper, and loads into an empty cache are misses here. The authors'
code counts them as hits while the cache has room, and so does `CacheHits.rate(cold_hits=True)`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LRU, LFU, BELADY, SEGMENT = "lru", "lfu", "belady", "segment"
POLICIES = (LRU, LFU, BELADY, SEGMENT)
"""Rules, in the order of the numbers in `trace_kernels`."""


@dataclass(frozen=True, eq=False)
class CacheHits:
    """Uses of one rule, of one layer or summed over some.

    Args:
        hits: int64[..., expert] uses that were found at each depth: a cache of C experts holds those below C.
        cold: int64[..., expert] first uses of a request's experts, by how many distinct ones came before.
    """

    hits: Ints
    cold: Ints

    @property
    def uses(self) -> Ints:
        """int64[...]: uses of experts, hits and misses."""
        return np.asarray(self.hits.sum(axis=-1) + self.cold.sum(axis=-1), np.int64)

    def rate(self, *, cold_hits: bool = False) -> Floats:
        """Share of uses that hit, float64[..., size]; entry i is for a cache of i + 1 experts, valid from k on.

        Args:
            cold_hits: whether loads into room that was never used count as hits.
        """
        found = self.hits + self.cold if cold_hits else self.hits
        return np.asarray(found.cumsum(axis=-1) / self.uses[..., np.newaxis], np.float64)


def cache_hits(ids: NDArray[Any], offset: Ints, experts: int, policy: str, horizon: int = 16) -> CacheHits:
    """Hits of one layer's caches of every size.

    Args:
        ids: [token, k] experts of the layer.
        offset: int64[request + 1] where requests begin, and the number of tokens.
        experts: experts of the layer.
        policy: one of `POLICIES`.
        horizon: tokens ahead that `segment` knows, m of the paper.

    Raises:
        InputError: an unknown rule, or a horizon below 1.
    """
    from moesim.workloads.trace_kernels import count_cache_hits  # numba loads slowly

    if policy not in POLICIES:
        raise InputError("policy", f"must be one of {', '.join(POLICIES)}", policy)
    if horizon < 1:
        raise InputError("horizon", "must be at least 1 token", horizon)
    contiguous = np.ascontiguousarray(ids)
    return CacheHits(*count_cache_hits(contiguous, offset, experts, POLICIES.index(policy), horizon))


def cache_sizes(experts: int, top_k: int) -> Ints:
    """Sizes that tables and figures show: top_k times 1, 1.5, 2, 3, 4, 6, ... below `experts`, and `experts`."""
    factors = [base * 2**power for power in range(11) for base in (1.0, 1.5)]
    sizes = {round(factor * top_k) for factor in factors if factor * top_k < experts}
    return np.array(sorted(sizes | {experts}), np.int64)
