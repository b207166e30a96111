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
- deepseek-v3: README_WEIGHTS.md (671 B, 36.6 B activated "including 0.9B for the output Head"); exact count and bytes
  are those of the published checkpoint (688.57 GB) less its multi-token-prediction module, see the test below.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from moesim.configs.loader import shipped
from moesim.workloads.models import Model, MoE, load_model

GIB = 2**30


class Published(NamedTuple):
    parameters: int
    active: float  # parameters, as printed
    digit: float  # one unit of the last digit printed
    embedding: bool  # whether the active count includes the input embedding
    checkpoint_bytes: float
    checkpoint_digit: float


EXACT = 0.5  # bytes
PUBLISHED = {
    "llama-3.1-8b": Published(8_030_261_248, 8_030_261_248, 1, True, 16_060_522_496, EXACT),
    "mixtral-8x7b": Published(46_702_792_704, 12.9e9, 0.1e9, True, 93_405_585_408, EXACT),
    "olmoe-1b-7b": Published(6_919_161_856, 1.3e9, 0.1e9, True, 13_838_323_712, EXACT),
    "qwen3-30b-a3b": Published(30_532_122_624, 3.35e9, 0.1e9, True, 61_064_245_248, EXACT),  # 3.3, cut off
    "gpt-oss-20b": Published(20_914_757_184, 3.61e9, 0.01e9, False, 13_761_264_768, EXACT),
    "gpt-oss-120b": Published(116_829_156_672, 5.13e9, 0.01e9, False, 65_248_815_744, EXACT),
    "deepseek-v3": Published(671_026_419_200, 36.6e9, 0.1e9, False, 673.15e9, 0.01e9),
}

CARD_GIB = {"gpt-oss-20b": 12.8, "gpt-oss-120b": 60.8}


@pytest.fixture(params=PUBLISHED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_table_lists_every_shipped_model() -> None:
    assert shipped("models") == tuple(sorted(PUBLISHED))


def test_parameters_are_the_published_ones_to_the_last(name: str) -> None:
    assert load_model(name).parameters == PUBLISHED[name].parameters


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
