"""Pipeline stages: together they are the whole model, and several steps are on their way at once."""

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.hw_models.system import load_system
from moesim.simulator.collectives import SEND
from moesim.simulator.graph import NO_LAYER
from moesim.simulator.memory import Demand, KvCache, check_capacity, weight_bytes
from moesim.simulator.parallelism import Parallelism
from moesim.simulator.scenario import load_scenario, prepare
from moesim.simulator.simulate import build_pipelines, serve, simulate
from moesim.workloads.models import load_model
from moesim.workloads.operator_plan import OperatorPlan

NO_HOST = {"host_overhead_s": 0.0}  # it would make the first stage the slowest by far
ONE = {"kind": "synthetic", "num_requests": 1, "prompt_tokens": 100, "output_tokens": 20, "rate_per_s": 1}


def watched(scenario):
    """Every passage of a run, with what the loop wrote down."""
    setup = prepare(*load_scenario(scenario))
    pipelines = build_pipelines(setup)
    passages = []
    record = serve(setup, pipelines, on_step=lambda _number, _replica, passage: passages.append(passage))
    return pipelines, passages, record


@pytest.mark.parametrize(
    ("layers", "pp", "sizes"), [(8, 4, [2, 2, 2, 2]), (61, 4, [15, 15, 16, 15]), (5, 3, [2, 2, 1])]
)
def test_layers_left_over_go_to_the_last_stages_but_one(layers, pp, sizes):
    stages = Parallelism(pp=pp).stage_layers(layers)
    assert [layer for stage in stages for layer in stage] == list(range(layers))
    assert [len(stage) for stage in stages] == sizes


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "gpt-oss-20b", "qwen3-32b"])
@pytest.mark.parametrize("pp", [2, 3])
def test_stages_hold_the_whole_model_once(name, pp):
    model = load_model(name)
    whole = OperatorPlan(model)
    parts = [OperatorPlan(model, layers=layers) for layers in Parallelism(pp=pp).stage_layers(len(model.layers))]
    assert sum(map(weight_bytes, parts)) == pytest.approx(weight_bytes(whole), rel=1e-12)
    tokens = np.array([1, 16, 17, 5000])
    caches = [KvCache.of(model, 1, 16, part.layer_range).bytes(tokens) for part in parts]
    assert sum(caches) == pytest.approx(KvCache.of(model, 1, 16).bytes(tokens), rel=1e-12)


def test_a_tied_head_is_held_again_where_the_embedding_is_not():
    model = load_model("gemma-4-26b-a4b")
    assert model.tied_embeddings
    first, last = (OperatorPlan(model, layers=layers) for layers in Parallelism(pp=2).stage_layers(len(model.layers)))
    extra = weight_bytes(first) + weight_bytes(last) - weight_bytes(OperatorPlan(model))
    assert extra == pytest.approx(model.embedding.nbytes, rel=1e-12)


def test_stages_do_the_work_of_one_device(tiny):
    whole, cut = simulate(tiny()), simulate(tiny(2, parallelism={"pp": 2}))
    total = [result.operators.groupby("operator")["flops"].sum() for result in (whole, cut)]
    assert total[1].drop(SEND).to_dict() == pytest.approx(total[0].to_dict(), rel=1e-9)
    assert (whole.tables["experts"]["tokens"] == cut.tables["experts"]["tokens"]).all()


def test_one_request_passes_the_stages_one_after_the_other(tiny):
    _, passages, _ = watched(tiny(2, parallelism={"pp": 2}, requests=ONE))
    for passage in passages:
        makespans = [outcome.makespan_s for outcome in passage.outcomes]
        assert passage.duration_s == pytest.approx(sum(makespans), rel=1e-9)
    assert len(passages) == 20


def test_stages_keep_the_order_of_steps_and_do_one_at_a_time(tiny):
    pipelines, passages, _ = watched(tiny(4, parallelism={"tp": 2, "pp": 2}))
    assert len(pipelines[0].stages) == 2
    for stage in range(2):
        starts = np.array([passage.start_s[stage] for passage in passages])
        ends = starts + [passage.outcomes[stage].makespan_s for passage in passages]
        assert (starts[1:] >= ends[:-1] - 1e-12).all()
    second = np.array([passage.start_s[1] for passage in passages])
    first_ends = np.array([passage.start_s[0] + passage.outcomes[0].makespan_s for passage in passages])
    assert (second >= first_ends - 1e-12).all()


