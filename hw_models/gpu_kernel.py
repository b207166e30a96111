"""The compiled price of operators on a GPU. Import it lazily: it pulls in numba.

Every jitted function calls jitted functions of this module only, so that numba's cache never goes stale.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Forms and bounds as numba constants; test_gpu_kernel checks them against operator_table.FORMS and processor.BOUNDS.
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
    PREFILL_LATENCY_S,
    S_PER_PREFILL_FLOP,
    S_PER_PREFILL_BYTE,
    DECODE_LATENCY_S,
    S_PER_DECODE_FLOP,
    S_PER_DECODE_BYTE,
    DECODE_WAVE_S,
    MIXED_DECODE_SLOWDOWN,
    J_PER_DRAM_BYTE,
    J_PER_ATTENTION_FLOP,
    PARAMETERS,
) = range(21)

# Columns of the table of weight formats.
(
    S_PER_FLOP,
    GROUPED_S_PER_FLOP,
    ACTIVATION_BYTES,
    WEIGHT_BYTES,
    J_PER_FLOP,
    QUANTISE_LATENCY_S,
    S_PER_QUANTISED_ELEMENT,
    FORMAT_COLUMNS,
) = range(8)

# Output tiles that kernels choose from: the shapes of cuBLAS and CUTLASS on tensor cores, from 16 rows (operands
# swapped, for few tokens) to 256. Rows come as powers of two, so that tokens turn into tiles by shifts.
_TILE_M_BITS = (4, 5, 6, 6, 6, 7, 7, 7, 8, 8)
_TILE_N = (64, 64, 64, 128, 256, 64, 128, 256, 64, 128)
_TILES = len(_TILE_N)
_MIN_BITS, _MAX_BITS = 4, 8
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_MIN_K = 64.0  # elements of k that a main loop handles at a time
_SPLIT_WAVES = 4  # work in more waves than this is never split along k


@njit(cache=True)  # type: ignore[untyped-decorator]
def price_rows(
    form: NDArray[np.int8],
    weight_dtype: NDArray[np.int8],
    m: NDArray[np.int64],
    n: NDArray[np.int64],
    k: NDArray[np.int64],
    groups: NDArray[np.int64],
    up_matrices: NDArray[np.int8],
    flops: Floats,
    weight_bytes: Floats,
    read_bytes: Floats,
    write_bytes: Floats,
    decode_flops: Floats,
    decode_read_bytes: Floats,
    grouped_rows: NDArray[np.int64],
    expert_tokens: NDArray[np.int64],
    parameters: Floats,
    formats: Floats,
    valid: Floats,
) -> tuple[Floats, Floats, NDArray[np.int8], NDArray[np.bool_]]:
    """Time, energy, bound and extrapolation of every row.

    Args:
        form: and the other columns of an operator table.
        parameters: float64[PARAMETERS].
        formats: float64[weight dtype, FORMAT_COLUMNS].
        valid: float64[form, weight dtype, 6], least and greatest value of three quantities in turn: m, n, k of
            products; m, flops, bytes of attention; m, flops, bytes of elementwise rows.
    """
    rows = form.size
    time_s = np.zeros(rows)
    energy_j = np.zeros(rows)
    bound = np.full(rows, LATENCY, np.int8)
    extrapolated = np.zeros(rows, np.bool_)
    grouped = 0
    for row in range(rows):
        kind, dtype = form[row], weight_dtype[row]
        experts = grouped
        if kind == GROUPED_GEMM:
            while grouped < grouped_rows.size and grouped_rows[grouped] < row:
                grouped += 1
            experts = grouped
        if m[row] <= 0:
            continue
        moved = read_bytes[row] + write_bytes[row]
        nbytes = weight_bytes[row] + moved
        if kind == GEMM:
            shape = (float(m[row]), float(n[row]), float(k[row]))
            price = _gemm(m[row], n[row], k[row], groups[row], nbytes, parameters, formats[dtype])
        elif kind == GROUPED_GEMM:
            shape = (float(m[row]), float(n[row]), float(k[row]))
            tokens = expert_tokens[experts]
            price = _experts(tokens, n[row], k[row], up_matrices[row], weight_bytes[row], moved, parameters, formats[dtype])
        elif kind == ATTENTION:
            shape = (float(m[row]), flops[row], nbytes)
            items = float(m[row]) * max(1.0, np.round(k[row] * groups[row] / (2.0 * max(n[row], 1))))
            price = _attention(flops[row], decode_flops[row], nbytes, decode_read_bytes[row], items, parameters)
        else:
            shape = (float(m[row]), flops[row], nbytes)
            price = _bounded(parameters[KERNEL_LATENCY_S], 0.0, nbytes * parameters[S_PER_DRAM_BYTE])
        time_s[row], bound[row] = price
        j_per_flop = parameters[J_PER_ATTENTION_FLOP] if kind == ATTENTION else formats[dtype, J_PER_FLOP]
        energy_j[row] = flops[row] * j_per_flop + nbytes * parameters[J_PER_DRAM_BYTE]
        extrapolated[row] = _outside(shape, valid[kind, dtype])
    return time_s, energy_j, bound, extrapolated


@njit(cache=True)  # type: ignore[untyped-decorator]
def _outside(shape: tuple[float, float, float], valid: Floats) -> bool:
    return (
        not (valid[0] <= shape[0] <= valid[1])
        or not (valid[2] <= shape[1] <= valid[3])
        or not (valid[4] <= shape[2] <= valid[5])
    )


@njit(cache=True)  # type: ignore[untyped-decorator]
def _bounded(latency_s: float, compute_s: float, memory_s: float) -> tuple[float, int]:
    """Latency plus the slower of computing and moving, and which of the three is the largest."""
    body_s = max(compute_s, memory_s)
    if latency_s >= body_s:
        return latency_s + body_s, LATENCY
    return latency_s + body_s, COMPUTE if compute_s >= memory_s else MEMORY


@njit(cache=True)  # type: ignore[untyped-decorator]
def _k_step_s(bits: int, tile_n: int, rows: int, s_per_flop: float, parameters: Floats, fmt: Floats) -> float:
    """Seconds per element of k for one tile on one multiprocessor: multiply, and load both operands from L2."""
    tile_m = 1 << bits
    loaded = min(tile_m, rows) * fmt[ACTIVATION_BYTES] + tile_n * fmt[WEIGHT_BYTES]
    return parameters[MULTIPROCESSORS] * (2.0 * tile_m * tile_n * s_per_flop + loaded * parameters[S_PER_L2_BYTE])


@njit(cache=True)  # type: ignore[untyped-decorator]
def _gemm(m: int, n: int, k: int, groups: int, nbytes: float, parameters: Floats, fmt: Floats) -> tuple[float, int]:
    """The best of all tiles and splits of k: whole waves of tiles on the multiprocessors, or DRAM if slower.

    A split of k writes and reads its partial sums in fp32 and costs one more pass.
    """
    multiprocessors = parameters[MULTIPROCESSORS]
    best_s, best_compute_s, best_memory_s = np.inf, 0.0, 0.0
    for tile in range(_TILES):
        bits, tile_n = _TILE_M_BITS[tile], _TILE_N[tile]
        tiles = ((m + (1 << bits) - 1) >> bits) * ((n + tile_n - 1) // tile_n) * groups
        step_s = _k_step_s(bits, tile_n, m, fmt[S_PER_FLOP], parameters, fmt)
        for split in _SPLITS:
            if split > 1 and (k <= _MIN_K or tiles * split > _SPLIT_WAVES * multiprocessors):
                break
            waves = np.ceil(tiles * split / multiprocessors)
            compute_s = waves * (step_s * max(_MIN_K, k / split) + parameters[TILE_LATENCY_S])
            partial_bytes = 0.0 if split == 1 else 8.0 * m * n * groups * split
            memory_s = (nbytes + partial_bytes) * parameters[S_PER_DRAM_BYTE]
            total_s = max(compute_s, memory_s) + (0.0 if split == 1 else parameters[SPLIT_LATENCY_S])
            if total_s < best_s:
                best_s, best_compute_s, best_memory_s = total_s, compute_s, memory_s
    quantise_s = m * k * groups * fmt[S_PER_QUANTISED_ELEMENT]
    latency_s = parameters[KERNEL_LATENCY_S] + best_s - max(best_compute_s, best_memory_s) + fmt[QUANTISE_LATENCY_S]
    _, bound = _bounded(latency_s, best_compute_s, best_memory_s + quantise_s)
    return latency_s + max(best_compute_s, best_memory_s) + quantise_s, bound


@njit(cache=True)  # type: ignore[untyped-decorator]
def _experts(
    tokens: NDArray[np.int64],
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
    for count in tokens:
        largest = max(largest, count)
        for bits in range(_MIN_BITS, _MAX_BITS + 1):
            row_tiles[bits] += (count + (1 << bits) - 1) >> bits
    weights_s = weight_bytes * parameters[GROUPED_S_PER_WEIGHT_BYTE]
    moved_s = moved_bytes * parameters[GROUPED_S_PER_MOVED_BYTE]
    up_compute_s = _grouped_product(row_tiles, largest, up_matrices * n, k, parameters, fmt)
    down_compute_s = _grouped_product(row_tiles, largest, k, n, parameters, fmt)
    up_weights_s = weights_s * up_matrices / (up_matrices + 1.0)
    down_weights_s = weights_s - up_weights_s
    products_s = max(up_compute_s, up_weights_s) + max(down_compute_s, down_weights_s)
    latency_s = parameters[GROUPED_LATENCY_S]
    _, bound = _bounded(latency_s, up_compute_s + down_compute_s, weights_s + moved_s)
    return latency_s + products_s + moved_s, bound


@njit(cache=True)  # type: ignore[untyped-decorator]
def _grouped_product(
    row_tiles: NDArray[np.int64], largest: int, n: int, k: int, parameters: Floats, fmt: Floats
) -> float:
    """Compute time of [tokens of each expert, k] x [k, n] with the best tile for all experts."""
    best_s = np.inf
    for tile in range(_TILES):
        bits, tile_n = _TILE_M_BITS[tile], _TILE_N[tile]
        waves = np.ceil(row_tiles[bits] * ((n + tile_n - 1) // tile_n) / parameters[MULTIPROCESSORS])
        step_s = _k_step_s(bits, tile_n, largest, fmt[GROUPED_S_PER_FLOP], parameters, fmt)
        best_s = min(best_s, waves * (step_s * max(_MIN_K, float(k)) + parameters[GROUPED_TILE_LATENCY_S]))
    return best_s


@njit(cache=True)  # type: ignore[untyped-decorator]
def _attention(
    flops: float, decode_flops: float, nbytes: float, decode_read_bytes: float, items: float, parameters: Floats
) -> tuple[float, int]:
    """Prefill and decode sequences of one step, in one launch.

    Prefill: computing, plus a part that goes with its traffic (the start and the masked half of each tile of queries).
    Decode: computing or streaming keys and values, and waves of `items`, the (sequence, KV head) pairs that
    multiprocessors take one at a time. In a mixed step both add up, decode slower by a factor, as the kernel is laid
    out for prefill; `items` are then not known apart from prefill tokens, and are left out.
    """
    prefill_flops = flops - decode_flops
    if prefill_flops <= 0.0:
        waves_s = np.ceil(items / parameters[MULTIPROCESSORS]) * parameters[DECODE_WAVE_S]
        compute_s, memory_s = decode_flops * parameters[S_PER_DECODE_FLOP], nbytes * parameters[S_PER_DECODE_BYTE]
        return _bounded(parameters[DECODE_LATENCY_S] + waves_s, compute_s, memory_s)
    slowdown = parameters[MIXED_DECODE_SLOWDOWN]
    decode_compute_s = slowdown * decode_flops * parameters[S_PER_DECODE_FLOP]
    decode_memory_s = slowdown * decode_read_bytes * parameters[S_PER_DECODE_BYTE]
    prefill_compute_s = prefill_flops * parameters[S_PER_PREFILL_FLOP]
    prefill_memory_s = (nbytes - decode_read_bytes) * parameters[S_PER_PREFILL_BYTE]
    latency_s = parameters[PREFILL_LATENCY_S]
    _, bound = _bounded(latency_s, prefill_compute_s + decode_compute_s, prefill_memory_s + decode_memory_s)
    return latency_s + prefill_compute_s + prefill_memory_s + max(decode_compute_s, decode_memory_s), bound
