"""Synthetic traces hold the tokens that a simulation of the same profile would draw."""

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.workloads import routing_synth
from moesim.workloads.routing_draw import TokenRouter
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_synth import synthesize_trace

PROFILE = RoutingProfile.zipf(3, 8, 2, 1.0, np.random.default_rng(0))


def test_tokens_are_those_of_the_router(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_synth, "_CHUNK_IDS", 60)  # several chunks
    prompts, outputs, done = np.array([4, 0, 7]), np.array([5, 3, 0]), []
    trace = synthesize_trace(
        PROFILE, prompts, outputs, np.random.default_rng(9), on_progress=lambda *step: done.append(step)
    )
    assert trace.tokens == 19
    assert done[-1] == (19, 19)
    assert trace.position.tolist() == [*range(9), *range(3), *range(7)]
    assert trace.phase.tolist() == [0] * 4 + [1] * 5 + [1] * 3 + [0] * 7
    router = TokenRouter(PROFILE, np.random.default_rng(9))
    expected = router.experts(trace.request.astype(np.int64), trace.position.astype(np.int64))
    np.testing.assert_array_equal(trace.expert, expected)
    assert trace.expert.dtype == np.uint8
    assert trace.source == f"drawn from a profile: {PROFILE.source}"


def test_without_prefill_positions_begin_behind_the_prompt() -> None:
    prompts, outputs = np.array([4, 2]), np.array([2, 3])
    trace = synthesize_trace(PROFILE, prompts, outputs, np.random.default_rng(9), prefill=False)
    assert trace.position.tolist() == [4, 5, 2, 3, 4]
    assert (trace.phase == 1).all()
    assert trace.first_decode_position.tolist() == [4, 2]


def test_many_experts_need_wider_ids() -> None:
    trace = synthesize_trace(RoutingProfile.uniform(1, 300, 2), np.array([1]), np.array([50]), np.random.default_rng(0))
    assert trace.expert.dtype == np.uint16


@pytest.mark.parametrize(("prompts", "outputs", "prefill"), [([], [], True), ([0], [0], True), ([3], [0], False)])
def test_requests_without_tokens_are_refused(prompts: list[int], outputs: list[int], prefill: bool) -> None:
    with pytest.raises(InputError, match="every request must have at least one token"):
        synthesize_trace(
            PROFILE,
            np.array(prompts, np.int64),
            np.array(outputs, np.int64),
            np.random.default_rng(0),
            prefill=prefill,
        )
