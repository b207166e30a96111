"""A Hugging Face `config.json` (field names of transformers) as a model configuration.

`translate` reads the blocks of every layer with the readers of the model's family, and folds the list of layers into
repeated patterns. A further model type is a further row of `FAMILIES`; a new kind of block is a further reader.
Multi-token-prediction modules (`num_nextn_predict_layers`) are left out, and `source` says so. Data types are read in
`moesim.workloads.hf_dtypes`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from moesim.configs.documents import INLINE, Document
from moesim.workloads.hf_dtypes import read_dtypes
from moesim.workloads.hf_fields import Block, Fields

_UNSUPPORTED: Mapping[str, str] = {
    "mlp_bias": "biases of dense feed-forward blocks are",
    "lm_head_bias": "a bias of the output head is",
    "attn_output_gate": "a gate on the output of attention is",
    "index_topk": "sparse attention with an indexer is",
    "shared_expert_intermediate_size": "a gate on shared experts is",
}
"""Fields that switch on, in any family, something that `Model` cannot say."""

# Sliding windows: (fields, layer) -> window in tokens, or None for full attention.


def _full(_fields: Fields, _layer: int) -> int | None:
    return None


def _sliding(fields: Fields, _layer: int) -> int | None:
    """Mistral: every layer slides where there is a window at all."""
    return None if fields.get("sliding_window") is None else fields.count("sliding_window")


def _sliding_above(fields: Fields, layer: int) -> int | None:
    """Qwen: layers from `max_window_layers` on slide, if `use_sliding_window` is set."""
    slides = fields.flag("use_sliding_window") and layer >= fields.count("max_window_layers", 0, minimum=0)
    return _sliding(fields, layer) if slides else None


def _listed(fields: Fields, layer: int) -> int | None:
    """`layer_types` names the kind of every layer."""
    kinds, layers = fields.items("layer_types"), fields.count("num_hidden_layers")
    if len(kinds) != layers:
        raise fields.error("layer_types", f"must have {layers} items, one per layer, has {len(kinds)}")
    if kinds[layer] == "full_attention":
        return None
    if kinds[layer] == "sliding_attention":
        return fields.count("sliding_window")
    rule = "must be full_attention or sliding_attention; other kinds of attention are not supported"
    raise fields.error("layer_types", rule, kinds[layer], inside=(layer,))


# Blocks: (fields, layer) -> mapping of the block's class in `moesim.workloads.models`.


def _gqa(
    fields: Fields,
    layer: int,
    *,
    biases: Literal["as stated", "none", "qkv"] = "as stated",
    qk_norm: str = "none",
    sinks: bool = False,
    head_dim: Literal["derived", "given"] = "derived",
    window: Callable[[Fields, int], int | None] = _full,
) -> Block:
    """Grouped-query attention.

    `biases` are as `attention_bias` states, or fixed by the family; a `derived` head dimension may be absent from the
    config: it is then the hidden size over the heads.
    """
    heads = fields.count("num_attention_heads")
    if not fields.is_stated("num_key_value_heads"):
        raise fields.error("num_key_value_heads", "required")
    window = _listed if fields.get("layer_types") is not None else window
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


def _mla(fields: Fields, _layer: int) -> Block:
    """Multi-head latent attention."""
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
    }


def _dense(fields: Fields, _layer: int) -> Block:
    return {"kind": "dense", "intermediate": fields.count("intermediate_size")}


def _moe(
    fields: Fields,
    layer: int,
    *,
    width: str = "moe_intermediate_size",
    bias: bool = False,
    router_bias: bool = False,
    is_sparse: Callable[[Fields, int], bool] = lambda _fields, _layer: True,
) -> Block:
    """Routed and shared experts where `is_sparse`, else a dense block; `width` names the field of an expert's width."""
    if not is_sparse(fields, layer):
        return _dense(fields, layer)
    return {
        "kind": "moe",
        "experts": fields.count("experts"),
        "top_k": fields.count("top_k"),
        "intermediate": fields.count(width),
        "shared_intermediate": fields.count("n_shared_experts", 0, minimum=0) * fields.count(width),
        "bias": bias,
        "router_bias": router_bias,
    }


def _after_dense(fields: Fields, layer: int) -> bool:
    """DeepSeek: the first layers are dense, then every `moe_layer_freq`-th is sparse."""
    first = fields.count("first_k_dense_replace", 0, minimum=0)
    return layer >= first and layer % fields.count("moe_layer_freq", 1) == 0


def _every_nth(fields: Fields, layer: int) -> bool:
    """Qwen: every `decoder_sparse_step`-th layer is sparse, except those of `mlp_only_layers`."""
    return (layer + 1) % fields.count("decoder_sparse_step", 1) == 0 and layer not in fields.items("mlp_only_layers")


