import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.configs.documents import Document
from moesim.configs.yaml_reader import parse_yaml, read_yaml
from moesim.errors import ConfigError


def _parse(text: str) -> Document:
    return parse_yaml(text, "f.yaml")


def _error(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        _parse(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e9", 1e9),
        ("1E-3", 1e-3),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        (".INF", math.inf),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("+3", 3),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("3:20", "3:20"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("3.35 TB/s", "3.35 TB/s"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("=", "="),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, expected: object) -> None:
    value = _parse(f"key: {text}").data["key"]
    assert value == expected
    assert type(value) is type(expected)


def test_nan_is_a_number() -> None:
    assert math.isnan(_parse("key: .nan").data["key"])


def test_marks_give_line_and_column_of_every_key_and_item() -> None:
    document = _parse("# a comment\nmemory:\n  size: 80\n  kinds: [a, {b: 1}]\n7: x\n")
    assert document.marks == {
        (): (2, 1),
        ("memory",): (2, 1),
        ("memory", "size"): (3, 3),
        ("memory", "kinds"): (4, 3),
        ("memory", "kinds", 0): (4, 11),
        ("memory", "kinds", 1): (4, 14),
        ("memory", "kinds", 1, "b"): (4, 15),
        (7,): (5, 1),
    }


def test_merged_keys_stand_where_they_were_written() -> None:
    document = _parse("base: &base {a: 1, b: 2}\nother: &other {b: 5, c: 3}\nall:\n  <<: [*base, *other]\n  a: 9\n")
    assert document.data["all"] == {"a": 9, "b": 2, "c": 3}
    assert document.marks["all", "a"] == (5, 3)
    assert document.marks["all", "b"] == (1, 20)
    assert document.marks["all", "c"] == (2, 22)


def test_an_alias_repeats_its_block() -> None:
    assert _parse("a: &x [1, 2]\nb: *x\n").data == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1: key 'a' stands here for the second time, first in line 1"),
        ("a: {b: 1, b: 2}\n", "f.yaml:1:11: key 'b' stands here for the second time, first in line 1"),
        ("a: [1, 2\n", "f.yaml:2:1: must be YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\nb\n", "f.yaml:3:1: must be YAML: could not find expected ':'"),
        ("a: *missing\n", "f.yaml:1:4: must be YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1: must be YAML: but found another document"),
        ("a: &x [*x]\n", "f.yaml:1:4: an alias must not stand inside what it names"),
        ("a: &x\n  <<: *x\n", "f.yaml:1:4: an alias must not stand inside what it names"),
        ("a:\n  <<: 3\n", "f.yaml:2:7: `<<` must name a mapping or a list of mappings"),
        (
            "a: !!python/object:os.system x\n",
            "must not have a YAML tag, got 'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("a: !!timestamp 2024-01-01\n", "must not have a YAML tag"),
        ("a: !!set {b}\n", "must not have a YAML tag"),
        ("a: !mine [1]\n", "must not have a YAML tag, got '!mine'"),
        ("a: !!int x\n", "f.yaml:1:4: must be a YAML int, got 'x'"),
        ("true: 1\n", "f.yaml:1:1: a key must be text or a whole number, got True"),
        ("1.5: 1\n", "f.yaml:1:1: a key must be text or a whole number, got 1.5"),
        ("? [1]\n: 1\n", "f.yaml:1:3: a key must be text or a whole number"),
        ("a: 1\nb: \x07\n", "f.yaml:2:4: must not hold control characters"),
        (f"a: {'9' * 5000}", "f.yaml:1:4: must be a whole number of at most 4300 digits"),
        ("[" * 5000, "f.yaml: is nested too deeply"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, message: str) -> None:
    assert message in _error(text)


def test_aliases_of_aliases_do_not_fill_the_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "must hold at most 250000 values" in _error("\n".join(lines))


def test_files_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n\t"hidden_size": 4096,\n\t"eps": 1e-05, "name": "a\\/b", "bias": false, "x": null\n}\n')
    document = read_yaml(path)
    assert document.data == json.loads(path.read_text())
    assert document.marks["hidden_size",] == (2, 2)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aé:#- '", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abé -", max_size=4), inner, max_size=3),
    max_leaves=10,
)


@given(_JSON.filter(lambda value: value is not None))
def test_json_reads_back_as_it_was_written(value: object) -> None:
    assert parse_yaml(json.dumps(value), "f.json").data == value


def test_a_file_starts_with_an_optional_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_yaml(path).data == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "a.yaml: must not be empty"),
        (b"# nothing\n", "a.yaml: must not be empty"),
        (b"a: 1\nb: \xff\n", "a.yaml:2: must be UTF-8 text, got b'\\xff'"),
    ],
)
def test_unreadable_content_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml("nul\0byte.yaml")
