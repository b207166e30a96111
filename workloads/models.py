"""MoE and dense decoder models: dimensions, weight matrices, parameter counts, KV-cache sizes.

A `Model` is a tuple of layers; a layer has an attention block and a feed-forward block. Each block lists its weight
matrices once (`matrices`), and everything else follows from that list: parameter counts, resident bytes, and the
operators of a step.
"""

from collections.abc import Iterator
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, PositiveInt, model_validator

from moesim.configs.loader import Config, Reference, find, validate
from moesim.workloads.operator_table import DTYPES

DTypeName = Literal["fp32", "bf16", "fp16", "fp8", "fp8_block", "int8", "mxfp4"]
Source = Annotated[str, Field(min_length=1, description="where the dimensions come from")]


class Split(StrEnum):
    """How tensor parallelism cuts a matrix."""

    COLUMN = "column"  # outputs are cut, inputs are whole
    ROW = "row"  # inputs are cut, partial outputs are summed by an all-reduce
    REPLICATED = "replicated"  # every shard holds and computes all of it
    VOCABULARY = "vocabulary"  # cut by token id


class Matrix(NamedTuple):
    """A weight matrix [inputs, outputs], or `copies` equal ones, with `bias` further elements per copy."""

    operator: str
    inputs: int
    outputs: int
    dtype: DTypeName
    split: Split
    copies: int = 1
    bias: int = 0
    bias_dtype: DTypeName = "bf16"

    @property
    def parameters(self) -> int:
        """Elements of all copies, biases included."""
        return self.copies * (self.inputs * self.outputs + self.bias)

    @property
    def nbytes(self) -> float:
        """Bytes of all copies, biases included."""
        weight, bias = DTYPES[self.dtype].bytes, DTYPES[self.bias_dtype].bytes
        return self.copies * (self.inputs * self.outputs * weight + self.bias * bias)


class Dtypes(Config):
    """Number formats of the parts of a model."""

    weights: DTypeName = Field("bf16", description="attention, dense FFN and shared experts")
    experts: DTypeName = Field("bf16", description="routed experts")
    embeddings: DTypeName = Field("bf16", description="token embedding and output head")
    other: DTypeName = Field("bf16", description="router, norms, biases, attention sinks")
    activations: DTypeName = Field("bf16", description="activations between operators")
    kv_cache: DTypeName = Field("bf16", description="cached keys and values")


