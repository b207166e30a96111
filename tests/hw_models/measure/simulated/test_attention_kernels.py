"""Decode attention over a paged cache, under the simulator, against float64."""

import pytest

from moesim.hw_models.measure.attention_kernels import DecodeAttentionBenchmark
from moesim.hw_models.measure.attention_problems import DecodeAttention


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("context", "page_tokens"),
    [((1,), 1), ((5, 33, 1), 4), ((16, 32), 16), ((17, 15), 16), ((3, 3), 7)],
    ids=["one token", "ragged", "full pages", "partial pages", "short pages"],
)
def test_contexts_and_pages(check, context, page_tokens, dtype):
    check(DecodeAttentionBenchmark(DecodeAttention(context, 4, 2, 8, page_tokens, dtype), 1, tile_tokens=4))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 1), (1, 1), (12, 1)])
def test_groups_of_query_heads(check, heads, kv_heads):
    """Twelve heads share a KV head of eight elements: more heads than threads."""
    check(DecodeAttentionBenchmark(DecodeAttention((9, 2), heads, kv_heads, 8, 4, "fp32"), 1, tile_tokens=4))


@pytest.mark.parametrize("context", [(600, 3), (512, 512), (900,)])
def test_parts_of_a_context_are_joined(check, context):
    """The second sequence of the first case has nothing in the second part."""
    benchmark = DecodeAttentionBenchmark(DecodeAttention(context, 2, 1, 4, 16, "fp32"), 16, tile_tokens=64)
    assert benchmark.parts > 1
    check(benchmark)
