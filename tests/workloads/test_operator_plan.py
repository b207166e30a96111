import numpy as np
import pytest

from moesim.configs.loader import shipped
from moesim.simulator.memory import weight_bytes
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


@pytest.mark.parametrize("name", shipped("models"))
@pytest.mark.parametrize(("tp", "dp", "ep"), [(2, 1, 1), (2, 1, 2), (4, 1, 2), (1, 4, 4), (2, 2, 4), (2, 2, 1)])
def test_flops_do_not_depend_on_parallelism_except_where_listed(name, tp, dp, ep):
    model = load_model(name)
    ep = ep if model.moe_layers else 1
    alone, cut = OperatorPlan(model), OperatorPlan(model, tp=tp, dp=dp, ep=ep)
    tokens = even_tokens(model, alone, sum(new for new, _ in MIXED) * dp)
    one = alone.lower(make_step(MIXED * dp), tokens)
    many = cut.lower(make_step(MIXED, dp), tokens)
    replicated = set(np.array(many.operators)[many.operator[many.replicated]])
    rows = np.isin(np.array(one.operators)[one.operator], list(replicated))
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
