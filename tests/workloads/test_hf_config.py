import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.configs.loader import read_yaml
from moesim.errors import ConfigError
from moesim.workloads.hf_config import _fold, translate
from moesim.workloads.models import GroupedQueryAttention, Model, load_model

# Only what each family's config must hold, in the words of that family.
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
MIXTRAL: dict[str, Any] = LLAMA | {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
OLMOE: dict[str, Any] = {
    "model_type": "olmoe",
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_hidden_layers": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "vocab_size": 50304,
    "torch_dtype": "float32",
}
QWEN3: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 151936,
    "dtype": "bfloat16",
}
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "attention_bias": True,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "num_attention_heads": 64,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "sliding_window": 128,
    "vocab_size": 201088,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    },
}
DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    "v_head_dim": 128,
    "vocab_size": 129280,
    "torch_dtype": "bfloat16",
}
GPT_OSS_120B = GPT_OSS | {
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "num_hidden_layers": 36,
    "num_local_experts": 128,
}
MISTRAL: dict[str, Any] = LLAMA | {"model_type": "mistral", "sliding_window": 4096, "vocab_size": 32000}
QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3_DENSE: dict[str, Any] = {
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 28,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
DEEPSEEK_16B: dict[str, Any] = {
    "model_type": "deepseek",
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "vocab_size": 102400,
}
DEEPSEEK_V2_LITE: dict[str, Any] = DEEPSEEK_16B | {
    "model_type": "deepseek_v2",
    "kv_lora_rank": 512,
    "num_hidden_layers": 27,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
SHIPPED = {
    "llama-3.1-8b": (LLAMA, "meta-llama--Meta-Llama-3.1-8B"),
    "mixtral-8x7b": (MIXTRAL, "mistralai--Mixtral-8x7B-v0.1"),
    "olmoe-1b-7b": (OLMOE, "allenai--OLMoE-1B-7B"),
    "qwen3-30b-a3b": (QWEN3, "Qwen--Qwen3-30B-A3B"),
    "gpt-oss-20b": (GPT_OSS, "openai--gpt-oss-20b"),
    "gpt-oss-120b": (GPT_OSS_120B, "openai--gpt-oss-120b"),
    "deepseek-v3": (DEEPSEEK, "deepseek-ai--DeepSeek-V3"),
}


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def quantised(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return config | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]} | changes}


def named_alike(model: Model, other: Model) -> Model:
    return model.model_copy(update={"name": other.name, "source": other.source})


@pytest.mark.parametrize("name", SHIPPED)
def test_a_config_of_a_shipped_model_gives_that_model(name: str) -> None:
    shipped = load_model(name)
    assert named_alike(load_model(SHIPPED[name][0]), shipped) == shipped


@pytest.mark.reference
@pytest.mark.parametrize("name", SHIPPED)
def test_the_published_config_of_a_shipped_model_gives_that_model(name: str, reference_data: Path) -> None:
    shipped, file = load_model(name), f"{SHIPPED[name][1]}.json"
    translated = load_model(reference_data / "models" / "hf_configs" / file)
    assert named_alike(translated, shipped) == shipped


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        pytest.param(MISTRAL, 7_241_732_096, id="Mistral-7B-v0.1"),
        pytest.param(QWEN2, 7_615_616_512, id="Qwen2.5-7B"),
        pytest.param(QWEN3_DENSE, 596_049_920, id="Qwen3-0.6B"),  # the tied head counted once
        pytest.param(DEEPSEEK_16B, 16_375_728_128, id="DeepSeekMoE-16B"),
        pytest.param(DEEPSEEK_V2_LITE, 15_706_484_224, id="DeepSeek-V2-Lite"),
    ],
)
def test_other_families_give_the_published_parameter_counts(config: dict[str, Any], parameters: int) -> None:
    """Element counts of the safetensors files on Hugging Face."""
    assert load_model(config).parameters == parameters


