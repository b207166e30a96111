"""What all importers share: options, recorded requests, and the trace or profile that they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.configs.loader import shipped
from moesim.errors import DataError, InputError
from moesim.workloads.models import load_model
from moesim.workloads.routing_profile import RoutingProfile, check_dimensions, limit_shares
from moesim.workloads.routing_trace import DECODE, PREFILL, RoutingTrace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_BYTE = 2**8
_MOST_EXPERTS = 2**16
_MOST_TOKENS = 2**31  # positions are int32
_AXES = ("token", "layer", "k")


@dataclass(frozen=True)
class ImportOptions:
    """What files do not say.

    Args:
        model: name of the model; that of a shipped one gives layers, experts and top_k as well.
        experts: routed experts per layer.
        top_k: experts per token, for profiles; traces show it.
        source: where the recording comes from; by default the path.
        licence: of the recording.
        group: take only this group, such as one data set, where the format has groups.
        capture: settings of the recording that shall be kept with it.
    """

    model: str | None = None
    experts: int | None = None
    top_k: int | None = None
    source: str | None = None
    licence: str = ""
    group: str | None = None
    capture: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Dimensions:
    """Sizes of the recorded model, None where unknown."""

    layers: int | None
    experts: int | None
    top_k: int | None


def dimensions(options: ImportOptions) -> Dimensions:
    """What the options say, and what a shipped model of that name adds."""
    if options.model not in shipped("models"):
        return Dimensions(None, options.experts, options.top_k)
    moe_layers = load_model(str(options.model)).moe_layers
    if not moe_layers:
        raise InputError("model", "must have routed experts", options.model)
    ffn = moe_layers[0][1]
    return Dimensions(len(moe_layers), options.experts or ffn.experts, options.top_k or ffn.top_k)


def check_shipped(trace: RoutingTrace) -> None:
    """Refuse a trace that says it is of a shipped model and has other dimensions, such as a layer less.

    Raises:
        InputError: its layers, experts or top_k are not those of the model.
    """
    sizes = dimensions(ImportOptions(model=trace.model))
    found = (trace.layers, trace.experts, trace.top_k)
    wanted = (sizes.layers or trace.layers, sizes.experts or trace.experts, sizes.top_k or trace.top_k)
    check_dimensions(f"{trace.source}: model {trace.model}", found, wanted)


def required(name: str, value: int | None) -> int:
    """`value`, which must have been given.

    Raises:
        InputError: it is None.
    """
    if value is None:
        raise InputError(name, "must be given, because neither the files nor the name of the model say it")
    return value


@dataclass(frozen=True, eq=False)
class Recorded:
    """One request as a file tells it; the checks are those of `make_trace`.

    Args:
        place: file and line or key, for errors.
        name: what to call it.
        prompt_tokens: tokens of the prompt.
        position: int64[token].
        expert: whole numbers [token, layer, k].
        weight: float [token, layer, k] or None.
        group: data set.
    """

    place: str
    name: str
    prompt_tokens: int
    position: Ints
    expert: NDArray[Any]
    weight: NDArray[Any] | None = None
    group: str = ""


def make_trace(
    requests: Sequence[Recorded],
    paths: Sequence[Path],
    options: ImportOptions,
    capture: Mapping[str, str | int | float | bool],
) -> RoutingTrace:
    """One trace of all requests, which must be of one model.

    Raises:
        InputError: the number of experts is unknown.
        DataError: no requests, or one that breaks a rule; the place names file, request and row.
    """
    if not requests:
        raise DataError(_source(paths, options), "must hold recorded requests, and there are none")
    sizes = dimensions(options)
    experts = required("experts", sizes.experts)
    for request in requests:
        _check_axes(request)
    expected = (sizes.layers or requests[0].expert.shape[1], requests[0].expert.shape[2])
    for request in requests:
        _check_request(request, experts, expected)
    lengths = [len(request.expert) for request in requests]
    position = np.concatenate([request.position for request in requests])
    prompt = np.array([request.prompt_tokens for request in requests], np.int64)
    ids = np.concatenate([request.expert for request in requests])
    weights = [request.weight for request in requests if request.weight is not None]
    return RoutingTrace(
        model=options.model or "unknown",
        experts=experts,
        source=_source(paths, options),
        names=tuple(request.name for request in requests),
        groups=tuple(request.group for request in requests),
        first_decode_position=prompt,
        request=np.repeat(np.arange(len(requests), dtype=np.int32), lengths),
        position=position.astype(np.int32),
        phase=np.where(position < np.repeat(prompt, lengths), PREFILL, DECODE).astype(np.uint8),
        expert=ids.astype(np.uint8) if experts <= _BYTE else ids.astype(np.uint16),
        weight=np.concatenate(weights).astype(np.float32) if len(weights) == len(requests) else None,
        licence=options.licence,
        capture={**capture, **options.capture},
    )


def _source(paths: Sequence[Path], options: ImportOptions) -> str:
    more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
    return options.source or f"{paths[0]}{more}"


def _check_axes(request: Recorded) -> None:
    ids = request.expert
    if ids.ndim != len(_AXES) or not ids.size or ids.dtype.kind not in "iu":
        raise DataError(request.place, "must be whole numbers with axes [token, layer, k]", (str(ids.dtype), ids.shape))


def _check_request(request: Recorded, experts: int, expected: tuple[int, int]) -> None:
    ids, place = request.expert, request.place
    if ids.shape[1:] != expected:
        rule = f"every token must have {expected[0]} MoE layers with {expected[1]} experts each"
        raise DataError(place, rule, f"{ids.shape[1]} layers with {ids.shape[2]}")
    wrong = np.argwhere((ids < 0) | (ids >= min(experts, _MOST_EXPERTS)))
    if wrong.size:
        row, layer, rank = (int(index) for index in wrong[0])
        rule = f"expert ids must be from 0 to {experts - 1} (MoE layer {layer})"
        raise DataError(f"{place}, row {row}", rule, int(ids[row, layer, rank]))
    ordered = np.sort(ids, axis=2)
    twice = np.argwhere(ordered[:, :, 1:] == ordered[:, :, :-1])
    if twice.size:
        row, layer, rank = (int(index) for index in twice[0])
        rule = f"a token must use each expert once per layer (MoE layer {layer})"
        raise DataError(f"{place}, row {row}", rule, int(ordered[row, layer, rank]))
    gap = np.flatnonzero(np.diff(request.position) != 1)
    if gap.size or request.position[0] < 0:
        row = int(gap[0]) + 1 if gap.size else 0
        raise DataError(
            f"{place}, row {row}", "positions of a request must rise by 1 from >= 0", int(request.position[row])
        )
    last = max(int(request.position[-1]), request.prompt_tokens)
    if last >= _MOST_TOKENS:
        raise DataError(place, f"positions and prompts must be below {_MOST_TOKENS} tokens", last)
    _check_weight(request)


def _check_weight(request: Recorded) -> None:
    if request.weight is None:
        return
    if request.weight.shape != request.expert.shape:
        raise DataError(request.place, "must have a gate weight for each expert id", request.weight.shape)
    wrong = np.argwhere(~(np.isfinite(request.weight) & (request.weight >= 0)))
    if wrong.size:
        row, layer, rank = (int(index) for index in wrong[0])
        rule = f"gate weights must be finite and >= 0 (MoE layer {layer})"
        raise DataError(f"{request.place}, row {row}", rule, float(request.weight[row, layer, rank]))


def make_profile(load: Floats, place: str, paths: Sequence[Path], options: ImportOptions, what: str) -> RoutingProfile:
    """The popularity of a table of loads, float64[layer, expert].

    Shares above 1 / top_k, which no choice of distinct experts has, come from rounding or from dropped tokens; they are
    cut and the others scaled up.

    Raises:
        InputError: top_k is unknown.
        DataError: a load that is negative or no number, a layer without load, or a table of another model.
    """
    sizes = dimensions(options)
    top_k = required("top_k", sizes.top_k)
    expected = (sizes.layers or load.shape[0], sizes.experts or load.shape[1])
    if load.shape != expected:
        raise DataError(place, f"must have {expected[0]} MoE layers with {expected[1]} experts", load.shape)
    wrong = np.argwhere(~(np.isfinite(load) & (load >= 0)))
    if wrong.size:
        layer, expert = (int(index) for index in wrong[0])
        raise DataError(
            f"{place}: layer {layer}, expert {expert}", "loads must be finite and >= 0", float(load[layer, expert])
        )
    idle = np.flatnonzero(load.sum(axis=1) == 0)
    if idle.size:
        raise DataError(f"{place}: layer {idle[0]}", "a layer must have load, all its experts have 0")
    if not 1 <= top_k <= load.shape[1]:
        raise InputError("top_k", f"must be from 1 to {load.shape[1]}, the experts", top_k)
    licence = f" ({options.licence})" if options.licence else ""
    return RoutingProfile(
        model=options.model or "unknown",
        source=f"{what} of {_source(paths, options)}{licence}",
        top_k=top_k,
        popularity=limit_shares(load, top_k),
    )
