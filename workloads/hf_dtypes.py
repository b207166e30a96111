"""Number formats that a Hugging Face `config.json` asks for.

- float32 weights become bf16, because that is what is served: vLLM's `dtype=auto` loads float32 checkpoints in the
  first data type of the platform, which is bfloat16 on GPUs (`_resolve_auto_dtype`).
- Scales of quantised weights are part of the number format. Embeddings, output head, router and norms are never
  quantised.
"""

from collections.abc import Mapping, Sequence

from moesim.workloads.hf_fields import Block, Fields
from moesim.workloads.matrices import Dtypes

_SERVED_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "bf16"}
_STATE_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_QUANTISED_PARTS: Mapping[str, tuple[str, ...]] = {"fp8": ("weights", "experts"), "mxfp4": ("experts",)}
"""Quantisation methods, and the parts of `Dtypes` that each converts."""

_NEVER_QUANTISED = (
    *("embed_tokens", "lm_head", "gate", "router", "e_score_correction_bias"),
    *("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "q_a_layernorm", "kv_a_layernorm", "norm"),
)
_EXEMPT_PARTS: Mapping[str, str | None] = {
    "self_attn": "weights",
    "experts": "experts",
    **dict.fromkeys(_NEVER_QUANTISED),
}
"""Last word of an entry of `modules_to_not_convert`, and the part that it keeps as it was."""

_FP8_BLOCK = [128, 128]  # the block that the number format `fp8_block` is defined for


def read_dtypes(fields: Fields, layers: Sequence[Block]) -> Block:
    """The data type of the config for every part, then what quantisation makes of weights and experts."""
    stored = fields.choice("dtype", _SERVED_DTYPES, "data types of a checkpoint", default="bfloat16")
    unquantised: Block = dict.fromkeys(Dtypes.model_fields, _SERVED_DTYPES[stored])
    if fields.get("mamba_ssm_dtype") is not None:
        unquantised["state"] = _STATE_DTYPES[fields.choice("mamba_ssm_dtype", _STATE_DTYPES, "data types of a state")]
    quantisation = fields.get("quantization_config")
    if quantisation is None:
        return unquantised
    if not isinstance(quantisation, dict):
        raise fields.error("quantization_config", "must be a mapping", quantisation)
    return unquantised | _quantised(Fields(fields.document.child("quantization_config")), layers)


def _quantised(fields: Fields, layers: Sequence[Block]) -> Block:
    """Data types of the parts that are quantised."""
    method = fields.choice("quant_method", _QUANTISED_PARTS, "quantisations")
    kept = {_exempt_part(fields, index) for index in range(len(fields.items("modules_to_not_convert")))}
    converted = [part for part in _QUANTISED_PARTS[method] if part not in kept]
    split = "weights" in _QUANTISED_PARTS[method] and "weights" in kept
    if split and any(_has_dense_part(layer) for layer in layers):
        rule = "must not exempt self_attn: attention in another format than dense blocks is not supported"
        raise fields.error("modules_to_not_convert", rule)
    return dict.fromkeys(converted, _fp8(fields) if method == "fp8" else method)


def _has_dense_part(layer: Block) -> bool:
    """Whether the layer has a dense feed-forward block or shared experts."""
    ffn = layer["ffn"]
    return isinstance(ffn, dict) and (ffn["kind"] == "dense" or bool(ffn["shared_intermediate"]))


def _exempt_part(fields: Fields, index: int) -> str | None:
    """The part of `Dtypes` that entry `index` of `modules_to_not_convert` keeps unquantised; None: it never is."""
    entry = str(fields.items("modules_to_not_convert")[index])
    words = entry.rstrip(".*").split(".")
    if words[-1] not in _EXEMPT_PARTS:
        rule = f"must end in one of {', '.join(_EXEMPT_PARTS)}; other exemptions are not supported"
        raise fields.error("modules_to_not_convert", rule, entry, inside=(index,))
    part = _EXEMPT_PARTS[words[-1]]
    if part and any(word.isdecimal() for word in words):
        rule = "must hold for all layers: formats that differ from layer to layer are not supported"
        raise fields.error("modules_to_not_convert", rule, entry, inside=(index,))
    return part


def _fp8(fields: Fields) -> str:
    block = fields.get("weight_block_size")
    if block not in (None, _FP8_BLOCK):
        raise fields.error("weight_block_size", f"must be {_FP8_BLOCK} or absent", block)
    return "fp8" if block is None else "fp8_block"
