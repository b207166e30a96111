"""The operators of a model's layers: FLOPs and bytes as linear functions of a step, exact for the algorithm.

Everything outside the routed experts is linear in a few sums over the step's sequences (`steps.step_features`), so an
`Operator` stores coefficients, not numbers. FLOPs of softmax, norms and rotary embedding are left out: those
operators move bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from moesim.workloads.models import (
    Attention,
    DenseFFN,
    GroupedQueryAttention,
    LatentAttention,
    Layer,
    Matrix,
    Model,
    MoE,
    Split,
)
from moesim.workloads.operator_table import ATTENTION, DTYPES, ELEMENTWISE, GEMM
from moesim.workloads.steps import (
    DECODE_PAIRS,
    DECODE_TOKENS,
    PREFILL_KEYS,
    PREFILL_PAIRS,
    REBUILT_TOKENS,
    SAMPLES,
    TOKENS,
    feature,
)

Linear = tuple[tuple[int, float], ...]
"""A linear function of the step's features: (feature, coefficient) pairs."""

ROUTER_LOGIT_BYTES = DTYPES["fp32"].bytes  # routers and samplers work on fp32 logits in all engines modelled
EXPERT_CHOICE_BYTES = 8.0  # an int32 expert id and an fp32 gate weight per selection


@dataclass(frozen=True)
class Operator:
    """One operator on one shard; `OperatorTable` explains the columns."""

    name: str
    form: int
    m: int  # the feature that counts its tokens
    n: int = 0
    k: int = 0
    groups: int = 1
    dtype: str = "bf16"
    replicated: bool = False
    resident_bytes: float = 0.0
    weight_bytes: float = 0.0  # read whenever there is a token
    flops: Linear = ()
    read: Linear = ()
    write: Linear = ()
    decode_m: Linear = ()
    decode_flops: Linear = ()
    decode_read: Linear = ()


