"""Families of `config.json` whose layers differ from those of Llama: shipped models from the fields that make them."""

from pathlib import Path
from typing import Any

import pytest

from moesim.errors import ConfigError
from moesim.workloads.models import GroupedQueryAttention, Model, load_model

QWEN2_MOE: dict[str, Any] = {
    "model_type": "qwen2_moe",
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "shared_expert_intermediate_size": 5632,
    "vocab_size": 151936,
}
QWEN35: dict[str, Any] = {
    "model_type": "qwen3_5_moe",
    "vision_config": {"hidden_size": 1152},
    "text_config": {
        "model_type": "qwen3_5_moe_text",
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "head_dim": 256,
        "hidden_size": 2048,
        "layer_types": [*["linear_attention"] * 3, "full_attention"] * 10,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "moe_intermediate_size": 512,
        "mtp_num_hidden_layers": 1,
        "num_attention_heads": 16,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "shared_expert_intermediate_size": 512,
        "vocab_size": 248320,
    },
}
LLAMA4: dict[str, Any] = {
    "model_type": "llama4",
    "text_config": {
        "model_type": "llama4_text",
        "attention_bias": False,
        "attention_chunk_size": 8192,
        "head_dim": 128,
        "hidden_size": 5120,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "vocab_size": 202048,
    },
}
GEMMA4: dict[str, Any] = {
    "model_type": "gemma4",
    "text_config": {
        "model_type": "gemma4_text",
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_size": 2816,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 2112,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 5,
        "moe_intermediate_size": 704,
        "num_attention_heads": 16,
        "num_experts": 128,
        "num_global_key_value_heads": 2,
        "num_hidden_layers": 30,
        "num_key_value_heads": 8,
        "num_kv_shared_layers": 0,
        "sliding_window": 1024,
        "tie_word_embeddings": True,
        "top_k_experts": 8,
        "vocab_size": 262144,
    },
}
JAMBA: dict[str, Any] = {
    "model_type": "jamba",
    "attn_layer_offset": 4,
    "attn_layer_period": 8,
    "expert_layer_offset": 1,
    "expert_layer_period": 2,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_state": 16,
    "mamba_dt_rank": 256,
    "mamba_expand": 2,
    "mamba_proj_bias": False,
    "num_attention_heads": 32,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 65536,
}
PHI: dict[str, Any] = {
    "model_type": "phimoe",
    "attention_bias": True,
    "hidden_size": 4096,
    "intermediate_size": 6400,
    "lm_head_bias": True,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 16,
    "sliding_window": 131072,
    "vocab_size": 32064,
}
MINIMAX: dict[str, Any] = {
    "model_type": "minimax_m2",
    "head_dim": 128,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_attention_heads": 48,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
    "num_local_experts": 256,
    "quantization_config": {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
    },
    "shared_intermediate_size": 0,
    "use_mtp": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": 200064,
}
DEEPSEEK_V32: dict[str, Any] = {
    "model_type": "deepseek_v32",
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 2048,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "v_head_dim": 128,
    "vocab_size": 129280,
}
SHIPPED = {
    "qwen1.5-moe-a2.7b": QWEN2_MOE,
    "qwen3.5-35b-a3b": QWEN35,
    "llama-4-maverick": LLAMA4,
    "gemma-4-26b-a4b": GEMMA4,
    "jamba-mini": JAMBA,
    "phi-3.5-moe": PHI,
    "minimax-m2.5": MINIMAX,
    "deepseek-v3.2": DEEPSEEK_V32,
}
FILES = {
    "MiniMaxAI--MiniMax-M2.5": "minimax-m2.5",
    "Qwen--Qwen1.5-MoE-A2.7B": "qwen1.5-moe-a2.7b",
    "Qwen--Qwen2-57B-A14B": "qwen2-57b-a14b",
    "Qwen--Qwen3-235B-A22B": "qwen3-235b-a22b",
    "Qwen--Qwen3-30B-A3B": "qwen3-30b-a3b",
    "Qwen--Qwen3-32B": "qwen3-32b",
    "Qwen--Qwen3.5-35B-A3B": "qwen3.5-35b-a3b",
    "Qwen--Qwen3.5-397B-A17B": "qwen3.5-397b-a17b",
    "ai21labs--Jamba-mini": "jamba-mini",
    "allenai--OLMoE-1B-7B": "olmoe-1b-7b",
    "deepseek-ai--DeepSeek-R1": "deepseek-r1",
    "deepseek-ai--DeepSeek-V2-Lite": "deepseek-v2-lite",
    "deepseek-ai--DeepSeek-V3.2": "deepseek-v3.2",
    "deepseek-ai--DeepSeek-V3": "deepseek-v3",
    "deepseek-ai--deepseek-moe-16b": "deepseek-moe-16b",
    "google--gemma-4-26B-A4B": "gemma-4-26b-a4b",
    "meta-llama--Llama-4-Maverick-17B-128E-Instruct": "llama-4-maverick",
    "meta-llama--Llama-4-Scout-17B-16E-Instruct": "llama-4-scout",
    "meta-llama--Meta-Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama--Meta-Llama-3.1-8B": "llama-3.1-8b",
    "microsoft--Phi-3.5-MoE": "phi-3.5-moe",
    "mistralai--Mixtral-8x22B-v0.1": "mixtral-8x22b",
    "mistralai--Mixtral-8x7B-v0.1": "mixtral-8x7b",
    "moonshotai--Kimi-K2-Instruct": "kimi-k2",
    "openai--gpt-oss-120b": "gpt-oss-120b",
    "openai--gpt-oss-20b": "gpt-oss-20b",
}
REFUSED = {
    "jetmoe--jetmoe-8b": "attention experts",
    "OrionZheng--openmoe-8b": "experts of limited capacity that drop tokens",
}


