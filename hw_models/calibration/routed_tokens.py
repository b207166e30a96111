"""Tokens of each expert in measurements that only name a distribution.

Follows what aiconfigurator's collectors document: `balanced` deals experts out in strides; `power_law_a` draws the
popularity of experts from a truncated power law and measures the fullest expert-parallel rank. Instead of one random
draw, popularities are the quantiles of the law, dealt out to the ranks at random.
"""

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
BALANCED = "balanced"
POWER_LAW = "power_law_"
_FEW, _MANY = (0.01, 2.0), (1.0, 0.8)
"""Range of popularities with fewer and with more pairs than experts; the last is times the tokens."""


def rank_tokens(
    tokens: int, experts: int, top_k: int, ranks: int, distribution: str, *, leading: bool = False, seed: int = 0
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
        seed: of the order in which popularities are dealt out.

    Raises:
        ValueError: unknown distribution.
    """
    if distribution == BALANCED:
        return _balanced(tokens, experts, top_k)[: experts // ranks]
    if not distribution.startswith(POWER_LAW):
        raise ValueError(f"distribution must be {BALANCED} or {POWER_LAW}<exponent>, got {distribution!r}")
    exponent = float(distribution.removeprefix(POWER_LAW))
    by_rank = _power_law(tokens, experts, top_k, ranks, (exponent, leading, seed)).reshape(ranks, -1)
    fullest: Counts = by_rank[by_rank.sum(axis=1).argmax()]
    return fullest


def _balanced(tokens: int, experts: int, top_k: int) -> Counts:
    """Token i has experts i, i + s, i + 2s, ... with s = experts / top_k, rounded up; few tokens are spread evenly."""
    stride = -(-experts // top_k)
    start = np.arange(tokens) if tokens >= stride else np.arange(tokens) * stride // tokens
    chosen = (start[:, None] + np.arange(top_k) * stride) % experts
    return np.bincount(chosen.ravel(), minlength=experts)


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
