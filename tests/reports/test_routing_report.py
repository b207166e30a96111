"""Tables and figures of routing statistics: what they hold, and that odd traces can be drawn."""

import json
from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import DataError
from moesim.reports.routing_figures import FIGURES, draw_domains, draw_load_heat, draw_touched
from moesim.reports.routing_tables import summary, tables
from moesim.reports.style import new_figure, styled
from moesim.reports.trace_report import page, plain_tables, write_trace_report
from moesim.workloads.trace_segments import independent_routing
from moesim.workloads.trace_statistics import TraceSettings, trace_statistics
from tests.workloads.random_traces import random_trace

SETTINGS = TraceSettings(largest_batch=16, batches=8, segment_lengths=(2, 8))


@pytest.fixture(scope="module")
def found():
    trace = random_trace(lengths=(30, 20), experts=8, groups=("a|b", "<script>$x$"))
    return trace_statistics(replace(trace, weight=np.tile(np.array([0.75, 0.25], np.float16), (50, 3, 1))), SETTINGS)


def test_columns_of_a_table_are_equally_long(found):
    for name, table in tables(found).items():
        assert len({len(column) for column in table.values()}) == 1, name
    json.dumps(plain_tables(found), allow_nan=False)


def test_a_trace_of_one_layer_has_a_whole_report(tmp_path):
    trace = random_trace(lengths=(30, 20), layers=1, experts=8)
    write_trace_report(trace_statistics(trace, SETTINGS), tmp_path / "report", ".png")
    assert (tmp_path / "report" / "layers.csv").read_text().count("\n") == 2


def test_the_summary_has_the_means_of_the_layer_table(found):
    facts, layers = summary(found), tables(found)["layers"]
    for name, column in layers.items():
        if name != "layer":
            assert facts[f"{name}_mean"] == pytest.approx(np.nanmean(np.asarray(column, float)))
    assert facts["token_level_sparsity"] == 0.75


def test_tables_agree_with_each_other(found):
    made = tables(found)
    assert sum(made["load"]["tokens"]) == 50 * 3 * 2
    assert np.sum(made["windows"]["tokens"]) == 50 * 3
    assert set(made["gates"]["mean_share"]) == {0.75, 0.25}
    rates = dict(
        zip(
            zip(made["caches"]["rule"], made["caches"]["cache_experts"], strict=True),
            made["caches"]["hit_rate"],
            strict=True,
        )
    )
    for (rule, size), rate in rates.items():
        assert rate <= rates["belady", size], rule


@pytest.mark.parametrize(("experts", "k", "m"), [(16, 3, 8), (4, 4, 5), (8, 1, 1)])
def test_independent_routing_by_enumeration(experts, k, m):
    from math import comb

    q = k / experts
    share = [comb(m, u) * q**u * (1 - q) ** (m - u) for u in range(m + 1)]
    scores = [2 * sum(u * share[u] for u in range(a, m + 1)) / (m * sum(share[a:]) + m * q) for a in range(m + 1)]
    assert independent_routing(experts, k, m) == pytest.approx((max(scores), share[0]))


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(
    "trace",
    [
        random_trace(lengths=(1,), layers=1, experts=2, k=1),
        random_trace(lengths=(40, 40), layers=2, experts=3, k=3, groups=("$a$", "b" * 60)),
        random_trace(lengths=(9,) * 20, layers=2, groups=tuple("abcdefghijklmnopqrst")),
    ],
    ids=["one-token", "odd-names", "many-groups"],
)
def test_odd_traces_are_drawn(tmp_path, name, trace):
    from moesim.reports.style import save

    figure = FIGURES[name](trace_statistics(trace, TraceSettings(largest_batch=8, batches=3)))
    assert save(figure, tmp_path / "f.svg").stat().st_size > 1000


def test_panels_show_the_numbers(found):
    with styled():
        heat, touched, domains = new_figure(9, 3).subplots(1, 3)
        image = draw_load_heat(heat, found.load).images[0]
        lines = draw_touched(touched, found).lines
        texts = draw_domains(domains, found).texts
    shown = np.asarray(image.get_array())
    np.testing.assert_allclose(shown.mean(axis=1), 1)
    np.testing.assert_allclose(np.asarray(lines[0].get_ydata()), found.touched["mixed"].mean(axis=0))
    assert [text.get_text() for text in texts][:2] == ["0", f"{100 * found.group_distance()[0, 1]:.0f}"]


def test_the_page_escapes_what_comes_from_outside():
    trace = replace(random_trace(), model="<b>|x", source="a\n# b", capture={"k`": "[v]"})
    text = page(trace_statistics(trace, SETTINGS))
    assert "# Routing of &lt;b&gt;\\|x\n" in text
    assert "\n# b" not in text
    assert "k' \\[v]" in text


def test_a_failed_report_leaves_nothing(found, tmp_path, monkeypatch):
    def full(*_: object, **__: object):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(DataError, match="cannot be written \\(No space left on device\\)"):
        write_trace_report(found, tmp_path / "r", None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=r"figures: must be .png or .svg"):
        write_trace_report(found, tmp_path / "r", ".pdf")
