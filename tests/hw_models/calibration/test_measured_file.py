"""Files of `moesim measure` as measured operators."""

import numpy as np
import pytest

from moesim.errors import DataError
from moesim.hw_models.calibration.measured_file import KERNELS, read_measured_kernels, streaming
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU
from moesim.hw_models.measure.attention_problems import DecodeAttention, PrefillAttention
from moesim.hw_models.measure.matrix_problems import ExpertFfn, Gemm, GroupedGemm
from moesim.hw_models.measure.measured import About, Machine, MeasuredKernels, Measurement, write_measured
from moesim.hw_models.measure.memory_problems import Copy, Permute, Triad
from moesim.hw_models.measure.problem import Problem
from moesim.hw_models.measure.suite import all_problems, plan
from moesim.workloads.operator_table import ATTENTION, DTYPE_CODES, ELEMENTWISE, FORMS, GEMM, GROUPED_GEMM

MACHINE = Machine(
    gpu="made for tests",
    compute_capability="9.0",
    multiprocessors=100,
    l2_bytes=50_000_000,
    memory_bytes=80_000_000_000,
    libraries={"numba": "0.68.1", "torch": "2.13.0"},
)


@pytest.fixture
def read_rows(tmp_path):
    """A function that saves measurements and reads the file."""

    def run(rows, **options):
        about = About(machine=MACHINE, moesim="0.1.0", started="2026-01-01", seed=0, planned=len(rows))
        path = tmp_path / "measured.parquet"
        write_measured(MeasuredKernels(about, tuple(rows)), path)
        return read_measured_kernels(path, **options)

    return run


@pytest.fixture
def read(read_rows):
    """A function that saves problems as if they had been measured, and reads the file; each took 1 ms more."""

    def run(*problems: Problem, by="moesim"):
        return read_rows([measured(problem, by, 1e-3 * number) for number, problem in enumerate(problems, 1)])

    return run


def measured(problem, by, median_s):
    return Measurement(
        kernel=problem.kernel,
        implementation=by,
        dtype=problem.dtype,
        shape=problem.shape,
        lengths=problem.lengths,
        **problem.work._asdict(),
        buffer_sets=2,
        launches=5,
        samples_s=(median_s,),
        error=0.0,
    )


def test_products(read):
    problem = Gemm(8, 4096, 1024, "bf16")
    (found,) = read(problem, Gemm(64, 4096, 1024, "bf16"), Gemm(8, 512, 1024, "bf16"), by="torch")
    table = found.table
    assert (table.form == GEMM).all()
    assert (table.weight_dtype == DTYPE_CODES["bf16"]).all()
    assert (table.m.tolist(), table.n.tolist(), table.k.tolist()) == ([8, 64, 8], [4096, 4096, 512], [1024] * 3)
    assert table.flops[0] == problem.work.flops
    assert table.weight_bytes_read[0] + table.read_bytes[0] == problem.work.read_bytes
    assert table.write_bytes[0] == problem.work.write_bytes
    np.testing.assert_allclose(found.time_s, [1e-3, 2e-3, 3e-3])
    assert found.group[0] == found.group[1] != found.group[2]
    assert found.source.text == "moesim measure, torch 2.13.0 on made for tests, gemm bf16"
    assert found.labels["tokens"].tolist() == [8, 64, 8]


def test_fp32_products_move_four_bytes_per_element(read):
    problem = Gemm(8, 512, 1024, "fp32")
    (found,) = read(problem)
    table = found.table
    assert table.weight_dtype[0] == DTYPE_CODES["fp32"]
    assert table.weight_bytes_read[0] + table.read_bytes[0] + table.write_bytes[0] == problem.work.moved_bytes
    assert found.source.version == "0.1.0"


