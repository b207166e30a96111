"""Tokens of each expert in measurements that only name a distribution.

Follows what aiconfigurator's collectors document: `balanced` deals experts out in strides; `power_law_a` draws the
popularity of experts from a truncated power law and measures the fullest expert-parallel rank. Instead of one random
draw, popularities are the quantiles of the law, dealt out to the ranks at random.

Routers that only look into the best groups of experts (DeepSeek-V3 report, 2.1.2) make something else of the scores
that collectors feed them: these are equal for all experts that a token should have and for all that it should not, so
ties decide, and the expert of the lowest number wins them. The first groups then take every token, and their first
experts take what a token misses.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.calibration.measured import Floats, Measured

Counts = NDArray[np.int64]
BALANCED = "balanced"
POWER_LAW = "power_law_"
_FEW, _MANY = (0.01, 2.0), (1.0, 0.8)
"""Range of popularities with fewer and with more pairs than experts; the last is times the tokens."""
_DRAWN_WEIGHT = 1 / 3
"""Of rows that are random draws."""


class GroupLimit(NamedTuple):
    """A router that cuts the experts into `groups` equal parts and takes a token's experts from the best `best`."""

    groups: int
    best: int


class RankBatch(NamedTuple):
    """What one rank got: tokens of each of its experts, and tokens that the kernel looks at."""

    expert_tokens: Counts
    tokens: int


