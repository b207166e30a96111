"""The compiled price of attention on a GPU. Import it lazily: it pulls in numba.

An attention kernel cuts the queries of each sequence and head into tiles of rows. A tile walks along its keys in
blocks; tiles share the multiprocessors in waves.

Each jitted function calls jitted functions of this module only, so that numba's cache never goes stale.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moesim.hw_models.attention_columns import Tiles, Work
from moesim.hw_models.gpu_columns import Columns, Floats, Ints

# Bounds as constants of this module; a test holds them against processor.BOUNDS.
COMPUTE, MEMORY, LATENCY = range(3)
PREFILL, DECODE = range(2)

# Columns of the table of kernels: for what rows one is (phase to window), how it is laid out, and fitted values.
PHASE, LATENT, HEAD_DIM_LOW, HEAD_DIM_HIGH, GROUP_LOW, GROUP_HIGH, WINDOW, QUERY_BITS, QUERIES_LOW = range(9)
QUERIES_HIGH, QUERY_TILE, KEY_TILE, PACKS_HEADS, SPLITS_KEYS, TAKES_DECODES, ABSORBS, OUTSIDE_WINDOW = range(9, 17)
MAX_SPLITS, PART_KEYS, PARTS_PER_MULTIPROCESSOR, SPLIT_FILL, SCHEDULED_SEQUENCES, FLOOR_S, LAUNCH_S = range(17, 24)
LAUNCH_S_PER_ELEMENT, S_PER_SEQUENCE, S_PER_TOKEN, S_PER_SORTED_PAIR, S_PER_SORTED_HEAD, S_PER_HEAD = range(24, 30)
S_PER_QUERY_BYTE, S_PER_KEY_BYTE, TILE_S, TILE_S_PER_ELEMENT, BLOCK_S, S_PER_FLOP, SOFTMAX_FLOPS = range(30, 37)
WHOLE_WAVES, S_PER_DRAM_BYTE, OVERLAP, KEPT_BYTES, S_PER_KEPT_BYTE, MERGE_S, DECODE_BLOCK_S = range(37, 44)
SHARED_BYTES, TOGETHER, SPLIT_TILES, RESIDENT, MERGE_TILE_S, IDLE_TILE_S, LATE_S = range(44, 51)
LATE_BYTES, KERNEL_COLUMNS = range(51, 53)

_PART_FEATURES = 12
RESIDUAL_FEATURES = 2 * _PART_FEATURES
ANY_WINDOW, NO_WINDOW, ONLY_WINDOW = range(3)
_FLOPS_PER_ELEMENT = 4.0  # of a head, for a pair: a product and a sum, for scores and for values
_SORTED_SEQUENCES = 512.0  # assumption: a sort of sequences takes no longer beyond


@njit(cache=True)
def kernel_of(  # noqa: PLR0913, PLR0917, what a kernel is chosen by
    kernels: Floats,
    covers: NDArray[np.bool_],
    phase: int,
    latent: bool,  # noqa: FBT001  # numba takes no keywords
    head_dim: float,
    group: float,
    window: bool,  # noqa: FBT001
    queries: float,
    query_bits: float,
) -> tuple[int, bool]:
    """The first kernel for such rows, else the first of the phase that takes latent rows or does not; and if it fits.

    Args:
        kernels: float64[kernel, KERNEL_COLUMNS], in order of preference.
        covers: bool[kernel], whether it reads the row's cache format.
        phase: PREFILL or DECODE.
        latent: whether all heads share one latent key.
        head_dim: elements of a query's head.
        group: query heads per KV head.
        window: whether queries see a limited number of keys.
        queries: new tokens of a mean sequence.
        query_bits: of an element of queries.
    """
    best, best_score = -1, -1
    for index in range(len(kernels)):
        kernel = kernels[index]
        if kernel[PHASE] != phase:
            continue
        fits = kernel[HEAD_DIM_LOW] <= head_dim <= kernel[HEAD_DIM_HIGH] and (
            kernel[GROUP_LOW] <= group <= kernel[GROUP_HIGH]
        )
        wanted = ONLY_WINDOW if window else NO_WINDOW
        fits = fits and (kernel[WINDOW] == ANY_WINDOW or kernel[WINDOW] == wanted)
        fits = fits and (kernel[QUERY_BITS] == 0.0 or kernel[QUERY_BITS] == query_bits)
        fits = fits and kernel[QUERIES_LOW] <= queries <= kernel[QUERIES_HIGH]
        score = 4 * (kernel[LATENT] == latent) + 2 * covers[index] + fits
        if score > best_score:
            best, best_score = index, score
    return best, best_score == 7  # noqa: PLR2004  # all of it


@njit(cache=True)
def row_s(
    prefill: Work,
    decode: Work,
    prefill_kernel: Floats,
    decode_kernel: Floats,
    multiprocessors: float,
) -> tuple[float, int]:
    """Time and bound of a row. Kernels that take decodes beside prefill cut both into tiles of one launch.

    Others run one kernel after the other. A launch of both never ends before decode alone would, with the products of
    prefill on top.
    """
    if prefill.tokens <= 0.0:
        return part_s(decode, decode_kernel, multiprocessors)
    prefill_s, bound = part_s(prefill, prefill_kernel, multiprocessors)
    if decode.tokens <= 0.0:
        return prefill_s, bound
    decode_s, _ = part_s(decode, decode_kernel, multiprocessors)
    if prefill_kernel[TAKES_DECODES] == 0.0:
        return prefill_s + decode_s, bound
    both_s, bound = _launch_s(prefill, decode, prefill_kernel, multiprocessors)
    computing_s = prefill.pairs * prefill.heads * prefill.pair_flops * prefill_kernel[S_PER_FLOP]
    return max(both_s, prefill_s, decode_s + computing_s), bound


@njit(cache=True)
def part_s(work: Work, kernel: Floats, multiprocessors: float) -> tuple[float, int]:
    """Time and bound of prefill alone or of decode alone."""
    none = Work(0.0, 0.0, 0.0, 0.0, np.inf, work.heads, work.kv_heads, work.pair_flops, 0.0, 0.0)
    return _launch_s(work, none, kernel, multiprocessors)


@njit(cache=True)
def _launch_s(first: Work, second: Work, kernel: Floats, multiprocessors: float) -> tuple[float, int]:
    """One launch over both parts: set-up, then tiles while bytes move; `overlap` says how well the two overlap."""
    body_s = _tiles_s(first, second, kernel, multiprocessors)
    query_bytes, key_bytes = first.query_bytes + second.query_bytes, first.key_bytes + second.key_bytes
    memory_s = _dram_s(query_bytes + key_bytes, kernel) + _reread_s(second, kernel, multiprocessors)
    sequences = first.sequences + second.sequences
    latency_s = kernel[LAUNCH_S] + kernel[LAUNCH_S_PER_ELEMENT] * first.pair_flops / _FLOPS_PER_ELEMENT
    latency_s += first.tokens * kernel[S_PER_TOKEN]
    if kernel[SCHEDULED_SEQUENCES] == 0.0 or sequences <= kernel[SCHEDULED_SEQUENCES]:
        planned = sequences * (first.kv_heads if kernel[SCHEDULED_SEQUENCES] > 0.0 else 1.0)
        latency_s += planned * kernel[S_PER_SEQUENCE] + sequences * first.heads * kernel[S_PER_HEAD]
        sorted_s = kernel[S_PER_SORTED_PAIR] + first.heads * kernel[S_PER_SORTED_HEAD]
        latency_s += sorted_s * min(sequences, _SORTED_SEQUENCES) ** 2
    latency_s += _idle_tiles(first, second, kernel) * kernel[IDLE_TILE_S]
    moved_s = kernel[S_PER_QUERY_BYTE] * query_bytes + kernel[S_PER_KEY_BYTE] * first.key_bytes
    slower_s = max(body_s, memory_s, 1e-30)
    power = kernel[OVERLAP]
    together_s = slower_s * ((body_s / slower_s) ** power + (memory_s / slower_s) ** power) ** (1.0 / power)
    time_s = max(latency_s + moved_s + together_s, kernel[FLOOR_S])
    latency_s = max(latency_s, kernel[FLOOR_S])
    if latency_s >= time_s / 2:
        return time_s, LATENCY
    # Without the rows that pad a tile: a tile of one decoded token waits for keys, however busy it looks.
    products = first.pairs * first.heads * first.pair_flops + second.pairs * second.heads * second.pair_flops
    return time_s, COMPUTE if products * kernel[S_PER_FLOP] >= memory_s else MEMORY


@njit(cache=True)
def _dram_s(nbytes: float, kernel: Floats) -> float:
    """Reads of a cache that a repeated measurement finds in L2 (`KEPT_BYTES` is 0 elsewhere), others from DRAM."""
    kept = kernel[KEPT_BYTES]
    hit = nbytes if nbytes <= kept else 0.0
    if 0.0 < kept < nbytes < 2.0 * kept:
        hit = nbytes * (2.0 * kept - nbytes) / kept
    seconds: float = hit * kernel[S_PER_KEPT_BYTE] + (nbytes - hit) * kernel[S_PER_DRAM_BYTE]
    return seconds


@njit(cache=True)
def _reread_s(decode: Work, kernel: Floats, multiprocessors: float) -> float:
    """Decodes as tiles of a prefill kernel that does not pack heads: further reads of keys that heads do not share.

    Tiles run sequence by sequence, then head by head. Heads of a KV head share a read if they run together, or if the
    keys of all sequences stay in L2 from one head to the next.
    """
    if kernel[SHARED_BYTES] == 0.0 or kernel[PACKS_HEADS] > 0.0 or decode.tokens <= 0.0:
        return 0.0
    group, each = decode.heads / decode.kv_heads, decode.key_bytes / decode.kv_heads
    passes = np.ceil(group * decode.sequences / (kernel[TOGETHER] * multiprocessors) - 1e-9)
    reads = min(group, max(1.0, passes))
    missed = min(1.0, max(0.0, each / kernel[SHARED_BYTES] - 1.0))
    seconds: float = (reads - 1.0) * missed * decode.key_bytes * kernel[S_PER_DRAM_BYTE]
    return seconds


@njit(cache=True)
def _late_s(decode: Work, kernel: Floats, multiprocessors: float) -> float:
    """How much later the last tiles of a decode end in a model than in a benchmark; 0 in the benchmark."""
    if kernel[LATE_S] <= 0.0:
        return 0.0
    tiles = decode.sequences * (decode.kv_heads if kernel[PACKS_HEADS] > 0.0 else decode.heads)
    read = 1.0 if kernel[LATE_BYTES] <= 0.0 else min(1.0, decode.key_bytes / kernel[LATE_BYTES])
    seconds: float = kernel[LATE_S] * min(1.0, tiles / multiprocessors) * read
    return seconds


@njit(cache=True)
def _idle_tiles(prefill: Work, decode: Work, kernel: Floats) -> float:
    """Tiles that find nothing to do: a launch has as many for a decode as for a prompt's new tokens."""
    if decode.tokens <= 0.0 or kernel[PACKS_HEADS] > 0.0:
        return 0.0
    longest = np.ceil(prefill.tokens / prefill.sequences / kernel[QUERY_TILE] - 1e-9)
    idle: float = max(0.0, longest - 1.0) * decode.sequences * decode.heads
    return idle


