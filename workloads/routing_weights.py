"""Weights that give sampling without replacement the inclusion probabilities one wants.

Of conditional Poisson sampling, which `routing_draw` describes: P(set) ~ product of w[i] over the set (Chen, Dempster
and Liu, Biometrika 81 (1994) 457-469). The weights w are solved for here; what drawing needs of them are the elementary
symmetric polynomials of the suffixes, E[r, j] = e_r(w[j], ..., w[n-1]).
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STRIDE = 16
"""Tables are filled up to a multiple of this, and `coarse` has every so many-th entry."""
TOLERANCE = 1e-5
"""Relative error of inclusion probabilities."""
_CERTAIN = 1e-7
"""Inclusion probabilities are kept this far from 1, where the weight would be infinite."""
_RARE = 1e-3
"""Error allowed in inclusion probabilities: relative above `_RARE`, absolute (tolerance x rare) below."""
_MAX_ITERATIONS = 1000


def sampling_tables(inclusion: Floats, k: int) -> tuple[Floats, Floats, float]:
    """Suffix polynomials of every row.

    Args:
        inclusion: float64[row, expert], in [0, 1], each row sums to k.
        k: size of the sets.

    Returns:
        float64[row, r - 1, j] E[r, j], with zeros up to a multiple of `STRIDE`; every `STRIDE`-th entry of it, without
        the first; and the largest error of a probability, relative to it.
    """
    fine, errors = _tables(inclusion, k)
    return fine, _coarse(fine), float(errors.max(initial=0.0))


def sampling_weights(inclusion: Floats, k: int) -> tuple[Floats, Floats, float]:
    """Weights of every row, and how well they do.

    Args:
        inclusion: float64[row, expert], in [0, 1], each row sums to k.
        k: size of the sets.

    Returns:
        float64[row, expert] weights; float64[row] independent draws in proportion to the weights that it takes, on
        average, until k in a row are distinct, beginning anew whenever an expert comes twice; and the largest error of
        a probability, relative to it.
    """
    weights, draws, errors = _weights(inclusion, k)
    return weights, draws, float(errors.max(initial=0.0))


def _coarse(fine: Floats) -> Floats:
    coarse = np.zeros((*fine.shape[:2], fine.shape[2] // STRIDE))
    coarse[:, :, :-1] = fine[:, :, STRIDE::STRIDE]
    return coarse


@njit(cache=True)
def _tables(inclusion: Floats, k: int) -> tuple[Floats, Floats]:
    """Suffix polynomials E[r, j] of every row, as [row, r - 1, j], and the error of each row's probabilities.

    The axis j is filled with zeros up to a multiple of `STRIDE`.

    Args:
        inclusion: [row, expert], in [0, 1], each row sums to k.
        k: size of the sets.
    """
    rows, n = inclusion.shape
    width = (n + STRIDE - 1) // STRIDE * STRIDE
    tables = np.zeros((rows, k, width))
    errors = np.empty(rows)
    suffix, weight = np.zeros((n + 1, k + 1)), np.empty(n)
    for row in range(rows):
        errors[row] = _solve_weights(inclusion[row], weight, suffix)
        for r in range(k):
            for j in range(n):
                tables[row, r, j] = suffix[j, r + 1]
    return tables, errors


@njit(cache=True)
def _weights(inclusion: Floats, k: int) -> tuple[Floats, Floats, Floats]:
    """`sampling_weights`, with the error of each row.

    r draws in proportion to w are distinct with probability D(r) = r! e_r(w) / (sum of w)^r. A try takes
    D(0) + ... + D(k-1) draws on average, and 1 / D(k) tries are needed.
    """
    rows, n = inclusion.shape
    weights, draws, errors = np.empty((rows, n)), np.empty(rows), np.empty(rows)
    suffix = np.zeros((n + 1, k + 1))
    for row in range(rows):
        errors[row] = _solve_weights(inclusion[row], weights[row], suffix)
        total, tries, distinct = weights[row].sum(), 0.0, 1.0
        for r in range(k):
            tries += distinct
            distinct = suffix[0, r + 1]
            for factor in range(1, r + 2):
                distinct *= factor / total
        draws[row] = tries / max(distinct, 1e-300)
    return weights, draws, errors


@njit(cache=True)
def _solve_weights(target: Floats, weight: Floats, suffix: Floats) -> float:
    """Fill `weight` [expert] such that it gives the `target` probabilities, and `suffix` [expert + 1, r] with E[r, j].

    The odds of each expert are corrected by the quotient of wanted and present odds. The full step converges in about
    five rounds; where it overshoots (k = 1, certain experts) its square root does not.
    """
    n = len(target)
    present = np.empty(n)
    for i in range(n):
        p = min(max(target[i], 0.0), 1.0 - _CERTAIN)
        weight[i] = p / (1.0 - p)
    power, last_error = 1.0, np.inf
    for _ in range(_MAX_ITERATIONS):
        _inclusion(weight, suffix, present)
        error = 0.0
        for i in range(n):
            error = max(error, abs(present[i] - min(target[i], 1.0)) / max(target[i], _RARE))
        if error < TOLERANCE:
            break
        if error > 0.5 * last_error:
            power = 0.5
        last_error = error
        for i in range(n):
            if target[i] > 0.0:
                p, q = min(target[i], 1.0 - _CERTAIN), min(present[i], 1.0 - _CERTAIN)
                weight[i] *= (p * (1.0 - q) / (q * (1.0 - p))) ** power
    return error


@njit(cache=True)
def _inclusion(weight: Floats, suffix: Floats, present: Floats) -> None:
    """Inclusion probabilities of conditional Poisson sampling: w[i] e_{k-1}(without i) / e_k.

    The polynomial without i is a product of a prefix and a suffix: sums of positive terms, so nothing cancels.
    """
    n, k = len(weight), suffix.shape[1] - 1
    suffix[n, 0] = 1.0
    for j in range(n - 1, -1, -1):
        suffix[j, 0] = 1.0
        for r in range(1, k + 1):
            suffix[j, r] = suffix[j + 1, r] + weight[j] * suffix[j + 1, r - 1]
    prefix = np.zeros(k)
    prefix[0] = 1.0
    for i in range(n):
        without = 0.0
        for r in range(k):
            without += prefix[r] * suffix[i + 1, k - 1 - r]
        present[i] = weight[i] * without / suffix[0, k]
        for r in range(k - 1, 0, -1):
            prefix[r] += weight[i] * prefix[r - 1]
