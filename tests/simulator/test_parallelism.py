import pytest

from moesim.errors import ConfigError
from moesim.simulator.parallelism import Parallelism, check_parallelism
from moesim.simulator.scenario import load_scenario
from moesim.workloads.models import load_model


@pytest.mark.parametrize(
    ("model", "degrees", "rule"),
    [
        ("mixtral-8x7b", {"tp": 3}, "tp must divide the 32 attention heads, got tp = 3"),
        ("qwen3-30b-a3b", {"tp": 3}, "tp must divide the 4 KV heads or be a multiple of them"),
        ("qwen3.5-35b-a3b", {"tp": 32}, "tp must divide the 16 attention heads, got tp = 32"),
        ("jamba-mini", {"tp": 2}, "tensor parallelism of Mamba layers, with an all-reduce inside, is not supported"),
        ("mixtral-8x7b", {"dp": 16, "ep": 16}, "ep must divide the 8 experts, got ep = 16"),
        ("llama-3.1-8b", {"dp": 2, "ep": 2}, "needs routed experts, but llama-3.1-8b is dense"),
        ("qwen3-30b-a3b", {"dp": 1024}, "must divide the expert width 768"),
    ],
)
def test_what_does_not_divide_is_refused(model, degrees, rule):
    with pytest.raises(ConfigError, match=rule):
        check_parallelism(load_model(model), Parallelism(**degrees), "here")


def test_all_broken_rules_come_at_once():
    with pytest.raises(ConfigError) as caught:
        check_parallelism(load_model("mixtral-8x7b"), Parallelism(tp=3), "here")
    assert str(caught.value).count("\n") >= 2


def test_experts_are_cut_where_groups_are_smaller_than_the_replica():
    assert Parallelism(tp=4, dp=2, ep=2).moe_tp == 4
    check_parallelism(load_model("mixtral-8x7b"), Parallelism(tp=4, dp=2, ep=2), "here")


def test_ep_must_divide_the_devices():
    with pytest.raises(ConfigError, match="`ep` must divide dp \\* tp = 4 devices"):
        load_scenario("quickstart", ["parallelism.tp=4", "parallelism.ep=3"])
