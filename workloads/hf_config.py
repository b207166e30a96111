"""A Hugging Face `config.json` (field names of transformers) as a model configuration.

`translate` reads the blocks of every layer with the readers of the model's family (`hf_blocks`), and folds the list of
layers into repeated patterns. A further model type is a further row of `FAMILIES`; a new kind of block is a further
reader. Of a multimodal model, only the language model is read; multi-token-prediction modules are left out; `source`
says so. Data types are read in `moesim.workloads.hf_dtypes`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from moesim.configs.documents import INLINE, Document
from moesim.workloads import hf_blocks as blocks
from moesim.workloads.hf_dtypes import read_dtypes
from moesim.workloads.hf_fields import Block, Fields

_UNSUPPORTED: Mapping[str, str] = {
    "mlp_bias": "biases of dense feed-forward blocks are",
    "lm_head_bias": "a bias of the output head is",
    "attn_output_gate": "a gate on the output of attention is",
    "index_topk": "sparse attention with an indexer is",
    "shared_expert_intermediate_size": "a shared expert of this family is",
    "hidden_size_per_layer_input": "an embedding per layer is",
    "num_kv_shared_layers": "a KV cache that layers share is",
}
"""Fields that switch on something that `Model`, or the reader of the family, cannot say."""

_UNSUPPORTED_FAMILIES: Mapping[str, str] = {
    "jetmoe": "attention experts (query and output projections that are routed per token) are",
    "openmoe": "experts of limited capacity that drop tokens (`router_drop_tks`), and up-projections gated twice, are",
}
"""Families whose very idea `Model` cannot say."""

_MTP_FIELDS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "use_mtp")
"""Fields that announce a multi-token-prediction module."""

_TEXT = "text_config"  # where a multimodal config holds its language model


class Family(NamedTuple):
    """How the models of one `model_type` are built."""

    attention: Callable[[Fields, int], Block]
    ffn: Callable[[Fields, int], Block]
    reads: tuple[str, ...] = ()  # of `_UNSUPPORTED`, the fields that this family's readers understand
    norms: int = 2  # norms per layer
    extras: Callable[[Fields], Block] = lambda _fields: {}  # further keys of the model


_gqa_without_bias = partial(blocks.gqa, biases="none")
_gqa_of_qwen = partial(blocks.gqa, window=blocks.sliding_above)
_moe_of_deepseek = partial(blocks.moe, is_sparse=blocks.after_dense)
_moe_of_qwen = partial(blocks.moe, is_sparse=blocks.every_nth)
_moe_like_dense = partial(blocks.moe, width="intermediate_size")
_SHARED_EXPERT = ("shared_expert_intermediate_size",)

FAMILIES: Mapping[str, Family] = {
    "llama": Family(blocks.gqa, blocks.dense),
    "mistral": Family(partial(_gqa_without_bias, window=blocks.sliding), blocks.dense),
    "qwen2": Family(partial(_gqa_of_qwen, biases="qkv"), blocks.dense),
    "qwen3": Family(partial(_gqa_of_qwen, qk_norm="head", head_dim="given"), blocks.dense),
    "mixtral": Family(partial(_gqa_without_bias, window=blocks.sliding), _moe_like_dense),
    "phimoe": Family(
        partial(blocks.gqa, window=blocks.sliding),
        _moe_like_dense,
        reads=("lm_head_bias",),
        extras=lambda fields: {"norm": "layer", "head_bias": fields.flag("lm_head_bias")},
    ),
    "olmoe": Family(partial(blocks.gqa, qk_norm="full"), _moe_like_dense),
    "minimax_m2": Family(blocks.gqa_of_minimax, blocks.moe_of_minimax),
    "qwen2_moe": Family(
        partial(_gqa_of_qwen, biases="qkv"), partial(_moe_of_qwen, shared="gated"), reads=_SHARED_EXPERT
    ),
    "qwen3_moe": Family(partial(_gqa_of_qwen, qk_norm="head", head_dim="given"), _moe_of_qwen),
    "qwen3_5_moe_text": Family(
        blocks.attention_of_qwen3_5,
        partial(_moe_of_qwen, shared="gated"),
        reads=("attn_output_gate", *_SHARED_EXPERT),
    ),
    "gpt_oss": Family(
        partial(blocks.gqa, sinks=True, head_dim="given", window=blocks.listed),
        partial(_moe_like_dense, bias=True, router_bias=True),
    ),
    "llama4_text": Family(blocks.gqa_of_llama4, blocks.ffn_of_llama4),
    "gemma4_text": Family(blocks.gqa_of_gemma4, blocks.moe_of_gemma4, norms=blocks.GEMMA4_NORMS),
    "jamba": Family(blocks.attention_of_jamba, blocks.moe_of_jamba),
    "deepseek": Family(blocks.gqa, _moe_of_deepseek),
    "deepseek_v2": Family(blocks.mla, _moe_of_deepseek),
    "deepseek_v3": Family(blocks.mla, partial(_moe_of_deepseek, router_bias=True)),
    "deepseek_v32": Family(
        partial(blocks.mla, indexed=True), partial(_moe_of_deepseek, router_bias=True), reads=("index_topk",)
    ),
    "kimi_k2": Family(blocks.mla, partial(_moe_of_deepseek, router_bias=True)),
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
    whole = Fields(document)
    fields = _language_model(whole)
    family = _family(fields)
    layers: list[Block] = [
        {"attention": family.attention(fields, layer), "ffn": family.ffn(fields, layer), "norms": family.norms}
        for layer in range(fields.count("num_hidden_layers"))
    ]
    data = {
        "name": _name(whole),
        "source": _source(fields, multimodal=fields is not whole),
        "hidden": fields.count("hidden_size"),
        "vocabulary": fields.count("vocab_size"),
        "tied_embeddings": fields.flag("tie_word_embeddings"),
        "dtypes": read_dtypes(fields, layers),
        "layers": _fold(layers),
        **family.extras(fields),
    }
    return Document(document.file, data, prefix=document.prefix)


def _language_model(whole: Fields) -> Fields:
    """The fields of the language model, which a multimodal config holds apart.

    Raises:
        ConfigError: the whole is quantised: which parts of it then are cannot be told.
    """
    if not isinstance(whole.get(_TEXT), dict):
        return whole
    if whole.get("quantization_config") is not None:
        raise whole.error("quantization_config", "must be absent: quantised multimodal models are not supported")
    return Fields(whole.document.child(_TEXT))


def _family(fields: Fields) -> Family:
    feature = _UNSUPPORTED_FAMILIES.get(str(fields.get("model_type")))
    if feature:
        raise fields.error("model_type", f"{feature} not supported", fields.get("model_type"))
    family = FAMILIES[fields.choice("model_type", FAMILIES, "families")]
    for name, feature in _UNSUPPORTED.items():
        if name not in family.reads and fields.flag(name):
            raise fields.error(name, f"must be absent, because {feature} not supported", fields.get(name))
    return family


def _name(fields: Fields) -> str:
    """The last part of `_name_or_path`, else of the file's name, else of its folder's; `model_type` without a file."""
    file = Path(fields.document.file)
    stem = file.parent.name if file.stem == "config" else file.stem
    fallback = "" if fields.document.file == INLINE else stem
    return Path(str(fields.get("_name_or_path") or "")).name or fallback or str(fields.get("model_type"))


def _source(fields: Fields, *, multimodal: bool) -> str:
    notes = ["config.json"]
    if fields.get("dtype") == "float32":
        notes.append("float32 weights served as bfloat16")
    if multimodal:
        notes.append("the language model only")
    if any(fields.flag(name) for name in _MTP_FIELDS):
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
