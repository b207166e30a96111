"""Finds measurements whose kernels ran in a configuration that had not been chosen for their shape.

TensorRT-LLM times many configurations of a grouped product before it uses one. aiconfigurator's collector keeps what it
found in a file by number format, hidden size, intermediate size and experts of a rank, and does without a search where
a file is there; but the library looks up more than that, top-k among it. Where two models share a file, the second one
runs the first configuration that there is and takes up to six times as long, on all its batches, while the same shape
under another skew, run before, does not. Nothing of the work tells the two apart, but the times of all shapes together
do: the work explains them to within a half, but for those.
"""

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.calibration.measured import Floats, Ints
from moesim.workloads.operator_table import OperatorTable

_LIMIT = 1.55
"""Times longer than this against the work of the others. On the H200, tuned cases reach 1.49, and others start at
1.61 (TensorRT-LLM 1.3.0rc20: 1,188 cases in bf16, 1,041 in fp8, of which 123 of each were not tuned)."""
_TILE_ROWS = 64.0
_ROUNDS, _SOFTNESS = 8, 0.2


def not_tuned(table: OperatorTable, time_s: Floats, case: Ints) -> NDArray[np.bool_]:
    """bool[row]: rows of cases that take much longer than the work of all of them explains.

    Args:
        table: expert FFNs of one number format.
        time_s: float64[row].
        case: int64[row], rows that share one search: all batches of a shape, its shards and its skew.
    """
    ratio = time_s / _explained_s(table, time_s)
    result = np.zeros(len(time_s), np.bool_)
    for number in np.unique(case):
        rows = case == number
        result[rows] = np.median(ratio[rows]) > _LIMIT
    return result


def _explained_s(table: OperatorTable, time_s: Floats) -> Floats:
    """Times by a sum of work with one price each: weights, FLOPs, activations, experts, tiles, and a constant.

    Prices are least squares on relative errors, large ones counting less from round to round.
    """
    from scipy.optimize import nnls

    tiles = np.ceil(table.expert_tokens / _TILE_ROWS).sum(axis=1)
    work = np.stack(
        [
            np.ones(len(table)),
            np.count_nonzero(table.expert_tokens, axis=1),
            tiles * table.n * table.k,
            table.weight_bytes_read,
            table.flops,
            table.read_bytes + table.write_bytes,
        ],
        axis=1,
    )
    work /= np.maximum(work.max(axis=0), 1.0)
    weight, explained_s = 1 / time_s, time_s
    for _ in range(_ROUNDS):
        prices, _ = nnls(work * weight[:, None], time_s * weight)
        explained_s = np.maximum(work @ prices, 1e-9)
        weight = 1 / time_s / np.sqrt(1 + (np.log(time_s / explained_s) / _SOFTNESS) ** 2)
    return explained_s
