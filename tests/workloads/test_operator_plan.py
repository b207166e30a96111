from contextlib import suppress

import numpy as np
import pytest

from moesim.configs.loader import shipped
from moesim.errors import ConfigError
from moesim.simulator.memory import weight_bytes
from moesim.simulator.parallelism import Parallelism, check_parallelism
from moesim.workloads.models import load_model
from moesim.workloads.operator_plan import OperatorPlan
from moesim.workloads.steps import Step


def make_step(sequences, ranks=1):
    """Every rank runs the same sequences: (new tokens, context) pairs."""
    new, context = (np.tile(column, ranks) for column in zip(*sequences, strict=True))
    n = len(new)
    rank = np.repeat(np.arange(ranks), len(sequences))
    return Step(np.arange(n), rank, new, context, np.ones(n, bool), np.ones(n, int), np.zeros(n, int))


def even_tokens(model, plan, tokens):
    """`tokens` tokens spread over all experts as evenly as whole numbers allow."""
    if plan.experts is None:
        return None
    block = plan.experts.block
    total = tokens * block.top_k
    loads = np.full(block.experts, total // block.experts)
    loads[: total % block.experts] += 1
    return np.tile(loads, (len(model.moe_layers), 1))


def places(table):
    """Operator name and first layer of each row."""
    return list(zip(np.array(table.operators)[table.operator], table.layer.tolist(), strict=True))


def total_flops(table, *, replicated):
    rows = table.replicated == replicated
    return float((table.flops * table.repeats * table.shards)[rows].sum())


MIXED = [(1, 700), (1, 30), (64, 0), (17, 100)]


@pytest.mark.parametrize("name", shipped("models"))
def test_resident_bytes_add_up_to_the_model(name):
    model = load_model(name)
    assert weight_bytes(OperatorPlan(model)) == pytest.approx(model.weight_bytes, rel=1e-12)
    table = OperatorPlan(model).lower(make_step([(1, 5)]), even_tokens(model, OperatorPlan(model), 1))
    assert (table.weight_bytes_resident * table.repeats).sum() == pytest.approx(model.weight_bytes, rel=1e-12)


def cuts(name):
    """(tp, dp, ep) that divide a model."""
    model = load_model(name)
    tried = ((2, 1, 1), (2, 1, 2), (4, 1, 2), (1, 4, 4), (2, 2, 4), (2, 2, 1))
    for tp, dp, ep in dict.fromkeys((tp, dp, ep if model.moe_layers else 1) for tp, dp, ep in tried):
        with suppress(ConfigError):
            check_parallelism(model, Parallelism(tp=tp, dp=dp, ep=ep), name)
            yield tp, dp, ep


@pytest.mark.parametrize("name", shipped("models"))
def test_every_model_can_be_cut(name):
    assert len(list(cuts(name))) >= (1 if name == "jamba-mini" else 4)  # Mamba layers have no tensor parallelism


@pytest.mark.parametrize(("name", "tp", "dp", "ep"), [(name, *cut) for name in shipped("models") for cut in cuts(name)])
def test_flops_do_not_depend_on_parallelism_except_where_listed(name, tp, dp, ep):
    model = load_model(name)
    alone, cut = OperatorPlan(model), OperatorPlan(model, tp=tp, dp=dp, ep=ep)
    tokens = even_tokens(model, alone, sum(new for new, _ in MIXED) * dp)
    one = alone.lower(make_step(MIXED * dp), tokens)
    many = cut.lower(make_step(MIXED, dp), tokens)
    replicated = {place for place, flag in zip(places(many), many.replicated, strict=True) if flag}
    rows = np.array([place in replicated for place in places(one)])
    expected = float((one.flops * one.repeats)[~rows].sum())
    assert total_flops(many, replicated=False) == pytest.approx(expected, rel=1e-12)


def test_replicated_work_is_listed():
    table = OperatorPlan(load_model("deepseek-v3"), tp=8).lower(make_step([(1, 5)]), None)
    names = set(np.array(table.operators)[table.operator[table.replicated]])
    assert names == {"attention_norm", "mla_down", "ffn_norm", "router", "top_k", "output_norm", "sampling"}


def test_kv_heads_beyond_tp_are_repeated():
    model = load_model("qwen3-30b-a3b")
    table = OperatorPlan(model, tp=8).lower(make_step([(1, 5)]), None)
    row = list(table.operators).index("qkv")
    assert table.replicated[row]
    assert table.n[row] == (32 // 8 + 2) * 128


def test_llama_prefill_flops_match_the_closed_form():
    """2 FLOPs per weight and token, 4 H d per query-key pair and layer, the head once per sampled sequence."""
    model, n = load_model("llama-3.1-8b"), 100
    table = OperatorPlan(model).lower(make_step([(n, 0)]))
    head = model.vocabulary * model.hidden
    layers = model.parameters - 2 * head - model.vector_parameters
    expected = 2 * n * layers + 2 * head + 32 * 4 * 4096 * n * (n + 1) // 2
    assert (table.flops * table.repeats).sum() == expected


def test_decode_reads_each_kv_head_once():
    model, context = load_model("llama-3.1-8b"), 1000
    table = OperatorPlan(model).lower(make_step([(1, context)]))
    row = list(table.operators).index("attention")
    query = 32 * 128 * 2
    assert table.read_bytes[row] == (context + 1) * 2 * 8 * 128 * 2 + query
    assert table.decode_read_bytes[row] == table.read_bytes[row]
    assert table.decode_flops[row] == table.flops[row]


def test_absorbed_decode_of_latent_attention_reads_the_latent_once():
    model, context = load_model("deepseek-v3"), 999
    table = OperatorPlan(model).lower(make_step([(1, context)]), None)
    row = list(table.operators).index("attention")
    assert table.flops[row] == 2 * 1000 * 128 * (512 + 64 + 512)
    query_and_result = 128 * (576 + 512) * 2
    assert table.read_bytes[row] + table.write_bytes[row] == 1000 * 576 * 2 + query_and_result
    assert table.m[list(table.operators).index("kv_up")] == 0


def test_an_expert_without_tokens_is_not_read():
    model = load_model("mixtral-8x7b")
    tokens = np.zeros((32, 8), dtype=np.int64)
    tokens[:, [1, 5]] = 1
    table = OperatorPlan(model).lower(make_step([(1, 5)]), tokens)
    rows = table.grouped_rows
    expert = 3 * 4096 * 14336 * 2
    assert (table.weight_bytes_read[rows] == 2 * expert).all()
    assert (table.flops[rows] == 2 * 2 * 3 * 4096 * 14336).all()
    assert (table.weight_bytes_resident[rows] == 8 * expert).all()


def test_chunked_prefill_costs_the_pairs_of_its_context():
    model = load_model("llama-3.1-8b")
    table = OperatorPlan(model).lower(make_step([(10, 90)]))
    row = list(table.operators).index("attention")
    assert table.flops[row] == 4 * 4096 * (10 * 90 + 55)


def rows_of(table, name):
    return np.flatnonzero(np.array(table.operators)[table.operator] == name)


def test_delta_rule_decodes_with_seven_flops_per_element_of_state_whatever_the_context():
    """Three products with the state and its decay; the state is read and written once (fp32), context or not."""
    plan = OperatorPlan(load_model("qwen3.5-35b-a3b"))
    state, row = 32 * 128 * 128, {}
    for context in (10, 100_000):
        table = plan.lower(make_step([(1, context)]), None)
        (index,) = rows_of(table, "delta_rule")
        row[context] = [table.flops[index], table.read_bytes[index], table.write_bytes[index]]
        assert table.repeats[index] == 30
        assert table.decode_flops[index] == table.flops[index]
        assert table.decode_read_bytes[index] == table.read_bytes[index]
    inputs = (2 * 16 * 128 + 32 * 128 + 2 * 32) * 2
    assert row[10] == row[100_000] == [7 * state, 4 * state + inputs, 4 * state + 32 * 128 * 2]


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 1000])
def test_delta_rule_prefills_in_chunks(tokens):
    """Counted product by product, chunk by chunk; see `attention_operators._delta_rule`."""
    d, heads, flops = 128, 32, 0.0
    for start in range(0, tokens, 64):
        size = min(64, tokens - start)
        pairs = size * (size + 1) / 2
        of_keys, of_values = 3 * 2 * pairs * d, 2 * 2 * pairs * d
        flops += heads * (3 * 2 * size * d * d + of_keys + of_values + 64**3 / 3 + d * d)
    table = OperatorPlan(load_model("qwen3.5-35b-a3b")).lower(make_step([(tokens, 0)]), None)
    (index,) = rows_of(table, "delta_rule")
    assert table.flops[index] == pytest.approx(flops, rel=1e-12)
    assert table.decode_flops[index] == 0


