from pathlib import Path

import pytest

from moesim.configs import loader
from moesim.configs.documents import Document
from moesim.configs.loader import Config, find, load, override, shipped, validate
from moesim.configs.yaml_reader import parse_yaml
from moesim.errors import ConfigError


class _Model(Config):
    layers: int
    scale: float = 1.0
    dropless: bool = True


class _Scenario(Config):
    model: str | dict[str, object]
    seed: int = 0


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with two models, and the working folder next to it."""
    models = tmp_path / "package" / "models"
    models.mkdir(parents=True)
    (models / "mixtral-8x7b.yaml").write_text("layers: 32\n")
    (models / "qwen3.yaml").write_text("layers: 48\n")
    (models / "notes.txt").write_text("not a configuration")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(loader, "_HERE", tmp_path / "package")
    monkeypatch.chdir(work)
    return tmp_path


def _message(document: Document, *assignments: str, references: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        override(document, assignments, references)
    return str(caught.value)


@pytest.mark.usefixtures("library")
def test_shipped_names_are_sorted_and_without_suffix() -> None:
    assert shipped("models") == ("mixtral-8x7b", "qwen3")
    assert shipped("no-such-folder") == ()


@pytest.mark.usefixtures("library")
def test_a_name_is_a_shipped_configuration() -> None:
    assert load(_Model, "models", "qwen3").layers == 48


@pytest.mark.usefixtures("library")
def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        find("models", "mixtral-8x7")
    expected = "models: must be a path or one of the 2 shipped names (did you mean `mixtral-8x7b`?), got 'mixtral-8x7'"
    assert str(caught.value) == expected


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", ["..", ".", "", "notes.txt", "MIXTRAL-8X7B", "*"])
def test_only_names_that_are_shipped_are_names(name: str) -> None:
    with pytest.raises(ConfigError, match="must be a path or one of the 2 shipped names"):
        find("models", name)


def test_a_path_starts_from_the_base_else_from_the_working_folder(library: Path) -> None:
    (library / "work" / "mine.yaml").write_text("layers: 1\n")
    (library / "other").mkdir()
    (library / "other" / "mine.yaml").write_text("layers: 2\n")
    assert load(_Model, "models", "mine.yaml").layers == 1
    assert load(_Model, "models", Path("mine.yaml")).layers == 1
    assert load(_Model, "models", "./mine.yaml").layers == 1
    assert load(_Model, "models", "mine.yaml", library / "other").layers == 2
    assert load(_Model, "models", str(library / "other" / "mine.yaml"), "elsewhere").layers == 2


def test_a_mapping_is_taken_as_it_is() -> None:
    assert load(_Model, "models", {"layers": 4}).layers == 4
    with pytest.raises(ConfigError, match=r"^<inline>: layers: required$"):
        load(_Model, "models", {})


def test_a_document_refers_from_its_own_folder(library: Path) -> None:
    (library / "other").mkdir()
    (library / "other" / "mine.yaml").write_text("layers: 2\n")
    scenario = parse_yaml("model: mine.yaml\n", str(library / "other" / "scenario.yaml"))
    assert find("models", scenario.child("model")).data == {"layers": 2}
    named = parse_yaml("model: qwen3\n", "scenario.yaml")
    assert find("models", named.child("model")).data == {"layers": 48}
    inline = parse_yaml("model: {layers: 3}\n", "scenario.yaml").child("model")
    assert find("models", inline) is inline


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: qwen",
            "scenario.yaml:1:1: model: must be a path or one of the 2 shipped names (did you mean `qwen3`?)",
        ),
        ("model: x.yaml", "scenario.yaml:1:1: model: no such file, got 'x.yaml'"),
        ("model: 3", "scenario.yaml:1:1: model: must be the name of one of configs/models, a path, or a mapping"),
        ("seed: 3", "scenario.yaml:1:1: model: required"),
    ],
)
def test_a_wrong_reference_is_named_where_it_stands(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find("models", parse_yaml(text, "scenario.yaml").child("model"))
    assert message in str(caught.value)


def test_errors_of_a_part_carry_the_whole_key() -> None:
    part = parse_yaml("system:\n  models:\n    - {layers: x}\n", "s.yaml").at(("system", "models", 0))
    with pytest.raises(ConfigError, match=r"^s\.yaml:3:8: system\.models\.0\.layers: must be a whole number, got 'x'$"):
        validate(_Model, part)


def test_overrides_edit_mappings_lists_and_create_what_is_missing() -> None:
    document = parse_yaml("a: {b: 1, 8: x}\nc: [1, {d: 2}]\ne:\n", "f.yaml")
    edits = ["a.b=1e3", "a.8=y", "c.0=no", "c.1.d=[1, 2]", "e.f.g={h: 3}", "i.j=3.35 TB/s", "k=", "a.b2==="]
    edited = override(document, edits)
    assert edited.data == {
        "a": {"b": 1000.0, 8: "y", "b2": "=="},
        "c": ["no", {"d": [1, 2]}],
        "e": {"f": {"g": {"h": 3}}},
        "i": {"j": "3.35 TB/s"},
        "k": None,
    }
    assert document.data == {"a": {"b": 1, 8: "x"}, "c": [1, {"d": 2}], "e": None}


def test_later_overrides_win() -> None:
    assert override(parse_yaml("a: 1", "f.yaml"), ["a={b: 1, c: 2}", "a.b=5"]).data == {"a": {"b": 5, "c": 2}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("layers", "--set layers: must read `key.subkey=value`"),
        ("=3", "--set =3: must read `key.subkey=value`"),
        ("a..b=3", "--set a..b=3: must read `key.subkey=value`"),
        ("layers.x=3", "--set layers.x: layers must be a mapping to have keys, got 32"),
        ("list.2=3", "--set list.2: list is a list of 2, so its key must be an index below that, got '2'"),
        ("list.-1=3", "--set list.-1: list is a list of 2, so its key must be an index below that, got '-1'"),
        ("list.first=3", "--set list.first: list is a list of 2, so its key must be an index below that, got 'first'"),
        ("layers=a: b", "--set layers: must be a YAML scalar, [list] or {mapping}, got 'a: b'"),
        ("layers=[1", "--set layers:1:3: must be YAML: expected ',' or ']', but got '<stream end>'"),
        ("layers={a: 1, a: 2}", "--set layers:1:8: key 'a' stands here for the second time, first in line 1"),
    ],
)
def test_malformed_overrides_are_refused(assignment: str, message: str) -> None:
    assert _message(parse_yaml("layers: 32\nlist: [1, 2]\n", "f.yaml"), assignment) == message


def test_errors_in_overrides_name_the_flag() -> None:
    document = override(parse_yaml("layers: 32\n", "f.yaml"), ["layers=many", "scael=2"])
    with pytest.raises(ConfigError) as caught:
        validate(_Model, document)
    assert str(caught.value).splitlines() == [
        "--set layers: must be a whole number, got 'many'",
        "--set scael: unknown key; did you mean `scale`?",
    ]


def test_overrides_reach_through_references(library: Path) -> None:
    document = parse_yaml("seed: 1\nmodel: qwen3\n", "s.yaml")
    edited = override(document, ["model.scale=2", "model.layers=x"], {"model": "models"})
    assert edited.data == {"seed": 1, "model": {"layers": "x", "scale": 2}}
    with pytest.raises(ConfigError, match=r"^--set model\.layers: must be a whole number, got 'x'$"):
        validate(_Model, edited.child("model"))
    with pytest.raises(ConfigError) as caught:
        validate(_Scenario, override(document, ["model.deep=2"], {"model": "models"}).child("model"))
    assert f"{library}/package/models/qwen3.yaml:1:1: layers: unknown key; known are model, seed" in str(caught.value)


@pytest.mark.usefixtures("library")
def test_a_replaced_reference_is_followed_too() -> None:
    edited = override(parse_yaml("model: none\n", "s.yaml"), ["model=qwen3", "model.scale=2"], {"model": "models"})
    assert edited.data == {"model": {"layers": 48, "scale": 2}}
    message = _message(parse_yaml("model: none\n", "s.yaml"), "model.scale=2", references={"model": "models"})
    assert message.startswith("s.yaml:1:1: model: must be a path or one of the 2 shipped names")


def test_a_path_given_by_override_starts_from_the_working_folder(library: Path) -> None:
    (library / "work" / "mine.yaml").write_text("layers: 1\n")
    document = override(parse_yaml("model: none\n", str(library / "scenario.yaml")), ["model=mine.yaml"])
    assert find("models", document.child("model")).data == {"layers": 1}


def test_configurations_do_not_change_and_hold_no_infinite_numbers() -> None:
    model = load(_Model, "models", {"layers": 1})
    with pytest.raises(ValueError, match="frozen"):
        model.layers = 2  # type: ignore[misc]
    with pytest.raises(ConfigError, match="must be finite, got inf"):
        load(_Model, "models", {"layers": 1, "scale": float("inf")})


def test_true_is_no_number() -> None:
    assert load(_Model, "models", {"layers": 1, "dropless": False}).dropless is False
    with pytest.raises(ConfigError, match="layers: must be a whole number, got 'true'"):
        load(_Model, "models", {"layers": True})
    with pytest.raises(ConfigError, match="scale: must be a number, got 'false'"):
        load(_Model, "models", {"layers": 1, "scale": False})
