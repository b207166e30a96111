from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.configs.loader import Document, Reference, shipped
from moesim.errors import ConfigError
from moesim.workloads.models import Attention, DenseFFN, GroupedQueryAttention, LatentAttention, Model, MoE, load_model
from moesim.workloads.operator_table import DTYPES

GQA: dict[str, Any] = {"kind": "gqa", "heads": 8, "kv_heads": 2, "head_dim": 16}
MLA: dict[str, Any] = {
    "kind": "mla",
    "heads": 8,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "nope_dim": 16,
    "rope_dim": 8,
    "v_dim": 16,
}
DELTA: dict[str, Any] = {
    "kind": "delta",
    "key_heads": 2,
    "value_heads": 4,
    "key_dim": 16,
    "value_dim": 24,
    "conv": 4,
}
MAMBA: dict[str, Any] = {"kind": "mamba", "inner": 128, "state": 16, "step_rank": 8, "conv": 4}
INDEXER: dict[str, Any] = {"heads": 4, "head_dim": 16, "top_k": 32}
DENSE: dict[str, Any] = {"kind": "dense", "intermediate": 96}
MOE: dict[str, Any] = {"kind": "moe", "experts": 6, "top_k": 2, "intermediate": 24}


def small(attention: dict[str, Any] = GQA, ffn: dict[str, Any] = MOE, **changes: Any) -> dict[str, Any]:
    layers = [{"repeat": 2, "pattern": [{"attention": attention, "ffn": ffn}]}]
    return {"name": "small", "source": "a test", "hidden": 64, "vocabulary": 100, "layers": layers} | changes


def kv_bytes_per_token(model: Model) -> float:
    elements = sum(layer.attention.kv_elements(tp=1) for layer in model.layers)
    return elements * DTYPES[model.dtypes.kv_cache].bytes


def gqa_layers(layers: int, kv_heads: int, head_dim: int) -> dict[str, Any]:
    attention = {"kind": "gqa", "heads": kv_heads * 8, "kv_heads": kv_heads, "head_dim": head_dim}
    return small(layers=[{"repeat": layers, "pattern": [{"attention": attention, "ffn": DENSE}]}])


@pytest.mark.parametrize(
    ("reference", "expected_bytes"),
    [
        pytest.param("deepseek-v3", 70_272, id="DeepSeek-V3"),
        pytest.param(gqa_layers(80, kv_heads=8, head_dim=128), 327_680, id="Qwen2.5-72B"),
        pytest.param(gqa_layers(126, kv_heads=8, head_dim=128), 516_096, id="LLaMA-3.1-405B"),
    ],
)
def test_kv_cache_per_token_is_that_of_the_deepseek_v3_hardware_paper(
    reference: Reference, expected_bytes: int
) -> None:
    """Table 1 of arXiv 2505.09343, bf16."""
    assert kv_bytes_per_token(load_model(reference)) == expected_bytes


def test_kv_heads_are_shared_out_until_each_shard_has_one() -> None:
    attention = GroupedQueryAttention(heads=32, kv_heads=8, head_dim=128)
    assert [attention.kv_elements(tp) for tp in (1, 2, 8, 16, 32)] == [2048, 1024, 256, 256, 256]


def test_every_shard_caches_the_whole_latent() -> None:
    attention = load_model(small(MLA)).layers[0].attention
    assert {attention.kv_elements(tp) for tp in (1, 2, 8)} == {32 + 8}


def test_patterns_repeat_in_order() -> None:
    sliding = GQA | {"window": 4}
    pattern = [{"attention": sliding, "ffn": MOE}, {"attention": GQA, "ffn": MOE}]
    groups = [{"pattern": [{"attention": MLA, "ffn": DENSE}]}, {"repeat": 3, "pattern": pattern}]
    model = load_model(small(layers=groups))
    assert [layer.attention.window for layer in model.layers] == [None, 4, None, 4, None, 4, None]
    assert [index for index, _ in model.moe_layers] == [1, 2, 3, 4, 5, 6]
    assert isinstance(model.layers[0].ffn, DenseFFN)


def test_parameters_of_a_small_model_count_by_hand() -> None:
    attention = GQA | {"qkv_bias": True, "out_bias": True, "qk_norm": "head", "sinks": True}
    ffn = MOE | {"shared_intermediate": 48, "bias": True, "router_bias": True}
    model = load_model(small(attention, ffn))
    query, key = 8 * 16, 2 * 16
    attention_count = (64 + 1) * (query + 2 * key) + query * 64 + 64 + 2 * 16 + 8
    expert = 64 * 48 + 48 + 24 * 64 + 64
    moe_count = 64 * 6 + 6 + 6 * expert + 3 * 64 * 48
    assert model.parameters == 2 * (attention_count + moe_count + 2 * 64) + 2 * 100 * 64 + 64
    assert model.parameters - model.active_parameters == 2 * 4 * expert


