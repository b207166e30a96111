"""Operators of the blocks that mix the tokens of a sequence: attention, and recurrences over a state.

Kernels of a recurrence do not run as attention kernels do. Their rows are priced as such for want of measured ones; the
state's number format, which no calibration covers where it is fp32, marks them as extrapolated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from moesim.workloads.attention_blocks import (
    Attention,
    GatedDeltaNet,
    GroupedQueryAttention,
    Indexer,
    LatentAttention,
    Mamba,
)
from moesim.workloads.matrices import Matrix, Split
from moesim.workloads.operator_parts import Context, Linear, Operator, elementwise, matrix_product
from moesim.workloads.operator_table import ATTENTION, DTYPES, GEMM
from moesim.workloads.steps import (
    DECODE_PAIRS,
    DECODE_TOKENS,
    PREFILL_KEYS,
    PREFILL_PAIRS,
    REBUILT_TOKENS,
    TOKENS,
    Chunk,
    Selected,
    Span,
    feature,
)

SCORE_BYTES = DTYPES["fp32"].bytes  # scores that select keys
KEY_ID_BYTES = 4.0  # an int32 position


def attention_operators(ctx: Context, block: Attention) -> Iterator[Operator]:
    """Everything between the norm of the attention block and the addition to the residual."""
    if isinstance(block, GroupedQueryAttention):
        yield from _grouped_query(ctx, block)
    elif isinstance(block, LatentAttention):
        yield from _latent(ctx, block)
    elif isinstance(block, GatedDeltaNet):
        yield from _delta_net(ctx, block)
    else:
        yield from _mamba(ctx, block)


def _grouped_query(ctx: Context, attention: GroupedQueryAttention) -> Iterator[Operator]:
    """Projection, norms of queries and keys, rotary embedding with the cache write, attention, its gate, projection."""
    qkv, out = attention.matrices(ctx.model.hidden, ctx.model.dtypes)
    heads, kv_elements = attention.heads // ctx.tp, attention.kv_elements(ctx.tp)
    query = heads * attention.head_dim
    projected = query + (kv_elements // 2 if attention.shared_kv else kv_elements)
    yield _with_repeated_kv_heads(qkv, projected + query * attention.gate, attention.kv_heads, ctx)
    if attention.qk_norm != "none":
        normed = query + (kv_elements if attention.shared_kv else kv_elements / 2)
        yield ctx.moved("qk_norm", normed, normed)
    yield ctx.moved("rope", projected, query + kv_elements)
    window = ctx.windows.index(attention.span)
    pair_flops = 4.0 * heads * attention.head_dim  # a product and a sum, for scores and for values
    yield _attend(
        ctx,
        window,
        shape=(query, kv_elements, heads),
        pair_flops=(pair_flops, pair_flops),
        key_bytes=(kv_elements * ctx.kv_bytes, kv_elements * ctx.kv_bytes),
        query_elements=(2 * query, 2 * query),
        weights=attention.vector_parameters / ctx.tp,
    )
    if attention.gate:
        yield ctx.moved("attention_gate", 2 * query, query)
    yield ctx.product(out)


def _with_repeated_kv_heads(qkv: Matrix, width: int, kv_heads: int, ctx: Context) -> Operator:
    """The projection whose shards hold `width` outputs: more than an equal share where KV heads are repeated."""
    shard = qkv._replace(outputs=width, split=Split.REPLICATED, bias=width if qkv.bias else 0)
    return replace(matrix_product(shard, ctx.tp, ctx.activation_bytes), replicated=ctx.tp > kv_heads)


def _latent(ctx: Context, attention: LatentAttention) -> Iterator[Operator]:
    """Projections down and up, attention, and the output projection."""
    down, q_up, kv_up, out, *index = attention.matrices(ctx.model.hidden, ctx.model.dtypes)
    cached = attention.kv_elements(ctx.tp)
    rotated = attention.heads // ctx.tp * attention.rope_dim + cached
    yield ctx.product(down)
    yield ctx.product(q_up)
    yield ctx.moved("rope", rotated, rotated)
    if attention.indexer:
        yield from _select_keys(ctx, attention.indexer, index)
        yield from _attend_in_latent_space(ctx, attention)
    else:
        yield ctx.product(kv_up, REBUILT_TOKENS)
        yield from _attend_rebuilt_or_latent(ctx, attention)
    yield ctx.product(out)


def _attend_rebuilt_or_latent(ctx: Context, attention: LatentAttention) -> Iterator[Operator]:
    """Prefill rebuilds keys and values per head; decode attends in the latent space (absorbed form, DeepSeek-V2 2.1).

    Rebuilding needs the cached context of a chunk too, hence `REBUILT_TOKENS`. The absorbed products reuse the
    weights of `kv_up`, one small product per head.
    """
    heads, latent = attention.heads // ctx.tp, attention.kv_lora_rank
    cached = attention.kv_elements(ctx.tp)
    expanded = heads * (attention.nope_dim + attention.rope_dim + attention.v_dim)
    yield _per_head("query_absorb", ctx, heads, k=attention.nope_dim, n=latent)
    yield _attend(
        ctx,
        ctx.windows.index(None),
        shape=(expanded, cached, heads),
        pair_flops=(2.0 * expanded, 2.0 * heads * (cached + latent)),
        key_bytes=(expanded * ctx.activation_bytes, cached * ctx.kv_bytes),
        query_elements=(expanded, heads * (cached + latent)),
        weights=attention.vector_parameters,
    )
    yield _per_head("value_expand", ctx, heads, k=latent, n=attention.v_dim)


def _attend_in_latent_space(ctx: Context, attention: LatentAttention) -> Iterator[Operator]:
    """Sparse attention: every token, prefilled or decoded, attends to its selected keys in the absorbed form.

    Rebuilding keys per head would not pay for keys that differ from token to token. The products per head hold the
    weights of `kv_up`, which does not run.
    """
    heads, latent = attention.heads // ctx.tp, attention.kv_lora_rank
    cached = attention.kv_elements(ctx.tp)
    pair_flops, row = 2.0 * heads * (cached + latent), heads * (cached + latent)
    absorb = _per_head("query_absorb", ctx, heads, k=attention.nope_dim, n=latent, m=TOKENS)
    yield replace(absorb, resident_bytes=absorb.weight_bytes)
    yield _attend(
        ctx,
        ctx.windows.index(attention.span),
        shape=(row, cached, heads),
        pair_flops=(pair_flops, pair_flops),
        key_bytes=(cached * ctx.kv_bytes, cached * ctx.kv_bytes),
        query_elements=(row, row),
        weights=attention.vector_parameters,
    )
    expand = _per_head("value_expand", ctx, heads, k=latent, n=attention.v_dim, m=TOKENS)
    yield replace(expand, resident_bytes=expand.weight_bytes)


def _select_keys(ctx: Context, index: Indexer, matrices: Sequence[Matrix]) -> Iterator[Operator]:
    """Scores of every key up to each token, and the best of them; each shard repeats all of it."""
    for matrix in matrices:
        yield ctx.product(matrix)
    full = ctx.windows.index(None)
    pairs = feature(full, PREFILL_PAIRS), feature(full, DECODE_PAIRS)
    query = index.heads * index.head_dim
    scores = _attend(
        ctx,
        full,
        shape=(query, 2 * index.head_dim, index.heads),
        pair_flops=(2.0 * query, 2.0 * query),
        key_bytes=(index.key_bytes, index.key_bytes),
        query_elements=(2 * query, 2 * query),
        weights=0.0,
    )
    written: Linear = tuple((pair, SCORE_BYTES) for pair in pairs)
    yield replace(scores, name="index_scores", dtype="fp8", write=written, replicated=ctx.tp > 1)
    best = elementwise("index_top_k", 0.0, index.top_k * KEY_ID_BYTES)
    yield replace(best, read=written, replicated=ctx.tp > 1)


def _per_head(name: str, ctx: Context, heads: int, *, k: int, n: int, m: int = DECODE_TOKENS) -> Operator:
    """A product per head on the tokens counted by feature `m`, with weights that another operator holds."""
    dtype = ctx.model.dtypes.weights
    moved = ctx.activation_bytes * heads
    return Operator(
        name,
        GEMM,
        m,
        n,
        k,
        heads,
        dtype,
        weight_bytes=heads * k * n * DTYPES[dtype].bytes,
        flops=((m, 2.0 * heads * k * n),),
        read=((m, k * moved),),
        write=((m, n * moved),),
    )


def _attend(
    ctx: Context,
    window: int,
    *,
    shape: tuple[int, int, int],
    pair_flops: tuple[float, float],
    key_bytes: tuple[float, float],
    query_elements: tuple[float, float],
    weights: float,
) -> Operator:
    """Attention of a step's prefill chunks and decode sequences; pairs of values are (prefill, decode).

    Each key is read once per sequence; queries are read and results written once per token. `query_elements` counts
    both per token, so half of it is read and half written.
    """
    moved = [elements / 2 * ctx.activation_bytes for elements in query_elements]
    extra = moved[1] - moved[0]  # a decoded token moves this much more than a prefilled one
    per_token: Linear = ((TOKENS, moved[0]), (DECODE_TOKENS, extra)) if extra else ((TOKENS, moved[0]),)
    decode_read = (feature(window, DECODE_PAIRS), key_bytes[1])
    decode_flops = (feature(window, DECODE_PAIRS), pair_flops[1])
    nbytes = weights * DTYPES[ctx.model.dtypes.other].bytes
    return Operator(
        "attention",
        ATTENTION,
        TOKENS,
        *shape,
        ctx.model.dtypes.kv_cache,
        resident_bytes=nbytes,
        weight_bytes=nbytes,
        flops=((feature(window, PREFILL_PAIRS), pair_flops[0]), decode_flops),
        read=(*per_token, (feature(window, PREFILL_KEYS), key_bytes[0]), decode_read),
        write=per_token,
        decode_m=((DECODE_TOKENS, 1.0),),
        decode_flops=(decode_flops,),
        decode_read=(decode_read, (DECODE_TOKENS, moved[1])),
        window=_most_keys(ctx.windows[window]),
        prefill_pair_flops=pair_flops[0],
        decode_pair_flops=pair_flops[1],
    )


def _most_keys(span: Span) -> int:
    """Most keys that a query sees; 0 without a limit."""
    if isinstance(span, Chunk | Selected):
        return span.tokens
    return span if isinstance(span, int) else 0


def _delta_net(ctx: Context, block: GatedDeltaNet) -> Iterator[Operator]:
    """Projections, convolution, the recurrence, the gated norm of its result, output projection."""
    project, gates, out = block.matrices(ctx.model.hidden, ctx.model.dtypes)
    inner = block.value_heads * block.value_dim // ctx.tp
    yield ctx.product(project)
    yield ctx.product(gates)
    yield _convolution(ctx, block.conv_channels // ctx.tp, block.conv)
    yield _delta_rule(ctx, block)
    norm = block.value_dim * DTYPES[ctx.model.dtypes.other].bytes
    gate = ctx.moved("delta_norm", 2 * inner, inner)
    yield replace(gate, resident_bytes=norm, weight_bytes=norm)
    yield ctx.product(out)


def _convolution(ctx: Context, channels: int, width: int, bias: int = 0) -> Operator:
    """Causal convolution of each channel; a decoded token reads and writes the inputs it looks back at."""
    nbytes = channels * (width + bias) * DTYPES[ctx.model.dtypes.other].bytes
    row, back = channels * ctx.activation_bytes, (width - 1) * channels * ctx.activation_bytes
    moved: Linear = ((TOKENS, row), (DECODE_TOKENS, back))
    return replace(
        elementwise("convolution", 0.0, 0.0, weight_bytes=nbytes),
        flops=((TOKENS, 2.0 * width * channels),),
        read=moved,
        write=moved,
    )


def _delta_rule(ctx: Context, block: GatedDeltaNet) -> Operator:
    """The gated delta rule: token by token in decode, in chunks in prefill (arXiv 2412.06464, section 3.3).

    Per value head, with d_k and d_v elements per key and value. A decoded token does three products with the state
    (what it holds under the key, the update, the result), 2 d_k d_v each, and scales it, d_k d_v; the state is read and
    written. In prefill a token does three such products with its chunk's state, and a pair of tokens of a chunk does
    three products of d_k (keys with keys, keys with queries, and the solved keys) and two of d_v (the solved values and
    the result), 2 per element; a chunk of C tokens inverts a triangular matrix, C^3 / 3, and scales the state. Between
    the kernels, solved keys, solved values and new values of every token and the state of every chunk are written once
    and read once. Decays and biases per head, and the norms of queries and keys, move next to nothing.
    """
    heads = block.value_heads // ctx.tp
    d_k, d_v, act = block.key_dim, block.value_dim, ctx.activation_bytes
    state = heads * d_k * d_v
    query = 2 * block.key_heads // ctx.tp * d_k
    result, between = heads * d_v * act, heads * (d_k + 2 * d_v) * act
    state_bytes = state * DTYPES[ctx.model.dtypes.state].bytes
    inputs = (query + heads * (d_v + 2)) * act
    scan = ctx.windows.index(block.span)
    pairs, chunks = feature(scan, PREFILL_PAIRS), feature(scan, PREFILL_KEYS)
    return Operator(
        "delta_rule",
        ATTENTION,
        TOKENS,
        heads * d_k,
        2 * heads * d_k,
        heads,
        ctx.model.dtypes.state,
        resident_bytes=(per_shard := _recurrent_weights(ctx, block)),
        weight_bytes=per_shard,
        flops=(
            (TOKENS, 6.0 * state),
            (DECODE_TOKENS, 1.0 * state),
            (pairs, heads * (6.0 * d_k + 4.0 * d_v)),
            (chunks, heads * block.scan_tokens**3 / 3 + state),
        ),
        read=((TOKENS, inputs + between), (DECODE_TOKENS, state_bytes - between), (chunks, state * act)),
        write=((TOKENS, result + between), (DECODE_TOKENS, state_bytes - between), (chunks, state * act)),
        decode_m=((DECODE_TOKENS, 1.0),),
        decode_flops=((DECODE_TOKENS, 7.0 * state),),
        decode_read=((DECODE_TOKENS, inputs + state_bytes),),
    )


def _recurrent_weights(ctx: Context, block: GatedDeltaNet) -> float:
    """Bytes of decays and their biases on one shard."""
    return 2 * block.value_heads / ctx.tp * DTYPES[ctx.model.dtypes.other].bytes


def _mamba(ctx: Context, block: Mamba) -> Iterator[Operator]:
    """Projections, convolution, what selects, the scan, output projection."""
    project, select, step, out = block.matrices(ctx.model.hidden, ctx.model.dtypes)
    other = DTYPES[ctx.model.dtypes.other].bytes
    yield ctx.product(project)
    yield _convolution(ctx, block.inner // ctx.tp, block.conv, block.conv_bias)
    yield ctx.product(select)
    if block.norms:
        norm = ctx.moved("mamba_norm", block.selected, block.selected)
        yield replace(norm, resident_bytes=block.selected * other, weight_bytes=block.selected * other)
    yield ctx.product(step)
    yield _selective_scan(ctx, block)
    yield ctx.product(out)


def _selective_scan(ctx: Context, block: Mamba) -> Operator:
    """The recurrence of a selective state-space layer (arXiv 2312.00752, algorithm 2), gate fused in.

    Per token and channel with n elements of state: 6 n + 3 FLOPs (decay of the step, input, update, output, skip),
    exponentials and the gate left out. They run outside tensor cores and hide behind the bytes: channel, step size and
    gate are read and the result is written; the state, which stays on the chip during a scan, is read and written once
    per decoded token and per prefilled sequence.
    """
    inner, n = block.inner // ctx.tp, block.state
    nbytes = inner * (n + 1) * DTYPES[ctx.model.dtypes.other].bytes
    state = inner * n * DTYPES[ctx.model.dtypes.state].bytes
    sequences = feature(ctx.windows.index(block.span), PREFILL_KEYS)
    carried: Linear = ((DECODE_TOKENS, state), (sequences, state))
    return replace(
        elementwise("selective_scan", 0.0, 0.0, weight_bytes=nbytes),
        dtype=ctx.model.dtypes.state,
        flops=((TOKENS, inner * (6.0 * n + 3.0)),),
        read=((TOKENS, (3 * inner + 2 * n) * ctx.activation_bytes), *carried),
        write=((TOKENS, inner * ctx.activation_bytes), *carried),
    )
