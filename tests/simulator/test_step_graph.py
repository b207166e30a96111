"""Graphs of steps against closed forms: what a step must take follows from its prices."""

import numpy as np
import pytest

from moesim.simulator.scenario import load_scenario, prepare
from moesim.simulator.simulate import build_pipelines, serve


def stages_of(scenario):
    """Every step of a run on every stage in turn, with the simulators that played them."""
    setup = prepare(*load_scenario(scenario))
    pipelines = build_pipelines(setup)
    outcomes = []
    serve(setup, pipelines, on_step=lambda _number, _replica, passage: outcomes.extend(passage.outcomes))
    return pipelines[0].stages, outcomes


def outcomes_of(scenario):
    """Every step of a run on one stage, with the simulator that played them."""
    [stage], outcomes = stages_of(scenario)
    return stage, outcomes


def stream_sums(graph, kind=None):
    """Busy seconds by stream."""
    real = graph.stream >= 0
    if kind is not None:
        real &= graph.kind == graph.kinds.index(kind)
    return np.bincount(graph.stream[real], graph.duration_s[real], graph.streams)


def test_one_device_does_one_thing_after_the_other(tiny):
    _, outcomes = outcomes_of(tiny())
    for outcome in outcomes:
        assert outcome.makespan_s == pytest.approx(outcome.graph.duration_s.sum(), rel=1e-12)


def test_an_overlapped_host_hides_behind_the_devices_or_bounds_the_step(tiny):
    slow = tiny(scheduler={"token_budget": 256, "host_overhead_s": "2 ms", "async_host": True})
    _, outcomes = outcomes_of(slow)
    for outcome in outcomes:
        host, devices = stream_sums(outcome.graph, "host").max(), 0.0
        devices = outcome.graph.duration_s.sum() - host
        assert outcome.makespan_s == pytest.approx(max(host, devices), rel=1e-12)


def test_tensor_parallel_devices_wait_for_each_all_reduce(tiny):
    _, outcomes = outcomes_of(tiny(4, parallelism={"tp": 4}))
    for outcome in outcomes:
        busy = stream_sums(outcome.graph)
        names = np.array(outcome.graph.stream_names)
        compute = busy[names == "device 0 gpu"][0]
        network = busy[names == "device 0 network"][0]
        host = busy[names == "host"][0]
        assert outcome.makespan_s == pytest.approx(host + compute + network, rel=1e-12)


def test_a_step_takes_at_least_its_busiest_stream(parallel):
    _, outcomes = stages_of(parallel)
    for outcome in outcomes:
        assert outcome.makespan_s >= stream_sums(outcome.graph).max() * (1 - 1e-12)


def test_every_layer_runs_its_collectives_once_per_device(tiny):
    simulator, _ = outcomes_of(tiny(4, parallelism={"tp": 2, "dp": 2, "ep": 4}))
    graph = simulator.step_graph.graph
    count = {kind: int((graph.kind == index).sum()) for index, kind in enumerate(graph.kinds)}
    layers, moe_layers, devices = 4, 2, 4
    assert count["dispatch"] == count["combine"] == moe_layers * devices
    assert count["reduce_scatter"] == count["all_gather"] == moe_layers * devices
    dense_layers = layers - moe_layers
    assert count["all_reduce"] == (1 + layers + dense_layers) * devices
    assert count["logits_gather"] == devices


def test_shared_experts_run_beside_the_dispatch(tiny):
    _, outcomes = outcomes_of(tiny(4, parallelism={"dp": 4, "ep": 4}))
    graph, timeline = outcomes[0].graph, outcomes[0].timeline
    dispatch = np.flatnonzero(graph.kind == graph.kinds.index("dispatch"))
    shared = np.flatnonzero(graph.kind == graph.kinds.index("shared_up"))
    assert timeline.start_s[shared].min() < timeline.finish_s[dispatch].min()


def test_totals_are_the_sums_of_the_steps(parallel):
    stages, outcomes = stages_of(parallel)
    for number, stage in enumerate(stages):
        mine = outcomes[number :: len(stages)]
        played = sum(outcome.graph.duration_s.sum() for outcome in mine)
        assert stage.totals.time_s @ stage.tasks_per_row == pytest.approx(played, rel=1e-9)
        energy = sum(outcome.energy_j for outcome in mine)
        summed = stage.totals.energy_j @ stage.tasks_per_row + stage.totals.waiting_j
        assert summed == pytest.approx(energy, rel=1e-9)


def test_one_device_never_waits_and_tensor_parallel_devices_wait_for_their_collectives(tiny):
    slow_host = {"token_budget": 256, "host_overhead_s": "2 ms", "async_host": True}
    for scenario in (tiny(), tiny(scheduler=slow_host)):
        alone, _ = outcomes_of(scenario)
        assert alone.totals.waiting_j == pytest.approx(0.0, abs=1e-9)
    together, _ = outcomes_of(tiny(4, parallelism={"tp": 4}))
    network = sum(
        time * tasks
        for name, time, tasks in zip(together.names, together.totals.time_s, together.tasks_per_row, strict=True)
        if name in {"all_reduce", "logits_gather"}
    )
    assert together.totals.waiting_j == pytest.approx(network * together.system.device.active_w, rel=1e-6)


def test_a_device_with_two_processors_takes_the_longer_part_of_each_operator():
    requests = {"kind": "synthetic", "num_requests": 16, "prompt_tokens": 50, "output_tokens": 5}
    simulator, outcomes = outcomes_of(
        {"model": "gpt-oss-20b", "system": "duplex-1", "requests": requests, "concurrency": 16}
    )
    elapsed = simulator.totals.elapsed_s @ simulator.tasks_per_row
    assert sum(outcome.makespan_s for outcome in outcomes) == pytest.approx(elapsed, rel=1e-9)
    busy = simulator.totals.time_s @ simulator.tasks_per_row
    assert busy > elapsed * 1.01  # some operators are shared


def test_memory_that_computes_is_never_slower(tiny):
    _, plain = outcomes_of(tiny(system="h100-sxm-1", concurrency=16))
    _, duplex = outcomes_of(tiny(system="duplex-1", concurrency=16))
    assert sum(o.makespan_s for o in duplex) < sum(o.makespan_s for o in plain)