def matrix_product(matrix: Matrix, shards: int, activation_bytes: float, m: int = TOKENS) -> Operator:
    """A weight matrix times the tokens counted by feature `m`, on one of `shards` shards."""
    whole = matrix.split == Split.REPLICATED
    n = matrix.outputs if whole or matrix.split == Split.ROW else -(-matrix.outputs // shards)
    k = matrix.inputs // shards if matrix.split == Split.ROW else matrix.inputs
    nbytes = matrix.nbytes if whole else matrix.nbytes / shards
    return Operator(
        matrix.operator,
        GEMM,
        m,
        n,
        k,
        dtype=matrix.dtype,
        replicated=whole and shards > 1,
        resident_bytes=nbytes,
        weight_bytes=nbytes,
        flops=((m, 2.0 * n * k),),
        read=((m, k * activation_bytes),),
        write=((m, n * activation_bytes),),
    )


def elementwise(name: str, read: float, write: float, *, m: int = TOKENS, weight_bytes: float = 0.0) -> Operator:
    """An operator that moves `read` and `write` bytes per token and multiplies next to nothing."""
    return Operator(
        name,
        ELEMENTWISE,
        m,
        resident_bytes=weight_bytes,
        weight_bytes=weight_bytes,
        read=((m, read),),
        write=((m, write),),
    )


def model_operators(
    model: Model, tp: int, windows: tuple[int | None, ...]
) -> tuple[list[Operator], list[list[Operator]], list[Operator]]:
    """Operators before the layers, of each layer, and after them, in order of execution; routed experts left out."""
    context = _Context(model, tp, windows)
    layers = [list(_layer(context, layer)) for layer in model.layers]
    return list(_input(context)), layers, list(_output(context))


@dataclass(frozen=True)
class _Context:
    """What every builder needs."""

    model: Model
    tp: int
    windows: tuple[int | None, ...]

    @property
    def activation_bytes(self) -> float:
        return DTYPES[self.model.dtypes.activations].bytes

    @property
    def kv_bytes(self) -> float:
        return DTYPES[self.model.dtypes.kv_cache].bytes

    def norm(self, name: str) -> Operator:
        """RMS norm with the residual addition fused: reads and writes the block's output and the residual."""
        moved = 2 * self.model.hidden * self.activation_bytes
        weights = self.model.hidden * DTYPES[self.model.dtypes.other].bytes
        return replace(elementwise(name, moved, moved, weight_bytes=weights), replicated=self.tp > 1)

    def moved(self, name: str, read_elements: float, write_elements: float) -> Operator:
        """Elementwise work on activations."""
        return elementwise(name, read_elements * self.activation_bytes, write_elements * self.activation_bytes)


def _input(ctx: _Context) -> Iterator[Operator]:
    row = ctx.model.hidden * ctx.activation_bytes
    lookup = elementwise("embedding", row, row, weight_bytes=ctx.model.embedding.nbytes / ctx.tp)
    yield replace(lookup, weight_bytes=0.0)  # only the rows of the step's tokens are read, and those are activations


def _output(ctx: _Context) -> Iterator[Operator]:
    yield ctx.norm("output_norm")
    head = matrix_product(ctx.model.head, ctx.tp, ctx.activation_bytes, SAMPLES)
    yield replace(head, resident_bytes=0.0) if ctx.model.tied_embeddings else head
    logits = ctx.model.vocabulary * ROUTER_LOGIT_BYTES
    yield replace(elementwise("sampling", logits, 0.0, m=SAMPLES), replicated=ctx.tp > 1)


def _layer(ctx: _Context, layer: Layer) -> Iterator[Operator]:
    yield ctx.norm("attention_norm")
    yield from _attention(ctx, layer.attention)
    yield ctx.norm("ffn_norm")
    if isinstance(layer.ffn, DenseFFN):
        yield from _gated(ctx, layer.ffn.matrices(ctx.model.hidden, ctx.model.dtypes), "ffn_activation")
    else:
        yield from _routing_and_shared(ctx, layer.ffn)


def _attention(ctx: _Context, attention: Attention) -> Iterator[Operator]:
    if isinstance(attention, GroupedQueryAttention):
        yield from _grouped_query(ctx, attention)
    else:
        yield from _latent(ctx, attention)


def _grouped_query(ctx: _Context, attention: GroupedQueryAttention) -> Iterator[Operator]:
    """Projection, rotary embedding with the cache write, attention, output projection."""
    qkv, out = attention.matrices(ctx.model.hidden, ctx.model.dtypes)
    heads, kv_elements = attention.heads // ctx.tp, attention.kv_elements(ctx.tp)
    query = heads * attention.head_dim
    yield _with_repeated_kv_heads(qkv, query + kv_elements, attention.kv_heads, ctx)
    yield ctx.moved("rope", query + kv_elements, query + kv_elements)
    window = ctx.windows.index(attention.window)
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
    yield matrix_product(out, ctx.tp, ctx.activation_bytes)


def _with_repeated_kv_heads(qkv: Matrix, width: int, kv_heads: int, ctx: _Context) -> Operator:
    """The projection whose shards hold `width` outputs: more than an equal share where KV heads are repeated."""
    shard = qkv._replace(outputs=width, split=Split.REPLICATED, bias=width if qkv.bias else 0)
    return replace(matrix_product(shard, ctx.tp, ctx.activation_bytes), replicated=ctx.tp > kv_heads)


def _latent(ctx: _Context, attention: LatentAttention) -> Iterator[Operator]:
    """Prefill rebuilds keys and values per head; decode attends in the latent space (absorbed form, DeepSeek-V2 2.1).

    Rebuilding needs the cached context of a chunk too, hence `REBUILT_TOKENS`. The absorbed products reuse the
    weights of `kv_up`, one small product per head.
    """
    down, q_up, kv_up, out = attention.matrices(ctx.model.hidden, ctx.model.dtypes)
    heads, latent = attention.heads // ctx.tp, attention.kv_lora_rank
    cached = attention.kv_elements(ctx.tp)
    expanded = heads * (attention.nope_dim + attention.rope_dim + attention.v_dim)
    rotated = heads * attention.rope_dim + cached
    yield matrix_product(down, ctx.tp, ctx.activation_bytes)
    yield matrix_product(q_up, ctx.tp, ctx.activation_bytes)
    yield ctx.moved("rope", rotated, rotated)
    yield matrix_product(kv_up, ctx.tp, ctx.activation_bytes, REBUILT_TOKENS)
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
    yield matrix_product(out, ctx.tp, ctx.activation_bytes)


def _per_head(name: str, ctx: _Context, heads: int, *, k: int, n: int) -> Operator:
    """A product per head on the decoded tokens, with weights that another operator holds."""
    dtype = ctx.model.dtypes.weights
    moved = ctx.activation_bytes * heads
    return Operator(
        name,
        GEMM,
        DECODE_TOKENS,
        n,
        k,
        heads,
        dtype,
        weight_bytes=heads * k * n * DTYPES[dtype].bytes,
        flops=((DECODE_TOKENS, 2.0 * heads * k * n),),
        read=((DECODE_TOKENS, k * moved),),
        write=((DECODE_TOKENS, n * moved),),
    )


def _attend(
    ctx: _Context,
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
    )


def _routing_and_shared(ctx: _Context, block: MoE) -> Iterator[Operator]:
    """Router, choice of the top k, and the shared experts."""
    router, _, _, *shared = block.matrices(ctx.model.hidden, ctx.model.dtypes)
    yield matrix_product(router, ctx.tp, ctx.activation_bytes)
    choice = elementwise("top_k", block.experts * ROUTER_LOGIT_BYTES, block.top_k * EXPERT_CHOICE_BYTES)
    yield replace(choice, replicated=ctx.tp > 1)
    if shared:
        yield from _gated(ctx, shared, "shared_activation")


def _gated(ctx: _Context, matrices: Sequence[Matrix], activation: str) -> Iterator[Operator]:
    """Up-projection (gate fused in), activation function, down-projection."""
    up, down = matrices
    yield matrix_product(up, ctx.tp, ctx.activation_bytes)
    yield ctx.moved(activation, up.outputs // ctx.tp, down.inputs // ctx.tp)
    yield matrix_product(down, ctx.tp, ctx.activation_bytes)
