"""Numbers of a device with where they come from, and the calibrations behind the fitted ones."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, Field, model_validator

from moesim import units
from moesim.configs.loader import Config

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
"""Share of a datasheet rate."""
Slowdown = Annotated[float, Field(ge=1)]

_UNITS: tuple[tuple[Any, str], ...] = (
    (units.Bytes, "B"),
    (units.BytesPerS, "B/s"),
    (units.FlopsPerS, "FLOP/s"),
    (units.Seconds, "s"),
    (units.Watts, "W"),
    (units.JoulesPerByte, "J/B"),
    (units.JoulesPerFlop, "J/FLOP"),
)
_PREFIXES = tuple(zip((1e15, 1e12, 1e9, 1e6, 1e3, 1.0, 1e-3, 1e-6, 1e-9, 1e-12), "PTGMk munp", strict=True))


class Fit(Config):
    """One calibration, which set several parameters together."""

    data: str = Field(description="Data set: publisher, kernel, version.")
    rows: int = Field(gt=0, description="Measurements.")
    error: float = Field(
        gt=0,
        description="Mean of |predicted / measured - 1|, each row predicted by a fit to four fifths of the shapes that"
        " its own is not among (5-fold cross-validation).",
    )
    median: float | None = Field(default=None, gt=0, description="Median instead of the mean.")
    valid: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="Least and greatest value of each quantity among the rows (SI)."
    )


class Parameter(Config, Generic[T]):
    """A value, its source and, where it was fitted, the name of the calibration in `fits`."""

    value: T
    source: str = Field(min_length=1, description="Publication, data sheet or derivation.")
    fit: str | None = Field(default=None, description="Name of the calibration that set the value.")

    @property
    def unit(self) -> str:
        """Unit of `value`; empty for counts and fractions."""
        kind = type(self).__pydantic_generic_metadata__["args"]
        return next((unit for known, unit in _UNITS if kind and kind[0] is known), "")

    @property
    def text(self) -> str:
        """Value with its unit, such as `4.8 TB/s`."""
        return quantity_text(float(self.value), self.unit)  # type: ignore[arg-type]


class Fitted(Config):
    """Base of the sections that hold parameters and the calibrations these name."""

    fits: dict[str, Fit] = Field(default_factory=dict, description="Calibrations by name.")

    @model_validator(mode="after")
    def _fits_exist(self) -> "Fitted":
        for name, parameter in parameters(self):
            if parameter.fit is not None and parameter.fit not in self.fits:
                known = ", ".join(self.fits) or "none"
                raise ValueError(f"{name}.fit must be one of fits ({known}), got {parameter.fit!r}")
        return self


class ParameterRow(NamedTuple):
    """One line of a device's parameter table."""

    name: str
    value: str
    source: str
    error: str


def parameters(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Parameter[Any]]]:
    """Every parameter in `config` and the sections and mappings in it, with its dotted name."""
    for key in type(config).model_fields:
        yield from _inside(f"{prefix}{key}", getattr(config, key))


def parameter_rows(
    config: BaseModel, fits: Mapping[str, Fit], prefix: str = "", exclude: str = ""
) -> list[ParameterRow]:
    """Parameter table of `config`: name, value with unit, source, and error of the calibration if it was fitted.

    Args:
        config: whose parameters.
        fits: calibrations by name.
        prefix: goes before each name.
        exclude: top-level section to leave out.
    """
    rows = []
    for name, parameter in parameters(config):
        if exclude and name.startswith(f"{exclude}."):
            continue
        fit = fits.get(parameter.fit or "")
        error = "" if fit is None else f"{fit.error:.1%} on {fit.rows} rows of {fit.data}"
        rows.append(ParameterRow(f"{prefix}{name}", parameter.text, parameter.source, error))
    return rows


def scaled(config: Any, factors: Mapping[str, float], prefix: str = "") -> Any:
    """A copy of `config` in which the parameters named in `factors` (dotted names) are multiplied.

    Raises:
        KeyError: there is no such parameter.
    """
    missing = set(factors) - {name for name, _ in parameters(config)}
    if missing:
        raise KeyError(min(missing))

    def changed(name: str, held: Parameter[Any]) -> Parameter[Any]:
        factor = factors.get(name)
        if factor is None:
            return held
        return held.model_copy(update={"value": held.value * factor, "source": f"{factor:g} times: {held.source}"})

    return with_each(config, changed, prefix)


def with_each(config: Any, change: Callable[[str, Parameter[Any]], Parameter[Any]], prefix: str = "") -> Any:
    """A copy of `config` with every parameter replaced by what `change` makes of its dotted name and itself."""
    if isinstance(config, Parameter):
        return change(prefix.rstrip("."), config)
    if isinstance(config, BaseModel):
        fields = type(config).model_fields
        return config.model_copy(
            update={key: with_each(getattr(config, key), change, f"{prefix}{key}.") for key in fields}
        )
    if isinstance(config, dict):
        return {key: with_each(item, change, f"{prefix}{key}.") for key, item in config.items()}
    return config


def with_values(config: Any, values: Mapping[str, float], source: str = "fitted", fit: str | None = None) -> Any:
    """A copy of `config` in which the parameters named in `values` (dotted names) have these values (SI).

    Parameters that may be left out, and were, are added, and so are keys of mappings whose values are parameters or
    sections with defaults for everything.

    Raises:
        KeyError: there is no such parameter.
    """
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".")
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
        branch[last] = value
    return _with_values(config, tree, {"source": source, "fit": fit}, "")


def quantity_text(value: float, unit: str) -> str:
    """`value` in `unit` with an SI prefix and up to five digits; a unit-free value is written as it is."""
    if not unit or value == 0:
        return f"{value:.5g} {unit}".rstrip()
    scale, prefix = next((pair for pair in _PREFIXES if abs(value) >= pair[0]), _PREFIXES[-1])
    return f"{value / scale:.5g} {prefix.strip()}{unit}"


def _inside(name: str, value: Any) -> Iterator[tuple[str, Parameter[Any]]]:
    if isinstance(value, Parameter):
        yield name, value
    elif isinstance(value, BaseModel):
        yield from parameters(value, f"{name}.")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(f"{name}.{key}", item)


def _with_values(held: Any, tree: Mapping[str, Any], stamp: Mapping[str, Any], place: str) -> Any:
    if isinstance(held, dict):
        return held | {key: _with_value(held.get(key), item, stamp, f"{place}{key}") for key, item in tree.items()}
    if unknown := set(tree) - set(type(held).model_fields):
        raise KeyError(f"{place}{min(unknown)}")
    update = {}
    for key, item in tree.items():
        old = getattr(held, key)
        update[key] = _with_value(old, item, stamp, f"{place}{key}", type(held).model_fields[key].annotation)
    return held.model_copy(update=update)


def _with_value(old: Any, item: Any, stamp: Mapping[str, Any], place: str, annotation: Any = None) -> Any:
    if isinstance(item, Mapping):
        if old is None:
            raise KeyError(place)
        return _with_values(old, item, stamp, f"{place}.")
    if old is not None and not isinstance(old, Parameter):
        raise KeyError(place)
    kind = type(old) if old is not None else _parameter_kind(annotation)
    return kind.model_construct(value=item, **stamp)


def _parameter_kind(annotation: Any) -> Any:
    """The kind of parameter in `Parameter[...] | None`."""
    return next((kind for kind in get_args(annotation) if kind is not type(None)), Parameter)
