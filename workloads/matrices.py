"""Weight matrices and the number formats of a model's parts."""

from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import Field

from moesim.configs.loader import Config
from moesim.workloads.operator_table import DTYPES

DTypeName = Literal["fp32", "bf16", "fp16", "fp8", "fp8_block", "int8", "mxfp4", "nvfp4"]


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
    other: DTypeName = Field("bf16", description="router, norms, biases, convolutions, attention sinks")
    activations: DTypeName = Field("bf16", description="activations between operators")
    kv_cache: DTypeName = Field("bf16", description="cached keys and values")
    state: DTypeName = Field("bf16", description="recurrent state of linear attention and state-space layers")
