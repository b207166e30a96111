import re
from html.parser import HTMLParser

import pytest

from moesim.reports.compare_page import comparison_figures, comparison_page
from moesim.reports.comparison import METRICS, ComparedRun, metric_rows, operator_rows
from moesim.simulator.simulate import simulate


@pytest.fixture(scope="module")
def runs():
    slow, fast = (simulate("quickstart", ["num_requests=8", f"system={name}"]) for name in ("a100-sxm-1", "h200-sxm-1"))
    return [ComparedRun("A100", slow, 0), ComparedRun("<b>H200</b> | fast", fast, 0)]


def test_ratios_are_to_the_base_run(runs):
    for row in metric_rows(runs):
        base, value = row.values
        assert base is not None
        assert value is not None
        assert row.ratios[0] == 1.0
        assert row.ratios[1] == pytest.approx(value / base)
    assert {row.metric for row in metric_rows(runs)} == set(METRICS)


def test_operators_are_sorted_by_their_difference_and_add_up(runs):
    rows = operator_rows(runs, most=100)
    spread = [max(map(abs, row.differences)) for row in rows]
    assert spread == sorted(spread, reverse=True)
    for position, run in enumerate(runs):
        summary = run.result.summary
        total = sum(value for key, value in summary.items() if key.startswith("time_")) / summary["output_tokens"]
        assert sum(row.seconds[position] for row in rows) == pytest.approx(total)
    assert all(row.differences[0] == 0 for row in rows)


def test_warm_up_does_not_change_the_time_per_token(runs):
    warmed = simulate("quickstart", ["num_requests=8", "system=a100-sxm-1", "warmup_requests=4"])
    both = [runs[0], ComparedRun("warmed", warmed, 0)]
    assert all(row.differences == (0, 0) for row in operator_rows(both, most=100))


def test_an_undefined_metric_has_no_ratio(runs):
    one = simulate("quickstart", ["num_requests=3", "requests.output_tokens=1"])
    rows = metric_rows([ComparedRun("one", one, 0), ComparedRun("h200", runs[1].result, 0)])
    tpot = next(row for row in rows if row.metric.key == "tpot_p50_s")
    assert tpot.values[0] is None
    assert tpot.ratios == (None, None)


def test_the_page_is_one_file_that_needs_nothing_else(runs):
    page = comparison_page(runs, comparison_figures(runs), ".html")
    HTMLParser().feed(page)
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "<b>H200</b>" not in page
    assert "&lt;b&gt;H200&lt;/b&gt;" in page


def test_markdown_tables_have_as_many_cells_as_columns(runs):
    page = comparison_page(runs, [], ".md")
    tables = re.findall(r"(?:^\|.*\|\n)+", page, flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1


def test_the_same_runs_give_the_same_bytes(runs):
    first, second = (comparison_page(runs, comparison_figures(runs), ".html") for _ in range(2))
    assert first == second
