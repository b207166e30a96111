"""Readers of a Hugging Face `config.json`: the blocks of a layer, as mappings of classes in `moesim.workloads.models`.

Every reader takes (fields, layer). Readers without a family in their name are made for a family with `partial`.
"""

from collections.abc import Callable, Collection
from typing import Literal

from moesim.workloads.hf_fields import Block, Fields

GEMMA4_NORMS = 8
"""In front of and behind attention, dense block and experts, behind the sum of the last two, and in the router."""

# Sliding windows: (fields, layer) -> window in tokens, or None for full attention.


def full(_fields: Fields, _layer: int) -> int | None:
    """Every layer sees everything."""
    return None


def sliding(fields: Fields, _layer: int) -> int | None:
    """Mistral: every layer slides where there is a window at all."""
    return None if fields.get("sliding_window") is None else fields.count("sliding_window")


def sliding_above(fields: Fields, layer: int) -> int | None:
    """Qwen: layers from `max_window_layers` on slide, if `use_sliding_window` is set."""
    slides = fields.flag("use_sliding_window") and layer >= fields.count("max_window_layers", 0, minimum=0)
    return sliding(fields, layer) if slides else None


def layer_type(fields: Fields, layer: int, known: Collection[str]) -> str:
    """What `layer_types`, which names the kind of every layer, calls this one.

    Raises:
        ConfigError: the list is missing or too short, or the kind is not `known`.
    """
    kinds, layers = fields.items("layer_types"), fields.count("num_hidden_layers")
    if len(kinds) != layers:
        raise fields.error("layer_types", f"must have {layers} items, one per layer, has {len(kinds)}")
    kind = kinds[layer]
    if isinstance(kind, str) and kind in known:
        return kind
    rule = f"must be {' or '.join(known)}; other kinds of attention are not supported"
    raise fields.error("layer_types", rule, kind, inside=(layer,))


def listed(fields: Fields, layer: int) -> int | None:
    """`layer_types` says which layers slide."""
    kind = layer_type(fields, layer, ("full_attention", "sliding_attention"))
    return None if kind == "full_attention" else fields.count("sliding_window")


# Blocks: (fields, layer) -> mapping of the block's class in `moesim.workloads.models`.


def gqa(
    fields: Fields,
    layer: int,
    *,
    biases: Literal["as stated", "none", "qkv"] = "as stated",
    qk_norm: str = "none",
    sinks: bool = False,
    head_dim: Literal["derived", "given"] = "derived",
    window: Callable[[Fields, int], int | None] = full,
    kinds: bool = True,
) -> Block:
    """Grouped-query attention.

    `biases` are as `attention_bias` states, or fixed by the family; a `derived` head dimension may be absent from the
    config: it is then the hidden size over the heads. `layer_types` overrides `window`, unless `kinds` is false.
    """
    heads = fields.count("num_attention_heads")
    if not fields.is_stated("num_key_value_heads"):
        raise fields.error("num_key_value_heads", "required")
    window = listed if kinds and fields.get("layer_types") is not None else window
    return {
        "kind": "gqa",
        "heads": heads,
        "kv_heads": fields.count("num_key_value_heads", default=heads),  # null: one per query head
        "head_dim": fields.count("head_dim", _derived_head_dim(fields) if head_dim == "derived" else None),
        "window": window(fields, layer),
        "qkv_bias": biases == "qkv" or (biases == "as stated" and fields.flag("attention_bias")),
        "out_bias": biases == "as stated" and fields.flag("attention_bias"),
        "qk_norm": qk_norm,
        "sinks": sinks,
    }


def _derived_head_dim(fields: Fields) -> int | None:
    heads, hidden = fields.count("num_attention_heads"), fields.count("hidden_size")
    return None if hidden % heads else hidden // heads


def mla(fields: Fields, _layer: int, *, indexed: bool = False) -> Block:
    """Multi-head latent attention, over keys that an indexer selects if `indexed`."""
    if fields.flag("attention_bias"):
        raise fields.error("attention_bias", "must be false: biases of latent attention are not supported", True)
    return {
        "kind": "mla",
        "heads": fields.count("num_attention_heads"),
        "q_lora_rank": None if fields.get("q_lora_rank") is None else fields.count("q_lora_rank"),
        "kv_lora_rank": fields.count("kv_lora_rank"),
        "nope_dim": fields.count("qk_nope_head_dim"),
        "rope_dim": fields.count("qk_rope_head_dim"),
        "v_dim": fields.count("v_head_dim"),
        "indexer": _indexer(fields) if indexed else None,
    }


def _indexer(fields: Fields) -> Block:
    return {
        "heads": fields.count("index_n_heads"),
        "head_dim": fields.count("index_head_dim"),
        "top_k": fields.count("index_topk"),
    }


def dense(fields: Fields, _layer: int) -> Block:
    """A dense feed-forward block."""
    return {"kind": "dense", "intermediate": fields.count("intermediate_size")}


def moe(
    fields: Fields,
    layer: int,
    *,
    width: str = "moe_intermediate_size",
    shared: Literal["plain", "gated"] = "plain",
    bias: bool = False,
    router_bias: bool = False,
    is_sparse: Callable[[Fields, int], bool] = lambda _fields, _layer: True,
) -> Block:
    """Routed and shared experts where `is_sparse`, else a dense block.

    `width` names the field of an expert's width. `plain` shared experts come as a number of that width, a `gated` one
    with a width of its own.
    """
    if not is_sparse(fields, layer):
        return dense(fields, layer)
    return {
        "kind": "moe",
        "experts": fields.count("experts"),
        "top_k": fields.count("top_k"),
        "intermediate": fields.count(width),
        "shared_intermediate": (
            fields.count("shared_expert_intermediate_size")
            if shared == "gated"
            else fields.count("n_shared_experts", 0, minimum=0) * fields.count(width)
        ),
        "shared_gate": shared == "gated",
        "bias": bias,
        "router_bias": router_bias,
    }