@njit(cache=True)
def _tiles_s(first: Work, second: Work, kernel: Floats, multiprocessors: float) -> float:
    """Waves of the tiles of both parts; a kernel that splits keys does so where it pays."""
    tile_s = kernel[TILE_S] + kernel[TILE_S_PER_ELEMENT] * first.pair_flops / _FLOPS_PER_ELEMENT
    block_pairs = kernel[QUERY_TILE] * kernel[KEY_TILE]
    s_per_pair = kernel[S_PER_FLOP] * multiprocessors
    count, total_s, longest_s, blocks_s, least_s, merge_s = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for work, extra_s in ((first, 0.0), (second, kernel[DECODE_BLOCK_S])):
        if work.tokens <= 0.0:
            continue
        block_s = extra_s + kernel[BLOCK_S] + block_pairs * (work.pair_flops + kernel[SOFTMAX_FLOPS]) * s_per_pair
        tiles = _tiles(work, kernel)
        parts = _planned_parts(tiles.number, work, kernel, multiprocessors)
        count += tiles.number * parts
        blocks_s += tiles.number * tiles.blocks * block_s
        total_s += tiles.number * (parts * tile_s + tiles.blocks * block_s)
        longest_s = max(longest_s, tile_s + tiles.longest_blocks / parts * block_s)
        least_s = max(least_s, block_s)
        if parts > 1.0 or tiles.number <= kernel[SPLIT_TILES]:
            merge_s = max(merge_s, kernel[MERGE_S] + tiles.number * kernel[MERGE_TILE_S])
    waves = count / (multiprocessors * kernel[RESIDENT])
    waves += kernel[WHOLE_WAVES] * (np.ceil(waves) - waves)
    whole_s: float = max(longest_s, waves * total_s / count) + merge_s
    if kernel[SPLITS_KEYS] == 0.0:
        return whole_s
    filled = multiprocessors * kernel[SPLIT_FILL]
    if kernel[MAX_SPLITS] > 0.0:
        filled = min(filled, count * kernel[MAX_SPLITS])
    split_s: float = waves * tile_s + max(least_s, blocks_s / filled) + kernel[MERGE_S]
    return min(whole_s, split_s)