def named_alike(model: Model, other: Model) -> Model:
    return model.model_copy(update={"name": other.name, "source": other.source})


def text(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return config | {"text_config": config["text_config"] | changes}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_fields_of_a_family_give_its_shipped_model(name: str) -> None:
    shipped = load_model(name)
    assert named_alike(load_model(SHIPPED[name]), shipped) == shipped


@pytest.mark.reference
@pytest.mark.parametrize("file", FILES)
def test_every_published_config_gives_its_shipped_model(file: str, reference_data: Path) -> None:
    shipped = load_model(FILES[file])
    assert named_alike(load_model(reference_data / "models" / "hf_configs" / f"{file}.json"), shipped) == shipped


@pytest.mark.reference
@pytest.mark.parametrize(("file", "feature"), REFUSED.items())
def test_a_refusal_names_the_feature(file: str, feature: str, reference_data: Path) -> None:
    path = reference_data / "models" / "hf_configs" / f"{file}.json"
    with pytest.raises(ConfigError, match=f"model_type: {feature}.* not supported") as error:
        load_model(path)
    assert error.value.place.startswith(f"{path}:")


@pytest.mark.reference
def test_all_published_configs_are_accounted_for(reference_data: Path) -> None:
    files = {file.stem for file in (reference_data / "models" / "hf_configs").glob("*.json")}
    assert files == FILES.keys() | REFUSED.keys()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "jetmoe"}, "model_type: attention experts (query and output projections"),
        ({"model_type": "openmoe"}, "model_type: experts of limited capacity that drop tokens"),
        (QWEN35 | {"quantization_config": {"quant_method": "fp8"}}, "quantised multimodal models are not supported"),
        (text(GEMMA4, hidden_size_per_layer_input=256), "text_config.hidden_size_per_layer_input: must be absent"),
        (text(GEMMA4, num_kv_shared_layers=20), "a KV cache that layers share is not supported, got 20"),
        (text(GEMMA4, enable_moe_block=False), "Gemma 4 models without experts are not supported"),
        (text(QWEN35, layer_types=["full_attention", "mamba"] * 20), "text_config.layer_types.1: must be full_attent"),
        (text(QWEN35, model_type="qwen9_text"), "text_config.model_type: must be one of"),
        (MINIMAX | {"attn_output_gate": True}, "attn_output_gate: must be absent, because a gate on the output"),
        (JAMBA | {"mamba_ssm_dtype": "int8"}, "mamba_ssm_dtype: must be one of bfloat16, float16, float32"),
    ],
)
def test_what_cannot_be_said_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_model(config)
    assert message in str(error.value)


def test_the_source_says_what_was_left_out() -> None:
    expected = "config.json, the language model only, without its multi-token-prediction module"
    assert load_model(QWEN35).source == expected
    assert load_model(MINIMAX).source == "config.json, without its multi-token-prediction module"


def test_layers_without_rotary_embedding_see_everything() -> None:
    stated = load_model(text(LLAMA4, no_rope_layers=[1, 0] * 24)).layers
    chunks = [layer.attention.chunk for layer in stated if isinstance(layer.attention, GroupedQueryAttention)]
    assert chunks == [8192, None] * 24
    derived = load_model(LLAMA4).layers
    chunks = [layer.attention.chunk for layer in derived if isinstance(layer.attention, GroupedQueryAttention)]
    assert chunks == [8192, 8192, 8192, None] * 12


@pytest.mark.parametrize(("stated", "kept"), [(None, "bf16"), ("float32", "fp32"), ("bfloat16", "bf16")])
def test_states_are_kept_as_stated_or_as_the_model_is_served(stated: str | None, kept: str) -> None:
    assert load_model(JAMBA | {"mamba_ssm_dtype": stated}).dtypes.state == kept
