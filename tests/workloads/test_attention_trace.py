import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moesim.errors import DataError
from moesim.workloads.attention_trace import COUNTS, MASSES, METADATA_KEY, read_attention_trace

HEADER = {
    "format": 1,
    "model": "m",
    "layers": 2,
    "heads": 3,
    "sink_keys": 4,
    "local_keys": 64,
    "every": 16,
    "window_tokens": [0, 8],
    "source": "made",
    "names": ["a"],
    "groups": [""],
    "first_decode_position": [17],
}


def table(rows=3, width=6):
    values = np.arange(rows * width)
    lists = {name: pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.uint16)), width) for name in COUNTS}
    lists |= {name: pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float16)), width) for name in MASSES}
    index = {
        "request": pa.array(np.zeros(rows, np.int32)),
        "position": pa.array(np.array([0, 16, 17], np.int32)[:rows]),
        "phase": pa.array(np.array([0, 0, 1], np.uint8)[:rows]),
    }
    return pa.table(index | lists)


@pytest.fixture
def write(tmp_path):
    def run(data, header=HEADER):
        path = tmp_path / "attention.parquet"
        pq.write_table(data.replace_schema_metadata({METADATA_KEY: json.dumps(header).encode()}), path)
        return path

    return run


def test_arrays_have_layers_and_heads(write):
    trace = read_attention_trace(write(table()))
    assert trace.keys["keys_95"].shape == (3, 2, 3)
    assert trace.masses["entropy"][1].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert trace.header.first_decode_position == (17,)


def test_windows_limit_what_is_visible(write):
    assert read_attention_trace(write(table())).visible_keys().tolist() == [[1, 1], [17, 8], [18, 8]]


@pytest.mark.parametrize(
    ("data", "header", "message"),
    [
        (table().drop_columns(["entropy"]), HEADER, r"lacks, got \['entropy'\]"),
        (table(width=4), HEADER, r"keys_90: must be lists of 6 values"),
        (table(), HEADER | {"format": 2}, "format: must be 1, got 2"),
        (table(), HEADER | {"heads": 0}, "heads"),
    ],
)
def test_what_is_no_attention_trace(write, data, header, message):
    with pytest.raises(DataError, match=message):
        read_attention_trace(write(data, header))


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "attention.parquet"
    with pytest.raises(DataError, match="no such file"):
        read_attention_trace(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        read_attention_trace(path)
    pq.write_table(table(), path)
    with pytest.raises(DataError, match="must be that of an attention trace, as JSON"):
        read_attention_trace(path)
