"""Files of measured kernels: round trip, and every broken file refused by name, rule and value."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moesim.errors import DataError
from moesim.hw_models.measure.measured import (
    About,
    Clocks,
    Machine,
    MeasuredKernels,
    Measurement,
    Skipped,
    read_measured,
    write_measured,
)

MACHINE = Machine(
    gpu="made for tests",
    compute_capability="9.0",
    multiprocessors=100,
    l2_bytes=50_000_000,
    memory_bytes=80_000_000_000,
    driver="1.2.3",
    clocks_after=Clocks(sm_mhz=1980.0),
    libraries={"numba": "0.68.1"},
)
SKIPPED = Skipped(kernel="gemm", implementation="torch", dtype="bf16", shape="m=1 n=2 k=3", reason="no")
ABOUT = About(
    machine=MACHINE, moesim="0.1.0", started="2026-01-01T00:00:00+00:00", seed=3, planned=5, skipped=(SKIPPED,)
)


def row(kernel, shape, lengths=(), **others):
    values = {
        "kernel": kernel,
        "implementation": "moesim",
        "dtype": "fp16",
        "shape": shape,
        "lengths": lengths,
        "flops": 2e9,
        "read_bytes": 3e6,
        "write_bytes": 1e6,
        "buffer_sets": 3,
        "launches": 10,
        "samples_s": (2e-4, 1e-4, 4e-4),
        "error": 1e-4,
    }
    return Measurement(**(values | others))


ROWS = (
    row("gemm", {"m": 8, "n": 16, "k": 32}),
    row("grouped_gemm", {"m": 8, "n": 16, "k": 32, "experts": 3}, (5, 0, 3)),
    row(
        "decode_attention",
        {"sequences": 2, "heads": 8, "kv_heads": 2, "head_dim": 64, "page_tokens": 16},
        (100, 7),
        flops=0.0,
    ),
    row("permute", {"tokens": 4, "experts": 3, "top_k": 2, "hidden": 8}, (8, 0, 0)),
)
MEASURED = MeasuredKernels(ABOUT, ROWS)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "measured.parquet"
    write_measured(MEASURED, path)
    return path


def test_round_trip(path):
    assert read_measured(path) == MEASURED
    assert MEASURED.is_complete
    assert list(path.parent.iterdir()) == [path]


def test_a_run_without_all_its_rows_is_incomplete(path):
    write_measured(replace(MEASURED, rows=ROWS[:2]), path)
    assert not read_measured(path).is_complete


def test_statistics_and_rates():
    assert ROWS[0].median_s == 2e-4
    assert ROWS[0].spread == pytest.approx((3e-4 - 1.5e-4) / 2e-4)
    assert ROWS[0].flops_per_s == pytest.approx(1e13)
    assert ROWS[0].bytes_per_s == pytest.approx(2e10)


def test_other_programs_can_read_the_columns(path):
    table = pq.read_table(path)
    assert table.column("m").to_pylist() == [8, 8, None, None]
    assert table.column("median_s").to_pylist() == [2e-4] * 4
    about = json.loads(table.schema.metadata[b"moesim.measured_kernels"])
    assert about["format"] == 1
    assert about["machine"]["gpu"] == "made for tests"


def with_value(path, column, line, value):
    table = pq.read_table(path)
    values = table.column(column).to_pylist()
    values[line] = value
    place = table.column_names.index(column)
    changed = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    pq.write_table(changed, path)


@pytest.mark.parametrize(
    ("column", "line", "value", "message"),
    [
        ("kernel", 0, "gem", "row 1: kernel: must be one of copy, .*, got 'gem'"),
        ("kernel", 0, None, "row 1: kernel: must be one of"),
        ("dtype", 1, "fp8", "row 2: dtype: must be one of fp32, fp16, bf16, got 'fp8'"),
        ("implementation", 2, "", "row 3: implementation: required"),
        ("m", 0, 0, "row 1: m: must be a whole number >= 1, got 0"),
        ("n", 1, None, "row 2: n: must be a whole number >= 1, got 'nothing'"),
        ("heads", 2, 7, "row 3: heads: must be a multiple of kv_heads, 2, got 7"),
        ("top_k", 3, 5, "row 4: top_k: must be <= experts, 3, got 5"),
        ("flops", 0, -1.0, "row 1: flops: must be a finite number >= 0, got -1.0"),
        ("read_bytes", 0, float("nan"), "row 1: read_bytes: must be a finite number >= 0, got nan"),
        ("error", 2, float("inf"), "row 3: error: must be a finite number >= 0, got inf"),
        ("launches", 0, 0, "row 1: launches: must be a whole number >= 1, got 0"),
        ("lengths", 0, [1], r"row 1: lengths: must hold 0 numbers, got \[1\]"),
        ("lengths", 1, [5, 3], r"row 2: lengths: must hold 3 numbers, got \[5, 3\]"),
        ("lengths", 1, [5, 1, 3], "row 2: lengths: must add up to 8, got 9"),
        ("lengths", 1, [9, -1, 0], "row 2: lengths: must be a whole number >= 0, got -1"),
        ("lengths", 2, [100, 0], "row 3: lengths: must be a whole number >= 1, got 0"),
        ("samples_s", 0, [], r"row 1: samples_s: must hold at least one number, got \[\]"),
        ("samples_s", 0, None, "row 1: samples_s: must hold at least one number, got 'nothing'"),
        ("samples_s", 0, [1e-4, 0.0], "row 1: samples_s: must be finite numbers > 0, got 0.0"),
        ("median_s", 0, 3e-4, "row 1: median_s: must be that of samples_s, 0.0002, got 0.0003"),
        ("spread", 1, 0.0, "row 2: spread: must be that of samples_s, 0.75, got 0.0"),
    ],
)
def test_a_wrong_value_is_refused(path, column, line, value, message):
    with_value(path, column, line, value)
    with pytest.raises(DataError, match=f"measured.parquet: {message}"):
        read_measured(path)


def with_metadata(path, change):
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"moesim.measured_kernels"])
    change(about)
    pq.write_table(table.replace_schema_metadata({b"moesim.measured_kernels": json.dumps(about).encode()}), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(format=2), "format: must be 1, got 2"),
        (lambda about: about.pop("machine"), "machine"),
        (lambda about: about["machine"].pop("gpu"), "machine.gpu"),
        (lambda about: about["machine"].update(multiprocessors=0), "machine.multiprocessors"),
        (lambda about: about.update(extra=1), "extra"),
        (lambda about: about.update(planned=-1), "planned"),
    ],
)
def test_wrong_metadata_is_refused(path, change, message):
    with_metadata(path, change)
    with pytest.raises(DataError, match=f"measured.parquet: metadata moesim.measured_kernels: .*{message}"):
        read_measured(path)


def test_files_that_are_none(path, tmp_path):
    with pytest.raises(DataError, match=r"none\.parquet: no such file"):
        read_measured(tmp_path / "none.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"measured\.parquet: must be a whole parquet file"):
        read_measured(path)


def test_another_parquet_file_is_refused(tmp_path):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"m": [1]}), other)
    with pytest.raises(DataError, match=r"other\.parquet: metadata moesim.measured_kernels: must be that of measured"):
        read_measured(other)


def test_a_missing_column_is_refused(path):
    pq.write_table(pq.read_table(path).drop_columns(["samples_s"]), path)
    with pytest.raises(DataError, match=r"measured\.parquet: columns: .*, got 'none named samples_s'"):
        read_measured(path)


def test_a_failing_disk_leaves_the_earlier_file(path, monkeypatch):
    before = path.read_bytes()

    def full(*_arguments: object, **_options: object):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        write_measured(replace(MEASURED, rows=ROWS[:1]), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
