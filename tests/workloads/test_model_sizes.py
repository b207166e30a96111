"""Sizes of all shipped models against published ones.

Conventions. `parameters` counts everything stored once: embedding, output head, norms, biases, sinks, and the
correction biases of DeepSeek-V3's routers. `active_parameters` is that less the routed experts a token does not reach,
so it counts embedding and output head in full. Publishers disagree on the input embedding, whose rows are looked up and
not multiplied: the column `embedding` says whether the published active count includes it. Checkpoint bytes are those
of the tensors, without file headers.

Sources, in the order of the rows:
- llama-3.1-8b: parameters and bytes from the safetensors index of meta-llama/Llama-3.1-8B; a dense model.
- mixtral-8x7b: index of mistralai/Mixtral-8x7B-v0.1; "Mixtral of Experts" (46.7 B, 12.9 B active).
- olmoe-1b-7b: index of allenai/OLMoE-1B-7B-0924; OLMoE paper (6.9 B, 1.3 B active).
- qwen3-30b-a3b: index of Qwen/Qwen3-30B-A3B; its card (30.5 B, 3.3 B activated; the count is cut, not rounded).
- gpt-oss: gpt-oss model card, table 1 (20.91 B, 3.61 B, 12.8 GiB; 116.83 B, 5.13 B, 60.8 GiB; "unembedding parameters
  are counted towards active, but not embeddings"); bytes from the safetensors indices.
- deepseek-v3, deepseek-r1: README_WEIGHTS.md (671 B, 36.6 B activated "including 0.9B for the output Head"); exact
  count and bytes are those of the published checkpoint (688.57 GB) less its multi-token-prediction module, see the test
  below.
- deepseek-v3.2: V3 and its indexers, see the test below; "37 B activated".
- minimax-m2.5: index of MiniMaxAI/MiniMax-M2 less block scales, see the test below; its card (10 B activated).
- llama-4: indices less the vision encoder, see the test below; cards (17 B activated).
- jamba-mini, phi-3.5-moe, mixtral-8x22b, qwen3-32b, qwen3-235b-a22b, llama-3.1-70b, deepseek-moe-16b, deepseek-v2-lite:
  indices on Hugging Face; the models' cards (12 B; 6.6 B; 39 B; -; 22 B; -; 2.8 B; 2.4 B, cut, active).
- qwen1.5-moe-a2.7b, qwen2-57b-a14b: cards (14.3 B, 2.7 B activated; 57.41 B (moe-lrc), 14 B activated).
- qwen3.5: cards (35 B, 3 B activated; 397 B, 17 B activated, of which the vision encoder is about 0.45 B: 27 layers of
  width 1152 and a projection to 4096). gemma-4-26b-a4b: its card (25.2 B, 3.8 B active).
- kimi-k2: card (1 T, 32 B activated). pangu-pro-moe: arXiv 2505.21411 (71.99 B, 16.50 B activated).
- glam: Duplex, table I (143 B). opt-66b: OPT paper (66 B). grok-1: 316 B, the elements of the tensors that ports on
  Hugging Face list (hpcai-tech/grok-1); its announcement and Duplex, table I, say 314 B.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from moesim.configs.loader import shipped
from moesim.workloads.models import Matrix, Model, MoE, load_model

GIB = 2**30


class Published(NamedTuple):
    parameters: float
    active: float  # parameters, as printed
    digit: float  # one unit of the last digit printed
    embedding: bool  # whether the active count includes the input embedding
    checkpoint_bytes: float
    checkpoint_digit: float
    parameters_digit: float = 1.0


class Rounded(NamedTuple):
    """A model in 16 bits, of which only rounded figures are published; no active count if there are no experts."""

    parameters: float
    digit: float
    active: float | None = None
    active_digit: float = 1e9


EXACT = 0.5  # bytes
PUBLISHED = {
    "llama-3.1-8b": Published(8_030_261_248, 8_030_261_248, 1, True, 16_060_522_496, EXACT),
    "mixtral-8x7b": Published(46_702_792_704, 12.9e9, 0.1e9, True, 93_405_585_408, EXACT),
    "olmoe-1b-7b": Published(6_919_161_856, 1.3e9, 0.1e9, True, 13_838_323_712, EXACT),
    "qwen3-30b-a3b": Published(30_532_122_624, 3.35e9, 0.1e9, True, 61_064_245_248, EXACT),  # 3.3, cut off
    "gpt-oss-20b": Published(20_914_757_184, 3.61e9, 0.01e9, False, 13_761_264_768, EXACT),
    "gpt-oss-120b": Published(116_829_156_672, 5.13e9, 0.01e9, False, 65_248_815_744, EXACT),
    "deepseek-v3": Published(671_026_419_200, 36.6e9, 0.1e9, False, 673.15e9, 0.01e9),
    "deepseek-r1": Published(671_026_419_200, 36.6e9, 0.1e9, False, 673.15e9, 0.01e9),
    "mixtral-8x22b": Published(140_620_634_112, 39e9, 1e9, True, 281_241_268_224, EXACT),
    "deepseek-moe-16b": Published(16_375_728_128, 2.8e9, 0.1e9, True, 32_751_456_256, EXACT),
    "deepseek-v2-lite": Published(15_706_484_224, 2.45e9, 0.1e9, False, 31_412_968_448, EXACT),  # 2.4, cut off
    "qwen3-235b-a22b": Published(235_093_634_560, 22e9, 1e9, True, 470_187_269_120, EXACT),
    "qwen3-32b": Published(32_762_123_264, 32_762_123_264, 1, True, 65_524_246_528, EXACT),
    "llama-3.1-70b": Published(70_553_706_496, 70_553_706_496, 1, True, 141_107_412_992, EXACT),
    "phi-3.5-moe": Published(41_873_153_344, 6.6e9, 0.1e9, True, 83_746_306_688, EXACT),
    "jamba-mini": Published(51_570_323_328, 12e9, 1e9, True, 103_140_646_656, EXACT),
    "llama-4-scout": Published(107_769_861_120, 17e9, 1e9, True, 215_539_722_240, EXACT),
    "llama-4-maverick": Published(400_711_848_960, 17e9, 1e9, True, 801_423_697_920, EXACT),
    "minimax-m2.5": Published(228_689_764_864, 10e9, 1e9, False, 230.02e9, 0.01e9),
    "deepseek-v3.2": Published(671_877_944_064, 37e9, 1e9, False, 674.03e9, 0.01e9),
    "kimi-k2": Published(1.03e12, 32e9, 1e9, False, 1.03e12, 0.01e12, 0.01e12),
}
ROUNDED = {
    "qwen1.5-moe-a2.7b": Rounded(14.3e9, 0.1e9, 2.7e9, 0.1e9),
    "qwen2-57b-a14b": Rounded(57.41e9, 0.01e9, 14e9),
    "qwen3.5-35b-a3b": Rounded(35e9, 1e9, 3e9),
    "qwen3.5-397b-a17b": Rounded(397e9 - 0.45e9, 1e9, 17e9),
    "gemma-4-26b-a4b": Rounded(25.2e9, 0.1e9, 3.8e9, 0.1e9),
    "pangu-pro-moe": Rounded(71.99e9, 0.01e9, 16.50e9, 0.01e9),
    "glam": Rounded(143e9, 1e9),
    "grok-1": Rounded(316e9, 1e9),
    "opt-66b": Rounded(66e9, 1e9),
}

CARD_GIB = {"gpt-oss-20b": 12.8, "gpt-oss-120b": 60.8}


@pytest.fixture(params=PUBLISHED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_table_lists_every_shipped_model() -> None:
    assert shipped("models") == tuple(sorted(PUBLISHED | ROUNDED))


def test_parameters_are_the_published_ones(name: str) -> None:
    """To the last one, except where only a rounded count is published."""
    published = PUBLISHED[name]
    assert abs(load_model(name).parameters - published.parameters) <= published.parameters_digit / 2


@pytest.mark.parametrize("name", ROUNDED)
def test_models_round_to_the_published_sizes(name: str) -> None:
    model, published = load_model(name), ROUNDED[name]
    assert abs(model.parameters - published.parameters) <= published.digit / 2
    if published.active is not None:
        assert abs(model.active_parameters - published.active) <= published.active_digit / 2
    assert model.weight_bytes == 2 * model.parameters


def test_active_parameters_round_to_the_published_ones(name: str) -> None:
    model, published = load_model(name), PUBLISHED[name]
    lookup = 0 if published.embedding else model.embedding.parameters
    assert abs(model.active_parameters - lookup - published.active) <= published.digit / 2


def test_checkpoint_bytes_round_to_the_published_ones(name: str) -> None:
    published = PUBLISHED[name]
    assert abs(load_model(name).weight_bytes - published.checkpoint_bytes) <= published.checkpoint_digit / 2


@pytest.mark.parametrize("name", CARD_GIB)
def test_checkpoints_are_as_large_as_the_model_card_says(name: str) -> None:
    assert round(load_model(name).weight_bytes / GIB, 1) == CARD_GIB[name]


def _mtp_module(model: Model) -> Iterator[tuple[str, float]]:
    """Number format and elements of what DeepSeek-V3's checkpoint holds beyond the main model (README_WEIGHTS.md).

    A further MoE layer, a projection of two hidden states to one, three norms, and copies of embedding and head.
    """
    layer, hidden = model.layers[-1], model.hidden
    for matrix in layer.matrices(hidden, model.dtypes):
        yield matrix.dtype, matrix.copies * matrix.inputs * matrix.outputs
    yield "bf16", layer.vector_parameters(hidden) + 2 * hidden * hidden + 3 * hidden
    yield "bf16", 2 * model.vocabulary * hidden


def test_deepseek_v3_and_its_mtp_module_are_the_published_checkpoint() -> None:
    """Hugging Face counts 680,571,043,840 fp8, 3,918,786,560 bf16 and 41,555,600 fp32 elements in the files.

    The fp32 ones are the scales of 128 x 128 blocks and one correction bias per routed expert.
    """
    model = load_model("deepseek-v3")
    elements = {"fp8_block": 0.0, "bf16": float(model.vector_parameters)}
    for matrix in model.matrices():
        elements[matrix.dtype] += matrix.copies * matrix.inputs * matrix.outputs
    for dtype, count in _mtp_module(model):
        elements[dtype] += count
    assert elements == {"fp8_block": 680_571_043_840, "bf16": 3_918_786_560}
    biases = sum(block.experts for _, block in model.moe_layers) + 256
    ragged = (len(model.layers) + 1) * (model.hidden // 128) / 2  # 576 latent rows are 4.5 blocks, stored as 5
    assert elements["fp8_block"] / 128**2 + ragged + biases == 41_555_600


def _block_scales(matrix: Matrix) -> int:
    """Scales of 128 x 128 blocks."""
    return matrix.copies * -(-matrix.outputs // 128) * -(-matrix.inputs // 128)


def test_minimax_m2_and_its_scales_are_the_published_checkpoint() -> None:
    """Hugging Face counts 228,703,644,928 elements in the files of MiniMax-M2, fp32 scales included."""
    model = load_model("minimax-m2.5")
    scales = sum(_block_scales(matrix) for matrix in model.matrices() if matrix.dtype == "fp8_block")
    assert model.parameters + scales == 228_703_644_928


def test_indexers_are_what_deepseek_v32_has_more_than_v3() -> None:
    """Hugging Face counts 685,396,921,376 elements in the files of V3.2 and 684,531,386,000 in those of V3.

    Both with their scales and the multi-token-prediction module, a further layer with an indexer of its own.
    """
    sparse, dense = load_model("deepseek-v3.2"), load_model("deepseek-v3")
    indexers = [matrix for matrix in sparse.matrices() if matrix.operator in {"index_query", "index_key"}]
    scales = sum(_block_scales(matrix) for matrix in indexers)
    more = sparse.parameters - dense.parameters + scales
    assert more * 62 / 61 == 685_396_921_376 - 684_531_386_000


def test_both_llama_4_models_have_the_same_vision_encoder() -> None:
    """Hugging Face counts 108,641,793,536 and 401,583,781,376 elements in the files, vision encoders included."""
    scout, maverick = load_model("llama-4-scout"), load_model("llama-4-maverick")
    assert 108_641_793_536 - scout.parameters == 401_583_781_376 - maverick.parameters == 871_932_416


def test_almost_all_parameters_of_a_moe_are_routed_experts() -> None:
    """gpt-oss card, table 1: 114.71 B and 19.12 B in the MLPs, 0.96 B and 0.64 B in attention, 1.16 B in embeddings."""
    for name, expected in (("gpt-oss-120b", (114.71, 0.96)), ("gpt-oss-20b", (19.12, 0.64))):
        model = load_model(name)
        matrices = list(model.matrices())
        mlp = sum(matrix.parameters for matrix in matrices if matrix.operator in {"experts", "router"})
        attention = sum(matrix.parameters for matrix in matrices if matrix.operator in {"qkv", "attention_out"})
        assert (round(mlp / 1e9, 2), round(attention / 1e9, 2)) == expected
        assert round((model.embedding.parameters + model.head.parameters) / 1e9, 2) == 1.16


def test_dense_models_use_all_their_parameters() -> None:
    model = load_model("llama-3.1-8b")
    assert model.active_parameters == model.parameters
    assert not any(isinstance(layer.ffn, MoE) for layer in model.layers)
