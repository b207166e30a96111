"""Fit the parameters of links to measured collectives.

What is fitted are the parameters of a `LinkConfig` that name a calibration, from their present values, so a new GPU
starts from the file of a similar one. The model is the interconnect's own `price`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from moesim.hw_models.calibration.fit import FitResult, Free, Price, Settings, calibrate, valid_range
from moesim.hw_models.calibration.link_readers import Links, read_custom_all_reduce, read_deepep, read_nccl
from moesim.hw_models.collective_table import CollectiveTable
from moesim.hw_models.interconnect import Interconnect
from moesim.hw_models.link_config import LinkConfig
from moesim.hw_models.parameters import Fit, Parameter, parameters, scaled

LIMITS: Mapping[str, tuple[float, float]] = {
    "launch": (1e-7, 2e-4),
    "hop": (1e-9, 2e-5),
    "sustained": (1e-3, 1.0),
    "own_block": (0.01, 1.0),
    "contention": (0.1, 1.0),
    "per_expert": (1e-10, 1e-6),
    "fill_bandwidth": (1e8, 1e12),
    "copy_latency": (1e-10, 1e-5),
    "copy_bandwidth": (1e9, 1e12),
    "token_latency": (1e-10, 1e-5),
    "token_bandwidth": (1e9, 1e12),
}
"""What is possible for a parameter, by the part of its name (SI)."""
SETTINGS = Settings(softness=0.05, evaluations=60)
"""Rows of collectives repeat within a few per cent; ones that are further off count less."""


@dataclass(frozen=True)
class LinkFit:
    """A calibration of a link.

    Attributes:
        link: with the fitted values and the error on message sizes left out.
        results: values and errors of each part.
    """

    link: LinkConfig
    results: tuple[FitResult, ...]


def fitted_names(link: LinkConfig, fit: str, within: str = "") -> tuple[str, ...]:
    """Dotted names of the parameters of `link` that name the calibration `fit`, in the part `within` if given."""
    return tuple(name for name, parameter in parameters(link) if parameter.fit == fit and name.startswith(within))


def link_price(link: LinkConfig) -> Price[CollectiveTable]:
    """The price of collectives in one node of devices with `link` as a function of its parameters."""
    present = {name: float(parameter.value) for name, parameter in parameters(link)}

    def price(values: Mapping[str, float], table: CollectiveTable) -> Any:
        changed = scaled(link, {name: value / present[name] for name, value in values.items()})
        return Interconnect(changed, changed).price(table).time_s

    return price


def measured_links(folder: Path, link: LinkConfig, fit: str) -> list[tuple[str, Links]]:
    """The rows that a calibration of `link` is fitted to, by the part of the parameters that they fit.

    Args:
        folder: measurements of the GPU, such as `kernels/aiconfigurator/h200_sxm`.
        link: tells which tensors the engine's own all-reduce takes.
        fit: `nccl`, `nccl_all_to_all`, `custom_all_reduce`, `deepep` or `deepep_low_latency`.

    Raises:
        DataError: the file is not there, or lacks a column.
    """
    if fit in {"deepep", "deepep_low_latency"}:
        dispatch, combine = read_deepep(folder, low_latency=fit != "deepep")
        return [(f"{fit}.dispatch", dispatch), (f"{fit}.combine", combine)]
    if fit == "custom_all_reduce":
        rows, custom = read_custom_all_reduce(folder), link.custom_all_reduce
        largest = {members: nbytes.value for members, nbytes in custom.largest.items()} if custom else {}
        limits = np.array([largest.get(int(ranks), 0.0) for ranks in rows.table.ranks])
        return [("", rows.take(np.flatnonzero(rows.table.payload_bytes <= limits)))]
    return [("", read_nccl(folder)[fit == "nccl_all_to_all"])]


def fit_all(folder: Path, link: LinkConfig, settings: Settings = SETTINGS) -> LinkConfig:
    """`link` with every calibration that it names fitted anew to the measurements in `folder`.

    Raises:
        DataError: a file is not there, or lacks a column.
    """
    for fit in link.fits:
        link = fit_link(link, fit, measured_links(folder, link, fit), settings).link
    return link


def fit_link(
    link: LinkConfig,
    fit: str,
    measured: Sequence[tuple[str, Links]],
    settings: Settings = SETTINGS,
) -> LinkFit:
    """Fit all parameters that name the calibration `fit`.

    Args:
        link: where to start from.
        fit: name in `link.fits`.
        measured: (part of the parameters, its rows); parts are fitted one after the other, `""` is all of them.
        settings: how to fit.

    Raises:
        KeyError: no parameter names the calibration.
    """
    price, values, errors, results = link_price(link), {}, [], []
    for within, rows in measured:
        names = fitted_names(link, fit, within)
        if not names:
            raise KeyError(fit)
        result = calibrate(rows, price, dict(_space(link, names)), settings)
        values.update(result.values)
        errors.append(np.abs(result.unseen_s / rows.time_s - 1))
        results.append(result)
    error = float(np.concatenate(errors).mean())
    first = measured[0][1]
    quantity, sizes = _sizes(first.table)
    valid = {"ranks": valid_range(first.table.ranks.astype(np.float64)), quantity: sizes}
    stated = Fit(data=first.source.text, rows=sum(len(rows) for _, rows in measured), error=error, valid=valid)
    changed = with_fitted(link, values)
    return LinkFit(changed.model_copy(update={"fits": {**changed.fits, fit: stated}}), tuple(results))


def _sizes(table: CollectiveTable) -> tuple[str, tuple[float, float]]:
    """What the validity of a price is told by: tokens, for DeepEP, or bytes (`collective_kernel.price_rows`)."""
    if table.tokens.any():
        return "tokens", valid_range(table.tokens)
    return "bytes", valid_range(table.payload_bytes + np.maximum(table.sent_bytes, table.received_bytes))


def _space(link: LinkConfig, names: Sequence[str]) -> Iterator[tuple[str, Free]]:
    known = dict(parameters(link))
    for name in names:
        low, high = next(limits for part, limits in LIMITS.items() if part in name.split("."))
        yield name, Free(min(max(float(known[name].value), low), high), low, high)


def with_fitted(config: LinkConfig, values: Mapping[str, float]) -> LinkConfig:
    """A copy with new values, to three digits, under the sources they have."""
    changed: LinkConfig = _replaced(config, {name: float(f"{value:.3g}") for name, value in values.items()}, "")
    return changed


def _replaced(part: Any, values: Mapping[str, float], name: str) -> Any:
    if isinstance(part, Parameter):
        value = values.get(name.rstrip("."))
        return part if value is None else part.model_copy(update={"value": value})
    if isinstance(part, BaseModel):
        fields = type(part).model_fields
        return part.model_copy(update={key: _replaced(getattr(part, key), values, f"{name}{key}.") for key in fields})
    if isinstance(part, dict):
        return {key: _replaced(item, values, f"{name}{key}.") for key, item in part.items()}
    return part
