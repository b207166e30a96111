import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.hw_models.calibration.routed_tokens import GroupLimit, rank_batch, rank_tokens

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


LIMIT = GroupLimit(groups=8, best=4)


@given(st.integers(1, 3000), st.sampled_from(["balanced", "power_law_1.01"]))
def test_routers_with_groups_give_every_token_all_its_experts(tokens: int, distribution: str) -> None:
    counts = rank_tokens(tokens, 256, 8, 1, distribution, limit=LIMIT)
    assert counts.sum() == tokens * 8
    assert counts.max() <= tokens


def test_ties_go_to_the_first_groups_and_their_first_experts() -> None:
    counts = rank_tokens(1024, 256, 8, 1, "balanced", limit=LIMIT)  # as wanted, one expert of each group
    assert counts[:4].tolist() == [1024] * 4
    assert counts[128:].sum() == 0
    for ranks in (2, 8, 256):
        first = rank_tokens(1024, 256, 8, ranks, "balanced", limit=LIMIT)
        assert first.tolist() == counts[: 256 // ranks].tolist()


def test_a_limit_that_takes_all_groups_changes_nothing() -> None:
    for distribution in ("balanced", "power_law_1.2"):
        free = rank_tokens(700, 64, 4, 1, distribution)
        assert rank_tokens(700, 64, 4, 1, distribution, limit=GroupLimit(8, 8)).tolist() == free.tolist()


@given(SHAPES, st.sampled_from(["balanced", "power_law_1.2"]))
def test_a_rank_that_computes_all_pairs_of_its_tokens(
    shape: tuple[int, tuple[int, int], int], distribution: str
) -> None:
    tokens, (experts, top_k), ranks = shape
    batch = rank_batch(tokens, experts, top_k, ranks, distribution)
    own = rank_tokens(tokens, experts, top_k, ranks, distribution)
    assert batch.expert_tokens.sum() == batch.tokens * top_k
    assert batch.tokens <= tokens
    assert batch.expert_tokens[1:].tolist() == own[1:].tolist()
    if ranks == 1:
        assert batch.tokens == tokens
        assert batch.expert_tokens[0] == own[0]


def test_an_unknown_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="power_law_<exponent>, got 'zipf'"):
        rank_tokens(4, 8, 2, 1, "zipf")
