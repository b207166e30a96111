from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, field_validator, model_validator

from moesim.configs.loader import Config, validate
from moesim.configs.rules import did_you_mean
from moesim.configs.yaml_reader import parse_yaml
from moesim.errors import ConfigError
from moesim.units import BytesPerS


class _Grouped(Config):
    kind: Literal["gqa"]
    query_heads: int = Field(ge=1)
    kv_heads: int = 1

    @model_validator(mode="after")
    def _check(self) -> "_Grouped":
        if self.query_heads % self.kv_heads:
            raise ValueError("query_heads must be a multiple of kv_heads")
        return self


class _Latent(Config):
    kind: Literal["mla"]
    rank: int = Field(gt=0)


class _Model(Config):
    name: str = "m"
    dtype: Literal["bf16", "fp8"] = "bf16"
    layers: tuple[Annotated[_Grouped | _Latent, Field(discriminator="kind")], ...] = ()
    twin: str | _Latent | None = None
    sizes: dict[str, int] = Field(default_factory=dict)
    ratio: int | str = 1
    bandwidth: BytesPerS = 1.0
    pair: Annotated[list[int], Field(min_length=1)] = Field(default_factory=lambda: [1])
    blocks: Annotated[tuple[_Latent, ...], Field(min_length=1)] = (_Latent(kind="mla", rank=1),)
    even: int = Field(default=0, alias="even-number")

    @field_validator("name")
    @classmethod
    def _lower(cls, value: str) -> str:
        if value != value.lower():
            raise ValueError("must be lower case")
        return value


def _errors(text: str, cls: type[Any] = _Model) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(cls, parse_yaml(text, "f"))
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 3", "f:1:1: name: must be text, got 3"),
        ("name: A", "f:1:1: name: must be lower case, got 'A'"),
        ("dtype: fp9", "f:1:1: dtype: must be 'bf16' or 'fp8' (did you mean `fp8`?), got 'fp9'"),
        ("dtype: 7", "f:1:1: dtype: must be 'bf16' or 'fp8', got 7"),
        ("nmae: x", "f:1:1: nmae: unknown key; did you mean `name`?"),
        ("layers: {}", "f:1:1: layers: must be a list, got {}"),
        ("layers: [3]", "f:1:10: layers.0: must be a mapping, got 3"),
        (
            "layers: [{kind: mlx}]",
            "f:1:11: layers.0.kind: must be one of 'gqa', 'mla' (did you mean `mla`?), got 'mlx'",
        ),
        ("layers: [{rank: 3}]", "f:1:10: layers.0.kind: required"),
        ("layers: [{kind: mla}]", "f:1:10: layers.0.rank: required"),
        ("layers: [{kind: mla, rank: 0}]", "f:1:22: layers.0.rank: must be > 0, got 0"),
        ("layers: [{kind: gqa, query_heads: 0}]", "f:1:22: layers.0.query_heads: must be >= 1, got 0"),
        ("layers: [{kind: mla, rank: 2.5}]", "f:1:22: layers.0.rank: must be a whole number, got 2.5"),
        ("layers: [{kind: mla, rank: 1, head: 3}]", "f:1:31: layers.0.head: unknown key; known are kind, rank"),
        (
            "layers: [{kind: gqa, query_heads: 3, kv_heads: 2}]",
            "f:1:10: layers.0: query_heads must be a multiple of kv_heads",
        ),
        ("twin: {kind: mla, rank: x}", "f:1:19: twin.rank: must be a whole number, got 'x'"),
        ("twin: {kind: mla, rnk: 1, rank: 1}", "f:1:19: twin.rnk: unknown key; did you mean `rank`?"),
        ("twin: 3", "f:1:1: twin: must be text, or must be a mapping, got 3"),
        ("sizes: {a: x}", "f:1:9: sizes.a: must be a whole number, got 'x'"),
        ("ratio: [1]", "f:1:1: ratio: must be a whole number, or must be text, got [1]"),
        (
            "bandwidth: 80 GiB",
            "f:1:1: bandwidth: must be a quantity in bytes/s, such as 3.35 TB/s; GiB is in bytes, got '80 GiB'",
        ),
        ("bandwidth: 0", "f:1:1: bandwidth: must be > 0, got 0"),
        ("blocks: [{kind: mla, rank: 0}]", "f:1:22: blocks.0.rank: must be > 0, got 0"),
        ("pair: []", "f:1:1: pair: must have at least 1 item, has 0, got []"),
        ("even-number: x", "f:1:1: even-number: must be a whole number, got 'x'"),
        ("evn-number: 1", "f:1:1: evn-number: unknown key; did you mean `even-number`?"),
        ("3: 1", "f:1:1: 3: a key must be text"),
        ("[1, 2]", "f:1:1: must be a mapping, got [1, 2]"),
        ("text", "f:1:1: must be a mapping, got 'text'"),
    ],
)
def test_each_rule_reads_as_a_sentence(text: str, message: str) -> None:
    assert _errors(text) == [message]


def test_all_errors_come_at_once_in_the_order_of_the_file() -> None:
    text = "name: 3\nlayers:\n  - {kind: mla, rank: -1}\n  - {kind: gqa}\ndtype: fp4\nbogus: 1\n"
    assert [line.split(" ")[0] for line in _errors(text)] == ["f:1:1:", "f:3:17:", "f:4:5:", "f:5:1:", "f:6:1:"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("headdim", "did you mean `head_dim`?"), ("x", ""), ("h300", "did you mean `h200` or `h100`?"), ("", "")],
)
def test_suggestions_are_about_as_near_as_the_nearest(name: str, hint: str) -> None:
    known = ["head_dim", "heads"] if name == "headdim" else ["h100", "h200"]
    assert did_you_mean(name, known) == hint


def test_long_values_are_cut() -> None:
    (message,) = _errors(f"layers: {'x' * 500}")
    assert message.startswith("f:1:1: layers: must be a list, got 'xxx")
    assert message.endswith("...")
    assert len(message) < 120


def test_a_shared_key_of_a_union_keeps_its_place() -> None:
    class Wrapper(Config):
        attention: Annotated[_Grouped | _Latent, Field(discriminator="kind")]
        gqa: int = 0

    assert _errors("attention: {kind: gqa}\ngqa: 1", Wrapper) == ["f:1:1: attention.query_heads: required"]
