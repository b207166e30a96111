"""The operators of one step as columns: what every processor prices and every figure draws.

A row is one operator on one shard. Layers whose rows would be equal (same shape, same tokens) share a row and say
so in `repeats`; the shards of a tensor-parallel group share a row and say so in `shards`. Routed experts differ
from layer to layer and device to device, so each (layer, expert-parallel rank) has a row of its own, with the
tokens of each expert alongside.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FORMS = ("gemm", "grouped_gemm", "attention", "elementwise")
"""How work is shaped, which decides how it is priced."""
GEMM, GROUPED_GEMM, ATTENTION, ELEMENTWISE = range(4)


class DType(NamedTuple):
    """A number format: bytes per element, block scales included."""

    name: str
    bytes: float


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("fp32", 4.0),
        DType("bf16", 2.0),
        DType("fp16", 2.0),
        DType("fp8", 1.0),
        DType("fp8_block", 1.0 + 4.0 / (128 * 128)),  # one fp32 scale per 128 x 128 block (DeepSeek-V3 report, 3.3)
        DType("int8", 1.0),
        DType("mxfp4", 17.0 / 32),  # 32 four-bit values and one 8-bit exponent (OCP Microscaling 1.0, 5.2)
        DType("nvfp4", 9.0 / 16),  # 16 four-bit values and one 8-bit scale (NVIDIA Blackwell)
    )
}
DTYPE_CODES = {name: code for code, name in enumerate(DTYPES)}
"""`weight_dtype` columns hold these codes."""


@dataclass(frozen=True)
class OperatorTable:
    """One step's operators, a row each (see the module's text for what shares a row).

    `m`, `n`, `k` are the dimensions of one shard's matrix product [m, k] x [k, n]: m tokens, k inputs, n outputs;
    `groups` equal products make up the row (heads of a batched product; 1 elsewhere). A `grouped_gemm` row is a whole
    expert FFN: k is the hidden size, n the shard's intermediate size, m the sum of its tokens; its first product has
    `up_matrices * n` outputs (2 when gated), the second takes n to k. An `attention` row holds the prefill and the
    decode sequences of one step together, with the decode part apart, because the two are not additive.
    """

    operator: NDArray[np.int8]  # index into `operators`
    operators: tuple[str, ...]  # operator names, such as "qkv" or "experts"
    form: NDArray[np.int8]  # index into FORMS
    layer: NDArray[np.int32]  # the first layer this row stands for; -1 outside layers
    repeats: NDArray[np.int32]  # layers this row stands for
    shards: NDArray[np.int32]  # devices this row stands for (tp or moe_tp)
    rank: NDArray[np.int32]  # data-parallel rank; expert-parallel rank for routed experts
    replicated: NDArray[np.bool_]  # every shard repeats the work, instead of doing its share
    weight_dtype: NDArray[np.int8]  # code in DTYPE_CODES
    m: Ints
    n: Ints
    k: Ints
    groups: Ints
    up_matrices: NDArray[np.int8]  # grouped_gemm: 2 when gated, else 1; 0 elsewhere
    flops: Floats
    weight_bytes_resident: Floats
    weight_bytes_read: Floats
    read_bytes: Floats  # activations and KV cache
    write_bytes: Floats
    decode_m: Ints  # attention: the decode sequences' share of `m`; 0 elsewhere
    decode_flops: Floats  # attention: the decode sequences' share of `flops`; 0 elsewhere
    decode_read_bytes: Floats  # attention: the decode sequences' share of `read_bytes`; 0 elsewhere
    prefill_sequences: Ints  # attention: chunks of prefill; 0 elsewhere
    longest_prefill: Ints  # attention: most tokens, cached and new, of a sequence that prefills; 0 elsewhere
    longest_decode: Ints  # attention: the same of a sequence that decodes; 0 elsewhere
    window: Ints  # attention: most keys that a query sees; 0 without a limit, and elsewhere
    prefill_pair_flops: Floats  # attention: FLOPs of a prefilled query and a key, all heads; 0 elsewhere
    decode_pair_flops: Floats  # attention: the same of a decoded query, which differ in latent attention; 0 elsewhere
    query_dtype: NDArray[np.int8]  # attention: format of queries, a code in DTYPE_CODES; 0 elsewhere
    routed_tokens: Ints  # grouped_gemm: tokens of the batch, of all ranks, that have experts looked up; 0 elsewhere
    expert_slots: Ints  # grouped_gemm: experts that the device holds; 0 elsewhere
    expert_ranks: Ints  # grouped_gemm: ranks that share the experts; 0 elsewhere
    grouped_rows: Ints  # the rows of form grouped_gemm, ascending
    expert_tokens: Ints  # int64[grouped row, expert slot]: tokens per expert, same order as `grouped_rows`

    def __len__(self) -> int:
        return len(self.operator)

    def with_columns(self, columns: Mapping[str, NDArray[Any]]) -> "OperatorTable":
        """This table with other values in the given columns."""
        # dataclasses.replace() passes every field through __init__, which takes longer than computing the columns.
        table = object.__new__(type(self))
        table.__dict__.update(self.__dict__, **columns)
        return table

    def take(self, rows: Ints) -> "OperatorTable":
        """The given rows, in the given order."""
        position = np.full(len(self), -1)
        position[self.grouped_rows] = np.arange(len(self.grouped_rows))
        grouped = np.flatnonzero(position[rows] >= 0)
        columns = {
            column.name: getattr(self, column.name)[rows]
            for column in fields(self)
            if column.name not in {"operators", "grouped_rows", "expert_tokens"}
        }
        expert_tokens = self.expert_tokens[position[rows][grouped]]
        return replace(self, **columns, grouped_rows=grouped, expert_tokens=expert_tokens)
