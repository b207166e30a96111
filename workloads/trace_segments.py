"""What runs of consecutive tokens have in common: reuse, segment routing, sparsity of chunks."""

from dataclasses import dataclass
from math import lgamma
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of `length` consecutive tokens of a request, one from every token on, by how often they use each expert.

    Args:
        length: tokens of a segment, m or L.
        seen: int64[..., expert, uses], segments in which the expert is used by 0 to `length` tokens.
    """

    length: int
    seen: Ints

    @property
    def count(self) -> int:
        """Segments; 0 if no request is long enough."""
        return int(self.seen.reshape(-1, self.length + 1)[0].sum())

    def chunk_sparsity(self) -> Floats:
        """CLS_L, float64[...]: share of the experts that none of L consecutive tokens uses, mean over segments.

        Chunk-level sparsity of BlockFFN (arXiv 2507.08771). CLS_1 is TLS, the token-level sparsity, which is
        1 - top_k / experts where every token uses top_k experts. NaN without segments.
        """
        with np.errstate(invalid="ignore"):
            return np.asarray(self.seen[..., 0].sum(axis=-1) / self.seen.sum(axis=(-1, -2)), np.float64)

    def touched(self) -> Floats:
        """Distinct experts that `length` consecutive tokens use, mean over segments: float64[...]."""
        return np.asarray((1.0 - self.chunk_sparsity()) * self.seen.shape[-2], np.float64)

    def best_routing(self) -> tuple[Floats, Ints, Floats]:
        """SRP, segment routing best performance (arXiv 2505.16056, section 3).

        A segment router says yes or no to each expert for all tokens of a segment. Against what the tokens really use,
        it has an F1 score of 2 TP / (2 TP + FP + FN) over all segments, tokens and experts. The best router says yes to
        an expert that at least alpha tokens of the segment use, with the alpha that gives the best score. With
        N(u) = segments x experts with u uses: TP = sum of u N(u) over u >= alpha, TP + FP = m x sum of N(u) over
        u >= alpha, TP + FN = sum of u N(u) over all u.

        Returns:
            (srp, alpha, ratio), each [...]: the best F1; its threshold; the experts that the best router runs over
            those that tokens use (rho-hat of the paper). NaN, 0, NaN without segments.
        """
        return _best(self.seen.sum(axis=-2).astype(np.float64), self.length)

    def pooled(self) -> tuple[float, int, float]:
        """`best_routing` of all layers together, with one alpha, which is the SRP of a model in the paper."""
        total = self.seen.reshape(-1, self.length + 1).sum(axis=0).astype(np.float64)
        srp, alpha, ratio = _best(total, self.length)
        return float(srp), int(alpha), float(ratio)


def _best(total: Floats, length: int) -> tuple[Floats, Ints, Floats]:
    """`Segments.best_routing` of N(u), float64[..., uses]."""
    matches = _from_above(total * np.arange(length + 1))
    said_yes = _from_above(total) * length
    used = matches[..., :1]
    with np.errstate(invalid="ignore"):
        scores = 2 * matches / (said_yes + used)
        alpha = np.where(np.isnan(scores), -1.0, scores).argmax(axis=-1)
        at = alpha[..., np.newaxis]
        ratio = np.take_along_axis(said_yes, at, axis=-1)[..., 0] / used[..., 0]
    return np.take_along_axis(scores, at, axis=-1)[..., 0], alpha, np.asarray(ratio, np.float64)


def _from_above(values: Floats) -> Floats:
    """Sums of the entries from each one to the last."""
    return np.asarray(values[..., ::-1].cumsum(axis=-1)[..., ::-1], np.float64)


def segments(ids: NDArray[Any], offset: Ints, experts: int, length: int) -> Segments:
    """Segments of one layer.

    Args:
        ids: [token, k] experts of the layer.
        offset: int64[request + 1] where requests begin, and the number of tokens.
        experts: experts of the layer.
        length: tokens of a segment.
    """
    from moesim.workloads.trace_kernels import count_segments  # numba loads slowly

    return Segments(length, count_segments(np.ascontiguousarray(ids), offset, experts, length))


def independent_routing(experts: int, top_k: int, length: int) -> tuple[float, float]:
    """(SRP, CLS) of independent tokens that use all experts equally often: what a recording is to be compared with.

    An expert is used by u of `length` tokens with binomial probability, q = top_k / experts.

    Args:
        experts: experts of the layer.
        top_k: experts per token.
        length: tokens of a segment.
    """
    q, uses = top_k / experts, np.arange(length + 1)
    logs = np.array([lgamma(length + 1) - lgamma(u + 1) - lgamma(length - u + 1) for u in uses])
    sides = uses * np.log(q) + (length - uses) * (np.log1p(-q) if q < 1 else 0.0)
    share = np.exp(logs + sides) if q < 1 else (uses == length).astype(np.float64)
    scores = 2 * _from_above(share * uses) / (_from_above(share) * length + q * length)
    return float(scores.max()), float(share[0])


@dataclass(frozen=True, eq=False)
class Reuse:
    """Experts that tokens share with the token `lag` positions before in the same request.

    BlockFFN calls the mean of |S_i and S_(i+1)| / |S_i| the reuse ratio (arXiv 2507.08771); this is its lag 1.

    Args:
        lag: distance in tokens.
        shared: float64[..., request] mean share of a token's k experts that the earlier token uses as well; NaN in
            requests of up to `lag` tokens.
        pairs: int64[request] pairs of tokens in each request.
    """

    lag: int
    shared: Floats
    pairs: Ints

    def by_token(self) -> Floats:
        """Mean over all pairs of tokens: long requests count more. float64[...]."""
        known = self.pairs > 0
        if not known.any():
            return np.full(self.shared.shape[:-1], np.nan)
        weight = self.pairs[known] / self.pairs.sum()
        return np.asarray((self.shared[..., known] * weight).sum(axis=-1), np.float64)

    def by_request(self) -> Floats:
        """Mean over requests of the means of each: every request counts the same. float64[...]."""
        known = self.pairs > 0
        if not known.any():
            return np.full(self.shared.shape[:-1], np.nan)
        return np.asarray(self.shared[..., known].mean(axis=-1), np.float64)


def reuse(ids: NDArray[Any], offset: Ints, lag: int = 1) -> Reuse:
    """Reuse in one layer; arguments as `segments`."""
    from moesim.workloads.trace_kernels import count_shared  # numba loads slowly

    pairs = np.maximum(0, np.diff(offset) - lag)
    shared = count_shared(np.ascontiguousarray(ids), offset, lag)
    with np.errstate(invalid="ignore"):
        return Reuse(lag, np.asarray(shared / (pairs * ids.shape[1]), np.float64), pairs)
