"""The compiled price of operators on a GPU. Import it lazily: it pulls in numba.

Every jitted function calls jitted functions of this module only, so that numba's cache never goes stale.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Forms and bounds as constants of this module; a test holds them against operator_table.FORMS and processor.BOUNDS.
GEMM, GROUPED_GEMM, ATTENTION, ELEMENTWISE = range(4)
COMPUTE, MEMORY, LATENCY = range(3)

# Positions in the parameter vector.
(
    MULTIPROCESSORS,
    S_PER_DRAM_BYTE,
    S_PER_L2_BYTE,
    KERNEL_LATENCY_S,
    TILE_LATENCY_S,
    SPLIT_LATENCY_S,
    GROUPED_LATENCY_S,
    GROUPED_TILE_LATENCY_S,
    GROUPED_S_PER_WEIGHT_BYTE,
    GROUPED_S_PER_MOVED_BYTE,
    J_PER_DRAM_BYTE,
    J_PER_ATTENTION_FLOP,
    ACTIVE_W,
    PARAMETERS,
) = range(14)

# Columns of the table of weight formats.
(
    S_PER_FLOP,
    ACTIVATION_BYTES,
    WEIGHT_BYTES,
    J_PER_FLOP,
    QUANTISE_LATENCY_S,
    S_PER_QUANTISED_ELEMENT,
    FORMAT_COLUMNS,
) = range(7)

# Output tiles that kernels choose from: the shapes of cuBLAS and CUTLASS on tensor cores, from 16 rows (operands
# swapped, for few tokens) to 256. Rows are powers of two, so that tokens turn into tiles by shifts.
_TILE_M_BITS = (4, 5, 6, 6, 6, 7, 7, 7, 8, 8)
_TILE_N = (64, 64, 64, 128, 256, 64, 128, 256, 64, 128)
_TILES = len(_TILE_N)
_MIN_BITS, _MAX_BITS = min(_TILE_M_BITS), max(_TILE_M_BITS)
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_SPLIT_WAVES = 4  # work in more waves than this is never split along k
_MIN_K = 64.0  # elements of k that a main loop takes at a time
_PARTIAL_BYTES = 8.0  # a partial sum in fp32, written and read


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
    grouped_rows: Ints
    expert_tokens: Ints


@njit(cache=True)
def price_rows(
    columns: Columns,
    parameters: Floats,
    formats: Floats,
    valid: Floats,
    time_s: Floats,
    energy_j: Floats,
    bound: NDArray[np.int8],
    extrapolated: NDArray[np.bool_],
) -> None:
    """Write time, energy, bound and extrapolation of every row into the last four, which come as zeros.

    Rows of attention come with times, bounds and extrapolation by `attention_kernel`, and get the rest.

    Args:
        columns: what to price.
        parameters: float64[PARAMETERS].
        formats: float64[2, weight dtype, FORMAT_COLUMNS], of single products and of expert FFNs.
        valid: float64[form, weight dtype, 6], least and greatest value of three quantities in turn: m, n, k of
            products; m, flops, bytes of attention and elementwise rows.
        time_s: float64[row].
        energy_j: float64[row].
        bound: int8[row].
        extrapolated: bool[row].
    """
    grouped = -1
    for row in range(columns.m.size):
        kind, dtype = columns.form[row], columns.weight_dtype[row]
        grouped += kind == GROUPED_GEMM  # `expert_tokens` holds one line per grouped row, in order
        m, n, k, groups = columns.m[row], columns.n[row], columns.k[row], columns.groups[row]
        if m <= 0:
            bound[row] = LATENCY
            continue
        fmt = formats[1 if kind == GROUPED_GEMM else 0, dtype]
        flops, weight_bytes = columns.flops[row], columns.weight_bytes_read[row]
        moved_bytes = columns.read_bytes[row] + columns.write_bytes[row]
        nbytes = weight_bytes + moved_bytes
        j_per_flop = fmt[J_PER_FLOP]
        if kind == GEMM:
            price = _gemm(m, n, k, groups, nbytes, parameters, fmt)
        elif kind == GROUPED_GEMM:
            tokens, gates = columns.expert_tokens[grouped], columns.up_matrices[row]
            price = _experts(tokens, n, k, gates, weight_bytes, moved_bytes, parameters, fmt)
        elif kind == ATTENTION:
            price = time_s[row], int(bound[row])
            j_per_flop = parameters[J_PER_ATTENTION_FLOP]
        else:
            price = _bounded(parameters[KERNEL_LATENCY_S], 0.0, nbytes * parameters[S_PER_DRAM_BYTE])
        time_s[row], bound[row] = price
        energy_j[row] = flops * j_per_flop + nbytes * parameters[J_PER_DRAM_BYTE] + time_s[row] * parameters[ACTIVE_W]
        if kind in (GEMM, GROUPED_GEMM):
            extrapolated[row] = _is_outside(m, n, k, valid[kind, dtype])
        else:
            extrapolated[row] = extrapolated[row] or _is_outside(m, flops, nbytes, valid[kind, dtype])


@njit(cache=True)
def _is_outside(first: float, second: float, third: float, valid: Floats) -> bool:
    """Whether one of three quantities lies outside its calibrated range."""
    inside = valid[0] <= first <= valid[1] and valid[2] <= second <= valid[3] and valid[4] <= third <= valid[5]
    return not inside


@njit(cache=True)
def _bounded(latency_s: float, compute_s: float, memory_s: float) -> tuple[float, int]:
    """Latency plus the slower of computing and moving, and which of the three is the largest."""
    body_s = max(compute_s, memory_s)
    if latency_s >= body_s:
        return latency_s + body_s, LATENCY
    return latency_s + body_s, COMPUTE if compute_s >= memory_s else MEMORY


@njit(cache=True)
def _k_step_s(tile: int, rows: int, s_per_flop: float, parameters: Floats, fmt: Floats) -> float:
    """Seconds per element of k for one tile on one multiprocessor: multiply, while both operands load from L2."""
    tile_m, tile_n = 1 << _TILE_M_BITS[tile], _TILE_N[tile]
    loaded_bytes = min(tile_m, rows) * fmt[ACTIVATION_BYTES] + tile_n * fmt[WEIGHT_BYTES]
    slower_s = max(2.0 * tile_m * tile_n * s_per_flop, loaded_bytes * parameters[S_PER_L2_BYTE])
    k_step_s: float = parameters[MULTIPROCESSORS] * slower_s
    return k_step_s


@njit(cache=True)
def _gemm(m: int, n: int, k: int, groups: int, nbytes: float, parameters: Floats, fmt: Floats) -> tuple[float, int]:
    """The best of all tiles and splits of k: whole waves of tiles on the multiprocessors, or DRAM if slower.

    A split of k writes and reads partial sums and costs one more pass. A format that inputs must be turned into costs
    a kernel before the product.
    """
    multiprocessors = parameters[MULTIPROCESSORS]
    best_s, best_compute_s, best_memory_s = np.inf, 0.0, 0.0
    for tile in range(_TILES):
        bits, tile_n = _TILE_M_BITS[tile], _TILE_N[tile]
        tiles = ((m + (1 << bits) - 1) >> bits) * ((n + tile_n - 1) // tile_n) * groups
        k_step_s = _k_step_s(tile, m, fmt[S_PER_FLOP], parameters, fmt)
        for split in _SPLITS:
            if split > 1 and (k <= _MIN_K or tiles * split > _SPLIT_WAVES * multiprocessors):
                break
            waves = np.ceil(tiles * split / multiprocessors)
            compute_s = waves * (k_step_s * max(_MIN_K, k / split) + parameters[TILE_LATENCY_S])
            partial_bytes = _PARTIAL_BYTES * m * n * groups * split if split > 1 else 0.0
            memory_s = (nbytes + partial_bytes) * parameters[S_PER_DRAM_BYTE]
            total_s = max(compute_s, memory_s) + (parameters[SPLIT_LATENCY_S] if split > 1 else 0.0)
            if total_s < best_s:
                best_s, best_compute_s, best_memory_s = total_s, compute_s, memory_s
    latency_s = parameters[KERNEL_LATENCY_S] + fmt[QUANTISE_LATENCY_S]
    quantise_s = m * k * groups * fmt[S_PER_QUANTISED_ELEMENT]
    _, bound = _bounded(latency_s, best_compute_s, best_memory_s + quantise_s)
    return latency_s + quantise_s + best_s, bound


@njit(cache=True)
def _experts(
    expert_tokens: Ints,
    n: int,
    k: int,
    up_matrices: int,
    weight_bytes: float,
    moved_bytes: float,
    parameters: Floats,
    fmt: Floats,
) -> tuple[float, int]:
    """Both products of an expert FFN over all experts: up (k to up_matrices * n), then down (n to k).

    Each expert's tokens fill whole tiles of their own. Weights stream while tiles compute; gathering tokens, the
    activation function and summing results are passes of their own, so their traffic adds up.
    """
    largest = 0
    row_tiles = np.zeros(_MAX_BITS + 1, np.int64)
    for tokens in expert_tokens:
        largest = max(largest, tokens)
        for bits in range(_MIN_BITS, _MAX_BITS + 1):
            row_tiles[bits] += (tokens + (1 << bits) - 1) >> bits
    up_compute_s = _grouped_product_s(row_tiles, largest, up_matrices * n, k, parameters, fmt)
    down_compute_s = _grouped_product_s(row_tiles, largest, k, n, parameters, fmt)
    weights_s = weight_bytes * parameters[GROUPED_S_PER_WEIGHT_BYTE]
    up_weights_s = weights_s * up_matrices / (up_matrices + 1.0)
    moved_s = moved_bytes * parameters[GROUPED_S_PER_MOVED_BYTE]
    products_s = max(up_compute_s, up_weights_s) + max(down_compute_s, weights_s - up_weights_s)
    latency_s = parameters[GROUPED_LATENCY_S]
    _, bound = _bounded(latency_s, up_compute_s + down_compute_s, weights_s + moved_s)
    return latency_s + products_s + moved_s, bound


@njit(cache=True)
def _grouped_product_s(row_tiles: Ints, largest: int, n: int, k: int, parameters: Floats, fmt: Floats) -> float:
    """Compute time of [tokens of each expert, k] x [k, n] with the best tile for all experts.

    Args:
        row_tiles: int64[log2 of a tile's rows], tiles along the tokens of all experts.
        largest: tokens of the fullest expert.
        n: outputs.
        k: inputs.
        parameters: float64[PARAMETERS].
        fmt: float64[FORMAT_COLUMNS].
    """
    best_s = np.inf
    for tile in range(_TILES):
        tiles = row_tiles[_TILE_M_BITS[tile]] * ((n + _TILE_N[tile] - 1) // _TILE_N[tile])
        k_step_s = _k_step_s(tile, largest, fmt[S_PER_FLOP], parameters, fmt)
        tile_s = k_step_s * max(_MIN_K, float(k)) + parameters[GROUPED_TILE_LATENCY_S]
        best_s = min(best_s, np.ceil(tiles / parameters[MULTIPROCESSORS]) * tile_s)
    return best_s
