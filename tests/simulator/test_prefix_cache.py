"""Prefix caching: what is found, what it saves, what it costs in memory."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import ConfigError, DataError
from moesim.simulator.memory import KvCache
from moesim.simulator.prefix_cache import PrefixCache, check_prefix_caching
from moesim.simulator.request_states import RequestStates
from moesim.simulator.scenario import load_scenario, prepare
from moesim.simulator.scheduler import RankScheduler, SchedulerSettings
from moesim.simulator.simulate import simulate
from moesim.workloads.prefix_blocks import PrefixBlocks
from moesim.workloads.request_files import read_requests
from moesim.workloads.requests import Requests

KV = KvCache(block_tokens=16, token_bytes=np.array([2.0]), windows=(None,))
PLENTY = 2.0**40
BLOCK = 32


def conversations(seed=0, count=60, block=BLOCK):
    """Requests that continue a few conversations: each prompt starts with a part of an earlier one."""
    rng = np.random.default_rng(seed)
    prompts: list[int] = []
    lists: list[list[int]] = []
    fresh = 0
    for _ in range(count):
        kept = []
        if lists and rng.random() < 0.7:
            earlier = lists[rng.integers(len(lists))]
            kept = earlier[: rng.integers(len(earlier) + 1)]
        new = int(rng.integers(1, 5))
        lists.append([*kept, *range(fresh, fresh + new)])
        fresh += new
        prompts.append(len(lists[-1]) * block - int(rng.integers(0, block)))
    return requests_of(prompts, rng.integers(1, 30, count), lists, block)


def requests_of(prompts, outputs, lists, block=BLOCK):
    """Requests that all arrive at once."""
    prefix = replace(PrefixBlocks.of(lists), block_tokens=block)
    return Requests(np.zeros(len(prompts)), np.array(prompts), np.array(outputs), "test", prefix=prefix)


def serve(requests, kv_bytes=PLENTY, check=None, **settings):
    """One rank serves everything, step by step; returns it and the prompt tokens that were computed."""
    states = RequestStates.of(requests)
    rank = RankScheduler(states, SchedulerSettings(prefix_caching=True, **settings), KV, kv_bytes)
    for row in range(len(requests)):
        rank.submit(row)
    first_time = 0
    while rank.outstanding:
        rank.catch_up()
        request, done, tokens = rank.schedule()
        assert len(request)
        assert (tokens > 0).all()
        new = np.maximum(np.minimum(done + tokens, states.prompt[request]) - np.maximum(done, states.seen[request]), 0)
        first_time += int(new.sum())
        if check:
            check(rank)
        rank.complete(request)
    rank.catch_up()
    return rank, first_time


def hits_by_hand(requests):
    """Tokens of leading full blocks that an earlier prompt filled, the last token never: nothing is ever dropped."""
    seen, hits = set(), []
    size = requests.prefix.block_tokens
    for row, prompt in enumerate(requests.prompt_tokens.tolist()):
        ids = requests.prefix.ids[requests.prefix.offsets[row] : requests.prefix.offsets[row + 1]].tolist()
        found = 0
        while (found + 1) * size < prompt and ids[found] in seen:
            found += 1
        seen.update(ids[: prompt // size])
        hits.append(found * size)
    return np.array(hits)


@pytest.mark.parametrize("settings", [{}, {"token_budget": 50}, {"max_num_seqs": 3}, {"prefill": "whole"}])
def test_hits_are_those_counted_by_hand(settings):
    requests = conversations()
    rank, computed = serve(requests, **settings)
    assert rank.states.prefix_hits.tolist() == hits_by_hand(requests).tolist()
    assert rank.states.prefix_hits.sum() > 0.2 * requests.prompt_tokens.sum()
    assert computed + rank.states.prefix_hits.sum() == requests.prompt_tokens.sum()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("prefill", ["chunked", "alone", "whole"])
def test_no_prompt_token_is_lost_and_none_computed_twice_when_memory_is_short(seed, prefill):
    requests = conversations(seed)
    kv_bytes = float(KV.bytes((requests.prompt_tokens + requests.output_tokens).max())) * 1.5
    rank, computed = serve(requests, kv_bytes, charged_as_held, token_budget=100, prefill=prefill)
    assert computed + rank.states.prefix_hits.sum() == requests.prompt_tokens.sum()
    assert (rank.states.generated == requests.output_tokens).all()
    assert rank.free_bytes == rank.capacity_bytes
    assert rank.prefixes.used_blocks == 0
    assert 0 < rank.prefixes.unused_bytes <= kv_bytes
    assert rank.states.prefix_hits.sum() < hits_by_hand(requests).sum()


def charged_as_held(rank):
    """Memory in use is every running request's own, with each shared block counted once."""
    states, size = rank.states, rank.prefixes.block_tokens
    shared: Counter[int] = Counter()
    for request in rank.running.tolist():
        held = rank.prefixes._held[request]
        shared.update(states.full_blocks[request][:held])
    twice = sum(shared.values()) - len(shared)
    used = states.held_bytes[rank.running].sum() - twice * size * 2.0
    assert rank.capacity_bytes - rank.free_bytes == used
    assert rank.prefixes.used_blocks == len(shared)
    assert 0 <= rank.prefixes.unused_bytes <= rank.free_bytes