@njit(cache=True)
def _planned_parts(tiles: float, work: Work, kernel: Floats, multiprocessors: float) -> float:
    """Parts in which a tile's keys are cut before anything is known of times, of which those with keys count.

    By the number of keys alone, windows or not, while there is room for them; or all sequences alike where tiles are
    few (vLLM's Triton kernel), whose parts outside the window are empty.
    """
    if kernel[PART_KEYS] > 0.0:
        room = np.floor(kernel[PARTS_PER_MULTIPROCESSOR] * multiprocessors / tiles)
        planned: float = max(1.0, min(np.ceil(work.longest / kernel[PART_KEYS]), room))
        return planned
    if tiles > kernel[SPLIT_TILES]:
        return 1.0
    part_keys = np.ceil(work.longest / (kernel[MAX_SPLITS] * kernel[KEY_TILE])) * kernel[KEY_TILE]
    with_keys: float = max(1.0, np.ceil(min(work.longest, work.window) / part_keys))
    return with_keys


@njit(cache=True)
def _tiles(work: Work, kernel: Floats) -> Tiles:
    """Tiles of `work.sequences` equal sequences, and the blocks of keys they walk along.

    Blocks outside the window count for as much as the kernel spends on them.
    """
    queries = work.tokens / work.sequences
    group = work.heads / work.kv_heads if kernel[PACKS_HEADS] > 0.0 else 1.0
    heads = work.kv_heads if kernel[PACKS_HEADS] > 0.0 else work.heads
    row_tiles = np.ceil(queries * group / kernel[QUERY_TILE] - 1e-9)
    width = min(queries, max(1.0, kernel[QUERY_TILE] / group))
    mean_keys, key_tile, outside = work.pairs / work.tokens, kernel[KEY_TILE], kernel[OUTSIDE_WINDOW]
    blocks, longest = _blocks(mean_keys, work.longest, work.window, queries, width, row_tiles, key_tile)
    if outside > 0.0 and work.window < work.longest:
        every = max(mean_keys, work.longest - (queries - 1.0) / 2)
        all_blocks, all_longest = _blocks(every, work.longest, np.inf, queries, width, row_tiles, key_tile)
        blocks, longest = blocks + outside * (all_blocks - blocks), longest + outside * (all_longest - longest)
    return Tiles(work.sequences * heads * row_tiles, blocks, longest)


