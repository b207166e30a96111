import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import DataError
from moesim.simulator.growing import BLOCK_ROWS, GrowingTable, counted_percentiles


def test_rows_come_back_in_order_however_many():
    table = GrowingTable(("a", "b"))
    for number in range(5000):
        table.append((number, -number))
    assert len(table) == 5000
    assert table["a"].tolist() == list(range(5000))
    assert table["b"][-1] == -4999


def test_long_tables_go_to_disk_and_can_go_on_growing_after_a_look():
    table = GrowingTable(("a", "b"))
    expected = np.arange(2.5 * BLOCK_ROWS)
    for row, number in enumerate(expected):
        if row == 2 * BLOCK_ROWS:
            assert np.array_equal(table["a"], expected[:row])
        table.append((number, -number))
    kept = table["b"]
    assert len(table) == len(kept) == len(expected)
    del table
    assert np.array_equal(kept, -expected)  # a column outlives its table


def test_without_room_on_disk_the_error_says_where(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    table = GrowingTable(("a",))
    for number in range(BLOCK_ROWS):
        table.append((number,))
    with pytest.raises(DataError, match=r"missing: must be a folder with room .*TMPDIR"):
        table.append((0,))


def test_an_empty_table_has_empty_columns():
    assert len(GrowingTable(("a",))["a"]) == 0


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 9)), min_size=1, max_size=30))
def test_percentiles_are_those_of_the_repeated_values(pairs):
    values, counts = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    percents = [0, 1, 50, 90, 99, 100]
    expected = np.percentile(np.repeat(values, counts.astype(int)), percents)
    assert counted_percentiles(values, counts, percents) == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-9)
