"""Statistics of lists of sets in plain Python: slow, and written from the definitions."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

Token = tuple[int, ...]
Tokens = Sequence[Token]
Worth = Callable[[int], tuple[int, ...]]
Rule = Callable[[Tokens, Tokens], Worth]
"""What experts are worth, given the tokens before and after the present one."""


def lru(history: Sequence[Token], _: Sequence[Token]) -> Worth:
    return lambda expert: (last_use(history, expert),)


def lfu(history: Sequence[Token], _: Sequence[Token]) -> Worth:
    return lambda expert: (sum(expert in token for token in history), last_use(history, expert))


def segment(horizon: int) -> Rule:
    def rule(history: Sequence[Token], future: Sequence[Token]) -> Worth:
        return lambda expert: (sum(expert in token for token in future[:horizon]), last_use(history, expert))

    return rule


def belady(_: Sequence[Token], future: Sequence[Token]) -> Worth:
    def worth(expert: int) -> tuple[int, ...]:
        return (-next((i for i, token in enumerate(future) if expert in token), len(future)),)

    return worth


def last_use(history: Sequence[Token], expert: int) -> int:
    """Number of the last use among all uses, -1 if there is none."""
    flat = [other for token in history for other in token]
    return max((i for i, other in enumerate(flat) if other == expert), default=-1)


def hit_count(requests: Sequence[Tokens], size: int, rule: Rule) -> int:
    """Hits of a cache that is empty where a request begins and gives up what is worth least by `rule`."""
    hits = 0
    for tokens in requests:
        cache: set[int] = set()
        for now, token in enumerate(tokens):
            hits += len(cache & set(token))
            for expert in token:
                if expert not in cache and len(cache) == size:
                    worth = rule(tokens[:now], tokens[now + 1 :])
                    cache.remove(min(cache - set(token), key=worth))
                cache.add(expert)
    return hits


def most_hits(tokens: Tokens, size: int) -> int:
    """Hits of the best of all schedules, found by trying every set that a cache can hold after each token."""
    reachable: dict[frozenset[int], int] = {frozenset(): 0}
    for token in tokens:
        needed = frozenset(token)
        after: dict[frozenset[int], int] = {}
        for cache, hits in reachable.items():
            spare = sorted(cache - needed)
            room = min(len(spare), size - len(needed))
            for kept in combinations(spare, room):
                state = needed | frozenset(kept)
                after[state] = max(after.get(state, 0), hits + len(cache & needed))
        reachable = after
    return max(reachable.values())


def windows(requests: Sequence[Tokens], length: int) -> Iterator[Tokens]:
    for tokens in requests:
        for start in range(len(tokens) - length + 1):
            yield tokens[start : start + length]


def best_f1(layers: Sequence[Sequence[Tokens]], experts: int, length: int) -> float:
    """The best F1 of routers that say yes for whole segments, each expert from a threshold of uses on."""
    best = 0.0
    for alpha in range(length + 1):
        right = wrong = missed = 0
        for requests in layers:
            for part in windows(requests, length):
                uses = Counter(expert for token in part for expert in token)
                for expert in range(experts):
                    if uses[expert] >= alpha:
                        right += uses[expert]
                        wrong += length - uses[expert]
                    else:
                        missed += uses[expert]
        best = max(best, 2 * right / (2 * right + wrong + missed))
    return best


def sparsity(requests: Sequence[Tokens], experts: int, length: int) -> float:
    parts = list(windows(requests, length))
    return sum(1 - len({expert for token in part for expert in token}) / experts for part in parts) / len(parts)
