"""Fit the parameters of links to measured collectives.

What is fitted are the parameters of a `LinkConfig` that name a calibration, from their present values, so a new GPU
starts from the file of a similar one. The model is the interconnect's own `price`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.hw_models.calibration.errors import ErrorSummary, error_buckets, stated_error
from moesim.hw_models.calibration.fit import Free, Price, Settings, fold_count, valid_range
from moesim.hw_models.calibration.fit import fit as fit_values
from moesim.hw_models.calibration.link_readers import Links, read_custom_all_reduce, read_deepep, read_nccl
from moesim.hw_models.calibration.measured import Floats
from moesim.hw_models.calibration.splits import folds
from moesim.hw_models.collective_table import CollectiveTable
from moesim.hw_models.interconnect import Interconnect
from moesim.hw_models.link_config import LinkConfig
from moesim.hw_models.parameters import Fit, Parameter, parameters, scaled, with_each

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
STARTS: Mapping[str, float] = {
    "ring.ll.launch": 5e-6,
    "ring.ll.sustained": 0.03,
    "ring.ll128.launch": 8e-6,
    "ring.ll128.sustained": 0.3,
    "ring.simple.launch": 2e-5,
    "ring.simple.hop": 2e-6,
    "ring.simple.sustained": 0.8,
    "ring": 1e-6,
    "in_switch.sustained": 0.8,
    "exchange.ll.launch": 7e-6,
    "exchange.ll.sustained": 0.02,
    "exchange.ll128.launch": 1e-5,
    "exchange.ll128.sustained": 0.3,
    "exchange.simple.launch": 2e-5,
    "exchange": 5e-7,
    "custom_all_reduce.one_shot.launch": 5e-6,
    "custom_all_reduce.two_shot.launch": 1e-5,
    "custom_all_reduce.one_shot.hop": 1e-7,
    "custom_all_reduce.two_shot.hop": 3e-7,
    "own_block": 0.5,
    "contention": 1.0,
    "launch": 2e-5,
    "per_expert": 5e-9,
    "fill_bandwidth": 2e10,
    "sustained": 0.7,
    "copy_latency": 1e-7,
    "copy_bandwidth": 3e10,
    "token_latency": 3e-7,
    "token_bandwidth": 2e10,
}
"""Round values, the same for every GPU, that cross-validation starts from. The shipped values have seen all rows: where
the rows that are left out are the only ones that tell a parameter (sums in the switch: groups of eight), a fit that
starts there would keep what it should not know."""
SETTINGS = Settings(rows=2500, starts=6, softness=0.05, evaluations=60)
"""Rows of collectives repeat within a few per cent; ones that are further off count less."""


@dataclass(frozen=True)
class LinkFit:
    """A calibration of a link.

    Attributes:
        link: with the fitted values and the error on message sizes left out.
        unseen: errors of each part on the groups that a fit left out, by bucket of time.
    """

    link: LinkConfig
    unseen: tuple[dict[str, ErrorSummary], ...]


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
        DataError: the rows are of one size.
    """
    price, values, unseen, relative = link_price(link), {}, [], []
    for within, rows in measured:
        names = fitted_names(link, fit, within)
        if not names:
            raise KeyError(fit)
        times_s = unseen_times(link, names, rows, settings)
        values.update(fit_values(rows, price, dict(_space(link, names)), settings))
        unseen.append(error_buckets(times_s, rows.time_s))
        relative.append(np.abs(times_s / rows.time_s - 1))
    first = measured[0][1]
    quantity, sizes = _sizes(first.table)
    valid = {"ranks": valid_range(first.table.ranks.astype(np.float64)), quantity: sizes}
    error = stated_error(float(np.concatenate(relative).mean()))
    stated = Fit(data=first.source.text, rows=sum(len(rows) for _, rows in measured), error=error, valid=valid)
    changed = with_fitted(link, values)
    return LinkFit(changed.model_copy(update={"fits": {**changed.fits, fit: stated}}), tuple(unseen))


def unseen_times(link: LinkConfig, names: Sequence[str], rows: Links, settings: Settings = SETTINGS) -> Floats:
    """float64[row], seconds: each row under a fit of the parameters `names` that knows nothing of the row's group.

    Raises:
        DataError: the rows are of one group.
    """
    price, times_s = link_price(link), np.empty(len(rows))
    space = {name: Free(_start(name, free), free.low, free.high) for name, free in _space(link, names)}
    for kept, left_out in folds(rows.group, fold_count(rows, settings), settings.seed):
        values = fit_values(rows.take(kept), price, space, settings)
        times_s[left_out] = price(values, rows.table.take(left_out))
    return times_s


def _start(name: str, free: Free) -> float:
    """The start of the longest key of `STARTS` that is the name, its end, or (for hops) its beginning."""
    parts = name.split(".")
    found = STARTS.get(name) or next((STARTS[part] for part in parts[1:] if part in STARTS), STARTS.get(parts[0]))
    return min(max(free.start if found is None else found, free.low), free.high)


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

    def changed(name: str, held: Parameter[Any]) -> Parameter[Any]:
        return held.model_copy(update={"value": float(f"{values[name]:.3g}")}) if name in values else held

    fitted: LinkConfig = with_each(config, changed)
    return fitted
