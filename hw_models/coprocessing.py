"""Sharing a step's operators out between the two processors of a device (Duplex, MICRO 2024, section V).

- An operator runs on the processor that finishes it first.
- Attention of a step with prefill and decode may be cut: prefill on one processor while the other decodes.
- Routed experts are cut between both: in ascending order of their tokens they move to the second processor one by one,
  until both take equally long; experts with few tokens are those that move bytes rather than compute.

Both processors reach the whole memory and do not slow each other down: the paper keeps the data of concurrent work in
different bank bundles.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.processor import Cost, Processor
from moesim.workloads.operator_table import ATTENTION, OperatorTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Pair = tuple[Cost, Cost]


def share_out(first: Processor, second: Processor, operators: OperatorTable) -> Pair:
    """What each processor contributes to each row; the two parts of a row run side by side.

    Args:
        first: the main processor, which keeps the experts with many tokens and prefill attention.
        second: the one with the bandwidth.
        operators: the step.
    """
    whole = first.price(operators), second.price(operators)
    shares = _faster(*whole)
    mixed = np.flatnonzero((operators.form == ATTENTION) & (operators.decode_m > 0))
    if len(mixed):
        _put_if_faster(shares, mixed, _cut_attention(first, second, operators.take(mixed)))
    if len(operators.grouped_rows):
        experts = operators.take(operators.grouped_rows)
        _put_if_faster(shares, operators.grouped_rows, _cut_experts(first, second, experts))
    return shares


def _faster(first: Cost, second: Cost) -> Pair:
    """Each row on the processor that takes less time; the first where they tie."""
    on_second = second.time_s < first.time_s
    return _masked(first, ~on_second), _masked(second, on_second)


def _masked(cost: Cost, keep: NDArray[np.bool_]) -> Cost:
    return Cost(
        np.where(keep, cost.time_s, 0.0), np.where(keep, cost.energy_j, 0.0), cost.bound, cost.extrapolated & keep
    )


def _makespan(shares: Pair) -> Floats:
    """Seconds until both processors are done with a row."""
    return np.maximum(shares[0].time_s, shares[1].time_s)


def _put_if_faster(shares: Pair, rows: Ints, candidate: Pair) -> None:
    """Replace the shares of `rows` where the candidate's are done earlier."""
    now = np.maximum(shares[0].time_s[rows], shares[1].time_s[rows])
    better = _makespan(candidate) < now
    for share, other in zip(shares, candidate, strict=True):
        for column in ("time_s", "energy_j", "bound", "extrapolated"):
            getattr(share, column)[rows[better]] = getattr(other, column)[better]


def _cut_attention(first: Processor, second: Processor, operators: OperatorTable) -> Pair:
    """Prefill on the first processor, decode on the second."""
    decode, prefill = operators.decode_m, operators.m - operators.decode_m
    written = operators.write_bytes * decode / operators.m
    only_prefill = replace(
        operators,
        m=prefill,
        flops=operators.flops - operators.decode_flops,
        read_bytes=operators.read_bytes - operators.decode_read_bytes,
        write_bytes=operators.write_bytes - written,
        decode_m=np.zeros_like(decode),
        decode_flops=np.zeros_like(operators.flops),
        decode_read_bytes=np.zeros_like(operators.flops),
        longest_decode=np.zeros_like(decode),
    )
    only_decode = replace(
        operators,
        m=decode,
        flops=operators.decode_flops,
        read_bytes=operators.decode_read_bytes,
        write_bytes=written,
        prefill_sequences=np.zeros_like(decode),
        longest_prefill=np.zeros_like(decode),
    )
    return first.price(only_prefill), second.price(only_decode)


def _cut_experts(first: Processor, second: Processor, operators: OperatorTable) -> Pair:
    """The best cut of each row's experts in ascending order of tokens.

    The more experts move, the longer the second processor takes and the shorter the first, so the best cut is at the
    crossing, which bisection finds for all rows at once.
    """
    order = np.argsort(operators.expert_tokens, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None, :], axis=1)

    def priced(moved: Ints) -> Pair:
        to_second = rank < moved[:, None]
        return first.price(_some_experts(operators, ~to_second)), second.price(_some_experts(operators, to_second))

    crossing = _crossing(priced, len(operators), order.shape[1])
    before = np.maximum(crossing - 1, 0)
    earlier = _makespan(priced(before)) <= _makespan(priced(crossing))
    return priced(np.where(earlier, before, crossing))


def _crossing(priced: Callable[[Ints], Pair], rows: int, experts: int) -> Ints:
    """The fewest moved experts with which the second processor takes at least as long as the first, per row."""
    low, high = np.zeros(rows, dtype=np.int64), np.full(rows, experts)
    while (low < high).any():
        middle = (low + high) // 2
        first, second = priced(middle)
        enough = second.time_s >= first.time_s
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return low


def _some_experts(operators: OperatorTable, kept: NDArray[np.bool_]) -> OperatorTable:
    """The rows with only the kept experts' tokens; FLOPs and activations go by token, weights by expert used."""
    tokens = np.where(kept, operators.expert_tokens, 0)
    m = tokens.sum(axis=1)
    by_token = np.divide(m, operators.m, out=np.zeros(len(m)), where=operators.m > 0)
    used = np.count_nonzero(operators.expert_tokens, axis=1)
    by_expert = np.divide(np.count_nonzero(tokens, axis=1), used, out=np.zeros(len(m)), where=used > 0)
    return replace(
        operators,
        m=m,
        flops=operators.flops * by_token,
        weight_bytes_read=operators.weight_bytes_read * by_expert,
        read_bytes=operators.read_bytes * by_token,
        write_bytes=operators.write_bytes * by_token,
        expert_tokens=tokens,
    )