def after_dense(fields: Fields, layer: int) -> bool:
    """DeepSeek: the first layers are dense, then every `moe_layer_freq`-th is sparse."""
    first = fields.count("first_k_dense_replace", 0, minimum=0)
    return layer >= first and layer % fields.count("moe_layer_freq", 1) == 0


def every_nth(fields: Fields, layer: int) -> bool:
    """Qwen: every `decoder_sparse_step`-th layer is sparse, except those of `mlp_only_layers`."""
    return (layer + 1) % fields.count("decoder_sparse_step", 1) == 0 and layer not in fields.items("mlp_only_layers")


# Readers of one family.


def gqa_of_minimax(fields: Fields, layer: int) -> Block:
    """MiniMax: queries and keys are normed over all heads, if at all."""
    qk_norm = "full" if fields.flag("use_qk_norm") else "none"
    return gqa(fields, layer, biases="none", qk_norm=qk_norm, head_dim="given")


def moe_of_minimax(fields: Fields, layer: int) -> Block:
    """MiniMax: every layer is sparse; a shared expert has a width of its own."""
    shared = fields.count("shared_intermediate_size", 0, minimum=0)
    block = moe(fields, layer, width="intermediate_size", router_bias=fields.flag("use_routing_bias"))
    return block | {"shared_intermediate": shared}


def attention_of_qwen3_5(fields: Fields, layer: int) -> Block:
    """Qwen3.5: gated delta nets, and gated attention every few layers."""
    if layer_type(fields, layer, ("full_attention", "linear_attention")) == "full_attention":
        gated = fields.get("attn_output_gate") is not False
        block = gqa(fields, layer, qk_norm="head", head_dim="given", kinds=False)
        return block | {"gate": gated}
    return {
        "kind": "delta",
        "key_heads": fields.count("linear_num_key_heads"),
        "value_heads": fields.count("linear_num_value_heads"),
        "key_dim": fields.count("linear_key_head_dim"),
        "value_dim": fields.count("linear_value_head_dim"),
        "conv": fields.count("linear_conv_kernel_dim"),
    }


_NO_ROPE_INTERVAL = 4  # default of `no_rope_layer_interval` in transformers' Llama4TextConfig


def gqa_of_llama4(fields: Fields, layer: int) -> Block:
    """Llama 4: layers with rotary embedding attend within chunks, the others to everything."""
    rotary = fields.items("no_rope_layers")  # 1 where there is rotary embedding, despite the name
    interval = fields.count("no_rope_layer_interval", _NO_ROPE_INTERVAL)
    chunked = bool(rotary[layer]) if len(rotary) > layer else (layer + 1) % interval != 0
    block = gqa(fields, layer, head_dim="given", kinds=False)
    size = None if fields.get("attention_chunk_size") is None else fields.count("attention_chunk_size")
    return block | {"chunk": size if chunked else None}


def ffn_of_llama4(fields: Fields, layer: int) -> Block:
    """Llama 4: every so many layers one with routed experts and one shared expert of the same width."""
    step = fields.count("interleave_moe_layer_step")
    listed_layers = fields.items("moe_layers")
    if not (layer in listed_layers if listed_layers else (layer + 1) % step == 0):
        return {"kind": "dense", "intermediate": fields.count("intermediate_size_mlp")}
    block = moe(fields, layer, width="intermediate_size")
    return block | {"shared_intermediate": fields.count("intermediate_size")}


def gqa_of_gemma4(fields: Fields, layer: int) -> Block:
    """Gemma 4: full layers have heads of their own size, and one projection for keys and values."""
    block = gqa(fields, layer, qk_norm="head", head_dim="given")
    if block["window"] is not None:
        return block
    shared = fields.flag("attention_k_eq_v")
    kv_heads = fields.count("num_global_key_value_heads") if shared else block["kv_heads"]
    return block | {"head_dim": fields.count("global_head_dim"), "kv_heads": kv_heads, "shared_kv": shared}


def moe_of_gemma4(fields: Fields, layer: int) -> Block:
    """Gemma 4: the dense block beside the experts is a shared expert; the router has a scale per expert."""
    if not fields.flag("enable_moe_block"):
        raise fields.error("enable_moe_block", "must be true: Gemma 4 models without experts are not supported", False)
    return moe(fields, layer, router_bias=True) | {"shared_intermediate": fields.count("intermediate_size")}


def attention_of_jamba(fields: Fields, layer: int) -> Block:
    """Jamba: Mamba layers, and attention every few layers."""
    period, offset = fields.count("attn_layer_period"), fields.count("attn_layer_offset", minimum=0)
    if layer % period == offset:
        return gqa(fields, layer, biases="none", window=sliding)
    return {
        "kind": "mamba",
        "inner": fields.count("mamba_expand") * fields.count("hidden_size"),
        "state": fields.count("mamba_d_state"),
        "step_rank": fields.count("mamba_dt_rank"),
        "conv": fields.count("mamba_d_conv"),
        "conv_bias": fields.flag("mamba_conv_bias"),
        "proj_bias": fields.flag("mamba_proj_bias"),
        "norms": True,
    }


def moe_of_jamba(fields: Fields, layer: int) -> Block:
    """Jamba: experts every few layers."""
    period, offset = fields.count("expert_layer_period"), fields.count("expert_layer_offset", minimum=0)
    return moe(fields, layer, width="intermediate_size", is_sparse=lambda _fields, at: at % period == offset)
