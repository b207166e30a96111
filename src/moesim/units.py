"""Quantities with units, turned into SI numbers once, where configuration enters the program.

`parse_quantity("3.35 TB/s", "bytes/s")` gives 3.35e12. A bare number is taken as SI already. The pydantic types
below (`Bytes`, `Seconds`, ...) apply that rule to fields of configuration classes.
"""

import math
import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_SMALL = {"p": "1e-12", "n": "1e-9", "u": "1e-6", "µ": "1e-6", "μ": "1e-6", "m": "1e-3"}
_LARGE = {"k": "1e3", "K": "1e3", "M": "1e6", "G": "1e9", "T": "1e12", "P": "1e15", "E": "1e18"}
_BINARY = {"Ki": str(2**10), "Mi": str(2**20), "Gi": str(2**30), "Ti": str(2**40), "Pi": str(2**50)}

# Unit -> dimension, SI scale, and the prefixes that make sense with it: `mB` is a typing error, not a millibyte.
_BASES: dict[str, tuple[str, str, dict[str, str]]] = {
    "B": ("bytes", "1", _LARGE | _BINARY),
    "b": ("bytes", "0.125", _LARGE | _BINARY),
    "bit": ("bytes", "0.125", _LARGE | _BINARY),
    "FLOP": ("flops", "1", _LARGE),
    "OP": ("flops", "1", _LARGE),
    "FLOPS": ("flops/s", "1", _LARGE),
    "OPS": ("flops/s", "1", _LARGE),
    "s": ("s", "1", _SMALL),
    "min": ("s", "60", {}),
    "h": ("s", "3600", {}),
    "Hz": ("1/s", "1", _LARGE),
    "req": ("1", "1", {}),
    "1": ("1", "1", {}),
    "J": ("j", "1", _SMALL | _LARGE),
    "W": ("w", "1", _SMALL | _LARGE),
    "um2": ("mm2", "1e-6", {}),
    "mm2": ("mm2", "1", {}),
    "cm2": ("mm2", "100", {}),
}
_UNITS = {
    prefix + base: (dimension, Decimal(scale) * Decimal(factor))
    for base, (dimension, scale, prefixes) in _BASES.items()
    for prefix, factor in ({"": "1"} | prefixes).items()
}
_EXAMPLES = {
    "bytes": "80 GiB",
    "bytes/s": "3.35 TB/s",
    "flops": "2 GFLOP",
    "flops/s": "989 TFLOPS",
    "s": "2.5 us",
    "1/s": "1.98 GHz or 4 req/s",
    "j": "3 nJ",
    "w": "700 W",
    "j/bytes": "3.5 pJ/bit",
    "j/flops": "0.4 pJ/FLOP",
    "mm2": "814 mm2",
}
_QUANTITY = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµμ0-9/]*)\s*")


def parse_quantity(value: object, dimension: str) -> float:
    """Read `value` as a quantity of `dimension` and return it in SI (areas in mm2), correctly rounded.

    Args:
        value: a number (SI), or text such as `80 GiB`, `450 W`, `2.5 us`, `3.59 pJ/bit`.
        dimension: `bytes`, `bytes/s`, `flops`, `flops/s`, `s`, `1/s`, `j`, `w`, `j/bytes`, `j/flops` or `mm2`.

    Raises:
        ValueError: not a finite number with a known unit, or a unit of another dimension.
    """
    expected = f"must be a quantity in {dimension}, such as {_EXAMPLES[dimension]}"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(expected)
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise ValueError(expected if isinstance(value, str) else "must be finite")
    unit = match[2]
    found, scale = _unit(unit) if unit else (dimension, Decimal(1))
    if found != dimension:
        raise ValueError(f"{expected}; {unit} is in {found}")
    return _scaled(match[1], scale)


def _scaled(number: str, scale: Decimal) -> float:
    """The float nearest to the product; `2.5 us` is 2.5e-6 to the last bit, which a product of floats is not."""
    try:
        product = float(Decimal(number) * scale)
    except ArithmeticError:  # the exponent alone is out of any range
        product = math.inf
    if not math.isfinite(product):
        raise ValueError("must be finite")
    return product


def _unit(unit: str) -> tuple[str, Decimal]:
    """Dimension and SI scale of `unit`, which may be a quotient such as TB/s."""
    over, slash, under = unit.partition("/")
    dimension, scale = _simple_unit(over, unit)
    if not slash:
        return dimension, scale
    below, below_scale = _simple_unit(under, unit)
    return f"{dimension}/{below}", scale / below_scale


def _simple_unit(part: str, unit: str) -> tuple[str, Decimal]:
    if part not in _UNITS:
        raise ValueError(f"unknown unit {unit!r}")
    return _UNITS[part]


def _quantity(dimension: str) -> BeforeValidator:
    def convert(value: Any) -> float:
        return parse_quantity(value, dimension)

    return BeforeValidator(convert)


Bytes = Annotated[float, _quantity("bytes"), Field(gt=0)]
BytesPerS = Annotated[float, _quantity("bytes/s"), Field(gt=0)]
FlopsPerS = Annotated[float, _quantity("flops/s"), Field(gt=0)]
Seconds = Annotated[float, _quantity("s"), Field(ge=0)]
PerSecond = Annotated[float, _quantity("1/s"), Field(gt=0)]
Watts = Annotated[float, _quantity("w"), Field(ge=0)]
Joules = Annotated[float, _quantity("j"), Field(ge=0)]
JoulesPerByte = Annotated[float, _quantity("j/bytes"), Field(ge=0)]
JoulesPerFlop = Annotated[float, _quantity("j/flops"), Field(ge=0)]
SquareMm = Annotated[float, _quantity("mm2"), Field(ge=0)]
