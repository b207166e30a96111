"""Which data-parallel rank gets a request: the policies of the router in front of the replicas."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from moesim.simulator.scheduler import RankScheduler

PolicyName = Literal["least_outstanding", "round_robin", "cache_aware"]
Policy = Callable[[Sequence[RankScheduler], int, int], int]
"""(ranks, request, number of requests dealt before it) -> index of the rank."""

_WORTHWHILE_SHARE = 0.3
"""Of a prompt that has to be in a cache for the request to go there (SGLang router 0.3, `cache_threshold`)."""
_UNBALANCED_BY = 64
_UNBALANCED_TIMES = 1.5
"""Outstanding requests by which, and times which, the fullest rank must exceed the emptiest for load to go before
caches (SGLang router 0.3, `balance_abs_threshold` and `balance_rel_threshold`)."""


def least_outstanding(ranks: Sequence[RankScheduler], _request: int, dealt: int) -> int:
    """The rank with the fewest requests waiting or running.

    The search begins one rank later with every request, so that ranks with equally many take turns (vLLM 0.27,
    `DPLBAsyncMPClient.get_core_engine_for_request`).
    """
    in_turn = ((dealt + offset) % len(ranks) for offset in range(len(ranks)))
    return min(in_turn, key=lambda rank: ranks[rank].outstanding)


def round_robin(ranks: Sequence[RankScheduler], _request: int, dealt: int) -> int:
    """The ranks in turn."""
    return dealt % len(ranks)


def cache_aware(ranks: Sequence[RankScheduler], request: int, dealt: int) -> int:
    """The rank that holds most of the prompt; the least loaded where little is held or loads are far apart.

    The rule is that of SGLang's router, but for what the caches hold: the router there estimates it from the requests
    that it dealt, here the caches are asked.
    """
    outstanding = [rank.outstanding for rank in ranks]
    most, least = max(outstanding), min(outstanding)
    held = [rank.cached_tokens(request) for rank in ranks]
    worthwhile = max(held) > _WORTHWHILE_SHARE * int(ranks[0].states.prompt[request])
    if not worthwhile or (most - least > _UNBALANCED_BY and most > _UNBALANCED_TIMES * least):
        return least_outstanding(ranks, request, dealt)
    return held.index(max(held))


POLICIES: Mapping[PolicyName, Policy] = {
    "least_outstanding": least_outstanding,
    "round_robin": round_robin,
    "cache_aware": cache_aware,
}
