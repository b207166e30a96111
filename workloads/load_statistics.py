"""Numbers that follow from how often experts are used: imbalance, entropy, distance, mutual information.

All take counts or shares and need no trace, so they serve traces, profiles and tables of loads alike.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64] | NDArray[np.float64]


def shares(load: Counts) -> Floats:
    """`load` scaled to sum 1 along its last axis; NaN where there is no load."""
    total = np.asarray(load, np.float64).sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray(load / total, np.float64)


def max_over_mean(load: Counts) -> Floats:
    """Load of the busiest expert over the mean load, along the last axis; 1 is balanced.

    The time of a layer whose experts run in parallel, one per device, over that of a balanced layer.
    """
    return np.asarray(shares(load).max(axis=-1) * load.shape[-1], np.float64)


def variation(load: Counts) -> Floats:
    """Coefficient of variation: population standard deviation over mean, along the last axis."""
    part = shares(load)
    return np.asarray(part.std(axis=-1) * load.shape[-1], np.float64)


def entropy_bits(load: Counts) -> Floats:
    """Shannon entropy of the shares in bits, along the last axis; log2(experts) is balanced."""
    part = shares(load)
    logs = np.log2(part, where=part > 0, out=np.zeros_like(part))
    return np.asarray(-(part * logs).sum(axis=-1), np.float64)


def total_variation(one: Counts, other: Counts) -> Floats:
    """Total variation distance, half the sum of |p - q|: the share of selections that would have to move; 0 to 1."""
    return np.asarray(0.5 * abs(shares(one) - shares(other)).sum(axis=-1), np.float64)


def jensen_shannon_bits(one: Counts, other: Counts) -> Floats:
    """Jensen-Shannon divergence H((p + q) / 2) - (H(p) + H(q)) / 2 in bits, 0 to 1 (Lin, 1991, eq. 4.1)."""
    p, q = shares(one), shares(other)
    return np.maximum(0.0, entropy_bits((p + q) / 2) - (entropy_bits(p) + entropy_bits(q)) / 2)


def mutual_information_bits(pairs: Counts) -> Floats:
    """Mutual information of row and column in bits: sum of p(a, b) log2(p(a, b) / p(a) p(b)).

    The estimate from counts is too high by about (rows - 1)(columns - 1) / (2 ln 2 x pairs) bits (Miller, 1955), less
    than a thousandth of a bit from a million pairs of 32 experts.

    Args:
        pairs: [..., a, b] how often a and b occur together.
    """
    flat = pairs.reshape(*pairs.shape[:-2], pairs.shape[-2] * pairs.shape[-1])
    rows, columns = pairs.sum(axis=-1), pairs.sum(axis=-2)
    return np.maximum(0.0, entropy_bits(rows) + entropy_bits(columns) - entropy_bits(flat))


def lift(together: Counts, tokens: int) -> Floats:
    """How much more often two experts are used by the same token than if they were independent: [layer, a, b].

    P(a and b) / P(a) P(b); NaN on the diagonal and for experts that are never used. Independent choices of top k
    distinct experts give a little less than 1: (k - 1) experts / (k (experts - 1)) if all are used equally often.

    Args:
        together: int64[layer, a, b] tokens that use both; the diagonal is the load.
        tokens: how many tokens there are.
    """
    load = np.diagonal(together, axis1=-2, axis2=-1).astype(np.float64)
    expected = load[..., :, np.newaxis] * load[..., np.newaxis, :] / tokens
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.asarray(together / expected, np.float64)
    ratio[..., np.arange(load.shape[-1]), np.arange(load.shape[-1])] = np.nan
    return ratio


def expected_touched(load: Counts, tokens: int, sizes: NDArray[np.int64]) -> Floats:
    """Distinct experts that a batch of independent tokens touches, on average: float64[layer, size].

    An expert that a token uses with probability q is missed by B independent tokens with probability (1 - q)^B, so the
    mean number touched is the sum of 1 - (1 - q)^B over experts. This is exact for tokens drawn independently from the
    trace, whatever experts they use together; how real batches differ shows how alike their tokens are.

    Args:
        load: [layer, expert] selections.
        tokens: tokens that made them.
        sizes: int64[size] tokens of the batch, B.
    """
    q = np.asarray(load, np.float64)[..., np.newaxis] / tokens
    return np.asarray((1.0 - (1.0 - q) ** sizes).sum(axis=-2), np.float64)


def expected_reached(experts: int, top_k: int, places: int) -> float:
    """Distinct places that hold the experts of a token, on average, if all sets of top_k experts are equally likely.

    Each of `places` holds experts / places of them, and is missed with probability C(experts - experts / places, k) /
    C(experts, k).
    """
    held = experts / places
    ranks = np.arange(top_k)
    missed = np.prod(np.maximum(0.0, experts - held - ranks) / (experts - ranks))
    return float(places * (1.0 - missed))


def independent_overlap(load: Counts, tokens: int, top_k: int) -> Floats:
    """Share of a token's experts that another, independent token of the trace uses as well: sum of q^2 / k. [layer].

    q is the probability that a token uses an expert. What consecutive tokens share beyond it is locality; with balanced
    loads it is k / experts.
    """
    q = np.asarray(load, np.float64) / tokens
    return np.asarray((q**2).sum(axis=-1) / top_k, np.float64)


def mean_gates(weight: NDArray[np.floating[Any]]) -> Floats:
    """Mean gate weight of the first, second, ... expert of a token, each scaled to sum 1: float64[layer, k]."""
    means = np.stack([weight[:, layer].mean(axis=0, dtype=np.float64) for layer in range(weight.shape[1])])
    return np.asarray(means / means.sum(axis=1, keepdims=True), np.float64)
