"""Output tiles of libraries that choose them by a reckoning of their own. Compiled: import it lazily.

Every jitted function calls jitted functions of this module only, so that numba's cache never goes stale.
"""

import numpy as np
from numba import njit

from moesim.hw_models.gpu_columns import Columns, Floats, Ints, Pair, Shape

# Columns of the table of formats, by weight format. All is 0 where a library takes the fastest tile.
S_PER_FLOP, S_PER_L2_BYTE, STEP_LATENCY_S, TILE_LATENCY_S, WAVE_TAIL, LONE_SLOWDOWN, GROUP_SLOWDOWN = range(7)
UNEVEN_SLOWDOWN, ACTIVATION_BYTES, WEIGHT_BYTES, FIRST_TILE, END_TILE, TRAFFIC_COLUMNS = range(7, 13)

# Columns of the table of tiles.
ROWS, COLUMNS, LONE, TILE_COLUMNS = range(4)

_GEMM = 0  # of operator_table.FORMS; a test holds it against them
_GROUP_ROWS = 64  # that a group of warps multiplies at a time, filled or not
_EVEN = 32  # columns that stores and sums take at a time
_CLUSTERS = ((1, 1), (1, 2), (2, 1))  # tiles along the rows and the columns, in the order in which they are tried
_L2_RATE, _L2_MOST, _L1_RATE = 64.0, 8e6 / 1.3e3, 128.0  # bytes per cycle, of a multiprocessor, all, and one again
_OUTPUT_BYTES = 2.0
_MIN_K = 64.0  # elements of k that a main loop takes at a time


@njit(cache=True)
def choose(columns: Columns, formats: Floats, tiles: Ints, multiprocessors: float, chosen: Floats) -> None:
    """Write time of computing and bytes loaded beyond the tokens of single products into `chosen`, which is 0.

    Args:
        columns: of operators.
        formats: float64[weight dtype, TRAFFIC_COLUMNS].
        tiles: int64[tile, TILE_COLUMNS], in the order in which the library tries them.
        multiprocessors: of the device.
        chosen: float64[row, 2].
    """
    for row in range(columns.m.size):
        fmt = formats[columns.weight_dtype[row]]
        if columns.form[row] != _GEMM or columns.m[row] <= 0 or fmt[GROUP_SLOWDOWN] <= 0.0:
            continue
        shape = (columns.m[row], columns.n[row], columns.k[row], columns.groups[row])
        own = tiles[int(fmt[FIRST_TILE]) : int(fmt[END_TILE])]
        chosen[row, 0], chosen[row, 1] = _tiled(shape, multiprocessors, fmt, own)


@njit(cache=True)
def least_traffic(shape: Shape, multiprocessors: float, tiles: Ints) -> tuple[int, int, int]:
    """The tile that DeepGEMM takes, and how many along the rows and the columns make a cluster that shares its loads.

    It compares bytes of fp8 inputs and 16-bit outputs through L2 and L1, at rates of its own, in whole waves. Clusters
    are of two at most, and need more than one wave (csrc/jit_kernels/heuristics/sm90.hpp of DeepGEMM, 2026). Of equal
    ones the first wins. Tiles of fewer rows than a group of warps multiplies are for products that they hold.
    """
    m, _, k, _ = shape
    slots = int(multiprocessors)
    l2_rate, l1_rate = np.floor(min(_L2_RATE * slots, _L2_MOST)), _L1_RATE * slots
    best, best_rows, best_columns, least = 0, 1, 1, np.inf
    for cluster_rows, cluster_columns in _CLUSTERS:
        for tile in range(tiles.shape[0]):
            rows, width = tiles[tile, ROWS], tiles[tile, COLUMNS]
            count = _count(shape, rows, width)
            waves = (count + slots - 1) // slots
            if (rows < _GROUP_ROWS and m > rows) or (waves <= 1 and cluster_rows * cluster_columns > 1):
                continue
            out_bytes = _OUTPUT_BYTES * rows * width
            l2_bytes = k * (rows // cluster_columns + width // cluster_rows) + out_bytes
            l1_bytes = k * (rows + width + max(rows, _GROUP_ROWS) + width) + 2.0 * out_bytes
            cycles = max(np.floor(l2_bytes * count / l2_rate), np.floor(l1_bytes * count / l1_rate))
            cycles = np.floor(cycles * waves * slots / count)
            if cycles < least:
                best, best_rows, best_columns, least = tile, cluster_rows, cluster_columns, cycles
    return best, best_rows, best_columns


@njit(cache=True)
def _count(shape: Shape, rows: int, width: int) -> int:
    """Tiles of all products."""
    m, n, _, groups = shape
    count: int = ((m + rows - 1) // rows) * ((n + width - 1) // width) * groups
    return count


@njit(cache=True)
def _tiled(shape: Shape, multiprocessors: float, fmt: Floats, tiles: Ints) -> Pair:
    """Time of computing, and bytes that tiles load beyond the tokens, which clusters share as they share the rest.

    Time is that of `gpu_kernel`: rounds of one tile per multiprocessor, the last one shared out in part, each as long
    as the slowest of multiplying, loading from L2 and the latency of the main loop. One group of warps, which has up to
    64 rows, multiplies and adds up in turn; two do so at the same time.
    """
    m, n, k, groups = shape
    tile, cluster_rows, cluster_columns = least_traffic(shape, multiprocessors, tiles)
    rows, width = tiles[tile, ROWS], tiles[tile, COLUMNS]
    loaded_bytes = min(rows, m) * fmt[ACTIVATION_BYTES] / cluster_columns + width * fmt[WEIGHT_BYTES] / cluster_rows
    multiply_s = 2.0 * max(rows, _GROUP_ROWS) * width * fmt[S_PER_FLOP]
    if rows <= _GROUP_ROWS:
        multiply_s *= fmt[GROUP_SLOWDOWN]
    if width % _EVEN:
        multiply_s *= fmt[UNEVEN_SLOWDOWN]
    step_s = max(multiprocessors * max(multiply_s, loaded_bytes * fmt[S_PER_L2_BYTE]), fmt[STEP_LATENCY_S])
    exact = _count(shape, rows, width) / multiprocessors
    waves = np.ceil(exact)
    if tiles[tile, LONE] and waves <= 1.0:
        step_s *= fmt[LONE_SLOWDOWN]
    elif waves > 1.0:
        waves -= fmt[WAVE_TAIL] * (waves - exact)
    row_tiles = (m + rows - 1) // rows
    empty_bytes = float((row_tiles * rows - m) * ((n + width - 1) // width) * groups) * k * fmt[ACTIVATION_BYTES]
    return waves * (step_s * max(_MIN_K, float(k)) + fmt[TILE_LATENCY_S]), empty_bytes / cluster_columns