@njit(cache=True)
def _blocks(
    mean_keys: float,
    longest: float,
    window: float,
    queries: float,
    width: float,
    row_tiles: float,
    key_tile: float,
) -> tuple[float, float]:
    """Blocks of keys of a mean tile, and of the longest one.

    A tile's rows see keys up to their own position, and from their own window's start: beyond the pairs that count,
    a tile computes half its queries' width at the end, and as much at the start where windows cut keys off. Blocks that
    tiles do not end on add half a block at either end.
    """
    cut = min(1.0, max(0.0, (longest - window) / queries))
    if queries <= 1.0:
        cut = 1.0 if mean_keys >= window else 0.0
    longest = min(longest, window + width - 1.0)
    keys = mean_keys + (width - 1.0) / 2 * (1.0 + cut)
    if row_tiles <= 1.0:
        blocks = max(1.0, (keys - 1.0) / key_tile + 1.0 if cut > 0.0 else np.ceil(keys / key_tile - 1e-9))
    else:
        blocks = max(1.0, keys / key_tile + max(0.0, 1.0 - width / key_tile) / 2 + cut / 2)
    return blocks, max(blocks, longest / key_tile)


@njit(cache=True)
def works_of(columns: Columns, row: int, element_bytes: float) -> tuple[Work, Work, bool]:
    """The prefill part and the decode part of a row, and whether all heads share one latent key.

    Queries are read and results of the same size written; what else is read are keys and values. Latent attention
    stores fewer elements per token than one KV head of its queries' width would; its prefill rebuilds keys per head
    unless its queries are wider than what is stored (the absorbed form).
    """
    n, stored, heads = float(columns.n[row]), float(columns.k[row]), float(columns.groups[row])
    latent = stored * heads < 2.0 * n - 0.5
    kv_heads = 1.0 if latent else max(1.0, np.round(stored * heads / (2.0 * max(n, 1.0))))
    rebuilt = latent and n <= stored * heads
    window = float(columns.window[row]) if columns.window[row] > 0 else np.inf
    decode_tokens = float(columns.decode_m[row])
    keys = columns.decode_flops[row] / max(columns.decode_pair_flops[row], 1.0)
    key_bytes = min(keys * stored * element_bytes, columns.decode_read_bytes[row])
    result_bytes = columns.decode_read_bytes[row] - key_bytes
    decode = Work(
        decode_tokens,
        decode_tokens,
        keys,
        max(float(columns.longest_decode[row]), keys / max(decode_tokens, 1.0)),
        window,
        heads,
        kv_heads,
        columns.decode_pair_flops[row] / heads,
        2.0 * result_bytes,
        key_bytes,
    )
    tokens = float(columns.m[row]) - decode_tokens
    sequences = min(tokens, max(1.0, float(columns.prefill_sequences[row])))
    pairs = (columns.flops[row] - columns.decode_flops[row]) / max(columns.prefill_pair_flops[row], 1.0)
    written_bytes = max(0.0, columns.write_bytes[row] - result_bytes)
    read_bytes = columns.read_bytes[row] - columns.decode_read_bytes[row] + columns.weight_bytes_read[row]
    prefill = Work(
        sequences,
        tokens,
        pairs,
        max(float(columns.longest_prefill[row]), pairs / max(tokens, 1.0)),
        window,
        heads,
        heads if rebuilt else kv_heads,
        columns.prefill_pair_flops[row] / heads,
        min(2.0 * written_bytes, read_bytes + written_bytes),
        max(0.0, read_bytes - written_bytes),
    )
    return prefill, decode, latent


