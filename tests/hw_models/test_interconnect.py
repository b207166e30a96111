from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from moesim.hw_models import collective_kernel
from moesim.hw_models.collective_table import COLLECTIVES, CollectiveTable
from moesim.hw_models.interconnect import SECTIONS, Interconnect
from moesim.hw_models.link_config import Protocol
from moesim.hw_models.parameters import scaled
from moesim.hw_models.processor import BOUNDS
from moesim.hw_models.system import load_system

SIZES = np.geomspace(64, 1e10, 200)
MEMBERS = np.arange(2, 9)
SUMS = ("all_reduce", "all_gather", "reduce_scatter")
DEEPEP = COLLECTIVES[5:]


@pytest.fixture(scope="module")
def interconnect() -> Interconnect:
    return load_system("h100-sxm-16").interconnect


def collective(kind: str, ranks: ArrayLike, payload: ArrayLike, nodes: ArrayLike = 1) -> CollectiveTable:
    return CollectiveTable.of(COLLECTIVES.index(kind), ranks, nodes, payload_bytes=payload)


def exchange(
    sent: ArrayLike, received: ArrayLike, far_sent: ArrayLike = 0, far_received: ArrayLike = 0, nodes: int = 1
) -> CollectiveTable:
    return CollectiveTable.of(
        COLLECTIVES.index("all_to_all"),
        8,
        nodes,
        sent_bytes=sent,
        received_bytes=received,
        sent_internode_bytes=far_sent,
        received_internode_bytes=far_received,
    )


def experts(kind: str, tokens: ArrayLike, *, fan_out: float = 8.0, hidden: int = 4096, nodes: int = 1) -> Any:
    """Balanced traffic of eight ranks, half of it to another node if there are two."""
    copies = np.asarray(tokens) * fan_out
    nbytes = hidden * 2.0
    return CollectiveTable.of(
        COLLECTIVES.index(kind),
        8,
        nodes,
        sent_bytes=copies * nbytes * (7 / 8 if nodes == 1 else 3 / 8),
        received_bytes=copies * nbytes * (7 / 8 if nodes == 1 else 3 / 8),
        sent_internode_bytes=0.0 if nodes == 1 else copies * nbytes / 2,
        received_internode_bytes=0.0 if nodes == 1 else copies * nbytes / 2,
        tokens=tokens,
        copies=copies,
        copy_bytes=nbytes,
        fan_out=fan_out,
        experts=128.0,
    )


def rate(interconnect: Interconnect, protocol: Protocol, *, inner: bool = True) -> float:
    link = interconnect.intra_node if inner else interconnect.inter_node
    return link.bandwidth.value * protocol.sustained.value


def bandwidths(interconnect: Interconnect) -> tuple[float, float]:
    inner, outer = interconnect.intra_node, interconnect.inter_node
    return rate(interconnect, inner.ring.simple), rate(interconnect, outer.ring.simple, inner=False)


def test_kernel_constants_are_those_of_the_tables() -> None:
    assert COLLECTIVES[:5] == ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "custom_all_reduce")
    kernel = collective_kernel
    assert (kernel.ALL_REDUCE, kernel.ALL_GATHER, kernel.REDUCE_SCATTER, kernel.ALL_TO_ALL) == (0, 1, 2, 3)
    assert (4, COLLECTIVES.index("deepep_dispatch")) == (kernel.CUSTOM_ALL_REDUCE, kernel.FIRST_DEEPEP)
    assert len(SECTIONS) == len(COLLECTIVES)
    assert (BOUNDS[kernel.LATENCY], BOUNDS[kernel.NETWORK]) == ("latency", "network")


def test_a_table_can_be_taken_apart() -> None:
    table = collective("all_reduce", [2, 4, 8], [1.0, 2.0, 3.0])
    part = table.take(np.array([2, 0]))
    assert part.ranks.tolist() == [8, 2]
    assert part.payload_bytes.tolist() == [3.0, 1.0]
    assert part.element_bytes.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize(("kind", "passes"), [("all_reduce", 2), ("all_gather", 1), ("reduce_scatter", 1)])
def test_large_collectives_follow_the_ring_formula(
    interconnect: Interconnect, ranks: int, kind: str, passes: int
) -> None:
    inner, _ = bandwidths(interconnect)
    own = interconnect.intra_node.ring.own_block
    assert own is not None
    table = CollectiveTable.of(COLLECTIVES.index(kind), ranks, payload_bytes=1e12, element_bytes=1.0)
    cost = interconnect.price(table)
    assert cost.time_s[0] == pytest.approx((passes * (ranks - 1) + own.value) / ranks * 1e12 / inner, rel=1e-3)
    assert BOUNDS[cost.bound[0]] == "network"


