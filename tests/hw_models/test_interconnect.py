from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from moesim.hw_models import collective_kernel
from moesim.hw_models.interconnect import COLLECTIVES, CollectiveTable, Interconnect
from moesim.hw_models.parameters import scaled
from moesim.hw_models.processor import BOUNDS
from moesim.hw_models.system import load_system

SIZES = np.geomspace(64, 1e10, 200)


@pytest.fixture(scope="module")
def interconnect() -> Interconnect:
    return load_system("h100-sxm-16").interconnect


def collective(kind: str, ranks: ArrayLike, payload: ArrayLike, nodes: ArrayLike = 1) -> CollectiveTable:
    members, spanned, nbytes = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(x, float)) for x in (ranks, nodes, payload))
    )
    zeros = np.zeros(len(members))
    code = np.full(len(members), COLLECTIVES.index(kind), np.int8)
    return CollectiveTable(
        code, members.astype(np.int32), spanned.astype(np.int32), nbytes.copy(), zeros, zeros, zeros, zeros
    )


def exchange(
    sent: ArrayLike, received: ArrayLike, far_sent: ArrayLike = 0, far_received: ArrayLike = 0, nodes: int = 1
) -> CollectiveTable:
    columns = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(x, float)) for x in (sent, received, far_sent, far_received))
    )
    rows = len(columns[0])
    code = np.full(rows, COLLECTIVES.index("all_to_all"), np.int8)
    members, spanned = np.full(rows, 8, np.int32), np.full(rows, nodes, np.int32)
    return CollectiveTable(code, members, spanned, np.zeros(rows), *(column.copy() for column in columns))


def bandwidths(interconnect: Interconnect) -> tuple[float, float]:
    inner, outer = interconnect.intra_node, interconnect.inter_node
    return (inner.bandwidth.value * inner.sustained.value, outer.bandwidth.value * outer.sustained.value)


def test_kernel_constants_are_those_of_the_tables() -> None:
    assert COLLECTIVES == ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
    kernel = collective_kernel
    assert (kernel.ALL_REDUCE, kernel.ALL_GATHER, kernel.REDUCE_SCATTER, kernel.ALL_TO_ALL) == (0, 1, 2, 3)
    assert (BOUNDS[kernel.LATENCY], BOUNDS[kernel.NETWORK]) == ("latency", "network")


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize(("kind", "passes"), [("all_reduce", 2), ("all_gather", 1), ("reduce_scatter", 1)])
def test_large_collectives_follow_the_ring_formula(
    interconnect: Interconnect, ranks: int, kind: str, passes: int
) -> None:
    inner, _ = bandwidths(interconnect)
    cost = interconnect.price(collective(kind, ranks, 1e12))
    assert cost.time_s[0] == pytest.approx(passes * (ranks - 1) / ranks * 1e12 / inner, rel=1e-3)
    assert BOUNDS[cost.bound[0]] == "network"


def test_all_reduce_is_reduce_scatter_then_all_gather_in_bytes(interconnect: Interconnect) -> None:
    whole, scatter, gather = (
        interconnect.price(collective(kind, 8, 1e9)).energy_j[0]
        for kind in ("all_reduce", "reduce_scatter", "all_gather")
    )
    assert whole == pytest.approx(scatter + gather, rel=1e-12)


def test_small_collectives_cost_their_hops(interconnect: Interconnect) -> None:
    link = interconnect.intra_node
    time_s = interconnect.price(collective("all_reduce", [2, 4, 8], 1.0)).time_s
    hops = 2 * (np.array([2, 4, 8]) - 1) * link.hop_latency.value
    assert time_s == pytest.approx(link.launch_latency.value + hops, rel=1e-3)
    assert BOUNDS[interconnect.price(collective("all_gather", 8, 1.0)).bound[0]] == "latency"


@pytest.mark.parametrize("kind", COLLECTIVES[:3])
@pytest.mark.parametrize("nodes", [1, 2])
def test_time_and_energy_rise_with_bytes(interconnect: Interconnect, kind: str, nodes: int) -> None:
    cost = interconnect.price(collective(kind, 16, SIZES, nodes))
    assert np.all(np.diff(cost.time_s) >= 0)
    assert np.all(np.diff(cost.energy_j) > 0)


