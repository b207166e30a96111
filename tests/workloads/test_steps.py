import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.workloads.steps import (
    DECODE,
    DECODE_TOKENS,
    FIRST_WINDOW,
    LONGEST_DECODE,
    LONGEST_PREFILL,
    PREFILL,
    PREFILL_SEQUENCES,
    REBUILT_TOKENS,
    RECOMPUTE,
    SAMPLES,
    TOKENS,
    Chunk,
    Scan,
    Selected,
    Step,
    attention_pairs,
    step_features,
)


def make_step(new, context, *, rank=None, samples=None, prompt=None, seen=None):
    n = len(new)
    return Step(
        request=np.arange(n),
        rank=np.array(rank or [0] * n),
        new_tokens=np.array(new),
        context=np.array(context),
        samples=np.array(samples or [True] * n),
        prompt_tokens=np.array(prompt or [1] * n),
        seen_tokens=np.array(seen or [0] * n),
    )


@given(st.integers(1, 40), st.integers(0, 60), st.one_of(st.none(), st.integers(1, 70)))
def test_pairs_and_keys_equal_a_count_of_the_causal_mask(new, context, window):
    visible = [set(range(max(0, p + 1 - (window or p + 1)), p + 1)) for p in range(context, context + new)]
    pairs, keys = attention_pairs(np.array([new]), np.array([context]), window)
    assert pairs[0] == sum(len(keys) for keys in visible)
    assert keys[0] == len(set().union(*visible))


@given(st.integers(1, 200), st.integers(1, 199), st.one_of(st.none(), st.integers(1, 100)))
def test_chunks_of_a_prefill_have_the_pairs_of_the_whole(total, cut, window):
    cut = min(cut, total)
    sizes = np.array([cut, total - cut])[: 2 if total > cut else 1]
    parts, _ = attention_pairs(sizes, np.array([0, cut])[: len(sizes)], window)
    whole, _ = attention_pairs(np.array([total]), np.array([0]), window)
    assert parts.sum() == whole[0]


def test_features_separate_decode_from_prefill_and_ranks_from_each_other():
    step = make_step([1, 5, 1], [9, 2, 0], rank=[0, 0, 1], samples=[True, False, True])
    features = step_features(step, 2, [None])
    assert features[0, [TOKENS, SAMPLES, DECODE_TOKENS, REBUILT_TOKENS]].tolist() == [6, 1, 1, 7]
    assert features[1, [TOKENS, SAMPLES, DECODE_TOKENS, REBUILT_TOKENS]].tolist() == [1, 1, 0, 1]
    assert features[0, [PREFILL_SEQUENCES, LONGEST_PREFILL, LONGEST_DECODE]].tolist() == [1, 7, 10]
    assert features[0, FIRST_WINDOW:].tolist() == [10, 5 * 2 + 15, 7]


def test_an_idle_rank_runs_one_dummy_token():
    features = step_features(make_step([3], [0]), 2, [None, 128])
    assert features[1].tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0]


def test_tokens_know_their_position_and_why_they_run():
    tokens = make_step([1, 4], [7, 0], prompt=[5, 3], seen=[0, 2]).tokens()
    assert tokens.request.tolist() == [0, 1, 1, 1, 1]
    assert tokens.position.tolist() == [7, 0, 1, 2, 3]
    assert tokens.phase.tolist() == [DECODE, RECOMPUTE, RECOMPUTE, PREFILL, DECODE]


def test_windows_never_cost_more_than_full_attention():
    new, context = np.arange(1, 50), np.arange(49)
    full = attention_pairs(new, context, None)
    windowed = attention_pairs(new, context, 16)
    assert (windowed[0] <= full[0]).all()
    assert (windowed[1] <= full[1]).all()


@pytest.mark.parametrize("window", [None, 4])
def test_one_decoded_token_reads_as_many_keys_as_it_forms_pairs(window):
    pairs, keys = attention_pairs(np.array([1]), np.array([10]), window)
    assert pairs.tolist() == keys.tolist()


@given(st.integers(1, 40), st.integers(0, 60), st.integers(1, 70))
def test_chunked_pairs_and_keys_equal_a_count_of_the_mask(new, context, size):
    visible = [set(range(p - p % size, p + 1)) for p in range(context, context + new)]
    pairs, keys = attention_pairs(np.array([new]), np.array([context]), Chunk(size))
    assert pairs[0] == sum(len(keys) for keys in visible)
    assert keys[0] == len(set().union(*visible))


@given(st.integers(1, 40), st.integers(0, 60), st.integers(1, 70))
def test_selected_keys_are_as_many_as_a_window_sees_but_stand_anywhere(new, context, most):
    n, c = np.array([new]), np.array([context])
    pairs, keys = attention_pairs(n, c, Selected(most))
    windowed, nearest = attention_pairs(n, c, most)
    assert pairs == windowed
    assert nearest[0] <= keys[0] <= min(context + new, pairs[0])


@given(st.integers(1, 40), st.integers(0, 60), st.integers(1, 70))
def test_scans_pair_new_tokens_within_their_chunks_only(new, context, size):
    sizes = [min(size, new - start) for start in range(0, new, size)]
    pairs, chunks = attention_pairs(np.array([new]), np.array([context]), Scan(size))
    assert pairs[0] == sum(length * (length + 1) // 2 for length in sizes)
    assert chunks[0] == len(sizes)
    assert attention_pairs(np.array([new, 1]), np.array([context, 0]), Scan(None))[1].tolist() == [1, 1]