def test_experts(read):
    problem = ExpertFfn(16, 32, 4, 512, 256, skewed=True)
    (found,) = read(problem, ExpertFfn(16, 8, 2, 512, 256))
    table = found.table
    assert (table.form == GROUPED_GEMM).all()
    assert table.expert_tokens.shape == (2, 32)
    assert tuple(table.expert_tokens[0]) == problem.lengths
    assert table.expert_tokens[1].sum() == 32
    assert (table.n.tolist(), table.k.tolist(), table.m.tolist()) == ([256, 256], [512, 512], [64, 32])
    assert table.flops[0] == problem.work.flops
    active = np.count_nonzero(problem.lengths)
    assert active < 32
    assert table.weight_bytes_read[0] == 2 * 3 * 512 * 256 * active
    assert table.up_matrices.tolist() == [2, 2]
    assert found.group[0] != found.group[1]
    assert found.labels["tokens"].tolist() == [16, 16]


def test_decode_attention_of_unequal_contexts(read):
    problem = DecodeAttention((100, 7, 31), 8, 2, 64)
    (found,) = read(problem)
    table = found.table
    assert table.form[0] == ATTENTION
    assert (table.m[0], table.decode_m[0], table.n[0], table.k[0]) == (3, 3, 8 * 64, 2 * 2 * 64)
    assert table.flops[0] == table.decode_flops[0] == problem.work.flops
    cache_bytes = 2 * 2 * 2 * 64 * (100 + 7 + 31)
    assert table.read_bytes[0] == cache_bytes + 2 * 3 * 8 * 64
    assert table.write_bytes[0] == problem.work.write_bytes
    assert found.labels["tokens"][0] == pytest.approx(46)


def test_prefill_attention(read):
    problem = PrefillAttention(2, 50, 8, 2, 64)
    (found,) = read(problem, by="torch")
    table = found.table
    assert (table.m[0], table.decode_m[0]) == (100, 0)
    assert table.flops[0] == problem.work.flops
    assert table.read_bytes[0] + table.write_bytes[0] == problem.work.moved_bytes


def test_copies_are_elementwise_rows(read):
    problem = Copy(1 << 20)
    (found,) = read(problem)
    table = found.table
    assert table.form[0] == ELEMENTWISE
    assert (table.read_bytes[0], table.write_bytes[0]) == (problem.work.read_bytes, problem.work.write_bytes)
    assert table.weight_bytes_read[0] == table.flops[0] == 0


def test_a_librarys_kernels_stand_in_for_ours(read_rows):
    rows = [
        measured(Gemm(8, 512, 1024, "fp16"), "moesim", 3e-3),
        measured(Gemm(8, 512, 1024, "bf16"), "torch", 1e-3),
        measured(DecodeAttention((9,), 4, 2, 8), "moesim", 2e-3),
    ]
    assert [found.source.framework for found in read_rows(rows)] == ["torch", "moesim"]
    every = read_rows(rows, vendor_first=False)
    assert [found.source.framework for found in every] == ["moesim", "torch", "moesim"]


def test_what_is_no_operator_is_left_out(read):
    with pytest.raises(DataError, match=r"measured\.parquet: must hold measurements of some of gemm, expert_ffn"):
        read(Triad(8), Permute(2, 4, 2, 8), GroupedGemm((1, 2), 4, 4))


def test_everything_that_is_measured_can_be_priced(read_rows):
    """All of the suite on an H100; prices are finite, and never below what the data sheet allows."""
    rows = [measured(one.problem, one.implementation, 1e-3) for one in plan(all_problems(), ("torch", "cupy"))]
    found = read_rows(rows, vendor_first=False)
    assert sum(len(part) for part in found) == sum(row.kernel in KERNELS for row in rows)
    device = load_device("h100-sxm").processor
    assert isinstance(device, GPU)
    processor = streaming(device)
    for part in found:
        time_s = processor.price(part.table).time_s
        moved = part.table.weight_bytes_read + part.table.read_bytes + part.table.write_bytes
        assert np.isfinite(time_s).all()
        assert (time_s > 0).all()
        elementwise = FORMS[part.table.form[0]] == "elementwise"
        assert not elementwise or (time_s >= moved / 3.35e12).all()