def test_latent_attention_counts_by_hand() -> None:
    with_rank = load_model(small(MLA, DENSE)).parameters
    direct = load_model(small(MLA | {"q_lora_rank": None}, DENSE)).parameters
    query = 8 * (16 + 8)
    assert with_rank - direct == 2 * (64 * 24 + 24 * query + 24 - 64 * query)


def test_a_gated_delta_net_counts_by_hand() -> None:
    """As transformers' Qwen3.5: projections to q, k, v, z, b, a; depthwise convolution; A, dt bias; norm; output."""
    keys, values = 2 * 16, 4 * 24
    projections = 64 * (2 * keys + 2 * values) + 64 * 2 * 4 + values * 64
    vectors = 4 * (2 * keys + values) + 2 * 4 + 24
    model = load_model(small(DELTA, DENSE))
    assert model.parameters == 2 * (projections + vectors + 3 * 64 * 96 + 2 * 64) + 2 * 100 * 64 + 64


def test_a_mamba_layer_counts_by_hand() -> None:
    """As transformers' Jamba: in_proj, conv1d, x_proj, dt_proj with bias, A, D, out_proj, and three norms."""
    projections = 64 * 2 * 128 + 128 * (8 + 2 * 16) + 8 * 128 + 128 + 128 * 64
    vectors = 128 * 4 + 128 + 128 * 16 + 128
    for norms in (0, 1):
        model = load_model(small(MAMBA | {"norms": bool(norms)}, DENSE))
        block = projections + vectors + norms * (8 + 16 + 16) + 3 * 64 * 96 + 2 * 64
        assert model.parameters == 2 * block + 2 * 100 * 64 + 64


def test_states_do_not_grow_and_are_shared_out() -> None:
    delta, mamba = (load_model(small(block, dtypes={"state": "fp32"})) for block in (DELTA, MAMBA))
    attention = delta.layers[0].attention
    expected = 4 * 16 * 24 * 4 + (2 * 2 * 16 + 4 * 24) * 3 * 2
    assert [attention.state_bytes(tp, delta.dtypes) for tp in (1, 2)] == [expected, expected / 2]
    assert attention.cached_bytes(1, delta.dtypes) == attention.kv_elements(1) == 0
    assert mamba.layers[0].attention.state_bytes(1, mamba.dtypes) == 128 * 16 * 4 + 128 * 3 * 2
    keys = load_model(small())
    assert keys.layers[0].attention.state_bytes(1, keys.dtypes) == 0


def test_an_indexer_adds_its_projections_and_a_key_per_token() -> None:
    plain, sparse = (load_model(small(MLA | {"indexer": indexer}, DENSE)) for indexer in (None, INDEXER))
    assert sparse.parameters - plain.parameters == 2 * (24 * 4 * 16 + 64 * 16 + 64 * 4 + 2 * 16)
    cached = [model.layers[0].attention.cached_bytes(1, model.dtypes) for model in (plain, sparse)]
    assert cached == [40 * 2, 40 * 2 + 16 + 4]


def test_gates_norms_biases_and_positions_count_by_hand() -> None:
    ffn, shared = DENSE | {"gated": False}, MOE | {"shared_intermediate": 48}
    plain = load_model(small(GQA, ffn)).parameters
    changes: list[tuple[dict[str, Any], int]] = [
        (small(GQA | {"gate": True}, ffn), 2 * 64 * 8 * 16),
        (small(GQA | {"shared_kv": True}, ffn), -2 * 64 * 2 * 16),
        (small(GQA, ffn | {"bias": True}), 2 * (96 + 64)),
        (small(GQA, ffn, norm="layer"), 5 * 64),
        (small(GQA, ffn, head_bias=True), 100),
        (small(GQA, ffn, positions=30), 30 * 64),
        (small(GQA, ffn, layers=[{"repeat": 2, "pattern": [{"attention": GQA, "ffn": ffn, "norms": 4}]}]), 4 * 64),
    ]
    assert [load_model(changed).parameters - plain for changed, _ in changes] == [more for _, more in changes]
    gated, ungated = (load_model(small(ffn=shared | {"shared_gate": gate})).parameters for gate in (True, False))
    assert gated - ungated == 2 * 64


def test_experts_without_gate_have_two_matrices_instead_of_three() -> None:
    gated, plain = (load_model(small(ffn=MOE | {"gated": gated})) for gated in (True, False))
    assert gated.parameters - plain.parameters == 2 * 6 * 64 * 24


def test_norms_over_all_heads_are_wider_than_norms_over_one() -> None:
    sizes = {norm: load_model(small(GQA | {"qk_norm": norm})).parameters for norm in ("none", "head", "full")}
    assert sizes["head"] - sizes["none"] == 2 * 2 * 16
    assert sizes["full"] - sizes["none"] == 2 * (8 + 2) * 16


def test_a_tied_output_head_is_stored_once() -> None:
    untied, tied = (load_model(small(tied_embeddings=tied)) for tied in (False, True))
    assert untied.parameters - tied.parameters == 100 * 64
    assert untied.weight_bytes - tied.weight_bytes == 100 * 64 * 2
    assert tied.head.parameters == untied.head.parameters  # it is multiplied all the same