@pytest.mark.parametrize("pp", [2, 4])
def test_as_many_steps_are_on_their_way_as_there_are_stages(tiny, pp):
    steps = simulate(tiny(pp, parallelism={"pp": pp}, concurrency=16, scheduler=NO_HOST)).tables["steps"]
    begin, end = steps["start_s"], steps["start_s"] + steps["duration_s"]
    in_flight = [int(((begin <= now) & (end > now + 1e-9)).sum()) for now in begin]
    assert max(in_flight) == pp


def test_no_sequence_decodes_in_two_steps_at_once(tiny):
    _, passages, _ = watched(tiny(4, parallelism={"pp": 4}, concurrency=16))
    until: dict[int, float] = {}
    chunks_followed = False
    for passage in passages:
        step, now_s = passage.step, passage.start_s[0]
        for request, decodes in zip(step.request.tolist(), step.decodes.tolist(), strict=True):
            waits = until.get(request, 0.0) <= now_s + 1e-12
            assert waits or not decodes
            chunks_followed |= not waits
            until[request] = passage.start_s[-1] + passage.outcomes[-1].makespan_s
    assert chunks_followed  # a prompt's next chunk enters while the one before is on its way


def test_a_pipeline_decodes_faster_than_its_stages_in_turn(tiny):
    cut, alone = (
        simulate(tiny(2, parallelism={"pp": 2}, concurrency=concurrency, scheduler=NO_HOST)).summary
        for concurrency in (16, 1)
    )
    steps_per_s = [summary["steps"] / summary["duration_s"] for summary in (cut, alone)]
    assert steps_per_s[0] > 1.5 * steps_per_s[1]


def test_sends_cross_nodes_only_where_stages_do(tiny):
    assert load_system("h100-sxm-16").devices_per_node == 8
    for devices, tp, crossing in ((8, 2, [False] * 3), (16, 4, [False, True, False])):
        setup = prepare(*load_scenario(tiny(devices, parallelism={"tp": tp, "pp": 4})))
        stages = build_pipelines(setup)[0].stages
        assert [stage.collectives.sends_far for stage in stages[:-1]] == crossing


def test_each_device_gets_a_part_of_the_hidden_states_and_gathers_the_rest(tiny):
    setup = prepare(*load_scenario(tiny(8, parallelism={"tp": 2, "dp": 2, "ep": 2, "pp": 2})))
    for stage, kind in zip(build_pipelines(setup)[0].stages, (SEND, "all_gather"), strict=True):
        graph = stage.step_graph.graph
        outside = (graph.layer == NO_LAYER) & (graph.kind == graph.kinds.index(kind))
        assert np.sort(graph.device[outside]).tolist() == list(stage.devices)


def test_preemption_with_steps_in_flight_loses_no_token(tiny, tight):
    requests = {
        "kind": "synthetic", "num_requests": 30, "concurrency": 12,
        "prompt_tokens": {"kind": "uniform", "min": 50, "max": 400},
        "output_tokens": {"kind": "uniform", "min": 50, "max": 150},
    }  # fmt: skip
    setup, loop = tight(tiny(4, parallelism={"tp": 2, "pp": 2}, requests=requests), 3)
    record = loop.run()
    assert record.preemptions.sum() > 0
    assert (loop.states.generated == setup.requests.output_tokens).all()
    assert (loop.states.in_flight == 0).all()
    tokens = loop.pipelines[0].expert_tokens().sum(axis=2)
    assert (tokens[0] == 2 * setup.requests.prompt_tokens.sum()).all()
    assert (tokens[1] == 2 * (setup.requests.output_tokens - 1).sum()).all()
    assert all(rank.scheduler.free_bytes == rank.scheduler.capacity_bytes for rank in loop.ranks)


def test_the_tightest_stage_decides_how_much_fits():
    model, system = load_model("deepseek-v3"), load_system("h200-sxm-32")
    demand = Demand(0.9, 8192, 16, 4096)
    cut = Parallelism(tp=8, ep=8, pp=4)
    memory, cache = check_capacity(model, system, cut, demand)
    rooms = []
    for layers in cut.stage_layers(len(model.layers)):
        plan = OperatorPlan(model, tp=8, ep=8, layers=layers)
        need = KvCache.of(model, 8, 16, layers).bytes(np.array([4096]))[0]
        rooms.append((memory.usable_bytes - memory.workspace_bytes - weight_bytes(plan)) / need)
    assert min(rooms) < 0.9 * max(rooms)
    assert memory.kv_bytes / cache.bytes(np.array([4096]))[0] == pytest.approx(min(rooms), rel=0.01)


def test_more_stages_than_layers_are_refused(tiny):
    with pytest.raises(ConfigError, match="pp must be at most the 4 layers of tiny-moe, got pp = 8"):
        prepare(*load_scenario(tiny(8, parallelism={"pp": 8})))