class GroupedQueryAttention(Config):
    """Multi-head attention whose query heads share key-value heads (MHA when the two counts are equal)."""

    kind: Literal["gqa"] = "gqa"
    heads: PositiveInt = Field(description="query heads")
    kv_heads: PositiveInt = Field(description="key-value heads")
    head_dim: PositiveInt = Field(description="elements per head")
    window: PositiveInt | None = Field(None, description="sliding window in tokens; none: full attention")
    qkv_bias: bool = Field(False, description="query, key and value projections have biases")
    out_bias: bool = Field(False, description="the output projection has a bias")
    qk_norm: Literal["none", "head", "full"] = Field("none", description="RMS norm of queries and keys, over what")
    sinks: bool = Field(False, description="one learned attention sink per query head")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"`heads` must be a multiple of `kv_heads`, got heads = {self.heads}, kv_heads = {self.kv_heads}"
            )
        return self

    def matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """The fused query-key-value projection and the output projection."""
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        qkv = Matrix("qkv", hidden, width, dtypes.weights, Split.COLUMN, 1, width * self.qkv_bias, dtypes.other)
        inner = self.heads * self.head_dim
        out = Matrix("attention_out", inner, hidden, dtypes.weights, Split.ROW, 1, hidden * self.out_bias, dtypes.other)
        return qkv, out

    @property
    def vector_parameters(self) -> int:
        """Elements of the norms of queries and keys, and of the sinks."""
        heads = {"none": 0, "head": 2, "full": self.heads + self.kv_heads}[self.qk_norm]
        return heads * self.head_dim + self.heads * self.sinks

    def kv_elements(self, tp: int) -> int:
        """Cached elements per token on each of `tp` shards; heads are repeated where shards outnumber them."""
        return 2 * max(1, self.kv_heads // tp) * self.head_dim


class LatentAttention(Config):
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values cached as one low-rank vector."""

    kind: Literal["mla"]
    heads: PositiveInt = Field(description="query heads")
    q_lora_rank: PositiveInt | None = Field(None, description="rank of the query compression; none: direct projection")
    kv_lora_rank: PositiveInt = Field(description="rank of the cached latent")
    nope_dim: PositiveInt = Field(description="elements per head without rotary embedding")
    rope_dim: PositiveInt = Field(description="elements of the rotary key, shared by all heads")
    v_dim: PositiveInt = Field(description="elements per value head")

    @property
    def window(self) -> None:
        """Latent attention is always full."""
        return

    def matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """Down-projections (every shard holds them), up-projections per head, and the output projection."""
        w = dtypes.weights
        latent = self.kv_lora_rank + self.rope_dim
        query = self.heads * (self.nope_dim + self.rope_dim)
        down = Matrix("mla_down", hidden, (self.q_lora_rank or 0) + latent, w, Split.REPLICATED)
        q_up = Matrix("q_up", self.q_lora_rank or hidden, query, w, Split.COLUMN)
        kv_up = Matrix("kv_up", self.kv_lora_rank, self.heads * (self.nope_dim + self.v_dim), w, Split.COLUMN)
        out = Matrix("attention_out", self.heads * self.v_dim, hidden, w, Split.ROW)
        return down, q_up, kv_up, out

    @property
    def vector_parameters(self) -> int:
        """Elements of the norms of the two latents."""
        return (self.q_lora_rank or 0) + self.kv_lora_rank

    def kv_elements(self, tp: int) -> int:  # noqa: ARG002  # the latent is not cut: every shard caches it
        """Cached elements per token on each shard."""
        return self.kv_lora_rank + self.rope_dim


class DenseFFN(Config):
    """A feed-forward block that every token passes."""

    kind: Literal["dense"]
    intermediate: PositiveInt = Field(description="inner width")
    gated: bool = Field(True, description="two up-projections (SwiGLU) instead of one")

    def matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """Up (gate fused in) and down projections."""
        return _ffn_matrices("ffn", hidden, self.intermediate, 1 + self.gated, dtypes.weights)


class MoE(Config):
    """Routed experts of which each token uses `top_k`, and shared experts that every token passes."""

    kind: Literal["moe"]
    experts: PositiveInt = Field(description="routed experts")
    top_k: PositiveInt = Field(description="routed experts per token")
    intermediate: PositiveInt = Field(description="inner width of one routed expert")
    shared_intermediate: int = Field(0, ge=0, description="inner width of all shared experts together; 0: none")
    gated: bool = Field(True, description="two up-projections (SwiGLU) instead of one")
    bias: bool = Field(False, description="routed experts have biases")
    router_bias: bool = Field(False, description="the router has one bias per expert")

    @model_validator(mode="after")
    def _top_k_fits(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"`top_k <= experts` must hold, got top_k = {self.top_k}, experts = {self.experts}")
        return self

    @property
    def up_matrices(self) -> int:
        """Up-projections per expert."""
        return 2 if self.gated else 1

    def matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """Router, routed experts (up and down), shared experts."""
        e, other = self.experts, dtypes.other
        inner = self.up_matrices * self.intermediate
        router = Matrix("router", hidden, e, other, Split.REPLICATED, 1, e * self.router_bias, other)
        up = Matrix("experts", hidden, inner, dtypes.experts, Split.COLUMN, e, inner * self.bias, other)
        down = Matrix("experts", self.intermediate, hidden, dtypes.experts, Split.ROW, e, hidden * self.bias, other)
        if not self.shared_intermediate:
            return router, up, down
        shared = _ffn_matrices("shared", hidden, self.shared_intermediate, self.up_matrices, dtypes.weights)
        return router, up, down, *shared


def _ffn_matrices(
    name: str, hidden: int, intermediate: int, up_matrices: int, dtype: DTypeName
) -> tuple[Matrix, Matrix]:
    up = Matrix(f"{name}_up", hidden, up_matrices * intermediate, dtype, Split.COLUMN)
    return up, Matrix(f"{name}_down", intermediate, hidden, dtype, Split.ROW)


Attention = Annotated[GroupedQueryAttention | LatentAttention, Field(discriminator="kind")]
FeedForward = Annotated[DenseFFN | MoE, Field(discriminator="kind")]


class Layer(Config):
    """One decoder layer, with a norm in front of each of its two blocks."""

    attention: Attention
    ffn: FeedForward

    def matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """Weight matrices in the order of execution."""
        return self.attention.matrices(hidden, dtypes) + self.ffn.matrices(hidden, dtypes)

    def vector_parameters(self, hidden: int) -> int:
        """Elements of norms and sinks."""
        return 2 * hidden + self.attention.vector_parameters


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
    tied_embeddings: bool = Field(False, description="the output head reuses the token embedding")
    dtypes: Dtypes = Dtypes()
    groups: tuple[LayerGroup, ...] = Field(alias="layers", min_length=1)

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
        return Matrix("lm_head", self.hidden, self.vocabulary, self.dtypes.embeddings, Split.VOCABULARY)

    def matrices(self) -> Iterator[Matrix]:
        """Every weight matrix of the model once: a tied output head is not listed."""
        yield self.embedding
        for layer in self.layers:
            yield from layer.matrices(self.hidden, self.dtypes)
        if not self.tied_embeddings:
            yield self.head

    @property
    def vector_parameters(self) -> int:
        """Elements of all norms and sinks, the final norm included."""
        return sum(layer.vector_parameters(self.hidden) for layer in self.layers) + self.hidden

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
