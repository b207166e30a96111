"""MoE and dense decoder models: dimensions, weight matrices, parameter counts, KV-cache sizes.

A `Model` is a tuple of layers; a layer has an attention block and a feed-forward block. Each block lists its weight
matrices once (`matrices`), and everything else follows from that list: parameter counts, resident bytes, and the
operators of a step.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from moesim.configs.loader import Config, Reference, find, validate
from moesim.workloads.attention_blocks import (
    Attention,
    GatedDeltaNet,
    GroupedQueryAttention,
    Indexer,
    LatentAttention,
    Mamba,
)
from moesim.workloads.matrices import DTypeName, Dtypes, Matrix, Split
from moesim.workloads.operator_table import DTYPES

__all__ = [
    "Attention",
    "DTypeName",
    "DenseFFN",
    "Dtypes",
    "FeedForward",
    "GatedDeltaNet",
    "GroupedQueryAttention",
    "Indexer",
    "LatentAttention",
    "Layer",
    "LayerGroup",
    "Mamba",
    "Matrix",
    "MoE",
    "Model",
    "Split",
    "load_model",
]

Source = Annotated[str, Field(min_length=1, description="where the dimensions come from")]


class DenseFFN(Config):
    """A feed-forward block that every token passes."""

    kind: Literal["dense"]
    intermediate: PositiveInt = Field(description="inner width")
    gated: bool = Field(True, description="two up-projections (SwiGLU) instead of one")
    bias: bool = Field(False, description="both projections have biases")

    def matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """Up (gate fused in) and down projections."""
        up, down = _ffn_matrices("ffn", hidden, self.intermediate, 1 + self.gated, dtypes.weights)
        up = up._replace(bias=up.outputs * self.bias, bias_dtype=dtypes.other)
        return up, down._replace(bias=hidden * self.bias, bias_dtype=dtypes.other)


class MoE(Config):
    """Routed experts of which each token uses `top_k`, and shared experts that every token passes."""

    kind: Literal["moe"]
    experts: PositiveInt = Field(description="routed experts")
    top_k: PositiveInt = Field(description="routed experts per token")
    intermediate: PositiveInt = Field(description="inner width of one routed expert")
    shared_intermediate: int = Field(0, ge=0, description="inner width of all shared experts together; 0: none")
    gated: bool = Field(True, description="two up-projections (SwiGLU) instead of one")
    bias: bool = Field(False, description="routed experts have biases")
    router_bias: bool = Field(False, description="the router has one bias (or scale) per expert")
    shared_gate: bool = Field(False, description="a projection to one number scales the shared experts' result")

    @model_validator(mode="after")
    def _top_k_fits(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"`top_k <= experts` must hold, got top_k = {self.top_k}, experts = {self.experts}")
        if self.shared_gate and not self.shared_intermediate:
            raise ValueError("`shared_gate` needs shared experts, got shared_intermediate = 0")
        return self

    @property
    def routed(self) -> tuple[int, int, int, bool, bool]:
        """What has to be the same in all MoE layers of a model."""
        return self.experts, self.top_k, self.intermediate, self.gated, self.bias

    @property
    def up_matrices(self) -> int:
        """Up-projections per expert."""
        return 2 if self.gated else 1

    def matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """Router, routed experts (up and down), shared experts (up, down and gate)."""
        e, other = self.experts, dtypes.other
        inner = self.up_matrices * self.intermediate
        router = Matrix("router", hidden, e, other, Split.REPLICATED, 1, e * self.router_bias, other)
        up = Matrix("experts", hidden, inner, dtypes.experts, Split.COLUMN, e, inner * self.bias, other)
        down = Matrix("experts", self.intermediate, hidden, dtypes.experts, Split.ROW, e, hidden * self.bias, other)
        if not self.shared_intermediate:
            return router, up, down
        shared = _ffn_matrices("shared", hidden, self.shared_intermediate, self.up_matrices, dtypes.weights)
        if not self.shared_gate:
            return router, up, down, *shared
        return router, up, down, *shared, Matrix("shared_gate", hidden, 1, other, Split.REPLICATED)


def _ffn_matrices(
    name: str, hidden: int, intermediate: int, up_matrices: int, dtype: DTypeName
) -> tuple[Matrix, Matrix]:
    up = Matrix(f"{name}_up", hidden, up_matrices * intermediate, dtype, Split.COLUMN)
    return up, Matrix(f"{name}_down", intermediate, hidden, dtype, Split.ROW)


FeedForward = Annotated[DenseFFN | MoE, Field(discriminator="kind")]


class Layer(Config):
    """One decoder layer: an attention block, then a feed-forward block, with norms around them."""

    attention: Attention
    ffn: FeedForward
    norms: PositiveInt = Field(
        2, ge=2, description="norms of the hidden size: 2, one in front of each block; 4, one behind each as well"
    )

    def matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """Weight matrices in the order of execution."""
        return self.attention.matrices(hidden, dtypes) + self.ffn.matrices(hidden, dtypes)

    def vector_parameters(self, norm_elements: int) -> int:
        """Elements of norms (`norm_elements` each), sinks, convolutions and the like."""
        return self.norms * norm_elements + self.attention.vector_parameters


class LayerGroup(Config):
    """A pattern of consecutive layers, repeated."""

    repeat: PositiveInt = 1
    pattern: tuple[Layer, ...] = Field(min_length=1)


class Model(Config):
    """A decoder-only language model; the source of every size in a simulation."""

    name: str = Field(min_length=1)
    source: Source
    hidden: PositiveInt = Field(description="width of the residual stream")
    vocabulary: PositiveInt = Field(description="rows of the token embedding")
    positions: int = Field(0, ge=0, description="rows of a learned position embedding; 0: there is none")
    tied_embeddings: bool = Field(False, description="the output head reuses the token embedding")
    head_bias: bool = Field(False, description="the output head has a bias")
    norm: Literal["rms", "layer"] = Field("rms", description="layer norms have biases, RMS norms have not")
    dtypes: Dtypes = Dtypes()
    groups: tuple[LayerGroup, ...] = Field(alias="layers", min_length=1)

    @model_validator(mode="after")
    def _tied_head_is_the_embedding(self) -> Self:
        if self.tied_embeddings and self.head_bias:
            raise ValueError("`head_bias` needs an output head of its own, got tied_embeddings = true")
        return self

    @model_validator(mode="after")
    def _experts_are_alike(self) -> Self:
        blocks = {block.routed for _, block in self.moe_layers}
        if len(blocks) > 1:
            rule = "all MoE layers must have the same routed experts (experts, top_k, intermediate, gated, bias)"
            raise ValueError(f"{rule}, got {' and '.join(map(str, sorted(blocks)))}")
        return self

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All layers in order."""
        return tuple(layer for group in self.groups for _ in range(group.repeat) for layer in group.pattern)

    @cached_property
    def moe_layers(self) -> tuple[tuple[int, MoE], ...]:
        """Index and block of the layers that have routed experts."""
        return tuple((index, layer.ffn) for index, layer in enumerate(self.layers) if isinstance(layer.ffn, MoE))

    @property
    def embedding(self) -> Matrix:
        """The token embedding."""
        return Matrix("embedding", self.vocabulary, self.hidden, self.dtypes.embeddings, Split.VOCABULARY)

    @property
    def head(self) -> Matrix:
        """The output head, which is the embedding once more where embeddings are tied."""
        bias = self.vocabulary * self.head_bias
        embeddings, other = self.dtypes.embeddings, self.dtypes.other
        return Matrix("lm_head", self.hidden, self.vocabulary, embeddings, Split.VOCABULARY, 1, bias, other)

    @property
    def position_embedding(self) -> Matrix | None:
        """The learned position embedding, of which every shard holds all."""
        if not self.positions:
            return None
        return Matrix("position_embedding", self.positions, self.hidden, self.dtypes.embeddings, Split.REPLICATED)

    @property
    def norm_elements(self) -> int:
        """Elements of one norm of the hidden size."""
        return self.hidden * (2 if self.norm == "layer" else 1)

    def matrices(self) -> Iterator[Matrix]:
        """Every weight matrix of the model once: a tied output head is not listed."""
        yield self.embedding
        if self.position_embedding:
            yield self.position_embedding
        for layer in self.layers:
            yield from layer.matrices(self.hidden, self.dtypes)
        if not self.tied_embeddings:
            yield self.head

    @property
    def vector_parameters(self) -> int:
        """Elements of all norms, sinks and the like, the final norm included."""
        return sum(layer.vector_parameters(self.norm_elements) for layer in self.layers) + self.norm_elements

    @property
    def parameters(self) -> int:
        """Parameters in total, embeddings included, a tied output head counted once."""
        return sum(matrix.parameters for matrix in self.matrices()) + self.vector_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token uses: all but the routed experts it does not reach."""
        idle = sum(
            matrix.parameters * (block.experts - block.top_k) // block.experts
            for _, block in self.moe_layers
            for matrix in block.matrices(self.hidden, self.dtypes)
            if matrix.operator == "experts"
        )
        return self.parameters - idle

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights as served, in the formats of `dtypes`."""
        vectors = self.vector_parameters * DTYPES[self.dtypes.other].bytes
        return sum(matrix.nbytes for matrix in self.matrices()) + vectors


def load_model(reference: Reference) -> Model:
    """A model by shipped name, path of a YAML file or a Hugging Face `config.json`, or inline mapping.

    Raises:
        ConfigError: unknown name, or a configuration that breaks a rule.
    """
    document = find("models", reference)
    if isinstance(document.data, dict) and {"model_type", "architectures"} & document.data.keys():
        from moesim.workloads.hf_config import translate  # only for users of config.json

        document = translate(document)
    return validate(Model, document)