def test_bytes_follow_the_format_of_each_part() -> None:
    ffn = MOE | {"bias": True}
    plain, quantised = (load_model(small(ffn=ffn, dtypes=dtypes)) for dtypes in ({}, {"experts": "mxfp4"}))
    assert plain.weight_bytes == 2 * plain.parameters
    elements = 2 * 6 * 3 * 64 * 24  # biases stay bf16
    assert plain.weight_bytes - quantised.weight_bytes == elements * (2 - 4.25 / 8)


@given(
    heads=st.integers(1, 8),
    group=st.integers(1, 8),
    experts=st.integers(1, 64),
    shared=st.integers(0, 64),
    data=st.data(),
)
def test_matrices_vectors_and_idle_experts_add_up(
    heads: int, group: int, experts: int, shared: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    attention = GQA | {"heads": heads * group, "kv_heads": heads}
    ffn = MOE | {"experts": experts, "top_k": top_k, "shared_intermediate": shared}
    model = load_model(small(attention, ffn))
    assert model.parameters == sum(matrix.parameters for matrix in model.matrices()) + model.vector_parameters
    assert model.weight_bytes == 2 * model.parameters
    per_expert = 3 * 64 * 24
    assert model.parameters - model.active_parameters == 2 * (experts - top_k) * per_expert


@pytest.mark.parametrize("name", shipped("models"))
def test_shipped_models_are_called_as_their_files_and_say_their_source(name: str) -> None:
    model = load_model(name)
    assert model.name == name
    assert any(word in model.source for word in ("config.json", "arXiv"))


def test_a_model_is_found_by_path_mapping_and_document(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(str(small()), encoding="utf-8")  # a Python literal of this shape is flow YAML
    assert load_model(file) == load_model(str(file)) == load_model(small())
    assert load_model(Document("scenario.yaml", "mixtral-8x7b")) == load_model("mixtral-8x7b")


def attention_of(model: Model) -> Attention:
    return model.layers[0].attention


def test_kinds_of_blocks_are_told_apart() -> None:
    assert isinstance(attention_of(load_model(small(GQA))), GroupedQueryAttention)
    assert isinstance(attention_of(load_model(small(MLA))), LatentAttention)
    assert isinstance(load_model(small(ffn=MOE)).layers[0].ffn, MoE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (small(GQA | {"kv_heads": 3}), "layers.0.pattern.0.attention: `heads` must be a multiple of `kv_heads`"),
        (small(ffn=MOE | {"top_k": 7}), "layers.0.pattern.0.ffn: `top_k <= experts` must hold"),
        (small(GQA | {"head_dim": 0}), "layers.0.pattern.0.attention.head_dim: must be > 0, got 0"),
        (small(GQA | {"headdim": 16}), "layers.0.pattern.0.attention.headdim: unknown key; did you mean `head_dim`"),
        (
            small(GQA | {"kind": "linear"}),
            "layers.0.pattern.0.attention.kind: must be one of 'gqa', 'mla', 'delta', 'ma",
        ),
        (small(GQA | {"window": 8, "chunk": 8}), "layers.0.pattern.0.attention: `window` or `chunk`, not both"),
        (small(DELTA | {"value_heads": 3}), "attention: `value_heads` must be a multiple of `key_heads`"),
        (small(MLA | {"indexer": INDEXER, "q_lora_rank": None}), "attention: `indexer` needs `q_lora_rank`"),
        (small(ffn=MOE | {"shared_gate": True}), "ffn: `shared_gate` needs shared experts"),
        (small(head_bias=True, tied_embeddings=True), "`head_bias` needs an output head of its own"),
        (
            small(layers=[{"pattern": [{"attention": GQA, "ffn": MOE | {"experts": count}} for count in (4, 6)]}]),
            "all MoE layers must have the same routed experts",
        ),
        (small(ffn={"kind": "moe", "experts": 4, "top_k": 1}), "layers.0.pattern.0.ffn.intermediate: required"),
        (small(dtypes={"experts": "int3"}), "dtypes.experts: must be"),
        (small(layers=[]), "layers: must have at least 1 item"),
        (small(hidden="wide"), "hidden: must be a whole number, got 'wide'"),
        (small(source=""), "source: must have at least 1 character"),
    ],
)
def test_broken_rules_name_the_place(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_model(changed)
    assert message in str(error.value)


def test_all_broken_rules_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load_model(small(hidden=-1, vocabulary=None))
    assert "hidden" in str(error.value)
    assert "vocabulary" in str(error.value)


def test_an_error_names_file_line_and_key(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("name: own\nsource: a test\nhidden: 64\nvocabulary: many\nlayers: []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own\.yaml:4:1: vocabulary: must be a whole number, got 'many'"):
        load_model(file)


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"did you mean `mixtral-8x7b`"):
        load_model("mixtral-8x7")
