"""Sparsity of attention against plain Python, and of heads whose kind is known."""

import numpy as np
import pytest

from moesim.errors import DataError, InputError
from moesim.workloads.attention_trace import COUNTS, MASSES, AttentionTrace, AttentionTraceHeader
from moesim.workloads.attention_trace_statistics import BROAD, KINDS, LOCAL, SINK, STREAMING, attention_statistics


def attention(positions, layers=2, heads=4, windows=(0, 8), seed=0, **masses):
    rng = np.random.default_rng(seed)
    header = AttentionTraceHeader(
        format=1,
        model="m",
        layers=layers,
        heads=heads,
        sink_keys=2,
        local_keys=3,
        every=1,
        window_tokens=windows,
        source="made",
        names=("a",),
        groups=("",),
        first_decode_position=(0,),
    )
    position = np.array(positions, np.int32)
    shape = (len(position), layers, heads)
    made = {name: np.full(shape, masses.get(name, 0.25), np.float16) for name in MASSES}
    keys = {name: np.zeros(shape, np.uint16) for name in COUNTS}
    trace = AttentionTrace(header, np.zeros_like(position), position, np.zeros(len(position), np.uint8), keys, made)
    visible = trace.visible_keys()[..., np.newaxis]
    for name in COUNTS:
        keys[name][:] = 1 + (rng.random(shape) * visible).astype(np.uint16) % visible
    return trace


def test_shares_by_their_definition():
    trace = attention(range(40))
    found = attention_statistics(trace)
    assert (found.shortest_context, found.tokens) == (10, 31)
    for name in COUNTS:
        for layer, window in enumerate((0, 8)):
            for head in range(4):
                seen = [min(p + 1, window or p + 1) for p in range(9, 40)]
                shares = [trace.keys[name][p, layer, head] / n for p, n in zip(range(9, 40), seen, strict=True)]
                assert found.kept[name][layer, head] == pytest.approx(sum(shares) / len(shares))
            for index, length in enumerate(found.lengths.tolist()):
                shares = [
                    trace.keys[name][p, layer, head] / min(p + 1, window or p + 1)
                    for p in range(40)
                    for head in range(4)
                    if length <= min(p + 1, window or p + 1) < 2 * length
                ]
                expected = sum(shares) / len(shares) if shares else np.nan
                assert found.kept_by_length[name][index, layer] == pytest.approx(expected, nan_ok=True)
    np.testing.assert_allclose(found.sparsity(), 1 - found.kept["keys_95"])
    np.testing.assert_allclose(found.effective_keys, np.exp(0.25))


def test_kinds_of_heads():
    trace = attention(range(30), layers=1, windows=(0,))
    trace.masses["local_mass"][..., :] = [0.95, 0.02, 0.5, 0.3]
    trace.masses["sink_mass"][..., :] = [0.01, 0.95, 0.45, 0.1]
    found = attention_statistics(trace)
    assert [KINDS[kind] for kind in found.kinds()[0]] == [LOCAL, SINK, STREAMING, BROAD]


def test_short_traces_are_refused():
    with pytest.raises(DataError, match="made: must have tokens with a context of 10 at least, got 5"):
        attention_statistics(attention(range(5)))
    assert attention_statistics(attention(range(5)), 1).tokens == 5
    with pytest.raises(InputError, match="shortest_context: must be at least 1"):
        attention_statistics(attention(range(5)), 0)
