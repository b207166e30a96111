"""Compiled loops over the tokens of one MoE layer of a routing trace.

numba module; import it where it is used, not at start-up. `ids` are the expert ids [token, k] of one layer, contiguous,
and `offset` int64[request + 1] says where requests begin, as in `RoutingTrace`. All kernels release the GIL.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ids = NDArray[Any]  # uint8 or uint16
Ints = NDArray[np.int64]

LRU, LFU, BELADY, SEGMENT = 0, 1, 2, 3
"""Which expert a full cache gives up; `moesim.workloads.expert_caches` says what they mean."""

_PINNED = np.int64(2**62)
_TIE = np.int64(2**31)
"""What a use counts for against recency: more than the tokens of any trace."""


@njit(cache=True, nogil=True)
def count_parts(ids: Ids, part: NDArray[np.int32], parts: int, experts: int) -> Ints:
    """Selections int64[part, expert] of the tokens of each part; `part` int32[token] is the number of its part."""
    tokens, k = ids.shape
    counts = np.zeros((parts, experts), np.int64)
    for token in range(tokens):
        row = counts[part[token]]
        for rank in range(k):
            row[ids[token, rank]] += 1
    return counts


@njit(cache=True, nogil=True)
def count_pairs(first: Ids, second: Ids, experts: int) -> Ints:
    """How many tokens use expert a of one layer and expert b of another (or of the same): int64[a, b]."""
    tokens, k = first.shape
    counts = np.zeros((experts, experts), np.int64)
    for token in range(tokens):
        for a in range(k):
            row = counts[first[token, a]]
            for b in range(k):
                row[second[token, b]] += 1
    return counts


def count_transitions(expert: Ids, experts: int) -> Ints:
    """How often a token that used expert a in a layer used b in the next: int64[layer - 1, a, b].

    Args:
        expert: ids [token, layer, k].
        experts: experts per layer.
    """
    counts = np.zeros((expert.shape[1] - 1, experts, experts), np.int64)
    for layer in range(len(counts)):
        first, second = (np.ascontiguousarray(expert[:, one]) for one in (layer, layer + 1))
        counts[layer] = count_pairs(first, second, experts)
    return counts


@njit(cache=True, nogil=True)
def count_shared(ids: Ids, offset: Ints, lag: int) -> Ints:
    """Experts that tokens share with the token `lag` positions before, summed up: int64[request]."""
    k = ids.shape[1]
    shared = np.zeros(len(offset) - 1, np.int64)
    for request in range(len(offset) - 1):
        total = 0
        for token in range(offset[request] + lag, offset[request + 1]):
            for a in range(k):
                for b in range(k):
                    total += ids[token, a] == ids[token - lag, b]
        shared[request] = total
    return shared


@njit(cache=True, nogil=True)
def count_segments(ids: Ids, offset: Ints, experts: int, length: int) -> Ints:
    """Segments of `length` consecutive tokens by how often they use each expert: int64[expert, uses].

    Segments begin at every token (they overlap) and stay inside a request; requests that are shorter have none. The
    window slides: only the experts of the tokens that leave and enter change, so a step costs 2 k.
    """
    k = ids.shape[1]
    seen = np.zeros((experts, length + 1), np.int64)
    uses, since = np.zeros(experts, np.int64), np.zeros(experts, np.int64)
    for request in range(len(offset) - 1):
        begin, segments = offset[request], offset[request + 1] - offset[request] - length + 1
        if segments < 1:
            continue
        uses[:] = 0
        since[:] = 0
        for token in range(begin, begin + length):
            for rank in range(k):
                uses[ids[token, rank]] += 1
        for segment in range(1, segments):
            for rank in range(k):
                expert = ids[begin + segment - 1, rank]
                seen[expert, uses[expert]] += segment - since[expert]
                uses[expert] -= 1
                since[expert] = segment
            for rank in range(k):
                expert = ids[begin + segment + length - 1, rank]
                seen[expert, uses[expert]] += segment - since[expert]
                uses[expert] += 1
                since[expert] = segment
        for expert in range(experts):
            seen[expert, uses[expert]] += segments - since[expert]
    return seen


@njit(cache=True, nogil=True)
def count_touched(ids: Ids, rows: Ints, sizes: Ints, experts: int) -> Ints:
    """Distinct experts of the first `sizes[i]` tokens of each batch, summed over batches: int64[size].

    Args:
        ids: of one layer.
        rows: int64[batch, token], rows of `ids`.
        sizes: int64[size], ascending, the last at most the tokens of a batch.
        experts: experts per layer.
    """
    batches = rows.shape[0]
    totals = np.zeros(len(sizes), np.int64)
    last_batch = np.full(experts, -1, np.int64)
    for batch in range(batches):
        touched, token = 0, 0
        for index in range(len(sizes)):
            while token < sizes[index]:
                for rank in range(ids.shape[1]):
                    expert = ids[rows[batch, token], rank]
                    touched += last_batch[expert] != batch
                    last_batch[expert] = batch
                token += 1
            totals[index] += touched
    return totals


@njit(cache=True, nogil=True)
def count_reached(ids: Ids, first: Ints, order: Ints, place: Ints, places: int) -> Ints:
    """Tokens by the number of distinct places (devices, nodes) that hold their experts: int64[places + 1].

    Args:
        ids: of one layer.
        first: int64[expert + 1], where the slots of each expert stand in `order`.
        order: int64[slot], slots sorted by expert; a token's choice takes the replicas in turn, as the simulator does.
        place: int64[slot], where a slot is.
        places: how many there are.
    """
    tokens, k = ids.shape
    counts = np.zeros(places + 1, np.int64)
    last_token = np.full(places, -1, np.int64)
    for token in range(tokens):
        reached = 0
        for rank in range(k):
            expert = ids[token, rank]
            turn = (token * k + rank) % (first[expert + 1] - first[expert])
            where = place[order[first[expert] + turn]]
            reached += last_token[where] != token
            last_token[where] = token
        counts[reached] += 1
    return counts


@njit(cache=True, nogil=True)
def _next_uses(ids: Ids, begin: int, end: int, experts: int) -> Ints:
    """The next token that uses each chosen expert again, `end` if none: int64[token, k]."""
    following = np.full(experts, end, np.int64)
    uses = np.empty((end - begin, ids.shape[1]), np.int64)
    for token in range(end - 1, begin - 1, -1):
        for rank in range(ids.shape[1]):
            expert = ids[token, rank]
            uses[token - begin, rank] = following[expert]
            following[expert] = token
    return uses


@njit(cache=True, nogil=True)
def _access(stack: Ints, height: int, worth: Ints, expert: int) -> int:
    """Bring `expert` to the top of the stack; returns the new height.

    Stack positions 0 to C - 1 are the contents of a cache of size C. What a cache of each size gives up, the least
    worth of what it holds and what it was handed, goes down to the next larger one (Mattson et al., 1970).
    """
    if height == 0:
        stack[0] = expert
        return 1
    if stack[0] == expert:
        return height
    carried = stack[0]
    stack[0] = expert
    for depth in range(1, height):
        here = stack[depth]
        if here == expert:
            stack[depth] = carried
            return height
        if worth[here] < worth[carried]:
            stack[depth] = carried
            carried = here
    stack[height] = carried
    return height + 1


@njit(cache=True, nogil=True)
def _see(chosen: Ids, uses: Ints, worth: Ints, last: Ints) -> None:
    """A token comes in sight: its experts are worth more."""
    for expert in chosen:
        uses[expert] += 1
        worth[expert] = uses[expert] * _TIE + last[expert]


@njit(cache=True, nogil=True)
def _look_up(chosen: Ids, depth: Ints, height: int, hits: Ints, cold: Ints) -> None:
    """Count the experts of a token where they are found, those that are not by how many experts came before."""
    for expert in chosen:
        if depth[expert] < 0:
            cold[height] += 1
            height += 1
        else:
            hits[depth[expert]] += 1


@njit(cache=True, nogil=True)
def count_cache_hits(ids: Ids, offset: Ints, experts: int, policy: int, horizon: int) -> tuple[Ints, Ints]:  # noqa: C901
    """Uses found at each depth of the priority stack, for caches of every size in one pass.

    A cache of C >= k experts hits on the uses at depths below C. A token's k experts are looked up together, then
    loaded, and none of them is given up for another of them. Caches are empty where a request (a span of `offset`)
    begins.

    Args:
        ids: of one layer.
        offset: int64[span + 1], where caches are emptied.
        experts: experts per layer.
        policy: LRU, LFU, BELADY or SEGMENT.
        horizon: tokens ahead that SEGMENT knows.

    Returns:
        (hits, cold): int64[expert] by depth; int64[expert] first uses in a span, by the number of distinct experts
        before: a cache of size C had room for those below C.
    """
    k = ids.shape[1]
    hits, cold = np.zeros(experts, np.int64), np.zeros(experts, np.int64)
    stack, depth = np.empty(experts + 1, np.int64), np.empty(experts, np.int64)
    worth, uses, last = np.zeros(experts, np.int64), np.zeros(experts, np.int64), np.zeros(experts, np.int64)
    ahead = np.empty((0, k), np.int64)
    for span in range(len(offset) - 1):
        begin, end, height = offset[span], offset[span + 1], 0
        depth[:], uses[:], last[:], worth[:] = -1, 0, 0, 0
        if policy == BELADY:
            ahead = _next_uses(ids, begin, end, experts)
        if policy == SEGMENT:
            for token in range(begin, min(begin + horizon, end)):
                _see(ids[token], uses, worth, last)
        for token in range(begin, end):
            if policy == SEGMENT and token + horizon < end:
                _see(ids[token + horizon], uses, worth, last)
            _look_up(ids[token], depth, height, hits, cold)
            worth[ids[token]] = _PINNED
            for rank in range(k):
                height = _access(stack, height, worth, ids[token, rank])
            for rank in range(k):
                expert = ids[token, rank]
                last[expert] = (token - begin) * k + rank + 1
                uses[expert] += -1 if policy == SEGMENT else 1
                worth[expert] = last[expert]
                if policy == BELADY:
                    worth[expert] = -ahead[token - begin, rank]
                elif policy != LRU:
                    worth[expert] += uses[expert] * _TIE
            for place in range(height):
                depth[stack[place]] = place
    return hits, cold
