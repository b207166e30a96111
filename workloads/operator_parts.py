"""What operators are made of: coefficients per feature of a step, for products and for what only moves bytes."""

from dataclasses import dataclass, replace

from moesim.workloads.matrices import Matrix, Split
from moesim.workloads.models import Model
from moesim.workloads.operator_table import DTYPES, ELEMENTWISE, GEMM
from moesim.workloads.steps import TOKENS, Span

Linear = tuple[tuple[int, float], ...]
"""A linear function of the step's features: (feature, coefficient) pairs."""


@dataclass(frozen=True)
class Operator:
    """One operator on one shard; `OperatorTable` explains the columns."""

    name: str
    form: int
    m: int  # the feature that counts its tokens
    n: int = 0
    k: int = 0
    groups: int = 1
    dtype: str = "bf16"
    replicated: bool = False
    resident_bytes: float = 0.0
    weight_bytes: float = 0.0  # read whenever there is a token
    flops: Linear = ()
    read: Linear = ()
    write: Linear = ()
    decode_m: Linear = ()
    decode_flops: Linear = ()
    decode_read: Linear = ()
    window: int = 0  # most keys that a query sees; 0 without a limit
    prefill_pair_flops: float = 0.0
    decode_pair_flops: float = 0.0


def matrix_product(matrix: Matrix, shards: int, activation_bytes: float, m: int = TOKENS) -> Operator:
    """A weight matrix times the tokens counted by feature `m`, on one of `shards` shards."""
    whole = matrix.split == Split.REPLICATED
    n = matrix.outputs if whole or matrix.split == Split.ROW else -(-matrix.outputs // shards)
    k = matrix.inputs // shards if matrix.split == Split.ROW else matrix.inputs
    nbytes = matrix.nbytes if whole else matrix.nbytes / shards
    return Operator(
        matrix.operator,
        GEMM,
        m,
        n,
        k,
        dtype=matrix.dtype,
        replicated=whole and shards > 1,
        resident_bytes=nbytes,
        weight_bytes=nbytes,
        flops=((m, 2.0 * n * k),),
        read=((m, k * activation_bytes),),
        write=((m, n * activation_bytes),),
    )


def elementwise(name: str, read: float, write: float, *, m: int = TOKENS, weight_bytes: float = 0.0) -> Operator:
    """An operator that moves `read` and `write` bytes per token and multiplies next to nothing."""
    return Operator(
        name,
        ELEMENTWISE,
        m,
        resident_bytes=weight_bytes,
        weight_bytes=weight_bytes,
        read=((m, read),),
        write=((m, write),),
    )


@dataclass(frozen=True)
class Context:
    """What every builder needs."""

    model: Model
    tp: int
    windows: tuple[Span, ...]

    @property
    def activation_bytes(self) -> float:
        """Bytes per element between operators."""
        return DTYPES[self.model.dtypes.activations].bytes

    @property
    def kv_bytes(self) -> float:
        """Bytes per cached element."""
        return DTYPES[self.model.dtypes.kv_cache].bytes

    def norm(self, name: str, norms: int = 1) -> Operator:
        """A norm with the residual addition fused: reads and writes the block's output and the residual.

        Further norms of the same place (`norms` in all) read and write one row each, and go with the same launch.
        """
        moved = (1 + norms) * self.model.hidden * self.activation_bytes
        weights = norms * self.model.norm_elements * DTYPES[self.model.dtypes.other].bytes
        return replace(elementwise(name, moved, moved, weight_bytes=weights), replicated=self.tp > 1)

    def moved(self, name: str, read_elements: float, write_elements: float) -> Operator:
        """Elementwise work on activations."""
        return elementwise(name, read_elements * self.activation_bytes, write_elements * self.activation_bytes)

    def product(self, matrix: Matrix, m: int = TOKENS) -> Operator:
        """A weight matrix times the tokens counted by feature `m`."""
        return matrix_product(matrix, self.tp, self.activation_bytes, m)
