"""What mixes the tokens of a sequence: attention over cached keys, or a recurrence over a state of constant size.

Every block says what it holds (`matrices`, `vector_parameters`), what a sequence leaves on a device (`cached_bytes` per
token, `state_bytes` whatever its length), and which earlier tokens a token sees (`span`).
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from moesim.configs.loader import Config
from moesim.workloads.matrices import Dtypes, Matrix, Split
from moesim.workloads.operator_table import DTYPES
from moesim.workloads.steps import Chunk, Scan, Selected, Span


class GroupedQueryAttention(Config):
    """Multi-head attention whose query heads share key-value heads (MHA when the two counts are equal)."""

    title: ClassVar[str] = "GQA"

    kind: Literal["gqa"] = "gqa"
    heads: PositiveInt = Field(description="query heads")
    kv_heads: PositiveInt = Field(description="key-value heads")
    head_dim: PositiveInt = Field(description="elements per head")
    window: PositiveInt | None = Field(None, description="sliding window in tokens; none: full attention")
    chunk: PositiveInt | None = Field(
        None, description="a token sees its own chunk of so many tokens back to the chunk's start; none: full attention"
    )
    qkv_bias: bool = Field(False, description="query, key and value projections have biases")
    out_bias: bool = Field(False, description="the output projection has a bias")
    qk_norm: Literal["none", "head", "full"] = Field("none", description="RMS norm of queries and keys, over what")
    sinks: bool = Field(False, description="one learned attention sink per query head")
    gate: bool = Field(False, description="the result is gated, element by element, by a further projection")
    shared_kv: bool = Field(False, description="one projection for keys and values; both are cached all the same")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"`heads` must be a multiple of `kv_heads`, got heads = {self.heads}, kv_heads = {self.kv_heads}"
            )
        if self.window and self.chunk:
            raise ValueError(f"`window` or `chunk`, not both, got window = {self.window}, chunk = {self.chunk}")
        return self

    @property
    def span(self) -> Span:
        """Which earlier tokens a token sees."""
        return Chunk(self.chunk) if self.chunk else self.window

    def matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """The fused query-key-value projection (gate fused in) and the output projection."""
        width = (self.heads * (1 + self.gate) + self.kv_heads * (2 - self.shared_kv)) * self.head_dim
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

    def cached_bytes(self, tp: int, dtypes: Dtypes) -> float:
        """Bytes cached per token on each shard."""
        return self.kv_elements(tp) * DTYPES[dtypes.kv_cache].bytes

    def state_bytes(self, tp: int, dtypes: Dtypes) -> float:  # noqa: ARG002  # every block has this signature
        """Bytes per sequence whatever its length: none."""
        return 0.0


class Indexer(Config):
    """The part of DeepSeek sparse attention that selects keys (DeepSeek-V3.2-Exp report, section 2.1).

    It scores every cached key with a few small heads and keeps the best; every shard holds and computes all of it.
    Its keys are cached in fp8 with one fp32 scale per key (as DeepGEMM's fp8 MQA logits and vLLM do).
    """

    heads: PositiveInt = Field(description="heads that score keys")
    head_dim: PositiveInt = Field(description="elements of each head, and of the one key they share")
    top_k: PositiveInt = Field(description="keys that attention sees, of each token")

    @property
    def key_bytes(self) -> float:
        """Bytes of one cached key."""
        return self.head_dim * DTYPES["fp8"].bytes + DTYPES["fp32"].bytes


class LatentAttention(Config):
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values cached as one low-rank vector."""

    title: ClassVar[str] = "MLA"

    kind: Literal["mla"]
    heads: PositiveInt = Field(description="query heads")
    q_lora_rank: PositiveInt | None = Field(None, description="rank of the query compression; none: direct projection")
    kv_lora_rank: PositiveInt = Field(description="rank of the cached latent")
    nope_dim: PositiveInt = Field(description="elements per head without rotary embedding")
    rope_dim: PositiveInt = Field(description="elements of the rotary key, shared by all heads")
    v_dim: PositiveInt = Field(description="elements per value head")
    indexer: Indexer | None = Field(None, description="sparse attention: what selects the keys; none: full attention")

    @model_validator(mode="after")
    def _indexer_has_queries(self) -> Self:
        if self.indexer and self.q_lora_rank is None:
            raise ValueError("`indexer` needs `q_lora_rank`: its queries are made from the compressed ones")
        return self

    @property
    def window(self) -> None:
        """Latent attention never slides."""
        return

    @property
    def span(self) -> Span:
        """Which earlier tokens a token sees."""
        return Selected(self.indexer.top_k) if self.indexer else None

    def matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """Down-projections (every shard holds them), up-projections per head, output projection, then the indexer's."""
        w = dtypes.weights
        latent = self.kv_lora_rank + self.rope_dim
        query = self.heads * (self.nope_dim + self.rope_dim)
        down = Matrix("mla_down", hidden, (self.q_lora_rank or 0) + latent, w, Split.REPLICATED)
        q_up = Matrix("q_up", self.q_lora_rank or hidden, query, w, Split.COLUMN)
        kv_up = Matrix("kv_up", self.kv_lora_rank, self.heads * (self.nope_dim + self.v_dim), w, Split.COLUMN)
        out = Matrix("attention_out", self.heads * self.v_dim, hidden, w, Split.ROW)
        return down, q_up, kv_up, out, *self._index_matrices(hidden, dtypes)

    def _index_matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """Queries from the compressed query, the key, and the weights of the heads (never quantised)."""
        index = self.indexer
        if index is None or self.q_lora_rank is None:
            return ()
        width = index.heads * index.head_dim
        query = Matrix("index_query", self.q_lora_rank, width, dtypes.weights, Split.REPLICATED)
        key = Matrix("index_key", hidden, index.head_dim, dtypes.weights, Split.REPLICATED)
        weights = Matrix("index_weights", hidden, index.heads, dtypes.other, Split.REPLICATED)
        return query, key, weights

    @property
    def vector_parameters(self) -> int:
        """Elements of the norms of the two latents, and of the layer norm of the indexer's key."""
        index = 2 * self.indexer.head_dim if self.indexer else 0
        return (self.q_lora_rank or 0) + self.kv_lora_rank + index

    def kv_elements(self, tp: int) -> int:  # noqa: ARG002  # the latent is not cut: every shard caches it
        """Cached elements per token on each shard, the indexer's key left out."""
        return self.kv_lora_rank + self.rope_dim

    def cached_bytes(self, tp: int, dtypes: Dtypes) -> float:
        """Bytes cached per token on each shard: the latent, and the indexer's key."""
        index = self.indexer.key_bytes if self.indexer else 0.0
        return self.kv_elements(tp) * DTYPES[dtypes.kv_cache].bytes + index

    def state_bytes(self, tp: int, dtypes: Dtypes) -> float:  # noqa: ARG002  # every block has this signature
        """Bytes per sequence whatever its length: none."""
        return 0.0


class _Recurrence(Config):
    """A block that keeps a state of constant size per sequence instead of a growing cache."""

    conv: PositiveInt = Field(description="width of the causal convolution in front, in tokens")

    @property
    def window(self) -> None:
        """A recurrence has no window."""
        return

    def kv_elements(self, tp: int) -> int:  # noqa: ARG002  # every block has this signature
        """Cached elements per token: none."""
        return 0

    def cached_bytes(self, tp: int, dtypes: Dtypes) -> float:  # noqa: ARG002  # every block has this signature
        """Bytes cached per token: none."""
        return 0.0


class GatedDeltaNet(_Recurrence):
    """Linear attention by the gated delta rule ("Gated Delta Networks", arXiv 2412.06464, section 3).

    Each value head keeps a state S [key_dim, value_dim] and does S <- a S + k (b (v - (a S)^T k))^T, o = S^T q.
    """

    title: ClassVar[str] = "delta net"
    scan_tokens: ClassVar[int] = 64
    """Tokens of a chunk in prefill, as in flash-linear-attention's and vLLM's kernels."""

    kind: Literal["delta"]
    key_heads: PositiveInt = Field(description="query heads, and as many key heads")
    value_heads: PositiveInt = Field(description="value heads, each with a state")
    key_dim: PositiveInt = Field(description="elements per query and key head")
    value_dim: PositiveInt = Field(description="elements per value head")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.value_heads % self.key_heads:
            raise ValueError(
                "`value_heads` must be a multiple of `key_heads`, "
                f"got value_heads = {self.value_heads}, key_heads = {self.key_heads}"
            )
        return self

    @property
    def heads(self) -> int:
        """Heads that tensor parallelism shares out."""
        return self.key_heads

    @property
    def span(self) -> Span:
        """Prefill goes in chunks."""
        return Scan(self.scan_tokens)

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """Projections to queries, keys, values and output gate, to decay and step per head, and to the output."""
        inner = self.value_heads * self.value_dim
        project = Matrix("delta_in", hidden, self.conv_channels + inner, dtypes.weights, Split.COLUMN)
        gates = Matrix("delta_gates", hidden, 2 * self.value_heads, dtypes.weights, Split.COLUMN)
        return project, gates, Matrix("attention_out", inner, hidden, dtypes.weights, Split.ROW)

    @property
    def vector_parameters(self) -> int:
        """Elements of the convolution, the decay and its bias per head, and the norm of the result."""
        return self.conv_channels * self.conv + 2 * self.value_heads + self.value_dim

    def state_bytes(self, tp: int, dtypes: Dtypes) -> float:
        """Bytes per sequence on each shard: the states of its heads, and the inputs the convolution looks back at."""
        state = self.value_heads * self.key_dim * self.value_dim * DTYPES[dtypes.state].bytes
        return (state + self.conv_channels * (self.conv - 1) * DTYPES[dtypes.activations].bytes) / tp


class Mamba(_Recurrence):
    """A selective state-space layer ("Mamba", arXiv 2312.00752, section 3), with the norms that Jamba adds."""

    title: ClassVar[str] = "Mamba"

    kind: Literal["mamba"]
    inner: PositiveInt = Field(description="channels, each with a state")
    state: PositiveInt = Field(description="elements of a channel's state")
    step_rank: PositiveInt = Field(description="rank of the projection to the step size")
    conv_bias: bool = Field(True, description="the convolution has a bias per channel")
    proj_bias: bool = Field(False, description="input and output projections have biases")
    norms: bool = Field(False, description="RMS norms of step size, input and output vectors")

    @property
    def heads(self) -> int:
        """What tensor parallelism would share out."""
        return self.inner

    @property
    def span(self) -> Span:
        """Prefill is one scan."""
        return Scan(None)

    @property
    def selected(self) -> int:
        """Elements that depend on the token: low-rank step size, input vector, output vector."""
        return self.step_rank + 2 * self.state

    def matrices(self, hidden: int, dtypes: Dtypes) -> tuple[Matrix, ...]:
        """Projections to channel and gate, to what selects, from step rank to channels, and to the output."""
        w, other = dtypes.weights, dtypes.other
        bias_in, bias_out = 2 * self.inner * self.proj_bias, hidden * self.proj_bias
        return (
            Matrix("mamba_in", hidden, 2 * self.inner, w, Split.COLUMN, 1, bias_in, other),
            Matrix("mamba_select", self.inner, self.selected, w, Split.ROW),
            Matrix("mamba_step", self.step_rank, self.inner, w, Split.COLUMN, 1, self.inner, other),
            Matrix("attention_out", self.inner, hidden, w, Split.ROW, 1, bias_out, other),
        )

    @property
    def vector_parameters(self) -> int:
        """Elements of the convolution, the decays, the skip, and the norms."""
        return self.inner * (self.conv + self.conv_bias + self.state + 1) + self.selected * self.norms

    def state_bytes(self, tp: int, dtypes: Dtypes) -> float:
        """Bytes per sequence on each shard: the states of its channels, and what the convolution looks back at."""
        state = self.inner * self.state * DTYPES[dtypes.state].bytes
        return (state + self.inner * (self.conv - 1) * DTYPES[dtypes.activations].bytes) / tp


Attention = Annotated[GroupedQueryAttention | LatentAttention | GatedDeltaNet | Mamba, Field(discriminator="kind")]
