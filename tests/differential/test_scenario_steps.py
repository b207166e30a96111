"""Both engines on the steps of everything that ships."""

import numpy as np
import pytest

from moesim.configs.loader import shipped
from moesim.simulator.engines import get_engine
from moesim.simulator.scenario import load_scenario, prepare
from moesim.simulator.simulate import build_pipelines, serve

STEPS = 50


class EnoughStepsError(Exception):
    pass


@pytest.mark.parametrize("name", shipped("scenarios"))
def test_engines_agree_to_the_last_bit_on_the_first_steps(name):
    setup = prepare(*load_scenario(name))
    outcomes = []

    def keep(_number, _replica, passage):
        outcomes.extend(passage.outcomes)
        if len(outcomes) >= STEPS:
            raise EnoughStepsError

    with pytest.raises(EnoughStepsError):
        serve(setup, build_pipelines(setup), on_step=keep)
    reference = get_engine("simpy")
    for outcome in outcomes:
        timeline = reference(outcome.graph)
        assert np.array_equal(timeline.start_s, outcome.timeline.start_s)
        assert np.array_equal(timeline.finish_s, outcome.timeline.finish_s)
        assert timeline.makespan_s == outcome.makespan_s
