import os
import stat
from pathlib import Path

import pytest

from moesim.errors import DataError
from moesim.files import check_folder, check_output, check_place, make_folder, whole_file, write_text


def test_what_was_there_is_replaced_and_nothing_else_is_left(tmp_path: Path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    assert write_text(target, "new") == target
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), whole_file(target) as unfinished:
        raise error(unfinished.write_text("half"))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_the_file_system_refuses_names_the_file(tmp_path: Path):
    target = tmp_path / "a.txt"
    with pytest.raises(DataError, match=r"a\.txt: cannot be written \(No space left"), whole_file(target):
        raise OSError(28, "No space left on device")
    with pytest.raises(DataError, match=r"a\.txt: cannot be written \(No such file"), whole_file(tmp_path / "b/a.txt"):
        pass
    with pytest.raises(DataError, match=r"cannot be written \(File name too long"):
        write_text(tmp_path / ("x" * 300), "text")
    assert list(tmp_path.iterdir()) == []


def test_two_files_at_once_do_not_meet(tmp_path: Path):
    with whole_file(tmp_path / "a.csv") as a, whole_file(tmp_path / "b.csv") as b, whole_file(tmp_path / "a.csv") as c:
        for number, unfinished in enumerate((a, b, c)):
            unfinished.write_text(str(number))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.csv": "0", "b.csv": "1"}


def test_permissions_are_those_of_a_new_file(tmp_path: Path):
    write_text(tmp_path / "ours", "")
    (tmp_path / "theirs").touch()
    ours, theirs = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "theirs"))
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "rule"),
    [("missing/a", "the folder must exist"), ("file/a", "the folder must exist"), (".", "is a folder")],
)
def test_impossible_places_are_refused(tmp_path: Path, name: str, rule: str):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=rule):
        check_place(tmp_path / name)


def test_files_must_end_as_asked(tmp_path: Path):
    assert check_output("--out", tmp_path / "a.csv", ".csv", ".md") == tmp_path / "a.csv"
    with pytest.raises(DataError, match=r"^--out .*a\.txt: must end in \.csv or \.md$"):
        check_output("--out", tmp_path / "a.txt", ".csv", ".md")
    with pytest.raises(DataError, match="the folder must exist"):
        check_output("--out", tmp_path / "b/a.csv", ".csv")


def test_places_of_folders_are_checked_before_they_are_made(tmp_path: Path):
    assert check_folder(tmp_path / "a/b") == tmp_path / "a/b"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"^--runs .*file: must be a folder, and is a file"):
        check_folder(tmp_path / "file", "--runs")
    for name, rule in (("file/a", "must be in a folder that can be written to, got .*file"), ("x" * 300, "too long")):
        with pytest.raises(DataError, match=rule):
            check_folder(tmp_path / name)


def test_folders_are_made_with_those_above(tmp_path: Path):
    assert make_folder("--out", tmp_path / "a/b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"--out .*file: must be a folder that can be written \(File exists\)"):
        make_folder("--out", tmp_path / "file")
    assert os.access(make_folder("--out", tmp_path / "a/b"), os.W_OK)