def test_large_sums_of_many_are_added_up_in_the_switch(interconnect: Interconnect) -> None:
    switch = interconnect.intra_node.in_switch
    assert switch is not None
    expected = (1 + 1 / 8) * 1e12 / (interconnect.intra_node.bandwidth.value * switch.sustained.value)
    narrow = CollectiveTable.of(0, 8, payload_bytes=1e12, element_bytes=1.0)
    assert interconnect.price(collective("all_reduce", 8, 1e12)).time_s[0] == pytest.approx(expected, rel=1e-3)
    assert interconnect.price(narrow).time_s[0] > expected * 1.1


def test_all_reduce_is_reduce_scatter_then_all_gather_in_bytes(interconnect: Interconnect) -> None:
    whole, scatter, gather = (
        interconnect.price(collective(kind, 8, 1e9)).energy_j[0]
        for kind in ("all_reduce", "reduce_scatter", "all_gather")
    )
    assert whole == pytest.approx(scatter + gather, rel=1e-12)


def test_small_collectives_cost_their_hops(interconnect: Interconnect) -> None:
    protocol = interconnect.intra_node.ring.ll
    time_s = interconnect.price(collective("all_reduce", [2, 4, 8], 1.0)).time_s
    hops = 2 * (np.array([2, 4, 8]) - 1) * protocol.hop.value
    assert time_s == pytest.approx(protocol.launch.value + hops, rel=1e-3)
    assert BOUNDS[interconnect.price(collective("all_gather", 8, 1.0)).bound[0]] == "latency"


def test_a_protocol_runs_where_it_is_fastest(interconnect: Interconnect) -> None:
    ring, bandwidth = interconnect.intra_node.ring, interconnect.intra_node.bandwidth.value
    own = ring.own_block.value if ring.own_block else 0.0
    times = [
        protocol.launch.value + 3 * protocol.hop.value + (3 + own) / 4 * SIZES / (bandwidth * protocol.sustained.value)
        for protocol in (ring.ll, ring.ll128, ring.simple)
    ]
    assert {int(best) for best in np.argmin(times, axis=0)} == {0, 1, 2}
    assert interconnect.price(collective("all_gather", 4, SIZES)).time_s == pytest.approx(np.min(times, axis=0))


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("nodes", [1, 2])
def test_time_and_energy_rise_with_bytes(interconnect: Interconnect, kind: str, nodes: int) -> None:
    cost = interconnect.price(collective(kind, 16, SIZES, nodes))
    assert np.all(np.diff(cost.time_s) >= 0)
    assert np.all(np.diff(cost.energy_j) > 0)


@pytest.mark.parametrize("system", ["h100-sxm-8", "a100-sxm-8", "rtx-pro-6000-8"])
@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter"])
@pytest.mark.parametrize("nbytes", [1e3, 1e6, 1e9])
def test_time_rises_with_members(system: str, kind: str, nbytes: float) -> None:
    time_s = load_system(system).interconnect.price(collective(kind, MEMBERS, nbytes)).time_s
    assert np.all(np.diff(time_s) >= 0)


@pytest.mark.parametrize("system", ["h100-sxm-8", "a100-sxm-8", "rtx-pro-6000-8"])
@pytest.mark.parametrize("nbytes", [1e3, 1e6, 1e9])
def test_an_exchange_with_more_peers_takes_longer(system: str, nbytes: float) -> None:
    sent = nbytes * (MEMBERS - 1)
    table = CollectiveTable.of(COLLECTIVES.index("all_to_all"), MEMBERS, sent_bytes=sent, received_bytes=sent)
    assert np.all(np.diff(load_system(system).interconnect.price(table).time_s) >= 0)


@pytest.mark.parametrize("kind", [*SUMS, "custom_all_reduce"])
def test_one_member_or_no_bytes_cost_nothing(interconnect: Interconnect, kind: str) -> None:
    cost = interconnect.price(collective(kind, [1, 8], [1e6, 0.0]))
    assert not cost.time_s.any()
    assert not cost.energy_j.any()
    assert not cost.extrapolated.any()
    assert not interconnect.price(exchange(0, 0)).time_s.any()