@njit(cache=True)
def _recurrence_s(columns: Columns, row: int, kernel: Floats) -> tuple[float, int]:
    """A recurrence over a state, which has no pairs of queries and keys: priced by FLOPs and bytes alone."""
    nbytes = columns.read_bytes[row] + columns.write_bytes[row] + columns.weight_bytes_read[row]
    compute_s, memory_s = columns.flops[row] * kernel[S_PER_FLOP], nbytes * kernel[S_PER_DRAM_BYTE]
    body_s = max(compute_s, memory_s)
    if kernel[LAUNCH_S] >= body_s:
        return kernel[LAUNCH_S] + body_s, LATENCY
    return kernel[LAUNCH_S] + body_s, COMPUTE if compute_s >= memory_s else MEMORY


@njit(cache=True)
def _absorbed(prefill: Work, decode: Work) -> Work:
    """Prefill as a kernel runs it that attends in the latent space, where the operator rebuilds keys per head."""
    return Work(
        prefill.sequences,
        prefill.tokens,
        prefill.pairs,
        prefill.longest,
        prefill.window,
        prefill.heads,
        decode.kv_heads,
        decode.pair_flops,
        prefill.query_bytes * decode.pair_flops / max(prefill.pair_flops, 1.0),
        prefill.key_bytes / prefill.heads,
    )


@njit(cache=True)
def _choice(
    columns: Columns, row: int, kernels: Floats, covers: NDArray[np.bool_], element_bytes: Floats
) -> tuple[Work, Work, bool, tuple[int, bool], tuple[int, bool]]:
    """The parts of a row, whether heads share a latent key, and for each part its kernel and whether that fits."""
    dtype = columns.weight_dtype[row]
    prefill, decode, latent = works_of(columns, row, element_bytes[dtype])
    bits = min(16.0, 8.0 * element_bytes[columns.query_dtype[row]])
    shape = latent, columns.n[row] / columns.groups[row], prefill.heads / decode.kv_heads, prefill.window < np.inf
    queries = prefill.tokens / max(prefill.sequences, 1.0)
    first = kernel_of(kernels, covers[dtype], PREFILL, *shape, queries, bits)
    second = kernel_of(kernels, covers[dtype], DECODE, *shape, 1.0, bits)
    return prefill, decode, latent, first, second


