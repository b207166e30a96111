"""Sharing work out between the two processors of a Duplex device."""

from itertools import pairwise

import numpy as np
import pytest

from moesim.hw_models.coprocessing import share_out
from moesim.hw_models.device import load_device
from moesim.workloads.operator_table import OperatorTable
from tests.conformance.processor_suite import added
from tests.conformance.tables import attention_table, concatenated, copy_table, experts_table, gemm_table

DUPLEX = load_device("duplex")
XPU, PIM = DUPLEX.processors.values()


def makespan(table: OperatorTable) -> np.ndarray:
    first, second = share_out(XPU, PIM, table)
    return np.maximum(first.time_s, second.time_s)


def test_logic_pim_has_the_ratio_of_compute_to_bandwidth_of_the_paper() -> None:
    config = PIM.config  # type: ignore[attr-defined]  # a LogicPim
    assert config.peak.value / config.dram_bandwidth.value == pytest.approx(8.0, rel=1e-3)


def test_each_operator_runs_on_the_faster_processor() -> None:
    table = concatenated([gemm_table([1, 64, 8192], 4096, 4096), copy_table([1e3, 1e9])])
    first, second = share_out(XPU, PIM, table)
    alone = np.minimum(XPU.price(table).time_s, PIM.price(table).time_s)
    assert np.array_equal(np.maximum(first.time_s, second.time_s), alone)
    assert np.array_equal(first.time_s > 0, second.time_s == 0)
    assert second.time_s[0] > 0  # a product with one token moves bytes
    assert first.time_s[2] > 0  # one with thousands computes


def test_decode_attention_runs_in_memory_and_prefill_does_not() -> None:
    decode, prefill = attention_table(64, 1, 4000), attention_table(4, 2048, 0)
    first, second = share_out(XPU, PIM, concatenated([decode, prefill]))
    assert (first.time_s > 0).tolist() == [False, True]
    assert (second.time_s > 0).tolist() == [True, False]


def test_mixed_attention_is_cut_when_that_is_faster() -> None:
    mixed = added(attention_table(4, 2048, 0), attention_table(64, 1, 4000))
    first, second = share_out(XPU, PIM, mixed)
    assert first.time_s[0] > 0
    assert second.time_s[0] > 0
    assert makespan(mixed)[0] < min(XPU.price(mixed).time_s[0], PIM.price(mixed).time_s[0])


@pytest.mark.parametrize("seed", range(20))
def test_experts_are_cut_at_the_best_place_in_ascending_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts = int(rng.integers(1, 12))
    tokens = rng.integers(0, rng.choice([4, 60, 900]), (1, experts))
    tokens[0, 0] += 1
    order = np.argsort(tokens[0], kind="stable")

    def with_only(kept: np.ndarray) -> OperatorTable:
        some = np.zeros_like(tokens)
        some[0, kept] = tokens[0, kept]
        return experts_table(some, 7168, 4096)

    cuts = [
        max(XPU.price(with_only(order[moved:])).time_s[0], PIM.price(with_only(order[:moved])).time_s[0])
        for moved in range(experts + 1)
    ]
    assert makespan(experts_table(tokens, 7168, 4096))[0] == pytest.approx(min(cuts), rel=1e-9)


def test_cut_experts_do_all_the_work_once() -> None:
    table = experts_table(np.array([[1, 2, 3, 900, 5, 700, 0, 2]]), 7168, 4096)
    first, second = share_out(XPU, PIM, table)
    energy = first.energy_j[0] + second.energy_j[0]
    assert min(first.time_s[0], second.time_s[0]) > 0
    assert PIM.price(table).energy_j[0] * 0.5 < energy < XPU.price(table).energy_j[0] + PIM.price(table).energy_j[0]


def test_two_processors_are_never_slower_than_the_main_one() -> None:
    tables = [gemm_table([1, 16, 256, 4096], 4096, 4096), attention_table([1, 64], 1, 1000), copy_table([10, 1e8])]
    tables.append(experts_table(np.array([[1, 0, 3, 4], [500, 500, 20, 3]]), 7168, 4096))
    for table in tables:
        assert (makespan(table) <= XPU.price(table).time_s * (1 + 1e-12)).all()


def test_rows_without_tokens_stay_free() -> None:
    first, second = share_out(XPU, PIM, concatenated([gemm_table(0, 64, 64), experts_table([[0, 0]], 64, 64)]))
    assert not first.time_s.any()
    assert not second.time_s.any()


def test_more_internal_bandwidth_never_hurts() -> None:
    table = experts_table(np.array([[1, 2, 3, 900, 5, 700, 0, 2]]), 7168, 4096)
    spans = []
    for factor in (0.5, 1.0, 2.0, 4.0):
        parameter = PIM.config.dram_bandwidth  # type: ignore[attr-defined]  # a LogicPim
        faster = PIM.config.model_copy(  # type: ignore[attr-defined]
            update={"dram_bandwidth": parameter.model_copy(update={"value": parameter.value * factor})}
        )
        first, second = share_out(XPU, faster.build("pim"), table)
        spans.append(float(np.maximum(first.time_s, second.time_s)[0]))
    assert all(later <= earlier for earlier, later in pairwise(spans))
