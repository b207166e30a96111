import math

import pytest

from moesim.cli.output import number, seconds, si


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.15, "0.150"), (4.6724, "4.67"), (51, "51.0"), (953.2, "953"), (5738.6, "5,739"), (-2.5, "-2.50")],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize("power", range(-9, 12))
def test_number_keeps_three_digits(power):
    value = 1.234 * 10.0**power
    assert math.isclose(float(number(value).replace(",", "")), value, rel_tol=5e-3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0 us"), (2.44e-6, "2.44 us"), (0.0047, "4.70 ms"), (1.187, "1.19 s"), (3741.0, "3,741 s")],
)
def test_seconds(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(85.9e9, "85.9 GB"), (3.35e12, "3.35 TB"), (12, "12.0 B"), (0, "0 B")])
def test_si(value, text):
    assert si(value, "B") == text
