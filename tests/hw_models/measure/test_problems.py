"""References against other ways to compute the same, and the work that problems claim against counting."""

import numpy as np
import pytest

from moesim.hw_models.measure.attention_problems import DecodeAttention, PrefillAttention
from moesim.hw_models.measure.matrix_problems import ExpertFfn, Gemm, GroupedGemm, sorted_by_expert
from moesim.hw_models.measure.memory_problems import Copy, Permute, RoutingHistogram, Triad, Unpermute
from moesim.hw_models.measure.problem import (
    chosen_experts,
    random_values,
    relative_error,
    rounded_to_bf16,
    sampled_rows,
)

PROBLEMS = [
    Copy(7),
    Triad(7),
    Gemm(3, 5, 4),
    GroupedGemm((2, 0, 3), 5, 4),
    ExpertFfn(4, 6, 2, 8, 5, skewed=True),
    DecodeAttention((3, 9), 4, 2, 8, 4),
    PrefillAttention(2, 5, 4, 2, 8),
    Permute(3, 4, 2, 6),
    Unpermute(3, 4, 2, 6),
    RoutingHistogram(3, 4, 2),
]


def by_name(problem):
    return problem.kernel


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def whole(problem, inputs):
    return problem.reference(inputs, np.arange(problem.output_rows))


@pytest.mark.parametrize("problem", PROBLEMS, ids=by_name)
def test_rows_of_the_reference_are_those_of_the_whole(problem, rng):
    inputs = problem.inputs(rng)
    rows = np.array([problem.output_rows - 1, 0])
    np.testing.assert_allclose(problem.reference(inputs, rows), whole(problem, inputs)[rows])


@pytest.mark.parametrize("problem", PROBLEMS, ids=by_name)
def test_the_same_seed_gives_the_same_inputs(problem):
    first, second = (problem.inputs(np.random.default_rng(3)) for _ in range(2))
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])


@pytest.mark.parametrize("problem", PROBLEMS[:4], ids=by_name)
def test_bytes_are_those_of_inputs_and_result(problem, rng):
    if isinstance(problem, GroupedGemm):
        problem = GroupedGemm((2, 1, 3), 5, 4)  # all experts are read
    inputs = problem.inputs(rng)
    assert problem.work.read_bytes == sum(values.nbytes for values in inputs.values())
    assert problem.work.write_bytes == 4 * whole(problem, inputs).size


def test_experts_without_tokens_are_not_read():
    some, all_read = GroupedGemm((5, 0), 6, 4), GroupedGemm((4, 1), 6, 4)
    assert all_read.work.read_bytes - some.work.read_bytes == 4 * 6 * 4


def test_flops_of_products():
    assert Gemm(3, 5, 4).work.flops == 2 * 3 * 5 * 4
    assert GroupedGemm((2, 0, 3), 5, 4).work.flops == 2 * 5 * 5 * 4
    assert ExpertFfn(4, 6, 2, 8, 5).work.flops == 2 * (4 * 2) * (3 * 8 * 5)


def test_flops_of_attention_count_every_pair_twice_for_scores_and_twice_for_values():
    assert DecodeAttention((3, 9), 4, 2, 8).work.flops == 4 * 4 * 8 * (3 + 9)
    assert PrefillAttention(2, 5, 4, 2, 8).work.flops == 4 * 4 * 8 * 2 * (1 + 2 + 3 + 4 + 5)


def test_grouped_product_with_equal_matrices_is_one_product(rng):
    problem = GroupedGemm((2, 0, 3), 5, 4)
    inputs = dict(problem.inputs(rng))
    inputs["b"] = np.repeat(inputs["b"][:1], 3, axis=0)
    np.testing.assert_allclose(whole(problem, inputs), inputs["a"].astype(np.float64) @ inputs["b"][0])


def test_expert_network_token_by_token(rng):
    problem = ExpertFfn(4, 6, 2, 8, 5, skewed=True, dtype="fp32")
    inputs = problem.inputs(rng)
    expected = np.zeros((4, 8))
    for token in range(4):
        for expert, weight in zip(inputs["ids"][token], inputs["weights"][token], strict=True):
            both = inputs["x"][token].astype(np.float64) @ inputs["up"][expert]
            gate, up = both[:5], both[5:]
            expected[token] += weight * ((gate / (1 + np.exp(-gate)) * up) @ inputs["down"][expert])
    np.testing.assert_allclose(whole(problem, inputs), expected, rtol=1e-6)
    np.testing.assert_allclose(inputs["weights"].sum(axis=1), 1, rtol=1e-6)


