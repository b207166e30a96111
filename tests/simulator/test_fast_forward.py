"""Playing one decode step for several: the same tokens, nearly the same times."""

import numpy as np
import pytest

from moesim.simulator.simulate import simulate

CLOSED = {
    "kind": "synthetic", "num_requests": 48, "concurrency": 12,
    "prompt_tokens": {"kind": "uniform", "min": 50, "max": 300},
    "output_tokens": {"kind": "uniform", "min": 50, "max": 150},
}  # fmt: skip


def both(scenario, most):
    return simulate(scenario), simulate(scenario | {"fast_forward": most})


def test_every_token_is_counted(parallel):
    scenario = parallel | {"requests": CLOSED}
    result = simulate(scenario | {"fast_forward": 16})
    requests, steps = result.tables["requests"], result.tables["steps"]
    decoded = (requests["output_tokens"] - 1).sum()
    played = (steps["prefill_tokens"] + steps["decode_tokens"]) * steps["repeats"]
    assert played.sum() == requests["prompt_tokens"].sum() + decoded
    experts = result.experts.groupby(["phase", "layer"])["tokens"].sum()
    assert set(experts["decode"]) == {2 * decoded}
    devices = result.tables["devices"]
    assert (devices["steps"] == steps["repeats"].sum()).all()


@pytest.mark.parametrize("requests", [CLOSED, CLOSED | {"concurrency": None, "rate_per_s": 100}])
def test_times_are_nearly_the_same(tiny, requests):
    scenario = tiny(requests={key: value for key, value in requests.items() if value is not None})
    exact, fast = (result.summary for result in both(scenario, 16))
    for name in ("tpot_mean_s", "e2e_mean_s", "duration_s", "energy_j", "step_mean_s", "itl_mean_s"):
        assert fast[name] == pytest.approx(exact[name], rel=0.01), name
    assert fast["ttft_mean_s"] == pytest.approx(exact["ttft_mean_s"], rel=0.1)


def test_fewer_steps_are_played(tiny):
    exact, fast = both(tiny(requests=CLOSED), 16)
    assert len(fast.tables["steps"]["repeats"]) < 0.5 * len(exact.tables["steps"]["repeats"])
    assert fast.summary["steps"] == pytest.approx(exact.summary["steps"], rel=0.02)


def test_a_lone_request_is_exact_to_the_rounding_of_the_middle(tiny):
    one = {"kind": "synthetic", "num_requests": 1, "prompt_tokens": 64, "output_tokens": 65, "rate_per_s": 1}
    exact, fast = both(tiny(requests=one, routing="uniform"), 16)
    assert fast.tables["steps"]["repeats"].tolist() == [1, 16, 16, 16, 16]
    assert fast.summary["e2e_mean_s"] == pytest.approx(exact.summary["e2e_mean_s"], rel=2e-3)


def test_preemption_loses_no_token_and_memory_is_not_overdrawn(tiny, tight):
    setup, loop = tight(tiny(requests=CLOSED), 3)
    loop.fast_forward = 16
    record = loop.run()
    assert record.preemptions.sum() > 0
    assert (loop.states.generated == setup.requests.output_tokens).all()
    assert max(record.steps["kv_used_fraction"]) <= 1.0
    assert all(rank.scheduler.free_bytes == rank.scheduler.capacity_bytes for rank in loop.ranks)


def test_gaps_between_tokens_are_counted_one_by_one(tiny):
    exact, fast = both(tiny(requests=CLOSED), 16)
    tokens = exact.tables["requests"]["output_tokens"]
    for result in (exact, fast):
        mean_s = np.average(result.tables["requests"]["tpot_s"], weights=tokens - 1)
        assert result.summary["itl_mean_s"] == pytest.approx(mean_s, rel=1e-9)
