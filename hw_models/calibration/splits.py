"""Splits of measured rows by shape group: a shape is in the fit or among the unseen, never both."""

from collections.abc import Iterator

import numpy as np

from moesim.hw_models.calibration.measured import Ints


def folds(group: Ints, count: int, seed: int = 0) -> Iterator[tuple[Ints, Ints]]:
    """Rows to fit to and rows left out, `count` times; every row is left out once, with its whole group.

    Args:
        group: int64[row].
        count: folds, at most as many as there are groups.
        seed: of the order in which groups are dealt out.

    Raises:
        ValueError: there are fewer groups than folds, or fewer than two folds.
    """
    numbers, position = np.unique(group, return_inverse=True)
    if not 2 <= count <= len(numbers):  # noqa: PLR2004
        raise ValueError(f"count must be 2 to the {len(numbers)} groups, got {count}")
    fold = (np.random.default_rng(seed).permutation(len(numbers)) % count)[position]
    for left_out in range(count):
        yield np.flatnonzero(fold != left_out), np.flatnonzero(fold == left_out)


def sample(group: Ints, rows: int, seed: int = 0) -> Ints:
    """At most `rows` rows, ascending, drawn such that every group gives about the same number of them."""
    if rows >= len(group):
        return np.arange(len(group))
    shuffled = np.random.default_rng(seed).permutation(len(group))
    _, position, sizes = np.unique(group[shuffled], return_inverse=True, return_counts=True)
    order = np.argsort(position, kind="stable")
    turn = np.empty(len(group), np.int64)  # the row is the so-many-th of its group
    turn[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen: Ints = np.sort(shuffled[np.argsort(turn, kind="stable")[:rows]])
    return chosen