def test_never_faster_than_the_links(interconnect: Interconnect) -> None:
    inner = interconnect.intra_node.bandwidth.value
    for kind, parts in (("all_reduce", 9 / 8), ("custom_all_reduce", 9 / 8), ("all_gather", 7 / 8)):
        time_s = interconnect.price(collective(kind, 8, SIZES)).time_s
        assert np.all(time_s >= parts * SIZES / inner)


def test_groups_over_nodes_wait_for_the_slower_link(interconnect: Interconnect) -> None:
    inner, outer = bandwidths(interconnect)
    payload = 1e12
    near, far = 2 * 7 / 8 * payload / inner, 2 * 1 / 2 * payload / 8 / outer
    cost = interconnect.price(collective("all_reduce", 16, payload, nodes=2))
    assert cost.time_s[0] == pytest.approx(max(near, far), rel=2e-2)  # each device handles its own block too
    one_each = interconnect.price(collective("all_reduce", 2, payload, nodes=2))
    assert one_each.time_s[0] == pytest.approx(payload / outer, rel=1e-3)


def test_exchange_takes_the_larger_direction_and_both_links_at_once(interconnect: Interconnect) -> None:
    inner = rate(interconnect, interconnect.intra_node.exchange.simple)
    outer = rate(interconnect, interconnect.inter_node.exchange.simple, inner=False)
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


@pytest.mark.parametrize("kind", [*SUMS, "custom_all_reduce"])
def test_faster_links_never_take_longer(interconnect: Interconnect, kind: str) -> None:
    faster: Any = scaled(interconnect.intra_node, {"bandwidth": 2.0})
    table = collective(kind, 8, SIZES)
    after = Interconnect(faster, interconnect.inter_node).price(table).time_s
    assert np.all(after <= interconnect.price(table).time_s)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_custom_all_reduce_is_the_faster_of_two_kernels_up_to_a_size(interconnect: Interconnect, ranks: int) -> None:
    custom, bandwidth = interconnect.intra_node.custom_all_reduce, interconnect.intra_node.bandwidth.value
    assert custom is not None
    largest = custom.largest[ranks].value
    one, two = custom.one_shot, custom.two_shot
    one_s = one.launch.value + (ranks - 1) * (one.hop.value + SIZES / (bandwidth * one.sustained.value))
    two_start_s = two.launch.value + (ranks - 1) * two.hop.value
    two_s = two_start_s + (1 + 1 / ranks) * SIZES / (bandwidth * two.sustained.value)
    nccl_s = interconnect.price(collective("all_reduce", ranks, SIZES)).time_s
    expected = np.where(largest >= SIZES, np.minimum(one_s, two_s), nccl_s)
    assert interconnect.price(collective("custom_all_reduce", ranks, SIZES)).time_s == pytest.approx(expected)


def test_custom_all_reduce_is_nccl_between_nodes_in_odd_groups_and_without_nvlink(interconnect: Interconnect) -> None:
    for prices, ranks, nodes in (
        (interconnect, 8, 2),
        (interconnect, 3, 1),
        (load_system("rtx-pro-6000-8").interconnect, 8, 1),
    ):
        custom, nccl = (
            prices.price(collective(kind, ranks, SIZES, nodes)).time_s for kind in ("custom_all_reduce", "all_reduce")
        )
        assert np.array_equal(custom, nccl)
        assert prices.offers("custom_all_reduce")


@pytest.mark.parametrize("kind", DEEPEP)
def test_deepep_starts_with_a_latency_and_ends_at_the_slower_of_link_and_multiprocessors(kind: str) -> None:
    prices = load_system("h200-sxm-8").interconnect
    link = prices.intra_node
    section = link.deepep_low_latency if "low" in kind else link.deepep
    assert section is not None
    assert section.multiprocessors is not None
    kernel = section.dispatch if kind.endswith("dispatch") else section.combine
    few, many = (prices.price(experts(kind, tokens)).time_s[0] for tokens in (1e-9, 1e9))
    fill_s = 8 * 8192 / kernel.fill_bandwidth.value if kernel.fill_bandwidth else 0.0
    signal_s = 128 * kernel.per_expert.value if kernel.per_expert else 0.0
    assert few == pytest.approx(kernel.launch.value + fill_s + signal_s, rel=1e-6)
    wire_s = 8e9 * 7 / 8 * 8192 / (link.bandwidth.value * kernel.sustained.value)
    copy_s = (kernel.copy_latency.value if kernel.copy_latency else 0.0) + (
        8192 / kernel.copy_bandwidth.value if kernel.copy_bandwidth else 0.0
    )
    token_s = (kernel.token_latency.value if kernel.token_latency else 0.0) + (
        8192 / kernel.token_bandwidth.value if kernel.token_bandwidth else 0.0
    )
    workers = 128 if "low" in kind else section.multiprocessors.value
    assert many == pytest.approx(max(wire_s, (8e9 * copy_s + 1e9 * token_s) / workers), rel=1e-3)