@pytest.mark.reference
@pytest.mark.parametrize(
    ("file", "parameters"),
    [
        ("meta-llama--Meta-Llama-3.1-70B", 70_553_706_496),
        ("mistralai--Mixtral-8x22B-v0.1", 140_620_634_112),
        ("Qwen--Qwen3-32B", 32_762_123_264),
        ("Qwen--Qwen3-235B-A22B", 235_093_634_560),
        ("deepseek-ai--deepseek-moe-16b", 16_375_728_128),
        ("deepseek-ai--DeepSeek-V2-Lite", 15_706_484_224),
        ("deepseek-ai--DeepSeek-R1", 671_026_419_200),
    ],
)
def test_published_configs_give_the_published_parameter_counts(
    file: str, parameters: int, reference_data: Path
) -> None:
    """Element counts of the safetensors files on Hugging Face (R1: less scales and its MTP module, as for V3)."""
    assert load_model(reference_data / "models" / "hf_configs" / f"{file}.json").parameters == parameters


@pytest.mark.reference
def test_kimi_k2_has_a_trillion_parameters_of_which_32_billion_are_active(reference_data: Path) -> None:
    """The model's card counts active parameters without the input embedding."""
    model = load_model(reference_data / "models" / "hf_configs" / "moonshotai--Kimi-K2-Instruct.json")
    assert round(model.parameters / 1e12) == 1
    assert round((model.active_parameters - model.embedding.parameters) / 1e9) == 32


@pytest.mark.reference
def test_every_published_config_is_translated_or_refused_with_its_place(reference_data: Path) -> None:
    for file in sorted((reference_data / "models" / "hf_configs").glob("*.json")):
        try:
            load_model(file)
        except ConfigError as error:
            assert error.place.startswith(f"{file}:"), error  # noqa: PT017  # either outcome is right
            assert "not supported" in error.rule  # noqa: PT017


@pytest.mark.parametrize(
    ("file", "field", "name"),
    [
        ("org--Model.json", None, "org--Model"),
        ("Model/config.json", None, "Model"),
        ("Model/config.json", "", "Model"),
        ("Model/config.json", "org/Other-1B", "Other-1B"),
    ],
)
def test_the_name_is_that_of_the_config_or_of_its_file(file: str, field: str | None, name: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(LLAMA if field is None else LLAMA | {"_name_or_path": field}), encoding="utf-8")
    model = load_model(path)
    assert (model.name, model.source) == (name, "config.json")


def test_a_config_without_file_is_called_as_its_type() -> None:
    assert load_model(LLAMA).name == "llama"


def test_the_source_says_what_was_changed() -> None:
    assert load_model(OLMOE).source == "config.json, float32 weights served as bfloat16"
    assert load_model(DEEPSEEK).source == "config.json, without its multi-token-prediction module"


@pytest.mark.parametrize(("stored", "served"), [("bfloat16", "bf16"), ("float16", "fp16"), ("float32", "bf16")])
def test_weights_are_served_in_sixteen_bits(stored: str, served: str) -> None:
    dtypes = load_model(LLAMA | {"torch_dtype": stored}).dtypes
    assert set(dtypes.model_dump().values()) == {served}


def test_null_key_value_heads_mean_one_per_query_head() -> None:
    attention = load_model(LLAMA | {"num_key_value_heads": None}).layers[0].attention
    assert isinstance(attention, GroupedQueryAttention)
    assert attention.kv_heads == attention.heads


def test_a_stated_head_dimension_wins_over_the_derived_one() -> None:
    attention = load_model(LLAMA | {"head_dim": 256}).layers[0].attention
    assert isinstance(attention, GroupedQueryAttention)
    assert attention.head_dim == 256


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (MIXTRAL | {"sliding_window": 64}, [64, 64, 64, 64]),
        (MISTRAL | {"sliding_window": 64}, [64, 64, 64, 64]),
        (DEEPSEEK_16B | {"sliding_window": 64, "use_sliding_window": True}, [None] * 4),
        (QWEN3 | {"sliding_window": 64}, [None] * 4),
        (QWEN3 | {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 3}, [None, None, None, 64]),
        (LLAMA | {"sliding_window": 64}, [None] * 4),
        (LLAMA | {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"] * 2}, [None, 64] * 2),
    ],
)
def test_windows_follow_the_rule_of_the_family(config: dict[str, Any], windows: list[int | None]) -> None:
    model = load_model(config | {"num_hidden_layers": 4})
    assert [layer.attention.window for layer in model.layers] == windows


