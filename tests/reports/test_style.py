import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from moesim.errors import DataError
from moesim.reports import style
from moesim.reports.style import (
    KINDS,
    OTHER,
    Kind,
    check_output,
    distinct_labels,
    duration_text,
    in_two_lines,
    plain,
    save,
    shortened,
)


@pytest.fixture
def figure():
    with style.styled():
        figure = style.new_figure(3, 2)
        figure.subplots().plot([0, 1], [0, 1], label="a line")
    return figure


def test_saving_replaces_and_leaves_nothing_behind(figure, tmp_path):
    target = tmp_path / "figure.svg"
    target.write_text("old")
    assert save(figure, target) == target
    assert target.read_text().startswith("<?xml")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.svg"]


def test_an_error_while_drawing_leaves_the_old_figure(figure, tmp_path, monkeypatch):
    target = tmp_path / "figure.svg"
    target.write_text("old")
    monkeypatch.setattr(figure, "savefig", lambda path, **_: Path(path).write_text("half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(figure, target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["figure.svg"]


def test_a_full_disk_is_the_users_to_know(figure, tmp_path, monkeypatch):
    def refuse(path, format, metadata):  # noqa: A002, ARG001  # as matplotlib calls them
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", refuse)
    with pytest.raises(DataError, match=r"figure.png: cannot be written \(No space left on device\)"):
        save(figure, tmp_path / "figure.png")


@pytest.mark.parametrize("suffix", [".svg", ".png", ".PNG"])
def test_files_hold_no_date_and_follow_their_suffix(figure, tmp_path, suffix):
    content = save(figure, tmp_path / f"figure{suffix}").read_bytes()
    assert content.startswith(b"\x89PNG" if suffix.lower() == ".png" else b"<?xml")
    assert b"<dc:date>" not in content
    assert b"Software" not in content


def test_the_settings_of_the_user_neither_count_nor_change(figure, tmp_path):
    expected = save(figure, tmp_path / "figure.svg").read_bytes()
    with mpl.rc_context({"savefig.dpi": 31, "font.size": 31, "svg.hashsalt": "other", "axes.facecolor": "red"}):
        before = dict(mpl.rcParams)
        assert save(figure, tmp_path / "figure.svg").read_bytes() == expected
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("figure.pdf", "must end in .png or .svg, got '.pdf'"),
        ("figure", "must end in .png or .svg, got 'no suffix'"),
        ("missing/figure.svg", "the folder must exist"),
        ("file/figure.svg", "the folder must exist"),
        ("folder.svg", "is a folder"),
    ],
)
def test_impossible_places_are_refused(name, rule, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(DataError, match=rule):
        check_output(tmp_path / name)


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # nothing is unwritable for root
    with pytest.raises(DataError, match="the folder must be writable"):
        check_output(tmp_path / "figure.svg")


def test_kinds_share_no_operator_colour_or_marker():
    operators = [operator for kind in KINDS for operator in kind.operators]
    assert len(operators) == len(set(operators))
    for position in (Kind._fields.index("colour"), Kind._fields.index("marker")):
        values = [kind[position] for kind in (*KINDS, OTHER)]
        assert len(values) == len(set(values))


def test_labels_are_as_short_as_they_can_be():
    paths = [Path("/a/x/run"), Path("/b/x/run"), Path("/c/other")]
    assert distinct_labels(paths[::2]) == ["run", "other"]
    assert distinct_labels(paths) == ["a/x/run", "b/x/run", "c/other"]
    assert distinct_labels([Path("/run")] * 2) == ["run", "run"]


def test_texts_from_outside_are_tamed():
    assert plain("a$b\x00c\n") == "a\\$b?c?"
    assert shortened("abcdefghij", 5) == "ab…ij"
    assert shortened("abcde", 5) == "abcde"


def test_long_labels_break_at_a_space_so_that_they_still_differ() -> None:
    labels = [in_two_lines(f"mixtral-8x7b-{name} concurrency=32", 26) for name in ("tp4", "duplex")]
    assert labels == ["mixtral-8x7b-tp4\nconcurrency=32", "mixtral-8x7b-duplex\nconcurrency=32"]
    assert in_two_lines("short name", 10) == "short name"
    assert in_two_lines("without_any_space", 5) == "wi…ce"
    assert in_two_lines("ab cdefghijk $", 5) == "ab\ncd…" + r" \$"
    assert [duration_text(time_s) for time_s in (2.0, 0.9996, 0.0123, 4.5e-5)] == ["2 s", "1 s", "12.3 ms", "45 µs"]


def test_importing_figures_does_not_import_matplotlib_and_drawing_no_pyplot():
    program = """
import sys
from moesim.reports import latency, latency_figure, roofline, roofline_figure, style
assert "matplotlib" not in sys.modules
with style.styled():
    style.new_figure(3, 2).subplots()
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
