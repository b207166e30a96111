import operator
import os

import pytest

from moesim.search.processes import as_they_finish


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_has_one_outcome_under_its_position(workers):
    assert sorted(as_they_finish(operator.neg, [5, 3, 4], workers=workers)) == [(0, -5), (1, -3), (2, -4)]


@pytest.mark.parametrize("items", [[], [7]])
def test_few_items_stay_in_this_process(items):
    assert [outcome for _, outcome in as_they_finish(_process, items, workers=4)] == [os.getpid()] * len(items)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_reaches_the_caller(workers):
    with pytest.raises(ZeroDivisionError):
        list(as_they_finish(_inverse, [1, 0, 2], workers=workers))


def _process(_item):
    return os.getpid()


def _inverse(item):
    return 1 / item