@njit(cache=True)
def price_rows(
    columns: Columns,
    rows: Ints,
    kernels: Floats,
    covers: NDArray[np.bool_],
    element_bytes: Floats,
    multiprocessors: float,
    outputs: tuple[Floats, NDArray[np.int8], NDArray[np.bool_]],
    learning: tuple[Ints, Floats],
) -> None:
    """Write time, bound and whether a kernel was measured for such work into `outputs`, for the given rows.

    Args:
        columns: the table's.
        rows: the rows to price.
        kernels: float64[kernel, KERNEL_COLUMNS].
        covers: bool[cache dtype, kernel].
        element_bytes: float64[cache dtype].
        multiprocessors: of the GPU.
        outputs: float64[row] times in seconds, int8[row] bounds, and bool[row], which is set where no kernel fits.
        learning: int64[index of `rows`], which residual may correct a row: the number of the kernel where a row only
            prefills or only decodes, that of the prefill kernel and the number of all kernels where it does both, -1
            where none fits or the host takes longer; and float64[index of `rows`, RESIDUAL_FEATURES], written for such
            rows unless it has no lines.
    """
    time_s, bound, extrapolated = outputs
    chosen, features = learning
    for index, row in enumerate(rows):
        chosen[index] = -1
        if columns.m[row] <= 0:
            continue
        prefill, decode, latent, (first, fits), (second, fits_decode) = _choice(
            columns, row, kernels, covers, element_bytes
        )
        if latent and kernels[first][ABSORBS] > 0.0:
            prefill = _absorbed(prefill, decode)
        if prefill.pair_flops + decode.pair_flops <= 0.0:
            price = _recurrence_s(columns, row, kernels[first if prefill.tokens > 0.0 else second])
            time_s[row], bound[row] = price
            extrapolated[row] = True
            continue
        price = row_s(prefill, decode, kernels[first], kernels[second], multiprocessors)
        time_s[row], bound[row] = price
        at_floor = time_s[row] <= kernels[first if prefill.tokens > 0.0 else second][FLOOR_S]
        measured = (fits or prefill.tokens <= 0.0) and (fits_decode or decode.tokens <= 0.0)
        extrapolated[row] = extrapolated[row] or not measured
        if measured and not at_floor:
            mixed = prefill.tokens > 0.0 and decode.tokens > 0.0
            chosen[index] = first + len(kernels) if mixed else second if prefill.tokens <= 0.0 else first
            if len(features) > 0:
                window, line = float(columns.window[row]), features[index]
                _write_features(decode if prefill.tokens <= 0.0 else prefill, time_s[row], window, line)
                if mixed:
                    _write_features(decode, time_s[row], window, line[_PART_FEATURES:])
        if prefill.tokens <= 0.0:
            time_s[row] += _late_s(decode, kernels[second], multiprocessors)  # after what residuals look at


@njit(cache=True)
def kernels_of_rows(
    columns: Columns, rows: Ints, kernels: Floats, covers: NDArray[np.bool_], element_bytes: Floats
) -> NDArray[np.int64]:
    """int64[row, 2]: kernels that price the prefill and the decode part of the given rows (see `price_rows`)."""
    chosen = np.zeros((len(rows), 2), np.int64)
    for index, row in enumerate(rows):
        _, _, _, first, second = _choice(columns, row, kernels, covers, element_bytes)
        chosen[index, 0], chosen[index, 1] = first[0], second[0]
    return chosen


@njit(cache=True)
def _write_features(work: Work, time_s: float, window: float, features: Floats) -> None:
    """What a learned correction looks at, of the prefill or the decode part of a row.

    Base-2 logarithms of the row's time, sequences, tokens per sequence, longest sequence, heads, KV heads, heads per KV
    head, pairs, bytes, sequences times KV heads; then elements of a head, and the window (0 without one). Decodes of
    unequal length are as many of the mean, which is what corrections have seen.
    """
    is_equal = work.tokens > work.sequences or work.window < work.longest
    longest = work.longest if is_equal else work.pairs / max(work.tokens, 1.0)
    quantities = (
        time_s,
        work.sequences,
        work.tokens / max(work.sequences, 1.0),
        longest,
        work.heads,
        work.kv_heads,
        work.heads / work.kv_heads,
        work.pairs,
        work.query_bytes + work.key_bytes,
        work.sequences * work.kv_heads,
    )
    for column, quantity in enumerate(quantities):
        features[column] = np.log2(max(quantity, 1e-9))
    features[len(quantities)] = work.pair_flops / _FLOPS_PER_ELEMENT
    features[len(quantities) + 1] = window
