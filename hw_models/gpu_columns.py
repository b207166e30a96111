"""What the compiled price of operators on a GPU takes: columns of tables, kernels of products, learned corrections."""

from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.workloads.operator_table import OperatorTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Pair = tuple[float, float]
Shape = tuple[int, int, int, int]
"""Of a product: m, n, k and how many equal ones there are."""


class Columns(NamedTuple):
    """The columns of an operator table that decide prices; see `OperatorTable`."""

    form: NDArray[np.int8]
    weight_dtype: NDArray[np.int8]
    m: Ints
    n: Ints
    k: Ints
    groups: Ints
    up_matrices: NDArray[np.int8]
    flops: Floats
    weight_bytes_read: Floats
    read_bytes: Floats
    write_bytes: Floats
    decode_m: Ints
    decode_flops: Floats
    decode_read_bytes: Floats
    prefill_sequences: Ints
    longest_prefill: Ints
    longest_decode: Ints
    window: Ints
    prefill_pair_flops: Floats
    decode_pair_flops: Floats
    query_dtype: NDArray[np.int8]
    routed_tokens: Ints
    expert_slots: Ints
    expert_ranks: Ints
    grouped_rows: Ints
    expert_tokens: Ints


_FIELDS = attrgetter(*Columns._fields)


def columns_of(table: OperatorTable) -> Any:
    """The `Columns` of a table, as compiled code takes them."""
    return Columns(*_FIELDS(table))


class Residuals(NamedTuple):
    """Boosted trees of all models, and which are whose; see `residual.joined`.

    models: float64[plane, weight dtype (attention: kernel), 4].
    """

    feature: NDArray[np.int8]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    value: NDArray[np.float32]
    roots: NDArray[np.int32]
    models: Floats


class Attention(NamedTuple):
    """What `attention_kernel` says of the rows of attention, in order: kernels, and features for residuals if any."""

    kernel: Ints
    features: Floats


class Products(NamedTuple):
    """How products run; positions are those of `gpu_kernel`.

    formats: float64[4, weight dtype, FORMAT_COLUMNS], of single products, gated, ungated and sharded expert FFNs.
    tiles: int64[tile, TILE_COLUMNS], output tiles that kernels use, in runs that formats point to.
    launches: float64[launch, LAUNCH_COLUMNS], of the host in benchmarks, in runs that formats point to.
    tuned: int64[shape, TUNED_COLUMNS], shapes of experts that a library has tuned, by plane and weight format.
    chosen: float64[row, 2], of each row whose library chose its tile by itself, the time of computing and the bytes of
        rows that its tiles load beyond the tokens, else 0; no rows where no library does.
    """

    formats: Floats
    tiles: Ints
    launches: Floats
    tuned: Ints
    chosen: Floats