def test_shared_blocks_are_counted_once():
    lists = [[1, 2, 3, 10 + row] for row in range(4)]
    requests = requests_of([4 * BLOCK] * 4, [5] * 4, lists)
    peak = []
    serve(requests, check=lambda rank: peak.append(rank.capacity_bytes - rank.free_bytes))
    assert peak[0] == (3 + 4) * BLOCK * 2
    assert max(peak) == (3 + 4) * BLOCK * 2 + 4 * 16 * 2


def test_a_prompt_that_is_cached_whole_still_computes_its_last_block():
    requests = requests_of([3 * BLOCK] * 2, [2, 2], [[1, 2, 3]] * 2)
    rank, _ = serve(requests)
    assert rank.states.prefix_hits.tolist() == [0, 2 * BLOCK]
    one_more = requests_of([3 * BLOCK, 3 * BLOCK + 1], [2, 2], [[1, 2, 3], [1, 2, 3, 4]])
    assert serve(one_more)[0].states.prefix_hits.tolist() == [0, 3 * BLOCK]


def test_the_longest_unused_goes_first_and_of_a_prompt_its_end():
    cache = PrefixCache([[1, 2], [3, 4], [1, 2], [3, 4]], BLOCK, 10.0)
    for request in (0, 1):
        assert cache.hold(request, 2 * BLOCK) == 0
        assert cache.release(request) == 0
    cache.evict(30.0)
    assert cache.find(2, 2 * BLOCK + 1) == (BLOCK, 0.0)
    cache.evict(20.0)
    assert cache.find(2, 2 * BLOCK + 1) == (0, 0.0)
    assert cache.find(3, 2 * BLOCK + 1) == (2 * BLOCK, 0.0)
    cache.hold(3, 2 * BLOCK)
    cache.evict(0.0)  # blocks in use stay
    assert cache.find(1, 2 * BLOCK + 1) == (2 * BLOCK, 20.0)


def test_without_hashes_in_common_nothing_changes():
    requests = conversations()
    own = replace(requests, prefix=replace(requests.prefix, ids=np.arange(len(requests.prefix.ids))))
    rank, computed = serve(own)
    assert rank.states.prefix_hits.sum() == 0
    assert computed == own.prompt_tokens.sum()


@pytest.mark.parametrize(
    ("changes", "cache", "message"),
    [
        ({"prefix": None}, KV, "here: needs requests with `hash_ids`, as Mooncake traces have, got 'test'"),
        ({}, replace(KV, block_tokens=24), "needs block_tokens that divide the 32 tokens of a hash, got 24"),
        ({}, replace(KV, windows=(128,)), "needs a model whose layers all keep every token"),
        ({}, replace(KV, state_bytes=5.0), "needs a model whose layers all keep every token"),
    ],
)
def test_what_cannot_be_cached(changes, cache, message):
    with pytest.raises(ConfigError) as error:
        check_prefix_caching(replace(conversations(), **changes), cache, "here")
    assert message in str(error.value)