def rank_batch(tokens: int, experts: int, top_k: int, ranks: int, distribution: str, *, seed: int = 0) -> RankBatch:
    """The batch of a rank that only gets tokens for it, and whose first expert also computes their other choices.

    A collector of SGLang 0.5 measured so: it set the numbers of experts on other ranks to 0.

    What is given is as for `rank_tokens`.

    Raises:
        ValueError: unknown distribution.
    """
    if distribution == BALANCED:
        chosen = _balanced(tokens, experts, top_k)
        weight = np.ones(tokens)
    else:
        by_rank = _power_law(tokens, experts, top_k, ranks, (_exponent(distribution), False, seed)).reshape(ranks, -1)
        fullest = int(by_rank.sum(axis=1).argmax())
        by_rank[[0, fullest]] = by_rank[[fullest, 0]]
        chosen, weight = _by_token(by_rank.ravel(), tokens, top_k)
    own = chosen < experts // ranks
    comes = own.any(axis=1)
    seen = np.where(own, chosen, 0)[comes]
    counts = np.bincount(seen.ravel(), np.repeat(weight[comes], top_k), minlength=experts // ranks)
    return RankBatch(counts.astype(np.int64), int(weight[comes].sum()))


def rank_tokens(
    tokens: int,
    experts: int,
    top_k: int,
    ranks: int,
    distribution: str,
    *,
    leading: bool = False,
    limit: GroupLimit | None = None,
    seed: int = 0,
) -> Counts:
    """Tokens of each expert of the measured rank: int64[experts / ranks].

    Args:
        tokens: in the batch of all ranks.
        experts: of the layer.
        top_k: experts per token.
        ranks: that share the experts in equal, contiguous parts.
        distribution: `balanced` or `power_law_<exponent>`.
        leading: what rounding leaves over goes to the most popular experts, the first of equal ones, as collectors of
            2025 did; by default to the least popular.
        limit: of the router, if it has one.
        seed: of the order in which popularities are dealt out.

    Raises:
        ValueError: unknown distribution.
    """
    if distribution == BALANCED:
        chosen = _balanced(tokens, experts, top_k)
        if limit is not None:
            runs, weight = np.unique(chosen, axis=0, return_counts=True)
            return _limited(runs, weight.astype(np.float64), experts, limit)[: experts // ranks]
        return np.bincount(chosen.ravel(), minlength=experts)[: experts // ranks]
    exponent = _exponent(distribution)
    by_rank = _power_law(tokens, experts, top_k, ranks, (exponent, leading, seed)).reshape(ranks, -1)
    fullest = int(by_rank.sum(axis=1).argmax())
    if limit is not None:
        by_rank[[0, fullest]] = by_rank[[fullest, 0]]  # collectors measure the first rank
        return _limited(*_by_token(by_rank.ravel(), tokens, top_k), experts, limit)[: experts // ranks]
    result: Counts = by_rank[fullest]
    return result


def _exponent(distribution: str) -> float:
    if not distribution.startswith(POWER_LAW):
        raise ValueError(f"distribution must be {BALANCED} or {POWER_LAW}<exponent>, got {distribution!r}")
    return float(distribution.removeprefix(POWER_LAW))


def _balanced(tokens: int, experts: int, top_k: int) -> Counts:
    """int64[token, choice]: i, i + s, i + 2s, ... with s = experts / top_k, rounded up; few tokens spread evenly."""
    stride = -(-experts // top_k)
    start = np.arange(tokens) if tokens >= stride else np.arange(tokens) * stride // tokens
    chosen: Counts = (start[:, None] + np.arange(top_k) * stride) % experts
    return chosen


def _by_token(counts: Counts, tokens: int, top_k: int) -> tuple[Counts, NDArray[np.float64]]:
    """Experts of runs of tokens that have the same, int64[run, choice], and the tokens of each run.

    The most popular expert is the first choice of the first tokens, the next one of the following, and so on round.
    """
    order = np.argsort(-counts, kind="stable")
    ends = np.cumsum(counts[order])
    starts = np.unique(np.concatenate([[0], ends % tokens]))
    places = starts[:, None] + np.arange(top_k) * tokens
    chosen: Counts = order[np.searchsorted(ends, places, side="right")]
    return chosen, np.diff(np.append(starts, tokens)).astype(np.float64)


def _limited(chosen: Counts, weight: NDArray[np.float64], experts: int, limit: GroupLimit) -> Counts:
    """Tokens of each expert after a router with groups has seen scores of 1 for the `chosen` ones and 0 for others.

    A group scores the sum of its two best experts.
    """
    score = np.zeros((len(chosen), experts))
    np.put_along_axis(score, chosen, 1.0, axis=1)
    by_group = np.minimum(score.reshape(len(chosen), limit.groups, -1).sum(axis=2), 2.0)
    best = np.argsort(-by_group, axis=1, kind="stable")[:, : limit.best]
    allowed = np.zeros(by_group.shape, np.bool_)
    np.put_along_axis(allowed, best, values=True, axis=1)
    score[~np.repeat(allowed, experts // limit.groups, axis=1)] = -1.0
    final = np.argsort(-score, axis=1, kind="stable")[:, : chosen.shape[1]]
    counts = np.bincount(final.ravel(), np.repeat(weight, chosen.shape[1]), minlength=experts)
    return counts.astype(np.int64)


def _power_law(tokens: int, experts: int, top_k: int, ranks: int, law: tuple[float, bool, int]) -> Counts:
    exponent, leading, seed = law
    low, high = (_MANY[0], max(_MANY[1] * tokens, _MANY[0] * (1 + 1e-4))) if tokens * top_k > experts else _FEW
    ends = np.array([low, high]) ** (1 - exponent)
    quantile = np.random.default_rng(seed).permutation((np.arange(experts) + 0.5) / experts)
    popularity = (ends[0] + quantile * (ends[1] - ends[0])) ** (1 / (1 - exponent))
    counts = np.rint(popularity / popularity.sum() * tokens * top_k).astype(np.int64)
    if leading:
        return _with_leading(counts, tokens * top_k)
    return _with_sum(np.minimum(counts, tokens), tokens * top_k, tokens, ranks)


def _with_leading(counts: Counts, total: int) -> Counts:
    """`counts` with what is missing spread over the experts from the most popular, or taken from the least popular."""
    order = np.argsort(-counts, kind="stable")
    missing = total - int(counts.sum())
    turns = np.zeros_like(counts)
    order = order if missing >= 0 else order[::-1]
    turns[order] = abs(missing) // len(counts) + (np.arange(len(counts)) < abs(missing) % len(counts))
    result: Counts = np.maximum(counts + np.sign(missing) * turns, 0)
    return result


def _with_sum(counts: Counts, total: int, most: int, ranks: int) -> Counts:
    """`counts` raised or lowered until their sum is `total`, none above `most`, by turns of the ranks.

    A rank whose turn it is raises its least popular expert, or lowers its most popular one.
    """
    missing = total - int(counts.sum())
    sign = 1 if missing >= 0 else -1
    within = np.argsort(sign * counts.reshape(ranks, -1), axis=1, kind="stable")
    order = (within + np.arange(ranks)[:, None] * within.shape[1]).T.ravel()  # first of every rank, second, ...
    turns = counts[order]
    while missing != 0:
        room = most - turns if missing > 0 else turns
        step = np.minimum(room, -(-abs(missing) // len(turns)))
        step = np.diff(np.minimum(np.cumsum(step), abs(missing)), prepend=0)
        turns = turns + np.sign(missing) * step
        missing = total - int(turns.sum())
    result = np.empty_like(counts)
    result[order] = turns
    return result


def row_weights(measured: Measured[Any]) -> Floats:
    """float64[row]: what rows count in fits of what scatters; random draws count less."""
    distribution = measured.labels.get("distribution", np.full(len(measured), BALANCED))
    weights: Floats = np.where(distribution == BALANCED, 1.0, _DRAWN_WEIGHT)
    return weights
