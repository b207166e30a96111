"""Tiles of libraries that choose them by a reckoning of their own."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.hw_models import gpu_tiles
from moesim.hw_models.gpu_columns import Columns
from moesim.workloads.operator_table import FORMS

WIDTHS = (*range(16, 129, 16), 144, 160, 192)
TILES = np.array(
    [(rows, width, 0) for rows in (64, 128, 16, 32, 256) for width in WIDTHS if rows < 256 or width <= 128], np.int64
)
MULTIPROCESSORS = 132


def chosen(m: int, n: int, k: int, groups: int = 1) -> tuple[int, int, int, int]:
    """Rows and columns of the tile and of the cluster."""
    tile, rows, columns = gpu_tiles.least_traffic((m, n, k, groups), float(MULTIPROCESSORS), TILES)
    return int(TILES[tile, 0]), int(TILES[tile, 1]), rows, columns


def reckoning(m: int, n: int, k: int, layout: tuple[int, int, int, int]) -> int:
    """DeepGEMM's cycles, in whole numbers as it has them."""
    rows, width, cluster_rows, cluster_columns = layout
    count = -(-m // rows) * -(-n // width)
    waves = -(-count // MULTIPROCESSORS)
    stored = rows * width * 2
    through_l2 = k * (rows // cluster_columns + width // cluster_rows) + stored
    through_l1 = k * (rows + width) + k * (max(64, rows) + width) + 2 * stored
    cycles = max(through_l2 * count // int(8e6 / 1.3e3), through_l1 * count // (128 * MULTIPROCESSORS))
    return cycles * waves * MULTIPROCESSORS // count


@pytest.mark.parametrize(("m", "n", "k"), [(1, 7168, 2048), (17, 512, 7168), (300, 5120, 1536), (4096, 7168, 16_384)])
def test_no_other_tile_has_less_traffic(m: int, n: int, k: int) -> None:
    legal = [(int(rows), int(width)) for rows, width, _ in TILES if rows >= 64 or m <= rows]
    layouts = [(*tile, *cluster) for cluster, tile in itertools.product([(1, 1), (1, 2), (2, 1)], legal)]
    single = [-(-m // rows) * -(-n // width) <= MULTIPROCESSORS for rows, width, _, _ in layouts]
    allowed = [layout for layout, one in zip(layouts, single, strict=True) if not one or layout[2:] == (1, 1)]
    assert reckoning(m, n, k, chosen(m, n, k)) == min(reckoning(m, n, k, layout) for layout in allowed)


def test_a_single_wave_has_no_clusters() -> None:
    for m, n in itertools.product((1, 64, 300), (128, 2048)):
        rows, width, *cluster = chosen(m, n, 4096)
        if -(-m // rows) * -(-n // width) <= MULTIPROCESSORS:
            assert cluster == [1, 1]
    assert chosen(8192, 8192, 8192)[2:] != (1, 1)


@pytest.mark.parametrize("tokens", [16, 17, 32, 33])
def test_few_rows_are_for_few_tokens(tokens: int) -> None:
    rows = {chosen(tokens, n, 4096)[0] for n in (128, 512, 2048, 7168, 65_536)}
    assert all(item >= tokens or item >= 64 for item in rows)
    assert (min(rows) < 64) == (tokens <= 32)


def column(name: str) -> int:
    position: int = getattr(gpu_tiles, name)
    return position


def priced(tiles: list[tuple[int, int, int]], m: int, **values: float) -> NDArray[np.float64]:
    """Time and empty bytes of a product of 1,024 outputs and 4,096 inputs that multiplying bounds."""
    usual: dict[str, float] = {
        "S_PER_FLOP": 1e-15, "TILE_LATENCY_S": 0.0, "LONE_SLOWDOWN": 1.0, "GROUP_SLOWDOWN": 1.0, "UNEVEN_SLOWDOWN": 1.0,
        "ACTIVATION_BYTES": 1.0, "WEIGHT_BYTES": 1.0, "FIRST_TILE": 0, "END_TILE": len(tiles),
    }  # fmt: skip
    formats, out = np.zeros((1, gpu_tiles.TRAFFIC_COLUMNS)), np.zeros((1, 2))
    for name, value in (usual | values).items():
        formats[0, column(name)] = value
    one: Any = lambda value, kind: np.array([value], kind)  # noqa: E731
    fields: dict[str, Any] = dict.fromkeys(Columns._fields, one(0, np.int64))
    fields |= {"m": one(m, np.int64), "n": one(1024, np.int64), "k": one(4096, np.int64), "groups": one(1, np.int64)}
    fields |= {"form": one(0, np.int8), "weight_dtype": one(0, np.int8)}
    gpu_tiles.choose(Columns(**fields), formats, np.array(tiles, np.int64), float(MULTIPROCESSORS), out)
    line: NDArray[np.float64] = out[0]
    return line


def test_slow_tiles_take_longer_by_their_slowdown() -> None:
    wide, narrow, uneven = [(128, 128, 0)], [(64, 128, 0)], [(128, 112, 0)]
    for tiles, name in ((narrow, "GROUP_SLOWDOWN"), (uneven, "UNEVEN_SLOWDOWN"), ([(128, 128, 1)], "LONE_SLOWDOWN")):
        assert priced(tiles, 128, **{name: 1.5})[0] == pytest.approx(1.5 * priced(tiles, 128)[0])
        assert priced(wide, 128, **{name: 1.5})[0] == priced(wide, 128)[0]


def test_bytes_without_tokens_are_those_of_rows_that_no_token_fills() -> None:
    assert priced([(128, 128, 0)], 128)[1] == 0.0
    assert priced([(128, 128, 0)], 129)[1] == 127 * 8 * 4096


def test_other_rows_stay_as_they_are() -> None:
    assert FORMS[0] == "gemm"
    assert priced([(128, 128, 0)], 128, GROUP_SLOWDOWN=0.0).tolist() == [0.0, 0.0]
    assert priced([(128, 128, 0)], 0).tolist() == [0.0, 0.0]
