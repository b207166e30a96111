"""What the compiled price of operators on a GPU takes: columns of tables, kernels of products, learned corrections."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    routed_tokens: Ints
    expert_slots: Ints
    expert_ranks: Ints
    grouped_rows: Ints
    expert_tokens: Ints


class Residuals(NamedTuple):
    """Boosted trees of all models, and which are whose; see `residual.joined`.

    models: float64[plane, weight dtype (attention: kernel), 4].
    """

    feature: NDArray[np.int8]
    value: NDArray[np.float32]
    left: NDArray[np.int32]
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
    """

    formats: Floats
    tiles: Ints
    launches: Floats
    tuned: Ints
