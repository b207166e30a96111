"""Small random traces."""

import numpy as np

from moesim.workloads.routing_trace import DECODE, RoutingTrace


def random_trace(lengths=(7, 1, 12, 5), layers=3, experts=6, k=2, seed=0, skew=1.0, groups=None) -> RoutingTrace:
    """Tokens whose experts are drawn with shares ~ rank^-skew."""
    rng = np.random.default_rng(seed)
    tokens = sum(lengths)
    keys = rng.gumbel(size=(tokens, layers, experts)) - skew * np.log(np.arange(1, experts + 1))
    chosen = np.argsort(-keys, axis=-1)[..., :k].astype(np.uint8)
    return RoutingTrace(
        model="random",
        experts=experts,
        source="drawn",
        names=tuple(f"r{index}" for index in range(len(lengths))),
        groups=tuple(groups or ("",) * len(lengths)),
        first_decode_position=np.zeros(len(lengths), np.int64),
        request=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        position=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        phase=np.full(tokens, DECODE, np.uint8),
        expert=np.ascontiguousarray(chosen),
    )
