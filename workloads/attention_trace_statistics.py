"""How sparse recorded attention is: the share of the KV cache that holds its mass, and where that share lies.

The columns of an attention trace are defined in `attention_trace`. Averages are over recorded tokens; short contexts,
where a few keys are a large share whatever the head does, are left out or shown by length.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError, InputError
from moesim.workloads.attention_trace import COUNTS, AttentionTrace

Floats = NDArray[np.float64]

LOCAL, SINK, STREAMING, BROAD = "local", "sink", "streaming", "broad"
KINDS = (LOCAL, SINK, STREAMING, BROAD)
"""Kinds of heads: most of the mass on the last positions; on the first ones; on both together; elsewhere too."""

_MOST = 0.9
"""Share of the mass that decides the kind of a head, and which a window or a window with sinks then keeps."""


@dataclass(frozen=True, eq=False)
class AttentionStatistics:
    """Sparsity of every head.

    Args:
        model: the recorded model.
        tokens: recorded tokens that count.
        shortest_context: keys that a token must see to count.
        kept: by `keys_90`, `keys_95`, `keys_99`: float64[layer, head] share of the visible keys that holds so much of
            the mass, mean over tokens.
        lengths: int64[length] context lengths of `kept_by_length`: 2^i <= visible keys < 2^(i + 1).
        kept_by_length: by the same names, float64[length, layer], mean over tokens and heads; NaN where no token is.
        sink_mass: float64[layer, head] mass on the first `sink_keys` positions, mean over tokens.
        local_mass: float64[layer, head] mass on the last `local_keys` positions.
        off_mass: float64[layer, head] mass on learned sinks, which are no keys.
        effective_keys: float64[layer, head] exp of the mean entropy: as many equal keys would be as spread out.
        sink_keys: first positions of `sink_mass`.
        local_keys: last positions of `local_mass`.
    """

    model: str
    tokens: int
    shortest_context: int
    kept: dict[str, Floats]
    lengths: NDArray[np.int64]
    kept_by_length: dict[str, Floats]
    sink_mass: Floats
    local_mass: Floats
    off_mass: Floats
    effective_keys: Floats
    sink_keys: int
    local_keys: int

    def sparsity(self) -> Floats:
        """float64[layer, head]: share of the visible keys that could be left out while 95% of the mass stays."""
        return 1.0 - self.kept["keys_95"]

    def kinds(self) -> NDArray[np.int64]:
        """int64[layer, head]: the kind of each head, an index of `KINDS`."""
        both = self.sink_mass + self.local_mass
        rules = [self.local_mass >= _MOST, self.sink_mass >= _MOST, both >= _MOST]
        return np.select(rules, [0, 1, 2], 3).astype(np.int64)


def attention_statistics(trace: AttentionTrace, shortest_context: int | None = None) -> AttentionStatistics:
    """Statistics of the tokens that see enough keys.

    Args:
        trace: what was recorded.
        shortest_context: tokens whose position is lower do not count; by default twice the first and last positions
            whose mass was recorded, from where on these do not overlap and are at most half of the keys.

    Raises:
        InputError: a shortest context below 1.
        DataError: no token is so far in its request.
    """
    header = trace.header
    if shortest_context is None:
        shortest_context = 2 * (header.sink_keys + header.local_keys)
    if shortest_context < 1:
        raise InputError("shortest_context", "must be at least 1", shortest_context)
    counted = np.flatnonzero(trace.position + 1 >= shortest_context)
    if not counted.size:
        longest = int(trace.position.max(initial=-1)) + 1
        raise DataError(header.source, f"must have tokens with a context of {shortest_context} at least", longest)
    visible = trace.visible_keys()
    powers = np.floor(np.log2(visible)).astype(np.int64)
    lengths = np.arange(powers.max() + 1)
    masses = {name: _means(values[counted]) for name, values in trace.masses.items()}
    return AttentionStatistics(
        model=header.model,
        tokens=len(counted),
        shortest_context=shortest_context,
        kept={name: _means(trace.keys[name][counted] / visible[counted][..., np.newaxis]) for name in COUNTS},
        lengths=2**lengths,
        kept_by_length={name: _by_length(trace.keys[name], visible, powers, len(lengths)) for name in COUNTS},
        sink_mass=masses["sink_mass"],
        local_mass=masses["local_mass"],
        off_mass=masses["off_mass"],
        effective_keys=np.exp(masses["entropy"]),
        sink_keys=header.sink_keys,
        local_keys=header.local_keys,
    )


def _means(values: NDArray[Any]) -> Floats:
    return np.asarray(values.mean(axis=0, dtype=np.float64), np.float64)


def _by_length(
    keys: NDArray[np.uint16] | NDArray[np.uint32], visible: NDArray[np.int64], powers: NDArray[np.int64], lengths: int
) -> Floats:
    """Share of the visible keys by length and layer, mean over heads and tokens."""
    share = keys.mean(axis=2, dtype=np.float64) / visible
    layers = visible.shape[1]
    cell = powers * layers + np.arange(layers)
    count = np.bincount(cell.ravel(), minlength=lengths * layers)
    total = np.bincount(cell.ravel(), share.ravel(), minlength=lengths * layers)
    with np.errstate(invalid="ignore"):
        return np.asarray((total / count).reshape(lengths, layers), np.float64)
