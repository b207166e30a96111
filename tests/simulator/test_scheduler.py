"""The three ways in which engines run prompts beside decodes."""

from collections import deque
from typing import Any

import numpy as np
import pytest

from moesim.configs.loader import shipped
from moesim.errors import ConfigError
from moesim.simulator.memory import KvCache
from moesim.simulator.request_states import RequestStates
from moesim.simulator.scenario import load_scenario
from moesim.simulator.scheduler import RankScheduler, SchedulerSettings
from moesim.simulator.simulate import simulate
from moesim.workloads.models import load_model
from moesim.workloads.requests import Requests


def scheduler_of(prompts, outputs, cache_bytes=1e12, stages=1, **settings):
    requests = Requests(np.zeros(len(prompts)), np.array(prompts), np.array(outputs), "test")
    cache = KvCache.of(load_model("olmoe-1b-7b"), 1, 16)
    rank = RankScheduler(RequestStates.of(requests), SchedulerSettings(**settings), cache, cache_bytes, stages=stages)
    for request in range(len(prompts)):
        rank.submit(request)
    return rank


def next_step(rank):
    """What an engine that does not work ahead runs next."""
    rank.catch_up()
    return rank.schedule()


def steps_of(rank, most=1000):
    """Every step as {request: tokens}."""
    steps: list[dict[int, int]] = []
    while rank.outstanding and len(steps) < most:
        request, _, tokens = next_step(rank)
        steps.append(dict(zip(request.tolist(), tokens.tolist(), strict=True)))
        rank.complete(request)
    rank.catch_up()
    return steps


def run_pipelined(rank, most=3000):
    """Play to the end with as many steps in flight as there are stages; returns how many steps it took."""
    in_flight: deque[Any] = deque()
    steps = 0
    while rank.outstanding and steps < most:
        request = next_step(rank).request if len(in_flight) < rank.stages else ()
        if len(request):
            in_flight.append(request)
            steps += 1
        else:
            rank.complete(in_flight.popleft())
    rank.catch_up()
    return steps


def test_chunks_of_a_prompt_share_steps_with_decodes():
    steps = steps_of(scheduler_of([10, 100], [5, 2], token_budget=40))
    assert steps[:4] == [{0: 10, 1: 30}, {0: 1, 1: 39}, {0: 1, 1: 31}, {0: 1, 1: 1}]


def test_prompts_alone_pause_decodes():
    steps = steps_of(scheduler_of([10, 100], [5, 2], token_budget=40, prefill="alone"))
    assert steps[:4] == [{0: 10, 1: 30}, {1: 40}, {1: 30}, {0: 1, 1: 1}]


def test_whole_prompts_wait_for_room_and_only_giants_are_cut():
    steps = steps_of(scheduler_of([10, 35, 100], [3, 1, 1], token_budget=40, prefill="whole"))
    assert steps == [{0: 10}, {0: 1, 1: 35, 2: 4}, {0: 1, 2: 39}, {2: 40}, {2: 17}]


def test_a_giant_prompt_does_not_hold_up_the_queue_until_all_others_have_ended():
    rank = scheduler_of([10, 41, 5], [500, 1, 1], token_budget=40, prefill="whole")
    steps = steps_of(rank)
    assert next(number for number, step in enumerate(steps) if 2 in step) <= 2


@pytest.mark.parametrize("prefill", ["chunked", "alone", "whole"])
def test_every_way_computes_every_token_once_within_the_budget(prefill):
    rng = np.random.default_rng(0)
    prompts, outputs = rng.integers(1, 200, 40), rng.integers(1, 30, 40)
    steps = steps_of(scheduler_of(prompts, outputs, token_budget=64, max_num_seqs=8, prefill=prefill))
    total = {r: sum(step.get(r, 0) for step in steps) for r in range(40)}
    assert total == {r: prompts[r] + outputs[r] - 1 for r in range(40)}
    assert all(sum(step.values()) <= 64 and len(step) <= 8 for step in steps)


@pytest.mark.parametrize("prefill", ["chunked", "alone", "whole"])
def test_every_way_survives_a_tiny_cache(prefill):
    rank = scheduler_of([50] * 6, [60] * 6, prefill=prefill)
    one = float(rank.cache.bytes(np.array([109]))[0])
    rank.capacity_bytes = rank.free_bytes = 2.2 * one
    steps_of(rank)
    assert (rank.states.generated == 60).all()
    assert rank.states.preemptions.sum() > 0
    assert rank.free_bytes == rank.capacity_bytes


@pytest.mark.parametrize("name", shipped("schedulers"))
def test_presets_name_their_source_and_run(tiny, name):
    result = simulate(tiny(scheduler=name))
    assert result.settings["scheduler"]["source"]
    assert result.summary["requests"] == 40


def test_presets_can_be_edited_and_unknown_ones_are_refused(tiny):
    scenario, _ = load_scenario(tiny(scheduler="sglang"), ["scheduler.token_budget=99"])
    assert scenario.scheduler.token_budget == 99
    assert scenario.scheduler.prefill == "alone"
    with pytest.raises(ConfigError, match="did you mean `sglang`"):
        load_scenario(tiny(scheduler="sglnag"))


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("room", [1.0, 1.2, 1.7])
def test_sequences_in_flight_do_not_preempt_each_other_for_ever(stages, room):
    rank = scheduler_of([200, 280, 230, 260, 210, 290], [50] * 6, stages=stages, token_budget=32)
    rank.capacity_bytes = rank.free_bytes = room * float(rank.cache.bytes(np.array([340]))[0])
    assert run_pipelined(rank) < 3000
    assert (rank.states.generated == 50).all()
    assert rank.states.preemptions.sum() > 0
    assert rank.free_bytes == rank.capacity_bytes


def test_with_steps_in_flight_only_the_last_is_preempted():
    rank = scheduler_of([16, 16], [40, 40], stages=2, token_budget=16)
    rank.capacity_bytes = rank.free_bytes = float(rank.cache.bytes(np.array([64]))[0])
    first_preempted = []
    in_flight: deque[Any] = deque()
    while rank.outstanding:
        request = next_step(rank).request if len(in_flight) < 2 else ()
        first_preempted += [r for r in (0, 1) if rank.states.preemptions[r]]
        if len(request):
            in_flight.append(request)
        else:
            rank.complete(in_flight.popleft())
    assert set(first_preempted) == {1}


def test_a_host_that_works_ahead_learns_a_step_late_what_came_and_what_ended():
    rank = scheduler_of([10, 10, 10], [2, 2, 2], max_num_seqs=1, async_host=True)
    steps = []
    while rank.outstanding:
        request = rank.schedule().request
        assert not set(rank.catch_up()) & set(request.tolist())
        steps.append(request.tolist())
        rank.complete(request)
    assert steps == [[], [0], [0], [], [1], [1], [], [2], [2]]


def test_room_of_the_finished_is_free_once_the_engine_has_looked():
    rank = scheduler_of([10], [1])
    request = next_step(rank).request
    before = rank.free_bytes
    rank.complete(request)
    assert rank.free_bytes == before
    rank.catch_up()
    assert rank.free_bytes == rank.capacity_bytes
