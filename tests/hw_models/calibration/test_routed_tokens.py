import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.hw_models.calibration.routed_tokens import rank_tokens

SHAPES = st.tuples(
    st.integers(1, 3000), st.sampled_from([(8, 2), (64, 6), (128, 8), (512, 22)]), st.sampled_from([1, 2, 4, 8])
)


@given(SHAPES, st.sampled_from(["balanced", "power_law_1.01", "power_law_1.2"]))
def test_one_rank_gets_every_pair_and_no_expert_more_than_all_tokens(
    shape: tuple[int, tuple[int, int], int], distribution: str
) -> None:
    tokens, (experts, top_k), _ = shape
    counts = rank_tokens(tokens, experts, top_k, 1, distribution)
    assert len(counts) == experts
    assert counts.sum() == tokens * top_k
    assert 0 <= counts.min() <= counts.max() <= tokens


@given(SHAPES)
def test_the_measured_rank_of_a_power_law_is_a_full_one(shape: tuple[int, tuple[int, int], int]) -> None:
    tokens, (experts, top_k), ranks = shape
    counts = rank_tokens(tokens, experts, top_k, ranks, "power_law_1.2")
    assert len(counts) == experts // ranks
    assert counts.sum() * ranks >= tokens * top_k


def test_balanced_tokens_are_even_and_few_ones_are_spread() -> None:
    assert set(rank_tokens(64, 64, 4, 1, "balanced")) == {4}
    few = rank_tokens(2, 64, 4, 1, "balanced")
    assert np.flatnonzero(few).tolist() == [0, 8, 16, 24, 32, 40, 48, 56]


def test_a_power_law_is_skewed() -> None:
    counts = np.sort(rank_tokens(4096, 128, 8, 1, "power_law_1.2"))
    assert counts[-13:].sum() > 0.4 * counts.sum()


def test_older_collectors_gave_the_first_experts_what_rounding_left() -> None:
    counts = rank_tokens(1, 256, 8, 1, "power_law_1.2", leading=True)
    assert np.flatnonzero(counts).tolist() == list(range(8))
    assert rank_tokens(1, 256, 8, 32, "power_law_1.2", leading=True).sum() == 8


def test_an_unknown_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="power_law_<exponent>, got 'zipf'"):
        rank_tokens(4, 8, 2, 1, "zipf")