def test_cost_of_a_recurrence_grows_with_the_tokens_and_not_with_their_square():
    plan = OperatorPlan(load_model("qwen3.5-35b-a3b"))
    short, long = (plan.lower(make_step([(tokens, 0)]), None) for tokens in (6400, 64_000))
    (row,) = rows_of(short, "delta_rule")
    assert long.flops[row] == pytest.approx(10 * short.flops[row], rel=1e-12)
    (row,) = rows_of(short, "attention")
    assert long.flops[row] > 99 * short.flops[row]


def test_selective_scan_counts_its_recurrence():
    """Per channel and token 6 n + 3 FLOPs; the state moves once per decoded token and once per prefilled sequence."""
    plan = OperatorPlan(load_model("jamba-mini"))
    channels, n = 8192, 16
    decode, prefill = (plan.lower(make_step(step), None) for step in ([(1, 500)], [(100, 0), (28, 50)]))
    (row,) = rows_of(decode, "selective_scan")
    assert decode.repeats[row] == 28
    assert decode.flops[row] == channels * (6 * n + 3)
    assert prefill.flops[row] == 128 * channels * (6 * n + 3)
    state, inputs = channels * n * 2, (3 * channels + 2 * n) * 2
    assert decode.read_bytes[row] == inputs + state
    assert prefill.read_bytes[row] == 128 * inputs + 2 * state
    assert prefill.write_bytes[row] == 128 * channels * 2 + 2 * state


