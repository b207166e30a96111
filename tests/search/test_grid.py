import pytest

from moesim.errors import ConfigError
from moesim.search.grid import expand, varied_keys


def test_no_assignment_is_one_variant():
    assert expand([]) == [[]]


def test_every_combination_comes_once_and_the_last_key_varies_fastest():
    assert expand(["a=1,2", "b=x"]) == [["a=1", "b=x"], ["a=2", "b=x"]]
    assert expand(["a=1,2", "b=3,4"]) == [["a=1", "b=3"], ["a=1", "b=4"], ["a=2", "b=3"], ["a=2", "b=4"]]


def test_commas_in_brackets_and_quotes_do_not_separate():
    assert expand(["p={tp: 2, ep: 2},{tp: 4}"]) == [["p={tp: 2, ep: 2}"], ["p={tp: 4}"]]
    assert expand(["a=[1, 2]"]) == [["a=[1, 2]"]]
    assert expand(['a="x, y",z']) == [['a="x, y"'], ["a=z"]]


def test_varied_keys_are_those_with_several_values():
    assert varied_keys(["a=1,2", "b=3"]) == ["a"]


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=1,,2", "a=1,"])
def test_what_is_no_assignment_is_refused(text):
    with pytest.raises(ConfigError, match="must read `key=value`"):
        expand([text])