@pytest.mark.parametrize("kind", DEEPEP)
@pytest.mark.parametrize("nodes", [1, 2])
def test_deepep_rises_with_tokens_width_and_copies(kind: str, nodes: int) -> None:
    prices = load_system("h200-sxm-16").interconnect
    tokens = np.geomspace(1, 1e5, 50)
    time_s = prices.price(experts(kind, tokens, nodes=nodes)).time_s
    assert np.all(np.diff(time_s) >= 0)
    assert np.all(prices.price(experts(kind, tokens, hidden=8192, nodes=nodes)).time_s >= time_s)
    assert np.all(prices.price(experts(kind, tokens, fan_out=4.0, nodes=nodes)).time_s <= time_s)
    assert prices.price(experts(kind, tokens, nodes=2)).extrapolated.all()


def test_deepep_of_own_tokens_only_still_runs_its_kernel() -> None:
    prices = load_system("h200-sxm-8").interconnect
    table = CollectiveTable.of(5, 8, tokens=100.0, copies=100.0, copy_bytes=4096.0, fan_out=1.0, experts=8.0)
    cost = prices.price(table)
    assert cost.time_s[0] > 1e-6
    assert cost.energy_j[0] == 0.0


def test_only_what_was_measured_is_not_extrapolated(interconnect: Interconnect) -> None:
    for kind in ("all_reduce", "custom_all_reduce"):
        assert not interconnect.price(collective(kind, [2, 8], 1e6)).extrapolated.any()
        assert interconnect.price(collective(kind, [16, 16], 1e6, [1, 2])).extrapolated.all()
        assert interconnect.price(collective(kind, 8, 1e12)).extrapolated.all()
    assert not interconnect.price(exchange(1e6, 1e6)).extrapolated.any()
    assert interconnect.price(exchange(1e12, 1e12)).extrapolated.all()


@pytest.mark.parametrize("kind", DEEPEP)
def test_deepep_was_measured_on_one_kind_of_node(kind: str) -> None:
    assert not load_system("h200-sxm-8").interconnect.price(experts(kind, 128.0)).extrapolated.any()
    assert load_system("h100-sxm-8").interconnect.price(experts(kind, 128.0)).extrapolated.all()
    assert load_system("h200-sxm-8").interconnect.price(experts(kind, 1e6)).extrapolated.all()
    assert not load_system("a100-sxm-8").interconnect.offers(kind)


def test_in_a_mesh_a_pair_has_one_link_and_all_have_all() -> None:
    mesh = load_system("mi300x-8").interconnect
    link, payload = mesh.intra_node, 1e12
    assert link.peer_bandwidth is not None
    assert link.peer_bandwidth.value * 7 == pytest.approx(link.bandwidth.value)
    time_s = mesh.price(collective("all_gather", [2, 4, 8], payload)).time_s
    links = np.array([1, 3, 7])
    per_link = link.peer_bandwidth.value * link.ring.simple.sustained.value
    assert time_s == pytest.approx(links / (links + 1) * payload / (links * per_link), rel=1e-3)


def test_groups_behind_shared_switches_contend() -> None:
    prices = load_system("rtx-pro-6000-8").interconnect
    ring, payload = prices.intra_node.ring, 1e12
    own = ring.own_block.value if ring.own_block else 0.0
    shares = np.array([1.0, ring.contention[3].value, ring.contention[3].value])
    members = np.array([2, 4, 8])
    time_s = prices.price(collective("all_gather", members, payload)).time_s
    assert time_s == pytest.approx(
        (members - 1 + own) / members * payload / (rate(prices, ring.simple) * shares), rel=1e-3
    )


def test_without_measurements_every_price_is_extrapolated() -> None:
    table = collective("all_reduce", [2, 8], 1e6)
    assert load_system("b200-sxm-8").interconnect.price(table).extrapolated.all()
    assert not load_system("rtx-pro-6000-8").interconnect.price(table).extrapolated.any()
