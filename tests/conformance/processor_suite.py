"""What every processor must do. A test class of a processor inherits `ProcessorSuite` and names its parameters."""

from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.hw_models.processor import BOUNDS, Processor
from moesim.workloads.operator_table import DTYPE_CODES, ELEMENTWISE, GEMM, OperatorTable
from tests.conformance.tables import (
    attention_table,
    concatenated,
    copy_table,
    experts_table,
    gemm_table,
    mixed_table,
    row_of,
)

TOKENS = np.unique(np.geomspace(1, 20_000, 120).astype(np.int64))
SHAPES = ((4096, 4096), (7168, 256), (32, 5120), (51_200, 2048))
ROUNDING = 1e-12
"""Relative room for the order of floating-point sums."""
ONE_PERCENT = 0.01
"""Room for tiles that take a little less when tokens fill them."""
FEW_PERCENT = 0.05
"""Room for a model that prices traffic of queries and results in a mixed step otherwise than in decode alone."""


class ProcessorSuite(ABC):
    """Truths about prices.

    A processor's own class supplies the methods without a body, and a fixture `processor` with each of its processors.
    """

    bandwidth_parameters: tuple[str, ...]
    """Dotted names of the parameters that are memory bandwidths."""
    rate_parameters: tuple[str, ...]
    """Dotted names of the parameters that are FLOP rates."""
    is_calibrated = True
    """Whether ordinary bf16 products were held against measurements."""

    @abstractmethod
    def scaled(self, processor: Processor, factors: dict[str, float]) -> Processor:
        """The same processor with some parameters multiplied."""

    @abstractmethod
    def peak_flops_per_s(self, processor: Processor) -> float:
        """Datasheet rate in bf16."""

    def peak_mxfp4_flops_per_s(self, processor: Processor) -> float:
        """Datasheet rate with mxfp4 weights; another than in bf16 where there are units for it."""
        return self.peak_flops_per_s(processor)

    @abstractmethod
    def peak_bytes_per_s(self, processor: Processor) -> float:
        """Datasheet memory bandwidth."""

    def cached_bytes(self, processor: Processor) -> tuple[float, float]:  # noqa: ARG002
        """Activations of products, and operands of elementwise work, that never go to DRAM."""
        return 0.0, 0.0

    @abstractmethod
    def sustained(self, processor: Processor) -> tuple[float, float]:
        """FLOP/s of large bf16 products, and B/s of large copies."""

    def test_no_rows_cost_nothing(self, processor: Processor) -> None:
        assert len(processor.price(row_of(mixed_table(), 99))) == 0

    def test_no_tokens_cost_nothing(self, processor: Processor) -> None:
        cost = processor.price(concatenated([gemm_table(0, 4096, 4096), experts_table([[0, 0]], 64, 64)]))
        assert not cost.time_s.any()
        assert not cost.energy_j.any()
        assert not cost.extrapolated.any()

    def test_work_takes_time_and_energy(self, processor: Processor) -> None:
        table = mixed_table()
        cost = processor.price(table)
        assert np.all((cost.time_s > 0) == (table.m > 0))
        assert np.all((cost.energy_j > 0) == (table.m > 0))
        assert np.all((cost.bound >= 0) & (cost.bound < len(BOUNDS)))

    def test_a_row_costs_the_same_alone_and_among_others(self, processor: Processor) -> None:
        table = mixed_table()
        together = processor.price(table)
        for row in range(len(table)):
            alone = processor.price(row_of(table, row))
            assert alone.time_s[0] == together.time_s[row]
            assert alone.energy_j[0] == together.energy_j[row]
            assert alone.extrapolated[0] == together.extrapolated[row]

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", ["bf16", "fp8_block", "mxfp4"])
    def test_more_tokens_never_take_less_time(self, processor: Processor, shape: tuple[int, int], dtype: str) -> None:
        assert_rising(processor, gemm_table(TOKENS, *shape, dtype))

    @pytest.mark.parametrize("m", [1, 100, 5000])
    def test_wider_products_never_take_less_time(self, processor: Processor, m: int) -> None:
        assert_rising(processor, gemm_table(m, TOKENS, 4096))
        assert_rising(processor, gemm_table(m, 4096, TOKENS))

    def test_more_bytes_never_take_less_time(self, processor: Processor) -> None:
        assert_rising(processor, copy_table(np.geomspace(1, 1e10, 100)))

    @pytest.mark.parametrize("dtype", ["bf16", "fp8_block", "mxfp4"])
    def test_more_tokens_per_expert_never_take_less_time(self, processor: Processor, dtype: str) -> None:
        assert_rising(processor, experts_table(np.outer(TOKENS, [1, 2, 0, 3]), 1024, 2048, dtype), ONE_PERCENT)

    def test_tokens_on_one_expert_read_less_but_do_not_compute_faster(self, processor: Processor) -> None:
        few, many = np.array([[8, 0, 0, 0, 0, 0, 0, 0]]), np.ones((1, 8), np.int64)
        time_s = processor.price(experts_table(np.vstack([few, many]), 14_336, 4096)).time_s
        assert time_s[0] < time_s[1]

    def test_longer_contexts_never_take_less_time(self, processor: Processor) -> None:
        assert_rising(processor, attention_table(32, 1, TOKENS))
        assert_rising(processor, attention_table(2, TOKENS, 0))
        assert_rising(processor, attention_table(TOKENS, 1, 500))

    def test_prefill_beside_decode_takes_longer_than_prefill_alone(self, processor: Processor) -> None:
        prefill, decode = attention_table(1, 512, 0), attention_table(64, 1, 4000)
        mixed_s = processor.price(added(prefill, decode)).time_s[0]
        assert mixed_s > processor.price(prefill).time_s[0]
        assert mixed_s > processor.price(decode).time_s[0]

    def test_a_few_prefill_tokens_do_not_speed_up_decode(self, processor: Processor) -> None:
        prefill, decode = attention_table(1, 1, 0), attention_table([1, 64, 1024], 1, 500)
        alone_s = processor.price(decode).time_s
        mixed_s = processor.price(added(concatenated([prefill] * 3), decode)).time_s
        assert np.all(mixed_s >= alone_s * (1 - FEW_PERCENT))

    def test_never_below_the_roofline(self, processor: Processor) -> None:
        tables = [gemm_table(TOKENS, *shape) for shape in SHAPES] + [
            gemm_table(TOKENS, 8192, 8192, "mxfp4"),
            experts_table(np.outer(TOKENS, [1, 2, 0, 3]), 1024, 2048),
            attention_table(32, 1, TOKENS),
            attention_table(2, TOKENS, 0),
            copy_table(np.geomspace(1, 1e10, 100)),
        ]
        for table in tables:
            narrow = np.all(table.weight_dtype == DTYPE_CODES["mxfp4"])
            peak = self.peak_mxfp4_flops_per_s(processor) if narrow else self.peak_flops_per_s(processor)
            of_products, of_others = self.cached_bytes(processor)
            cached = (table.form == GEMM) * of_products + (table.form == ELEMENTWISE) * of_others
            moved = table.read_bytes + table.write_bytes - cached
            nbytes = table.weight_bytes_read + np.maximum(0.0, moved)
            compute_s = table.flops / peak
            memory_s = nbytes / self.peak_bytes_per_s(processor)
            assert np.all(processor.price(table).time_s >= np.maximum(compute_s, memory_s))

    # One test for several classes: the processors differ, the truth does not.
    @settings(suppress_health_check=[HealthCheck.differing_executors])
    @given(m=st.integers(1, 100_000), n=st.integers(1, 100_000), k=st.integers(1, 100_000))
    def test_any_product_has_a_finite_price(self, m: int, n: int, k: int) -> None:
        processor = self.any_processor()
        cost = processor.price(gemm_table(m, n, k))
        floor_s = 2.0 * m * n * k / self.peak_flops_per_s(processor)
        assert np.isfinite(cost.time_s[0])
        assert cost.time_s[0] >= floor_s

    @abstractmethod
    def any_processor(self) -> Processor:
        """A processor for property tests, which cannot use fixtures."""

    def test_faster_memory_and_faster_units_never_take_longer(self, processor: Processor) -> None:
        table = concatenated(
            [mixed_table(), gemm_table(TOKENS, 4096, 4096), attention_table(16, 300, 0), attention_table(64, 1, 9000)]
        )
        before = processor.price(table).time_s
        for names in (self.bandwidth_parameters, self.rate_parameters):
            after = self.scaled(processor, dict.fromkeys(names, 2.0)).price(table).time_s
            assert np.all(after <= before * (1 + ROUNDING))
            assert np.any(after < before)

    def test_large_products_reach_the_sustained_rate(self, processor: Processor) -> None:
        flops_per_s, _ = self.sustained(processor)
        table = gemm_table(65_536, 65_536, 65_536)
        time_s = processor.price(table).time_s
        assert table.flops[0] / time_s[0] == pytest.approx(flops_per_s, rel=0.02)
        assert BOUNDS[processor.price(table).bound[0]] == "compute"

    def test_large_copies_reach_the_sustained_bandwidth(self, processor: Processor) -> None:
        _, bytes_per_s = self.sustained(processor)
        cost = processor.price(copy_table(1e12))
        assert 1e12 / cost.time_s[0] == pytest.approx(bytes_per_s, rel=1e-3)
        assert BOUNDS[cost.bound[0]] == "memory"

    def test_tiny_work_is_bound_by_latency(self, processor: Processor) -> None:
        assert BOUNDS[processor.price(copy_table(16)).bound[0]] == "latency"

    def test_prices_outside_the_calibration_say_so(self, processor: Processor) -> None:
        inside = processor.price(gemm_table([1, 4096], 4096, 4096)).extrapolated
        assert np.array_equal(inside, [not self.is_calibrated] * 2)
        assert processor.price(gemm_table([1, 4096], 10**7, 4096)).extrapolated.all()
        assert processor.price(gemm_table(64, 4096, 4096, "int8")).extrapolated.all()

    def test_stated_errors_are_shares_or_none(self, processor: Processor) -> None:
        table = mixed_table()
        errors = processor.stated_errors(table)
        assert errors.shape == (len(table),)
        known = errors[~np.isnan(errors)]
        assert ((known > 0) & (known < 1)).all()
        assert bool(np.isfinite(processor.stated_errors(gemm_table(8, 4096, 4096))).all()) == self.is_calibrated


def assert_rising(processor: Processor, table: OperatorTable, room: float = ROUNDING) -> None:
    """Rows in order of growing work take no less time and no less energy from row to row."""
    cost = processor.price(table)
    for column in (cost.time_s, cost.energy_j):
        steps: NDArray[np.float64] = np.diff(column)
        assert np.all(steps >= -room * column[1:])


def added(prefill: OperatorTable, decode: OperatorTable) -> OperatorTable:
    """One attention row with the work of both."""
    columns = ("m", "flops", "read_bytes", "write_bytes", "decode_m", "decode_flops", "decode_read_bytes")
    counts = ("prefill_sequences", "longest_prefill", "longest_decode")
    return replace(prefill, **{name: getattr(prefill, name) + getattr(decode, name) for name in (*columns, *counts)})