@pytest.mark.parametrize(
    ("config", "moe_layers"),
    [
        (QWEN3 | {"decoder_sparse_step": 2}, [1, 3, 5]),
        (QWEN3 | {"mlp_only_layers": [0, 4]}, [1, 2, 3, 5]),
        (DEEPSEEK | {"first_k_dense_replace": 4}, [4, 5]),
        (DEEPSEEK | {"first_k_dense_replace": 1, "moe_layer_freq": 2}, [2, 4]),
        (MIXTRAL, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_sparse_layers_follow_the_rule_of_the_family(config: dict[str, Any], moe_layers: list[int]) -> None:
    model = load_model(config | {"num_hidden_layers": 6})
    assert [index for index, _ in model.moe_layers] == moe_layers


def test_shared_experts_add_up() -> None:
    blocks = [block for _, block in load_model(DEEPSEEK | {"n_shared_experts": 2}).moe_layers]
    assert {block.shared_intermediate for block in blocks} == {4096}
    blocks = [block for _, block in load_model(DEEPSEEK | {"n_shared_experts": None}).moe_layers]
    assert {block.shared_intermediate for block in blocks} == {0}


def test_earlier_deepseek_models_have_no_correction_bias() -> None:
    models = [load_model(DEEPSEEK | {"model_type": kind}) for kind in ("deepseek_v2", "deepseek_v3", "kimi_k2")]
    assert [model.moe_layers[0][1].router_bias for model in models] == [False, True, True]


@pytest.mark.parametrize(
    ("config", "weights", "experts"),
    [
        (quantised(DEEPSEEK), "fp8_block", "fp8_block"),
        (quantised(DEEPSEEK, weight_block_size=None), "fp8", "fp8"),
        (quantised(QWEN3, modules_to_not_convert=["lm_head", "model.layers.0.mlp.gate"]), "fp8_block", "fp8_block"),
        (quantised(QWEN3, modules_to_not_convert=["model.layers.*.self_attn"]), "bf16", "fp8_block"),
        (quantised(QWEN3, modules_to_not_convert=["model.layers.*.mlp.experts"]), "fp8_block", "bf16"),
        (GPT_OSS, "bf16", "mxfp4"),
        (without(GPT_OSS, "quantization_config"), "bf16", "bf16"),
        (GPT_OSS | {"quantization_config": {"quant_method": "mxfp4"}}, "bf16", "mxfp4"),
    ],
)
def test_quantisation_changes_weights_and_experts_only(config: dict[str, Any], weights: str, experts: str) -> None:
    dtypes = load_model(config).dtypes
    assert (dtypes.weights, dtypes.experts) == (weights, experts)
    assert {dtypes.embeddings, dtypes.other, dtypes.activations, dtypes.kv_cache} == {"bf16"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA | {"model_type": "rwkv"}, "model_type: must be one of deepseek, deepseek_v2,"),
        (LLAMA | {"model_type": None}, "model_type: required"),
        (LLAMA | {"model_type": ["llama"]}, "other families are not supported, got ['llama']"),
        (LLAMA | {"mlp_bias": True}, "mlp_bias: must be absent, because biases of dense"),
        (DEEPSEEK | {"index_topk": 2048}, "index_topk: must be absent, because sparse attention"),
        (DEEPSEEK | {"attention_bias": True}, "attention_bias: must be false: biases of latent attention"),
        (without(LLAMA, "hidden_size"), "hidden_size: required"),
        (without(LLAMA, "num_key_value_heads"), "num_key_value_heads: required"),
        (without(LLAMA, "vocab_size"), "vocab_size: required"),
        (without(QWEN3, "head_dim"), "head_dim: required"),
        (without(QWEN3, "moe_intermediate_size"), "moe_intermediate_size: required"),
        (without(OLMOE, "num_experts"), "num_local_experts: required (or num_experts, n_routed_experts)"),
        (OLMOE | {"num_experts": 0}, "num_experts: must be a whole number >= 1, got 0"),
        (OLMOE | {"num_hidden_layers": True}, "num_hidden_layers: must be a whole number >= 1, got True"),
        (LLAMA | {"hidden_size": "4096"}, "hidden_size: must be a whole number >= 1, got '4096'"),
        (LLAMA | {"hidden_size": 4100}, "head_dim: required"),
        (LLAMA | {"torch_dtype": "float8"}, "torch_dtype: must be one of bfloat16, float16, float32;"),
        (QWEN3 | {"dtype": "int4"}, "dtype: must be one of bfloat16, float16, float32;"),
        (QWEN3 | {"mlp_only_layers": 3}, "mlp_only_layers: must be a list, got 3"),
        (without(GPT_OSS, "layer_types"), "layer_types: must have 24 items, one per layer, has 0"),
        (GPT_OSS | {"layer_types": ["linear_attention"] * 24}, "layer_types.0: must be full_attention or sliding_"),
        (without(GPT_OSS, "sliding_window"), "sliding_window: required"),
        (LLAMA | {"quantization_config": "fp8"}, "quantization_config: must be a mapping, got 'fp8'"),
        (quantised(LLAMA, quant_method="gptq"), "quant_method: must be one of fp8, mxfp4; other quantisations are not"),
        (quantised(LLAMA, quant_method=None), "quant_method: required"),
        (quantised(LLAMA, weight_block_size=[64, 64]), "weight_block_size: must be [128, 128] or absent, got [64, 64]"),
        (quantised(LLAMA, modules_to_not_convert=["x.mlp"]), "modules_to_not_convert.0: must end in one of self_attn,"),
        (quantised(QWEN3, modules_to_not_convert=["model.layers.7.self_attn"]), "must hold for all layers"),
        (quantised(LLAMA, modules_to_not_convert=["self_attn"]), "must not exempt self_attn"),
        (LLAMA | {"num_key_value_heads": 5}, "`heads` must be a multiple of `kv_heads`"),
        (OLMOE | {"num_experts_per_tok": 65}, "`top_k <= experts` must hold"),
    ],
)
def test_what_cannot_be_translated_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_model(config)
    assert message in str(error.value)


def test_an_error_names_file_line_and_field(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(quantised(LLAMA, quant_method="awq"), indent=2), encoding="utf-8")
    line = file.read_text(encoding="utf-8").splitlines().index('    "quant_method": "awq",') + 1
    with pytest.raises(ConfigError) as error:
        translate(read_yaml(file))
    assert error.value.place == f"{file}:{line}:5: quantization_config.quant_method"


@given(st.lists(st.integers(0, 2), max_size=40))
def test_folding_keeps_the_layers(kinds: list[int]) -> None:
    layers: list[dict[str, object]] = [{"kind": kind} for kind in kinds]
    groups: Any = _fold(layers)
    assert [layer for group in groups for _ in range(group["repeat"]) for layer in group["pattern"]] == layers


@pytest.mark.parametrize(
    ("kinds", "groups"),
    [
        ("AAAA", [(4, "A")]),
        ("ABABAB", [(3, "AB")]),
        ("AABBBB", [(2, "A"), (4, "B")]),
        ("ABBBB", [(1, "A"), (4, "B")]),
        ("AAABAAAB", [(2, "AAAB")]),
        ("ABC", [(1, "A"), (1, "B"), (1, "C")]),
    ],
)
def test_folding_finds_the_pattern(kinds: str, groups: list[tuple[int, str]]) -> None:
    folded: Any = _fold([{"kind": kind} for kind in kinds])
    found = [(group["repeat"], "".join(layer["kind"] for layer in group["pattern"])) for group in folded]
    assert found == groups
