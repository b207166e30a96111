import pytest

from moesim.hw_models.parameters import Count, Fraction, Parameter, quantity_text
from moesim.units import Bytes, JoulesPerByte, Seconds


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (4.8e12, "B/s", "4.8 TB/s"),
        (2.5e-6, "s", "2.5 us"),
        (0.0, "s", "0 s"),
        (1.0, "W", "1 W"),
        (999.9, "W", "999.9 W"),
        (1e-15, "J", "0.001 pJ"),
        (132.0, "", "132"),
        (0.8405, "", "0.8405"),
    ],
)
def test_quantities_are_written_with_a_prefix(value: float, unit: str, text: str) -> None:
    assert quantity_text(value, unit) == text


def test_parameters_know_their_unit() -> None:
    assert Parameter[Bytes].model_validate({"value": "80 GiB", "source": "sheet"}).unit == "B"
    assert Parameter[JoulesPerByte].model_validate({"value": "1 pJ/bit", "source": "paper"}).text == "8 pJ/B"
    assert Parameter[Seconds].model_validate({"value": "1 us", "source": "paper"}).text == "1 us"
    assert Parameter[Count].model_validate({"value": 3, "source": "sheet"}).text == "3"
    assert Parameter[Fraction].model_validate({"value": 0.5, "source": "sheet"}).unit == ""


@pytest.mark.parametrize("broken", [{"value": 0.5}, {"value": 0.5, "source": ""}, {"value": 2, "source": "x"}])
def test_a_source_and_a_value_in_range_are_required(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Parameter[Fraction].model_validate(broken)
