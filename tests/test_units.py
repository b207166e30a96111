import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from moesim.units import Bytes, BytesPerS, JoulesPerByte, Seconds, SquareMm, parse_quantity


@pytest.mark.parametrize(
    ("text", "dimension", "expected"),
    [
        ("3.35 TB/s", "bytes/s", 3.35e12),
        ("80 GiB", "bytes", 80 * 2.0**30),
        ("80 GB", "bytes", 80e9),
        ("512KB", "bytes", 512e3),
        ("400 Gb/s", "bytes/s", 50e9),
        ("400 Gbit/s", "bytes/s", 50e9),
        ("3 B", "bytes", 3.0),
        ("989.4 TFLOPS", "flops/s", 989.4e12),
        ("989.4 TFLOP/s", "flops/s", 989.4e12),
        ("1 POPS", "flops/s", 1e15),
        ("2 GFLOP", "flops", 2e9),
        ("2.5 us", "s", 2.5e-6),
        ("2.5 µs", "s", 2.5e-6),
        ("2.5 μs", "s", 2.5e-6),
        ("45 ns", "s", 45e-9),
        ("2 min", "s", 120.0),
        ("1.98 GHz", "1/s", 1.98e9),
        ("4.5 req/s", "1/s", 4.5),
        ("10 1/s", "1/s", 10.0),
        ("700 W", "w", 700.0),
        ("0.3 kW", "w", 300.0),
        ("4 nJ", "j", 4e-9),
        ("0.8 pJ/bit", "j/bytes", 6.4e-12),
        ("0.4 pJ/FLOP", "j/flops", 0.4e-12),
        ("814 mm2", "mm2", 814.0),
        ("250 um2", "mm2", 250e-6),
        ("1e3 s", "s", 1000.0),
        (".5 s", "s", 0.5),
        ("-1 s", "s", -1.0),
        ("  7  ", "s", 7.0),
        (7, "bytes", 7.0),
        (1e9, "bytes", 1e9),
    ],
)
def test_quantity_is_the_nearest_float(text: object, dimension: str, expected: float) -> None:
    assert parse_quantity(text, dimension) == expected


def test_decimal_and_binary_prefixes_differ() -> None:
    assert parse_quantity("1 TiB", "bytes") / parse_quantity("1 TB", "bytes") == pytest.approx(1.099511627776)


@pytest.mark.parametrize(
    ("text", "dimension", "found"),
    [
        ("3.35 TB/s", "bytes", "bytes/s"),
        ("80 GiB", "bytes/s", "bytes"),
        ("700 W", "j", "w"),
        ("989 TFLOP", "flops/s", "flops"),
        ("3 pJ/bit", "j/flops", "j/bytes"),
        ("3 s/B", "bytes/s", "s/bytes"),
    ],
)
def test_another_dimension_is_refused_by_name(text: str, dimension: str, found: str) -> None:
    with pytest.raises(ValueError, match=rf"must be a quantity in {dimension}, such as .*; \S+ is in {found}$"):
        parse_quantity(text, dimension)


@pytest.mark.parametrize("text", ["80 XB", "3 mB", "1 KiW", "5 B/s/s", "5 /s", "5 B/", "5 gb", "3 um3", "2 kmm2"])
def test_unknown_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown unit"):
        parse_quantity(text, "bytes")


@pytest.mark.parametrize(
    "value", ["", "fast", "GiB", "1,5 s", "1 2 s", "--1 s", "nan", "inf", "٣ s", True, None, [], {}]
)
def test_what_is_no_quantity_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"must be a quantity in s, such as 2\.5 us"):
        parse_quantity(value, "s")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, "1e400 s", "1e9999999999999999999 s"])
def test_numbers_that_are_not_finite_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        parse_quantity(value, "s")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_bare_number_comes_back_unchanged(number: float) -> None:
    assert parse_quantity(number, "s") == number
    assert parse_quantity(repr(number), "s") == number


class _Memory(BaseModel):
    size: Bytes
    bandwidth: BytesPerS
    latency: Seconds = 0.0
    energy: JoulesPerByte = 0.0
    area: SquareMm = 0.0


def _memory(**fields: Any) -> _Memory:
    return _Memory.model_validate({"size": "80 GiB", "bandwidth": "3.35 TB/s", **fields})


def test_fields_turn_text_into_si() -> None:
    memory = _memory(latency="450 ns", energy="4 pJ/bit", area="110 mm2")
    assert memory.model_dump() == {
        "size": 80 * 2.0**30,
        "bandwidth": 3.35e12,
        "latency": 450e-9,
        "energy": 32e-12,
        "area": 110.0,
    }


@pytest.mark.parametrize("fields", [{"size": 0}, {"size": "-1 B"}, {"bandwidth": "0 B/s"}, {"latency": "-1 ns"}])
def test_fields_refuse_signs_that_make_no_sense(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="Input should be greater than"):
        _memory(**fields)