@pytest.mark.parametrize("kind", COLLECTIVES[:3])
def test_one_member_or_no_bytes_cost_nothing(interconnect: Interconnect, kind: str) -> None:
    cost = interconnect.price(collective(kind, [1, 8], [1e6, 0.0]))
    assert not cost.time_s.any()
    assert not cost.energy_j.any()
    assert not cost.extrapolated.any()
    assert not interconnect.price(exchange(0, 0)).time_s.any()


def test_never_faster_than_the_links(interconnect: Interconnect) -> None:
    inner = interconnect.intra_node.bandwidth.value
    for kind, passes in (("all_reduce", 2), ("all_gather", 1), ("reduce_scatter", 1)):
        time_s = interconnect.price(collective(kind, 8, SIZES)).time_s
        assert np.all(time_s >= passes * 7 / 8 * SIZES / inner)


def test_groups_over_nodes_wait_for_the_slower_link(interconnect: Interconnect) -> None:
    inner, outer = bandwidths(interconnect)
    payload = 1e12
    near, far = 2 * 7 / 8 * payload / inner, 2 * 1 / 2 * payload / 8 / outer
    cost = interconnect.price(collective("all_reduce", 16, payload, nodes=2))
    assert cost.time_s[0] == pytest.approx(max(near, far), rel=1e-3)
    one_each = interconnect.price(collective("all_reduce", 2, payload, nodes=2))
    assert one_each.time_s[0] == pytest.approx(payload / outer, rel=1e-3)


def test_exchange_takes_the_larger_direction_and_both_links_at_once(interconnect: Interconnect) -> None:
    inner, outer = bandwidths(interconnect)
    big = 1e12
    times = interconnect.price(
        exchange([big, 1.0, big, 0], [1.0, big, big, 0], [0, 0, big / 10, big], 0, nodes=2)
    ).time_s
    expected = [big / inner, big / inner, max(big / inner, big / 10 / outer), big / outer]
    assert times == pytest.approx(expected, rel=1e-3)


def test_energy_is_that_of_the_bytes_sent(interconnect: Interconnect) -> None:
    inner, outer = interconnect.intra_node.energy.value, interconnect.inter_node.energy.value
    cost = interconnect.price(exchange([1e6, 0], [5e6, 5e6], [2e6, 0], [0, 0], nodes=2))
    assert cost.energy_j == pytest.approx([1e6 * inner + 2e6 * outer, 0.0])


def test_faster_links_never_take_longer(interconnect: Interconnect) -> None:
    faster: Any = scaled(interconnect.intra_node, {"bandwidth": 2.0})
    table = collective("all_reduce", 8, SIZES)
    after = Interconnect(faster, interconnect.inter_node).price(table).time_s
    assert np.all(after <= interconnect.price(table).time_s)


def test_only_what_was_measured_is_not_extrapolated(interconnect: Interconnect) -> None:
    assert not interconnect.price(collective("all_reduce", [2, 8], 1e6)).extrapolated.any()
    assert interconnect.price(collective("all_reduce", [16, 16], 1e6, [1, 2])).extrapolated.all()
    assert interconnect.price(collective("all_reduce", 8, 1e12)).extrapolated.all()


def test_in_a_mesh_a_pair_has_one_link_and_all_have_all() -> None:
    mesh = load_system("mi300x-8").interconnect
    link, payload = mesh.intra_node, 1e12
    assert link.peer_bandwidth is not None
    assert link.peer_bandwidth.value * 7 == pytest.approx(link.bandwidth.value)
    time_s = mesh.price(collective("all_gather", [2, 4, 8], payload)).time_s
    links = np.array([1, 3, 7])
    per_link = link.peer_bandwidth.value * link.sustained.value
    assert time_s == pytest.approx(links / (links + 1) * payload / (links * per_link), rel=1e-3)


def test_a_switch_gives_a_pair_the_whole_bandwidth(interconnect: Interconnect) -> None:
    inner, _ = bandwidths(interconnect)
    cost = interconnect.price(collective("all_gather", 2, 1e12))
    assert cost.time_s[0] == pytest.approx(0.5e12 / inner, rel=1e-3)


def test_without_measurements_every_price_is_extrapolated() -> None:
    table = collective("all_reduce", [2, 8], 1e6)
    assert load_system("b200-sxm-8").interconnect.price(table).extrapolated.all()
    assert not load_system("rtx-pro-6000-8").interconnect.price(table).extrapolated.any()