class Family(NamedTuple):
    """How the models of one `model_type` are built."""

    attention: Callable[[Fields, int], Block]
    ffn: Callable[[Fields, int], Block]


_gqa_without_bias = partial(_gqa, biases="none")
_gqa_of_qwen = partial(_gqa, window=_sliding_above)
_moe_of_deepseek = partial(_moe, is_sparse=_after_dense)

FAMILIES: Mapping[str, Family] = {
    "llama": Family(_gqa, _dense),
    "mistral": Family(partial(_gqa_without_bias, window=_sliding), _dense),
    "qwen2": Family(partial(_gqa_of_qwen, biases="qkv"), _dense),
    "qwen3": Family(partial(_gqa_of_qwen, qk_norm="head", head_dim="given"), _dense),
    "mixtral": Family(partial(_gqa_without_bias, window=_sliding), partial(_moe, width="intermediate_size")),
    "olmoe": Family(partial(_gqa, qk_norm="full"), partial(_moe, width="intermediate_size")),
    "qwen3_moe": Family(
        partial(_gqa_of_qwen, qk_norm="head", head_dim="given"),
        partial(_moe, is_sparse=_every_nth),
    ),
    "gpt_oss": Family(
        partial(_gqa, sinks=True, head_dim="given", window=_listed),
        partial(_moe, width="intermediate_size", bias=True, router_bias=True),
    ),
    "deepseek": Family(_gqa, _moe_of_deepseek),
    "deepseek_v2": Family(_mla, _moe_of_deepseek),
    "deepseek_v3": Family(_mla, partial(_moe_of_deepseek, router_bias=True)),
    "kimi_k2": Family(_mla, partial(_moe_of_deepseek, router_bias=True)),
}


def translate(document: Document) -> Document:
    """The content of a config.json as a mapping of `moesim.workloads.models.Model`.

    Args:
        document: the file as read; its `data` is a mapping with `model_type`.

    Returns:
        A document of the same file. Places of errors that are found in it later name the file, not the line.

    Raises:
        ConfigError: the family, or something that the config asks for, is not supported; a field is missing or wrong.
    """
    fields = Fields(document)
    family = _family(fields)
    layers: list[Block] = [
        {"attention": family.attention(fields, layer), "ffn": family.ffn(fields, layer)}
        for layer in range(fields.count("num_hidden_layers"))
    ]
    data = {
        "name": _name(fields),
        "source": _source(fields),
        "hidden": fields.count("hidden_size"),
        "vocabulary": fields.count("vocab_size"),
        "tied_embeddings": fields.flag("tie_word_embeddings"),
        "dtypes": read_dtypes(fields, layers),
        "layers": _fold(layers),
    }
    return Document(document.file, data, prefix=document.prefix)


def _family(fields: Fields) -> Family:
    family = FAMILIES[fields.choice("model_type", FAMILIES, "families")]
    for name, feature in _UNSUPPORTED.items():
        if fields.flag(name):
            raise fields.error(name, f"must be absent, because {feature} not supported", fields.get(name))
    return family


def _name(fields: Fields) -> str:
    """The last part of `_name_or_path`, else of the file's name, else of its folder's; `model_type` without a file."""
    file = Path(fields.document.file)
    stem = file.parent.name if file.stem == "config" else file.stem
    fallback = "" if fields.document.file == INLINE else stem
    return Path(str(fields.get("_name_or_path") or "")).name or fallback or str(fields.get("model_type"))


def _source(fields: Fields) -> str:
    notes = ["config.json"]
    if fields.get("dtype") == "float32":
        notes.append("float32 weights served as bfloat16")
    if fields.flag("num_nextn_predict_layers"):
        notes.append("without its multi-token-prediction module")
    return ", ".join(notes)


def _fold(layers: Sequence[Block]) -> list[Block]:
    """Layers as repeated patterns: at each place the pattern that covers most by repetition, the shortest of these."""
    groups: list[Block] = []
    start = 0
    while start < len(layers):
        lengths = range(1, (len(layers) - start) // 2 + 1)
        repeats = {length: _repeats(layers[start:], length) for length in lengths}
        best = max(repeats, key=lambda length: (repeats[length] > 1) * length * repeats[length], default=1)
        count = repeats.get(best, 1)
        groups.append({"repeat": count, "pattern": list(layers[start : start + best])})
        start += best * count
    return groups


def _repeats(layers: Sequence[Block], length: int) -> int:
    """How often the first `length` layers stand one after another at the start of `layers`."""
    count = 1
    while layers[count * length : (count + 1) * length] == layers[:length]:
        count += 1
    return count