def test_prompts_without_all_their_hashes_are_refused():
    requests = requests_of([100, 100], [1, 1], [[1, 2, 3, 4], [1, 2]])
    with pytest.raises(DataError, match=r"test: request 1: hash_ids: must be one per 32 tokens .* here 4, got 2"):
        check_prefix_caching(requests, KV, "here")


@pytest.mark.reference
def test_hit_rate_of_the_published_conversations(reference_data: Path):
    columns = read_requests(reference_data / "requests/mooncake/conversation_trace.jsonl")
    requests = Requests(*columns[:3], source="mooncake", prefix=columns.prefix)
    check_prefix_caching(requests, KV, "here")
    one_token_answers = replace(requests, output_tokens=np.ones_like(requests.output_tokens))
    rank, computed = serve(one_token_answers, token_budget=2**17)
    hits = rank.states.prefix_hits
    assert hits.tolist() == hits_by_hand(requests).tolist()
    assert hits.sum() / requests.prompt_tokens.sum() == pytest.approx(0.37338, abs=1e-5)
    assert computed + hits.sum() == requests.prompt_tokens.sum()


def whole_attention(tiny, path, **changes):
    """A scenario of conversations on a model without windows."""
    scenario = tiny(requests={"kind": "file", "path": str(path), "prefix_block_tokens": BLOCK}, **changes)
    model = scenario["model"]
    dense, moe = model["layers"][0]["pattern"]
    dense = dense | {"attention": moe["attention"]}
    return scenario | {"model": model | {"layers": [{"repeat": 2, "pattern": [dense, moe]}]}}


def written(requests, path):
    """The requests as a file, 1 ms apart."""
    ids, offsets = requests.prefix.ids.tolist(), requests.prefix.offsets.tolist()
    rows = [
        {
            "timestamp": row,
            "input_length": int(requests.prompt_tokens[row]),
            "output_length": int(requests.output_tokens[row]),
            "hash_ids": ids[offsets[row] : offsets[row + 1]],
        }
        for row in range(len(requests))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_simulation_with_and_without(tiny, tmp_path):
    requests = conversations()
    path = written(requests, tmp_path / "r.jsonl")
    without = simulate(whole_attention(tiny, path))
    cached = simulate(whole_attention(tiny, path, scheduler={"token_budget": 256, "prefix_caching": True}))
    assert "prefix_hit_rate" not in without.summary
    assert "prefix_hit_tokens" not in without.tables["requests"]
    hits = cached.tables["requests"]["prefix_hit_tokens"]
    assert hits.tolist() == hits_by_hand(requests).tolist()
    assert cached.summary["prefix_hit_rate"] == hits.sum() / requests.prompt_tokens.sum()
    assert cached.tables["steps"]["prefill_tokens"].sum() + hits.sum() == requests.prompt_tokens.sum()
    assert without.tables["steps"]["prefill_tokens"].sum() == requests.prompt_tokens.sum()


def test_ranks_share_nothing(tiny, tmp_path):
    requests = conversations()
    path = written(requests, tmp_path / "r.jsonl")
    scenario = whole_attention(tiny, path, scheduler={"prefix_caching": True})
    four = scenario | {"system": "h100-sxm-4", "parallelism": {"tp": 1, "dp": 4, "ep": 4}}
    hits = simulate(four).tables["requests"]["prefix_hit_tokens"]
    assert (hits <= hits_by_hand(requests)).all()
    assert 0 < hits.sum() < hits_by_hand(requests).sum()


def test_a_scenario_that_cannot_cache_says_so(tiny):
    with pytest.raises(ConfigError, match=r"scheduler\.prefix_caching: needs requests with `hash_ids`"):
        prepare(*load_scenario(tiny(scheduler={"prefix_caching": True})))
