"""The compiled price of operators on a GPU. Import it lazily: it pulls in numba.

Every jitted function calls jitted functions of this module only, so that numba's cache never goes stale.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moesim.hw_models.gpu_columns import Attention, Columns, Floats, Ints, Pair, Products, Residuals, Shape

# Forms and bounds as constants of this module; a test holds them against operator_table.FORMS and processor.BOUNDS.
GEMM, GROUPED_GEMM, ATTENTION, ELEMENTWISE = range(4)
COMPUTE, MEMORY, LATENCY = range(3)

# Positions in the parameter vector.
MULTIPROCESSORS, S_PER_DRAM_BYTE, S_PER_PEAK_DRAM_BYTE, J_PER_DRAM_BYTE, J_PER_ATTENTION_FLOP = range(5)
LEAST_S_PER_ATTENTION_BYTE, ACTIVE_W, ELEMENTWISE_LATENCY_S, ELEMENTWISE_CACHED_BYTES = range(5, 9)
S_PER_CACHED_BYTE, PARAMETERS = range(9, 11)

# Columns of the table of weight formats, of single products and of expert FFNs.
S_PER_FLOP, S_PER_PEAK_FLOP, ACTIVATION_BYTES, WEIGHT_BYTES, J_PER_FLOP, LATENCY_S, S_PER_WEIGHT_BYTE = range(7)
S_PER_MOVED_BYTE, S_PER_L2_BYTE, TILE_LATENCY_S, STEP_LATENCY_S, SPLIT_LATENCY_S, EXPOSED = range(7, 13)
WAVE_TAIL, CACHED_BYTES, S_PER_QUANTISED_ELEMENT, S_PER_QUANTISED_ROW, MAX_SPLIT, FIRST_TILE = range(13, 19)
END_TILE, SPLIT_FROM, LONE_SLOWDOWN, S_PER_QUANTISED_BLOCK, POWER_SLOWDOWN, BOOST_S, HAS_VECTORS = range(19, 26)
FIRST_LAUNCH, END_LAUNCH, COPIES, KEPT_BYTES, S_PER_KEPT_BYTE, COLD_S, S_PER_EMPTY_BYTE = range(26, 33)
QUANTISED_BY_WARPS, GROUP_SLOWDOWN, UNEVEN_SLOWDOWN, KEPT_LATENCY, FORMAT_COLUMNS = range(33, 38)
MODEL_COLUMNS = FIRST_TILE
"""Columns before this one decide the prices of all products in a model."""
SINGLE_COLUMNS = (SPLIT_FROM, LONE_SLOWDOWN, S_PER_QUANTISED_BLOCK, POWER_SLOWDOWN, BOOST_S, HAS_VECTORS)
"""Columns that decide prices of single products in a model besides; FIRST_LAUNCH to COLD_S tell it from benchmarks."""
RARE_COLUMNS = (S_PER_EMPTY_BYTE, QUANTISED_BY_WARPS, GROUP_SLOWDOWN, UNEVEN_SLOWDOWN)
"""Columns that decide them too, in the few formats where one is not 0."""

# Expert FFNs are not split along k, and quantised elsewhere; they have things of their own in these columns: launches
# more on devices that share experts, the extra time of a tile that tokens do not fill, in full tiles, what makes
# weights and tiles slower, and the shapes that a library has tuned.
SHARED_LATENCY_S, PARTIAL_TILE = SPLIT_LATENCY_S, S_PER_QUANTISED_ROW
TOKEN_PASSES, RESIDENT_TILES = S_PER_QUANTISED_ELEMENT, BOOST_S
K_MULTIPLE, N_MULTIPLE = HAS_VECTORS, S_PER_QUANTISED_BLOCK
NARROW_SLOWDOWN, UNALIGNED_SLOWDOWN, FIRST_TUNED, END_TUNED = LONE_SLOWDOWN, POWER_SLOWDOWN, FIRST_LAUNCH, END_LAUNCH
EXPERT_COLUMNS = (NARROW_SLOWDOWN, UNALIGNED_SLOWDOWN, RESIDENT_TILES, K_MULTIPLE, N_MULTIPLE)
"""Columns that decide prices of expert FFNs besides, where they are not 1."""

# The plane of residuals that holds those of attention.
ATTENTION_PLANE = 4

# Trees that are walked at a time, as in `residual`.
TREES_TOGETHER = 4

# Features of a product that residuals look at.
FEATURES = 14
_ALIGNED_ROWS, _COMMON_TILE = 16, 128
_TILE_ROWS, _TILE_COLUMNS = (64, 64, 128, 256, 128), (64, 128, 256, 128, 192)  # of which residuals see the last wave
_KEPT_FEATURE, _WAVE_FEATURE = 8, 9

# Columns of the table of tiles.
TOKENS, TILE_M, TILE_N, TOGETHER, LONE, TOKENS_PER_EXPERT, NARROW, TILE_COLUMNS = range(8)
BEST_TILES = 10
"""First rows of the table, of libraries that choose by shape."""

# Columns of the table of tuned shapes: experts on the device, and outputs of one up projection.
TUNED_EXPERTS, TUNED_N, TUNED_COLUMNS = range(3)
_ALIGNED_INPUTS = 16  # what strides must be a multiple of, so that Triton loads 16 bytes at a time

# Columns of the table of launches by the host of a benchmark: most m, n and k, what m is a multiple of, and the time.
LAUNCH_M, LAUNCH_N, LAUNCH_K, LAUNCH_MULTIPLE, LAUNCH_S, LAUNCH_COLUMNS = range(6)

_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_SPLIT_WAVES = 4  # assumption: work in more waves than this is never split along k
_MIN_K = 64.0  # elements of k that a main loop takes at a time
_NARROW_STEPS = 2.0  # of a main loop that takes half a cache line of k at a time, for one of others
_STATE_BYTES = 4.0  # an element of a hidden state, read and written
_PARTIAL_BYTES = 8.0  # a partial sum in fp32, written and read
_GROUP, _BLOCK_GROUPS, _BLOCK_WARPS = 128, 16, 8  # elements with a scale; most of these, and warps, in a thread block
_FULL_SHARE = 1.1  # assumption: weights of which L2 keeps none, in those of which it keeps all


@njit(cache=True)
def price_rows(
    columns: Columns,
    parameters: Floats,
    products: Products,
    valid: Floats,
    residuals: Residuals,
    attention: Attention,
    outputs: tuple[Floats, Floats, NDArray[np.int8], NDArray[np.bool_]],
) -> None:
    """Write time, energy, bound and extrapolation of every row into `outputs`, which come as zeros.

    Rows of attention come with times, bounds and extrapolation by `attention_kernel`, and get the rest.

    Args:
        columns: what to price.
        parameters: float64[PARAMETERS].
        products: kernels of products.
        valid: float64[form, weight dtype, 6], least and greatest value of three quantities in turn: m, n, k of
            products; m, flops, bytes of attention and elementwise rows.
        residuals: learned corrections, for products and attention inside `valid`.
        attention: of the rows of attention.
        outputs: float64[row] times, float64[row] energies, int8[row] bounds and bool[row], by row.
    """
    time_s, energy_j, bound, extrapolated = outputs
    grouped = attending = -1
    features, uncorrected = np.zeros(FEATURES), np.zeros(4)
    for row in range(columns.m.size):
        kind, dtype = columns.form[row], columns.weight_dtype[row]
        grouped += kind == GROUPED_GEMM  # `expert_tokens` holds one line per grouped row, in order
        attending += kind == ATTENTION
        if columns.m[row] <= 0:
            bound[row] = LATENCY
            continue
        j_per_flop, cached_bytes = products.formats[_plane(columns, row), dtype, J_PER_FLOP], 0.0
        outside = _is_row_outside(columns, row, valid[kind, dtype])
        extrapolated[row] = extrapolated[row] or outside
        if kind in (GEMM, GROUPED_GEMM):
            model = uncorrected if outside else residuals.models[_plane(columns, row), dtype]
            time_s[row], bound[row] = _product(columns, row, grouped, parameters, products, residuals, model, features)
        elif kind == ATTENTION:
            j_per_flop = parameters[J_PER_ATTENTION_FLOP]
            if not extrapolated[row]:
                peak_s = columns.flops[row] * products.formats[0, dtype, S_PER_PEAK_FLOP]
                least_s = max(peak_s, _bytes(columns, row) * parameters[LEAST_S_PER_ATTENTION_BYTE])
                time_s[row] = _attention_s(time_s[row], least_s, attending, residuals, attention)
        else:
            moved_bytes = columns.read_bytes[row] + columns.write_bytes[row]
            cached_bytes = min(moved_bytes, parameters[ELEMENTWISE_CACHED_BYTES])
            time_s[row], bound[row] = _elementwise(_bytes(columns, row) - cached_bytes, cached_bytes, parameters)
        dram_j = (_bytes(columns, row) - cached_bytes) * parameters[J_PER_DRAM_BYTE]
        energy_j[row] = columns.flops[row] * j_per_flop + dram_j + time_s[row] * parameters[ACTIVE_W]


@njit(cache=True)
def _product(
    columns: Columns,
    row: int,
    grouped: int,
    parameters: Floats,
    products: Products,
    residuals: Residuals,
    model: Floats,
    features: Floats,
) -> tuple[float, int]:
    """Time and bound of a product, its residual and the host of a benchmark included."""
    plane, dtype, is_single = _plane(columns, row), columns.weight_dtype[row], columns.form[row] == GEMM
    fmt, multiprocessors = products.formats[plane, dtype], parameters[MULTIPROCESSORS]
    m, n, k = columns.m[row], columns.n[row], columns.k[row]
    weight_bytes, moved_bytes = _weight_bytes(columns, row, fmt), columns.read_bytes[row] + columns.write_bytes[row]
    if is_single:
        chosen = (products.chosen[row, 0], products.chosen[row, 1]) if products.chosen.size else (0.0, 0.0)
        shape = (m, n, k, columns.groups[row])
        price = _gemm(shape, (weight_bytes, moved_bytes), multiprocessors, fmt, products.tiles, chosen)
    else:
        batch = (columns.routed_tokens[row], columns.expert_slots[row], columns.expert_ranks[row])
        work = (columns.expert_tokens[grouped], n, k, columns.up_matrices[row], batch)
        price = _experts(work, weight_bytes, moved_bytes, multiprocessors, fmt, products)
    seconds, bound = price
    if model[1] > 0.0:
        kept = _kept_share(weight_bytes, fmt)
        _write_features(columns, row, grouped, seconds, kept, multiprocessors, features)
        read_s = (1.0 - kept) * weight_bytes * parameters[S_PER_PEAK_DRAM_BYTE]
        floor_s = max(columns.flops[row] * fmt[S_PER_PEAK_FLOP], read_s)
        seconds = _corrected_s(seconds, floor_s, features, residuals, model)
    if is_single:
        seconds = max(seconds + fmt[COLD_S], _launch_s(m, n, k, fmt, products.launches))
    return seconds, bound


@njit(cache=True)
def _attention_s(time_s: float, floor_s: float, attending: int, residuals: Residuals, attention: Attention) -> float:
    """Time of a row of attention with its residual, if there is one."""
    if len(attention.features) == 0 or attention.kernel[attending] < 0:
        return time_s
    model = residuals.models[ATTENTION_PLANE, attention.kernel[attending]]
    return _corrected_s(time_s, floor_s, attention.features[attending], residuals, model)


@njit(cache=True)
def _bytes(columns: Columns, row: int) -> float:
    """All that a row reads and writes."""
    nbytes: float = columns.weight_bytes_read[row] + (columns.read_bytes[row] + columns.write_bytes[row])
    return nbytes


@njit(cache=True)
def _is_row_outside(columns: Columns, row: int, valid: Floats) -> bool:
    """Whether a row is outside the calibrated range of its form."""
    if columns.form[row] in (GEMM, GROUPED_GEMM):
        return _is_outside(columns.m[row], columns.n[row], columns.k[row], valid)
    return _is_outside(columns.m[row], columns.flops[row], _bytes(columns, row), valid)


@njit(cache=True)
def _plane(columns: Columns, row: int) -> int:
    """Which of the tables of formats prices a row: single products, or expert FFNs by their kernels."""
    if columns.form[row] != GROUPED_GEMM:
        return 0
    if columns.up_matrices[row] <= 1:
        return 2
    return 3 if columns.expert_ranks[row] > 1 else 1


@njit(cache=True)
def feature_rows(
    columns: Columns, physics_s: Floats, formats: Floats, multiprocessors: float, features: Floats
) -> None:
    """Write what residuals look at: features[row], beside prices from physics alone."""
    grouped = -1
    for row in range(columns.m.size):
        grouped += columns.form[row] == GROUPED_GEMM
        fmt = formats[_plane(columns, row), columns.weight_dtype[row]]
        kept = _kept_share(_weight_bytes(columns, row, fmt), fmt)
        _write_features(columns, row, grouped, physics_s[row], kept, multiprocessors, features[row])


@njit(cache=True)
def _write_features(
    columns: Columns, row: int, grouped: int, physics_s: float, kept: float, multiprocessors: float, features: Floats
) -> None:
    """Logarithms of sizes, rates and of the price; alignment and waves of products; skew and traffic of experts."""
    m, n, k = columns.m[row], columns.n[row], columns.k[row]
    features[3] = np.log2(physics_s)
    features[_KEPT_FEATURE:] = 0.0
    if columns.form[row] == GEMM:
        features[0], features[1], features[2] = np.log2(float(m)), np.log2(float(n)), np.log2(float(k))
        features[4] = 1.0 if m % _ALIGNED_ROWS == 0 else 0.0
        waves = np.ceil(m / _COMMON_TILE) * np.ceil(n / _COMMON_TILE) * columns.groups[row] / multiprocessors
        features[5] = waves - np.floor(waves)
        features[6] = np.log2(max(1.0, columns.flops[row]) / physics_s)
        features[7] = np.log2(max(1.0, columns.weight_bytes_read[row]) / physics_s)
        features[_KEPT_FEATURE] = kept
        for tile in range(len(_TILE_ROWS)):
            count = np.ceil(m / _TILE_ROWS[tile]) * np.ceil(n / _TILE_COLUMNS[tile]) * columns.groups[row]
            features[_WAVE_FEATURE + tile] = np.ceil(count / multiprocessors) / (count / multiprocessors)
        return
    touched, largest = 0, 0
    for tokens in columns.expert_tokens[grouped]:
        touched += tokens > 0
        largest = max(largest, tokens)
    # Rates rather than sizes: few models are ever measured, and trees would learn their sizes by heart.
    per_expert = m / max(1.0, touched)
    features[0], features[1] = np.log2(per_expert), np.log2(max(1.0, largest / per_expert))
    features[2] = np.log2(max(1.0, columns.weight_bytes_read[row]) / physics_s)
    features[4] = np.log2(max(1.0, touched))
    features[5] = np.log2(max(1.0, columns.read_bytes[row] + columns.write_bytes[row]) / physics_s)
    features[6] = np.log2(max(1.0, columns.flops[row]) / physics_s)
    features[7] = np.log2(float(n))
    aligned = 1
    while aligned < _COMMON_TILE and n % (2 * aligned) == 0:
        aligned *= 2
    features[8] = np.log2(float(aligned))
    features[9] = np.log2(max(1.0, columns.routed_tokens[row]))
    features[10] = kept


@njit(cache=True)
def _corrected_s(time_s: float, floor_s: float, features: Floats, residuals: Residuals, model: Floats) -> float:
    """A time with its residual; not below what the data sheet allows, unless physics is."""
    if model[1] <= 0.0:
        return time_s
    corrected_s: float = max(time_s * np.exp(_log_factor(features, residuals, model)), min(floor_s, time_s))
    return corrected_s


@njit(cache=True)
def _log_factor(features: Floats, residuals: Residuals, model: Floats) -> float:
    """Sum of the leaves that a row falls into, within the model's range.

    Four trees are walked at a time: each step waits for memory, and the waits of all four pass together.
    """
    total = 0.0
    for tree in range(int(model[0]), int(model[1]), TREES_TOGETHER):
        a, b, c, d = (
            residuals.roots[tree],
            residuals.roots[tree + 1],
            residuals.roots[tree + 2],
            residuals.roots[tree + 3],
        )
        while True:
            at = a, b, c, d
            a, b = _below(a, features, residuals), _below(b, features, residuals)
            c, d = _below(c, features, residuals), _below(d, features, residuals)
            if at == (a, b, c, d):
                break
        for leaf in (a, b, c, d):
            total += residuals.value[leaf]
    log_factor: float = min(max(total, model[2]), model[3])
    return log_factor


@njit(cache=True)
def _below(node: int, features: Floats, residuals: Residuals) -> int:
    """The child that a row falls into; a leaf is its own."""
    below: int = residuals.left[node] + (features[residuals.feature[node]] > residuals.threshold[node])
    return below


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
def _elementwise(dram_bytes: float, cached_bytes: float, parameters: Floats) -> tuple[float, int]:
    """Work that multiplies nothing: what the layer before wrote, and what is written, stays in L2 as far as it fits."""
    memory_s = cached_bytes * parameters[S_PER_CACHED_BYTE] + dram_bytes * parameters[S_PER_DRAM_BYTE]
    return _bounded(parameters[ELEMENTWISE_LATENCY_S], 0.0, memory_s)


@njit(cache=True)
def _busy_s(tile: Ints, rows: float, multiprocessors: float, fmt: Floats) -> float:
    """Seconds per element of k for one tile on one multiprocessor: the slower of multiplying and loading from L2."""
    loaded_bytes = min(tile[TILE_M], rows) * fmt[ACTIVATION_BYTES] + tile[TILE_N] * fmt[WEIGHT_BYTES]
    busy_s: float = max(2.0 * tile[TILE_M] * tile[TILE_N] * fmt[S_PER_FLOP], loaded_bytes * fmt[S_PER_L2_BYTE])
    return multiprocessors * busy_s


@njit(cache=True)
def _k_step_s(tile: Ints, rows: float, multiprocessors: float, fmt: Floats) -> float:
    """Seconds per element of k for a tile that is alone on a multiprocessor, where the main loop has a latency."""
    k_step_s: float = max(_busy_s(tile, rows, multiprocessors, fmt), fmt[STEP_LATENCY_S])
    return k_step_s


@njit(cache=True)
def _waves(tiles: float, multiprocessors: float, fmt: Floats) -> float:
    """Rounds of one tile per multiprocessor; the last of several may be shared out in part (stream-k, overlap)."""
    exact = tiles / multiprocessors
    whole = np.ceil(exact)
    waves: float = whole - fmt[WAVE_TAIL] * (whole - exact) if whole > 1.0 else whole
    return waves


@njit(cache=True)
def _launch_s(m: int, n: int, k: int, fmt: Floats, launches: Floats) -> float:
    """Time of the host per launch in a benchmark without a CUDA graph, of the first kernel that fits; else 0."""
    for row in range(int(fmt[FIRST_LAUNCH]), int(fmt[END_LAUNCH])):
        launch = launches[row]
        small = m <= launch[LAUNCH_M] and n <= launch[LAUNCH_N] and k <= launch[LAUNCH_K]
        if small and m % launch[LAUNCH_MULTIPLE] == 0.0:
            seconds: float = launch[LAUNCH_S]
            return seconds
    return 0.0


@njit(cache=True)
def _kept_share(weight_bytes: float, fmt: Floats) -> float:
    """Share of weights that L2 keeps while a benchmark multiplies by some copies of them in turn; 0 in a model."""
    if fmt[COPIES] <= 0.0 or fmt[KEPT_BYTES] <= 0.0:
        return 0.0
    over = fmt[COPIES] * weight_bytes / fmt[KEPT_BYTES] - 1.0
    share: float = min(1.0, max(0.0, 1.0 - over / (_FULL_SHARE - 1.0)))
    return share


@njit(cache=True)
def _weight_bytes(columns: Columns, row: int, fmt: Floats) -> float:
    """Weights that a product reads, with what those of experts are padded by."""
    nbytes: float = columns.weight_bytes_read[row]
    if columns.form[row] == GROUPED_GEMM:
        n, k = columns.n[row], columns.k[row]
        nbytes *= _padded(n, fmt[N_MULTIPLE]) * _padded(k, fmt[K_MULTIPLE]) / (n * k)
    return nbytes


@njit(cache=True)
def _padded(size: int, multiple: float) -> float:
    """`size`, rounded up."""
    padded: float = np.ceil(size / multiple) * multiple
    return padded


@njit(cache=True)
def _quantise_s(m: int, k: int, groups: int, fmt: Floats) -> float:
    """Turning inputs into another format: elements, rows, and thread blocks of as many groups as divide all of them."""
    by_warps = 0.0 < fmt[QUANTISED_BY_WARPS] <= m * groups
    row_s = fmt[S_PER_QUANTISED_ROW] / (_BLOCK_WARPS if by_warps else 1)
    seconds: float = m * groups * (k * fmt[S_PER_QUANTISED_ELEMENT] + row_s)
    if fmt[S_PER_QUANTISED_BLOCK] > 0.0:
        scaled, together = m * groups * ((k + _GROUP - 1) // _GROUP), _BLOCK_GROUPS
        while scaled % together:
            together //= 2
        seconds += scaled // together * fmt[S_PER_QUANTISED_BLOCK]
    return seconds


@njit(cache=True)
def _gemm(
    shape: Shape, nbytes: Pair, multiprocessors: float, fmt: Floats, tiles: Ints, chosen: Pair
) -> tuple[float, int]:
    """A product, and before it the kernel that turns its inputs into another format, if the format has one.

    Tiles are limited to some number of tokens. Kernels that go by it switch tiles with growing tokens, mostly to larger
    ones; a product is never faster than one with fewer tokens on the tiles before.
    """
    (m, n, k, groups), (weight_bytes, moved_bytes) = shape, nbytes
    best_s, compute_s, memory_s = 0.0, 0.0, 0.0
    kept = _kept_share(weight_bytes, fmt)
    weights_s = weight_bytes * ((1.0 - kept) * fmt[S_PER_WEIGHT_BYTE] + kept * fmt[S_PER_KEPT_BYTE])
    first, fewer = int(fmt[FIRST_TILE]), 0
    while first < fmt[END_TILE] and fewer < m:
        limit = tiles[first, TOKENS]
        end = first + 1
        while end < fmt[END_TILE] and tiles[end, TOKENS] == limit:
            end += 1
        tokens = min(m, limit)
        moved = max(0.0, moved_bytes * (tokens / m) - fmt[CACHED_BYTES])
        bytes_s = weights_s + moved * fmt[S_PER_MOVED_BYTE]
        part = (tokens, n, k, groups)
        total_s, product_s = _split_product(part, bytes_s, multiprocessors, fmt, tiles[first:end], chosen)
        if total_s > best_s:
            best_s, compute_s, memory_s = total_s, product_s, bytes_s
        first, fewer = end, limit
    if m == 1 and fmt[HAS_VECTORS]:
        # Threads share out k, so no tile goes through all of it.
        vector_s = weights_s + max(0.0, moved_bytes - fmt[CACHED_BYTES]) * fmt[S_PER_MOVED_BYTE]
        if vector_s + fmt[TILE_LATENCY_S] < best_s:
            best_s, compute_s, memory_s = vector_s + fmt[TILE_LATENCY_S], 0.0, vector_s
    quantise_s = _quantise_s(m, k, groups, fmt)
    _, bound = _bounded(fmt[LATENCY_S], compute_s, memory_s + quantise_s)
    return fmt[LATENCY_S] + quantise_s + best_s, bound


@njit(cache=True)
def _split_product(
    shape: Shape, bytes_s: float, multiprocessors: float, fmt: Floats, tiles: Ints, chosen: Pair
) -> Pair:
    """Time, and compute time, of the best of all tiles and splits of k: waves of tiles beside DRAM.

    A split of k writes and reads partial sums and costs one more pass. Of the shorter of computing and moving, a share
    is not hidden behind the longer. Libraries know nothing of the slowdown of some tiles in a single wave. Tensor cores
    that are busy for long meet the power limit, which lowers the clock. Rows that tiles load beyond the tokens take
    time without coming from DRAM. Where the library chose the tile by itself, `chosen` has its time and those bytes.
    """
    m, n, k, groups = shape
    best_s, best_compute_s = np.inf, 0.0
    for split in _SPLITS:
        if split > 1 and (split > fmt[MAX_SPLIT] or k <= _MIN_K or k < fmt[SPLIT_FROM]):
            break
        compute_s, slowdown, empty_bytes = chosen[0] if chosen[0] > 0.0 else np.inf, 1.0, chosen[1]
        for tile in range(tiles.shape[0] if chosen[0] <= 0.0 else 0):
            tile_m, together = tiles[tile, TILE_M], tiles[tile, TOGETHER]
            row_tiles = ((m + tile_m - 1) // tile_m + together - 1) // together * together
            column_tiles = (n + tiles[tile, TILE_N] - 1) // tiles[tile, TILE_N] * groups
            count = float(row_tiles * column_tiles * split)
            if split > 1 and count > _SPLIT_WAVES * multiprocessors:
                continue
            tile_s = _k_step_s(tiles[tile], m, multiprocessors, fmt) * max(_MIN_K, k / split) + fmt[TILE_LATENCY_S]
            tiles_s = _waves(count, multiprocessors, fmt) * tile_s
            if tiles_s < compute_s:
                compute_s = tiles_s
                empty_bytes = (row_tiles * tile_m - m) * column_tiles * k * fmt[ACTIVATION_BYTES]
                slowdown = fmt[LONE_SLOWDOWN] if tiles[tile, LONE] and count <= multiprocessors else 1.0
        if compute_s == np.inf:
            break
        compute_s *= slowdown * (1.0 + (fmt[POWER_SLOWDOWN] - 1.0) * compute_s / (compute_s + fmt[BOOST_S]))
        memory_s = bytes_s + (_PARTIAL_BYTES * m * n * groups * split * fmt[S_PER_MOVED_BYTE] if split > 1 else 0.0)
        memory_s += empty_bytes * fmt[S_PER_EMPTY_BYTE]
        total_s = max(compute_s, memory_s) + fmt[EXPOSED] * min(compute_s, memory_s)
        total_s += fmt[SPLIT_LATENCY_S] if split > 1 else 0.0
        if total_s < best_s:
            best_s, best_compute_s = total_s, compute_s
    return best_s, best_compute_s


@njit(cache=True)
def _experts(
    work: tuple[Ints, int, int, int, tuple[int, int, int]],
    weight_bytes: float,
    moved_bytes: float,
    multiprocessors: float,
    fmt: Floats,
    products: Products,
) -> tuple[float, int]:
    """Both products of an expert FFN over all experts: up (k to up_matrices * n), then down (n to k).

    Each expert's tokens fill whole tiles of their own. Weights stream while tiles compute; gathering tokens, the
    activation function and summing results are passes of their own, so their traffic adds up.

    Args:
        work: tokens of each expert, n, k, up_matrices, and of the batch: tokens, experts that the device
            holds, and ranks that share all of them.
        weight_bytes: weights that are read.
        moved_bytes: activations read and written.
        multiprocessors: of the device.
        fmt: float64[FORMAT_COLUMNS].
        products: tiles and tuned shapes.
    """
    expert_tokens, unpadded, k, up_matrices, batch = work
    tiles, n, k = products.tiles, int(_padded(unpadded, fmt[N_MULTIPLE])), int(_padded(k, fmt[K_MULTIPLE]))
    largest = 0
    for tokens in expert_tokens:
        largest = max(largest, tokens)
    up_compute_s, down_compute_s = np.inf, np.inf
    row_tiles, rows_of = 0.0, 0
    up_k, down_k = np.ceil(k / _MIN_K) * _MIN_K, np.ceil(n / _MIN_K) * _MIN_K
    first, end = _menu(batch, int(fmt[FIRST_TILE]), int(fmt[END_TILE]), tiles)
    if _is_tuned(unpadded, batch[1], fmt, products.tuned):
        first, end = 0, BEST_TILES
    kept = _kept_share(weight_bytes, fmt)
    for tile in range(first, end):
        tile_m, tile_n = tiles[tile, TILE_M], tiles[tile, TILE_N]
        if tile_m != rows_of:  # tiles of equal rows stand together
            row_tiles, rows_of = _row_tiles(expert_tokens, tile_m, fmt[PARTIAL_TILE]), tile_m
        busy_s = _busy_s(tiles[tile], largest, multiprocessors, fmt)
        up_tiles, down_tiles = (up_matrices * n + tile_n - 1) // tile_n, (k + tile_n - 1) // tile_n
        step_s = fmt[STEP_LATENCY_S] * (_NARROW_STEPS if tiles[tile, NARROW] else 1.0)
        step_s *= 1.0 - kept * (1.0 - fmt[KEPT_LATENCY])
        up_s = _tiles_s(row_tiles * up_tiles, up_k, (busy_s, step_s), multiprocessors, fmt)
        down_s = _tiles_s(row_tiles * down_tiles, down_k, (busy_s, step_s), multiprocessors, fmt)
        up_compute_s, down_compute_s = min(up_compute_s, up_s), min(down_compute_s, down_s)
    if n % _ALIGNED_INPUTS != 0:
        down_compute_s *= fmt[UNALIGNED_SLOWDOWN]
    slowdown = fmt[NARROW_SLOWDOWN] if tiles[first, NARROW] else 1.0
    weights_s = weight_bytes * ((1.0 - kept) * slowdown * fmt[S_PER_WEIGHT_BYTE] + kept * fmt[S_PER_KEPT_BYTE])
    up_weights_s = weights_s * up_matrices / (up_matrices + 1.0)
    down_weights_s = weights_s - up_weights_s
    moved_s = (moved_bytes + fmt[TOKEN_PASSES] * batch[0] * k * _STATE_BYTES) * fmt[S_PER_MOVED_BYTE]
    products_s = max(up_compute_s, up_weights_s) + max(down_compute_s, down_weights_s)
    products_s += fmt[EXPOSED] * (min(up_compute_s, up_weights_s) + min(down_compute_s, down_weights_s))
    latency_s = fmt[LATENCY_S] + (fmt[SHARED_LATENCY_S] if batch[2] > 1 else 0.0)
    _, bound = _bounded(latency_s, up_compute_s + down_compute_s, weights_s + moved_s)
    return latency_s + products_s + moved_s, bound


@njit(cache=True)
def _tiles_s(tiles: float, k: float, steps_s: tuple[float, float], multiprocessors: float, fmt: Floats) -> float:
    """Time of equal tiles: that of the work of each multiprocessor, or of the rounds of tiles that it holds at a time.

    Per element of k, one tile keeps a multiprocessor busy for the first of `steps_s`, and takes the second at least.
    """
    busy_s, step_s = steps_s
    tile_s = max(busy_s, step_s) * k + fmt[TILE_LATENCY_S]
    rounds = _waves(tiles, multiprocessors * fmt[RESIDENT_TILES], fmt)
    tiles_s: float = max(_waves(tiles, multiprocessors, fmt) * busy_s * k, rounds * tile_s)
    return tiles_s


@njit(cache=True)
def _is_tuned(n: int, experts: int, fmt: Floats, tuned: Ints) -> bool:
    """Whether the library has tuned the kernels for experts of this shape, as many as the device has."""
    for row in range(int(fmt[FIRST_TUNED]), int(fmt[END_TUNED])):
        if tuned[row, TUNED_EXPERTS] == experts and tuned[row, TUNED_N] == n:
            return True
    return False


@njit(cache=True)
def _menu(batch: tuple[int, int, int], first: int, end: int, tiles: Ints) -> tuple[int, int]:
    """First and end of the tiles among which kernels choose for a batch: the first ones whose limits hold it."""
    tokens, slots, _ = batch
    while first < end:
        most, per_expert = tiles[first, TOKENS], tiles[first, TOKENS_PER_EXPERT]
        after = first + 1
        while after < end and tiles[after, TOKENS] == most and tiles[after, TOKENS_PER_EXPERT] == per_expert:
            after += 1
        if after == end or (tokens <= most and tokens <= per_expert * slots):
            return first, after
        first = after
    return first, end


@njit(cache=True)
def _row_tiles(expert_tokens: Ints, tile_m: int, partial: float) -> float:
    """Tiles of `tile_m` rows along the tokens of all experts, those that are not full counting `partial` more.

    Rows are powers of two, so tokens turn by shifts.
    """
    bits = 0
    while (1 << bits) < tile_m:
        bits += 1
    count = not_full = 0
    for tokens in expert_tokens:
        count += (tokens + tile_m - 1) >> bits
        not_full += (tokens >> bits) << bits != tokens
    return count + partial * not_full
