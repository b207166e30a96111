"""The operators of a model's layers: FLOPs and bytes as linear functions of a step, exact for the algorithm.

Everything outside the routed experts is linear in a few sums over the step's sequences (`steps.step_features`), so an
`Operator` stores coefficients, not numbers. FLOPs of softmax, norms and rotary embedding are left out: those
operators move bytes. What mixes the tokens of a sequence is in `attention_operators`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from moesim.workloads.attention_operators import attention_operators
from moesim.workloads.matrices import Matrix
from moesim.workloads.models import DenseFFN, LatentAttention, Layer, Model, MoE
from moesim.workloads.operator_parts import Context, Operator, elementwise
from moesim.workloads.operator_table import DTYPES
from moesim.workloads.steps import SAMPLES, Span

ROUTER_LOGIT_BYTES = DTYPES["fp32"].bytes  # routers and samplers work on fp32 logits in all engines modelled
EXPERT_CHOICE_BYTES = 8.0  # an int32 expert id and an fp32 gate weight per selection


def spans(model: Model) -> tuple[Span, ...]:
    """The distinct spans that the model's blocks see; an indexer sees everything."""
    found: list[Span] = []
    for layer in model.layers:
        if isinstance(layer.attention, LatentAttention) and layer.attention.indexer:
            found.append(None)
        found.append(layer.attention.span)
    return tuple(dict.fromkeys(found))


def model_operators(
    model: Model, tp: int, windows: tuple[Span, ...]
) -> tuple[list[Operator], list[list[Operator]], list[Operator]]:
    """Operators before the layers, of each layer, and after them, in order of execution; routed experts left out."""
    context = Context(model, tp, windows)
    layers = [list(_layer(context, layer)) for layer in model.layers]
    return list(_input(context)), layers, list(_output(context))


def _input(ctx: Context) -> Iterator[Operator]:
    """Rows of the step's tokens, and of their positions: only those are read, and they count as activations."""
    row = ctx.model.hidden * ctx.activation_bytes
    lookup = elementwise("embedding", row, row, weight_bytes=ctx.model.embedding.nbytes / ctx.tp)
    yield replace(lookup, weight_bytes=0.0)
    if ctx.model.position_embedding:
        nbytes = ctx.model.position_embedding.nbytes
        added = elementwise("position_embedding", 2 * row, row, weight_bytes=nbytes)
        yield replace(added, weight_bytes=0.0, replicated=ctx.tp > 1)


def _output(ctx: Context) -> Iterator[Operator]:
    yield ctx.norm("output_norm")
    head = ctx.product(ctx.model.head, SAMPLES)
    yield replace(head, resident_bytes=0.0) if ctx.model.tied_embeddings else head
    logits = ctx.model.vocabulary * ROUTER_LOGIT_BYTES  # written from the head's result, then searched
    chosen = elementwise("sampling", ctx.model.vocabulary * ctx.activation_bytes + logits, logits, m=SAMPLES)
    yield replace(chosen, replicated=ctx.tp > 1)


def _layer(ctx: Context, layer: Layer) -> Iterator[Operator]:
    around_attention = min(2, layer.norms // 2)
    yield ctx.norm("attention_norm", around_attention)
    yield from attention_operators(ctx, layer.attention)
    yield ctx.norm("ffn_norm", layer.norms - around_attention)
    if isinstance(layer.ffn, DenseFFN):
        yield from _gated(ctx, layer.ffn.matrices(ctx.model.hidden, ctx.model.dtypes), "ffn_activation")
    else:
        yield from _routing_and_shared(ctx, layer.ffn)


def _routing_and_shared(ctx: Context, block: MoE) -> Iterator[Operator]:
    """Router, choice of the top k, and the shared experts."""
    router, _, _, *shared = block.matrices(ctx.model.hidden, ctx.model.dtypes)
    yield ctx.product(router)
    choice = elementwise("top_k", block.experts * ROUTER_LOGIT_BYTES, block.top_k * EXPERT_CHOICE_BYTES)
    yield replace(choice, replicated=ctx.tp > 1)
    if shared:
        yield from _gated(ctx, shared[:2], "shared_activation")
    for gate in shared[2:]:
        yield ctx.product(gate)
        yield replace(ctx.moved("shared_scale", ctx.model.hidden, ctx.model.hidden), replicated=ctx.tp > 1)


def _gated(ctx: Context, matrices: Sequence[Matrix], activation: str) -> Iterator[Operator]:
    """Up-projection (gate fused in), activation function, down-projection."""
    up, down = matrices
    yield ctx.product(up)
    yield ctx.moved(activation, up.outputs // ctx.tp, down.inputs // ctx.tp)
    yield ctx.product(down)