def test_decode_attention_head_by_head(rng):
    problem = DecodeAttention((3, 9), 4, 2, 8, 4, "fp32")
    inputs = problem.inputs(rng)
    for sequence, length in enumerate((3, 9)):
        for head in range(4):
            scores, values = [], []
            for token in range(length):
                page, slot = inputs["page_table"][sequence, token // 4], token % 4
                scores.append(inputs["query"][sequence, head] @ inputs["keys"][page, slot, head // 2] / np.sqrt(8))
                values.append(inputs["values"][page, slot, head // 2])
            weights = np.exp(scores) / np.exp(scores).sum()
            expected = (weights[:, None] * np.array(values)).sum(axis=0)
            np.testing.assert_allclose(whole(problem, inputs)[sequence, head], expected, rtol=1e-5)


def test_no_two_sequences_share_a_page():
    problem = DecodeAttention((3, 9, 33), 4, 2, 8, 4)
    used = problem.page_table[problem.page_table >= 0]
    assert sorted(used) == list(range(1 + 3 + 9))


def test_the_last_token_of_a_prompt_sees_what_a_decoding_one_does(rng):
    prefill = PrefillAttention(2, 9, 4, 2, 8, "fp32")
    decode = DecodeAttention((9, 9), 4, 2, 8, 16, "fp32")
    inputs, paged = prefill.inputs(rng), dict(decode.inputs(rng))
    paged["query"] = inputs["query"][:, :, -1]
    for name in ("keys", "values"):
        paged[name] = np.zeros_like(paged[name])
        paged[name][decode.page_table[:, 0], :9] = inputs[name].transpose(0, 2, 1, 3)
    last = whole(prefill, inputs).reshape(2, 4, 9, 8)[:, :, -1]
    np.testing.assert_allclose(last, whole(decode, paged))


def test_the_first_token_of_a_prompt_sees_only_itself(rng):
    problem = PrefillAttention(2, 9, 4, 2, 8, "fp32")
    inputs = problem.inputs(rng)
    first = whole(problem, inputs).reshape(2, 4, 9, 8)[:, :, 0]
    np.testing.assert_allclose(first, np.repeat(inputs["values"][:, :, 0], 2, axis=1))


def test_unpermute_undoes_permute(rng):
    permute, unpermute = Permute(5, 4, 2, 6, skewed=True), Unpermute(5, 4, 2, 6, skewed=True)
    inputs = permute.inputs(rng)
    back = {"y": whole(permute, inputs), "position": unpermute.order.position, "weights": np.full((5, 2), 0.5)}
    np.testing.assert_allclose(whole(unpermute, back), inputs["x"])


def test_selections_are_sorted_by_expert():
    ids = chosen_experts(20, 6, 2, skewed=True)
    order = sorted_by_expert(ids, 6)
    assert np.array_equal(ids.reshape(-1)[np.argsort(order.position.reshape(-1))], np.sort(ids.reshape(-1)))
    assert np.array_equal(np.repeat(np.arange(6), order.expert_tokens), np.sort(ids.reshape(-1)))
    assert np.array_equal(order.token[order.position], np.repeat(np.arange(20)[:, None], 2, axis=1))


@pytest.mark.parametrize("skewed", [False, True])
def test_a_token_never_chooses_an_expert_twice(skewed):
    ids = chosen_experts(300, 9, 4, skewed=skewed)
    assert ids.min() >= 0
    assert ids.max() < 9
    assert all(len(set(line)) == 4 for line in ids.tolist())


def test_balanced_and_skewed_loads():
    balanced = np.bincount(chosen_experts(100, 64, 8, skewed=False).reshape(-1), minlength=64)
    skewed = np.bincount(chosen_experts(100, 64, 8, skewed=True).reshape(-1), minlength=64)
    assert balanced.max() - balanced.min() <= 1
    assert balanced.sum() == skewed.sum() == 800
    assert skewed.max() > 4 * skewed.mean()


def test_bf16_rounding_at_and_around_a_tie():
    step = 2.0**-7  # between neighbours from 1 to 2
    values = np.array([1, 1 + step / 2, 1 + 1.5 * step, 1 + 0.49 * step, -1 - 0.51 * step, 3e38, 0], np.float32)
    expected = [1, 1, 1 + 2 * step, 1, -1 - step]
    rounded = rounded_to_bf16(values)
    np.testing.assert_array_equal(rounded[:5], expected)
    assert np.isfinite(rounded).all()
    np.testing.assert_array_equal(rounded_to_bf16(rounded), rounded)
    assert (rounded.view(np.uint32) & 0xFFFF == 0).all()


@pytest.mark.parametrize(("dtype", "kept"), [("fp32", np.float32), ("fp16", np.float16), ("bf16", np.float32)])
def test_random_values(rng, dtype, kept):
    values = random_values(rng, (300, 700), dtype, 0.5)
    assert values.dtype == kept
    assert values.shape == (300, 700)
    assert abs(float(values.astype(np.float64).mean())) < 0.01
    assert 0.49 < float(np.abs(values).max()) <= 0.5


def test_all_rows_of_a_small_result_are_checked_and_the_ends_of_a_large_one(rng):
    assert sampled_rows(Copy(16), rng).tolist() == list(range(16))
    rows = sampled_rows(Copy(10_000), rng)
    assert (rows[0], rows[-1]) == (0, 9_999)
    assert 3 <= len(rows) <= 16


def test_error_is_relative_to_the_largest_value():
    assert relative_error(np.array([1.0, 10.5]), np.array([1.0, 10.0])) == pytest.approx(0.05)
    assert relative_error(np.array([1.0, np.nan]), np.array([1.0, 10.0])) == np.inf
    assert relative_error(np.array([0.25]), np.array([0.0])) == 0.25
