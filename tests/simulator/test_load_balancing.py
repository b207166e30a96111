from types import SimpleNamespace

import numpy as np
import pytest

from moesim.simulator.load_balancing import POLICIES, least_outstanding
from moesim.simulator.simulate import simulate


def ranks(*outstanding: int, prompt=100, held=None):
    states = SimpleNamespace(prompt=[prompt])
    return [
        SimpleNamespace(outstanding=one, states=states, cached_tokens=lambda _request, tokens=tokens: tokens)
        for one, tokens in zip(outstanding, held or [0] * len(outstanding), strict=True)
    ]


@pytest.mark.parametrize("dealt", range(5))
def test_the_rank_with_the_fewest_requests_gets_the_next(dealt):
    assert least_outstanding(ranks(3, 1, 2), 0, dealt) == 1


def test_equal_ranks_take_turns():
    assert [least_outstanding(ranks(2, 2, 2), 0, dealt) for dealt in range(6)] == [0, 1, 2, 0, 1, 2]
    assert [least_outstanding(ranks(0, 2, 0), 0, dealt) for dealt in range(6)] == [0, 2, 2, 0, 2, 2]


def test_little_in_the_caches_is_dealt_by_load():
    deal = POLICIES["cache_aware"]
    assert [deal(ranks(1, 1, 1), 0, dealt) for dealt in range(3)] == [0, 1, 2]
    assert [deal(ranks(1, 1, 1, held=[0, 0, 50]), 0, dealt) for dealt in range(3)] == [2, 2, 2]


def test_requests_that_find_all_ranks_idle_are_spread(tiny, tmp_path):
    path = tmp_path / "rare.csv"
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *(f"{second},50,3" for second in range(12))]))
    result = simulate(tiny(4, replicas=4, requests=str(path)))
    assert np.bincount(result.tables["requests"]["replica"]).tolist() == [3, 3, 3, 3]
