import pytest

from moesim.search import Solution, Status
from moesim.search.solution import relative_gap, worst


@pytest.mark.parametrize(
    ("objective", "bound", "gap"),
    [(100.0, 90.0, 0.1), (100.0, 100.0, 0.0), (100.0, 100.0 - 1e-8, 0.0), (100.0, 101.0, 0.0), (0.0, 0.0, 0.0)],
)
def test_the_gap_is_the_part_of_the_objective_that_could_still_go(objective, bound, gap):
    assert relative_gap(objective, bound) == pytest.approx(gap)
    assert Solution.of("x", objective, bound, Status.HEURISTIC, 0.1).gap == pytest.approx(gap)


def test_the_worst_news_count():
    assert worst([Status.OPTIMAL, Status.TIME_LIMIT, Status.WITHIN_GAP]) is Status.TIME_LIMIT
    assert worst([Status.OPTIMAL]) == "optimal"