def test_sparse_attention_scores_all_keys_and_attends_to_the_selected_ones():
    plan = OperatorPlan(load_model("deepseek-v3.2"))
    dense = OperatorPlan(load_model("deepseek-r1"))
    for context in (999, 99_999):
        table = plan.lower(make_step([(1, context)]), None)
        (scores,), (attention,) = rows_of(table, "index_scores"), rows_of(table, "attention")
        assert table.flops[scores] == 2 * 64 * 128 * (context + 1)
        seen = min(context + 1, 2048)
        assert table.flops[attention] == 2 * seen * 128 * (512 + 64 + 512)
        full = dense.lower(make_step([(1, context)]), None)
        (row,) = rows_of(full, "attention")
        assert (table.flops[attention] == full.flops[row]) == (context + 1 <= 2048)


def test_chunked_attention_sees_the_chunk_of_the_token():
    plan = OperatorPlan(load_model("llama-4-scout"))
    table = plan.lower(make_step([(1, 8192 * 3 + 99)]), None)
    seen = {int(table.repeats[row]): table.flops[row] / (4 * 40 * 128) for row in rows_of(table, "attention")}
    assert seen == {36: 100, 12: 8192 * 3 + 100}


def test_gated_attention_projects_the_gate_and_one_projection_can_serve_keys_and_values():
    table = OperatorPlan(load_model("qwen3.5-35b-a3b")).lower(make_step([(1, 5)]), None)
    assert table.n[rows_of(table, "qkv")].tolist() == [(2 * 16 + 2 * 2) * 256]
    table = OperatorPlan(load_model("gemma-4-26b-a4b")).lower(make_step([(1, 5)]), None)
    assert table.n[rows_of(table, "qkv")].tolist() == [(16 + 2 * 8) * 256, (16 + 2) * 512]


def test_attention_rows_know_their_sequences_and_what_a_pair_costs():
    model = load_model("llama-3.1-8b")
    table = OperatorPlan(model).lower(make_step([(50, 100), (20, 0), (1, 700), (1, 30)]))
    attention = rows_of(table, "attention")
    others = np.setdiff1d(np.arange(len(table)), attention)
    for name, expected in (("prefill_sequences", 2), ("longest_prefill", 150), ("longest_decode", 701), ("window", 0)):
        assert np.all(getattr(table, name)[attention] == expected)
        assert not getattr(table, name)[others].any()
    assert np.all(table.decode_flops[attention] == table.decode_pair_flops[attention] * (701 + 31))
    prefill_flops = table.flops[attention] - table.decode_flops[attention]
    pairs = 50 * 100 + 50 * 51 // 2 + 20 * 21 // 2
    assert np.all(prefill_flops == table.prefill_pair_flops[attention] * pairs)


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_kernels_may_move_tokens_whose_experts_are_elsewhere(share):
    model = load_model("mixtral-8x7b")
    tokens = np.random.default_rng(0).integers(0, 20, (32, 8))
    step = make_step([(1, 10)] * 4, ranks=2)
    shares = (0.0, share)
    plain, moving = (OperatorPlan(model, dp=2, ep=2, foreign_share=s).lower(step, tokens) for s in shares)
    rows = plain.grouped_rows
    own = tokens.reshape(32, 2, 4).sum(axis=2)
    expected = ((own + share * own[:, ::-1]) / own).ravel()
    for column in ("read_bytes", "write_bytes"):
        assert getattr(moving, column)[rows] == pytest.approx(getattr(plain, column)[rows] * expected)
    assert (moving.flops == plain.flops).all()
    assert (moving.m == plain.m).all()
