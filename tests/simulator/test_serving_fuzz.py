"""Random fleets with little memory: every request ends, no token and no byte of memory is lost."""

import json

import numpy as np
import pytest

CUTS = [
    {"tp": 1},
    {"pp": 2},
    {"pp": 4},
    {"tp": 2, "ep": 2},
    {"tp": 2, "pp": 2},
    {"dp": 2, "ep": 2},
    {"dp": 2, "ep": 2, "pp": 2},
]

MOST_STEPS = 5000
"""Of a run of 15 requests; about 1,000 are common."""


def random_cut(rng):
    """Parallelism, replicas and the system for both."""
    cut, replicas = CUTS[rng.integers(len(CUTS))], int(rng.integers(1, 3))
    return {
        "parallelism": cut,
        "replicas": replicas,
        "system": f"h100-sxm-{replicas * np.prod(list(cut.values())) // cut.get('ep', 1)}",
    }


def random_scheduler(rng, *, prefix_caching):
    return {
        "prefix_caching": prefix_caching,
        "prefill": str(rng.choice(["chunked", "alone", "whole"])),
        "token_budget": int(rng.choice([32, 64, 256])),
        "max_num_seqs": int(rng.choice([1, 4, 16])),
    }


def random_fleet(rng, *, prefix_caching):
    """Settings of a scenario: one pool, or pools for prefill and for decode."""
    roles = [(), ("prefill", "decode"), ("prefill", "decode", "decode")][rng.integers(3)]
    pools = {
        f"{role} {number}": {"role": role, "scheduler": random_scheduler(rng, prefix_caching=prefix_caching)}
        | random_cut(rng)
        for number, role in enumerate(roles)
    }
    policies = ["least_outstanding", "round_robin"] + ["cache_aware"] * prefix_caching
    fleet = {"load_balancing": str(rng.choice(policies)), "concurrency": int(rng.choice([8, 40]))}
    return fleet | random_cut(rng) | {"scheduler": random_scheduler(rng, prefix_caching=prefix_caching), "pools": pools}


def write_requests(rng, path):
    """Fifteen requests in three families that start alike."""
    lines = []
    for number in range(15):
        prompt, family = int(rng.integers(150, 300)), int(rng.integers(3))
        blocks = -(-prompt // 16)
        alike = int(rng.integers(blocks))
        hashes = [1000 * (1 + (family if block < alike else 10 + number)) + block for block in range(blocks)]
        lengths = {"input_length": prompt, "output_length": int(rng.integers(1, 60))}
        lines.append(json.dumps({"timestamp": number} | lengths | {"hash_ids": hashes}))
    path.write_text("\n".join(lines) + "\n")
    return {"kind": "file", "path": str(path), "prefix_block_tokens": 16}


def without_windows(model):
    """Prefix caching needs layers that keep every token."""
    model = json.loads(json.dumps(model))
    del model["layers"][0]["pattern"][0]["attention"]["window"]
    return model


def stop_livelocks(number, _replica, _passage):
    """Requests that preempt each other for ever would keep the test from ending."""
    assert number < MOST_STEPS


@pytest.mark.parametrize("seed", range(16))
def test_whatever_the_fleet_every_request_is_served_once(tiny, tight, tmp_path, seed):
    rng = np.random.default_rng(seed)
    prefix_caching = bool(rng.integers(2))
    changes = random_fleet(rng, prefix_caching=prefix_caching)
    changes["requests"] = write_requests(rng, tmp_path / "requests.jsonl")
    setup, loop = tight(
        tiny(model=without_windows(tiny()["model"]), **changes), float(rng.choice([1.0, 1.1, 1.3, 2.0]))
    )
    loop.on_step, loop.fast_forward = stop_livelocks, int(rng.choice([1, 16]))
    record = loop.run()
    requests = setup.requests
    assert np.isfinite(record.first_token_s).all()
    assert (loop.states.generated == requests.output_tokens).all()
    assert not loop.states.in_flight.any()
    tokens = sum(pipeline.expert_tokens().sum(axis=2) for pipeline in loop.pipelines)
    assert (tokens[0] == 2 * (requests.prompt_tokens - record.prefix_hits).sum()).all()
    assert (tokens[1] == 2 * (requests.output_tokens - 1).sum()).all()
    for rank in loop.ranks:
        assert rank.scheduler.free_bytes == pytest.approx(rank.scheduler.capacity_bytes, rel=1e-12)
        assert not rank.scheduler.parked
        assert rank.scheduler.prefixes is None or not rank.scheduler.prefixes.used_blocks
