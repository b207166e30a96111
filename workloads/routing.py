"""What a scenario says about routing, and the router that follows from it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from moesim.configs.loader import Config, Reference, validate
from moesim.workloads.references import find_or_wrap, folder_of
from moesim.workloads.routing_files import is_profile, read_routing_profile, read_routing_trace
from moesim.workloads.routing_profile import RoutingProfile, check_dimensions
from moesim.workloads.routing_trace import RoutingTrace

_ZIPF = re.compile(r"zipf:(?P<exponent>.*)")
_FILES = (".npz", ".parquet")


class UniformRouting(Config):
    """Every expert equally often."""

    kind: Literal["uniform"]
    source: str = Field("", description="where this comes from")


class ZipfRouting(Config):
    """The expert of rank r is used in proportion to 1 / r^exponent; ranks are dealt anew in every layer."""

    kind: Literal["zipf"]
    exponent: NonNegativeFloat = Field(description="0 is uniform, 1 is Zipf's law")
    source: str = Field("", description="where this comes from")


class ProfileRouting(Config):
    """Tokens drawn from the statistics of a recording, adapted to the model if it is another."""

    kind: Literal["profile"]
    path: str = Field(
        description=".npz written by `write_routing_profile`, or a .parquet trace to take the statistics of; relative "
        "to the file that names it"
    )
    source: str = Field("", description="where this comes from, with its licence")


class TraceRouting(Config):
    """A recording, replayed token by token; refused if the model has other dimensions."""

    kind: Literal["trace"]
    path: str = Field(description=".parquet or gpt-oss .npz; relative to the file that names it")
    model: str | None = Field(None, description="name of the recorded model; by default what the file says")
    experts: PositiveInt | None = Field(None, description="routed experts per layer, where the file does not say")
    shuffle_seed: NonNegativeInt | None = Field(
        None, description="shuffle the requests, which recordings often order by data set; none: as recorded"
    )
    source: str = Field("", description="where this comes from, with its licence")


def _shorthand(value: Any) -> Any:
    """`uniform`, `zipf:1.0` and paths of files as mappings."""
    if not isinstance(value, str):
        return value
    if value == "uniform":
        return {"kind": "uniform"}
    zipf = _ZIPF.fullmatch(value)
    if zipf is not None:
        return {"kind": "zipf", "exponent": _number(zipf["exponent"])}
    return {"kind": "trace", "path": value} if value.endswith(_FILES) else value


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


RoutingConfig = Annotated[
    UniformRouting | ZipfRouting | ProfileRouting | TraceRouting,
    Field(discriminator="kind"),
    BeforeValidator(_shorthand),
]
Routing = RoutingProfile | RoutingTrace | UniformRouting | ZipfRouting
"""What `load_routing` returns: measured routing, or a distribution that still needs the dimensions of a model."""


class Router(Protocol):
    """Says which experts tokens use; the answer depends on (request, position) only."""

    profile: RoutingProfile

    def experts(self, request: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.uint16]:
        """uint16[token, moe_layer, k]: distinct experts of each token."""
        ...


def load_routing(reference: Reference, base: str | Path | None = None) -> Routing:
    """Routing by reference.

    Args:
        reference: `uniform`; `zipf:1.0`; the name of a shipped profile; the path of a profile (.npz), of a trace
            (.parquet, .npz) or of a YAML file; or a mapping with `kind` uniform, zipf, profile or trace.
        base: folder that relative paths start from, as in `moesim.configs.loader.find`.

    Raises:
        ConfigError: unknown name, or a configuration that breaks a rule.
        DataError: a file that is missing, cut off or broken.
    """
    document = find_or_wrap("routing", reference, base, _shorthand)
    config: RoutingConfig = validate(RoutingConfig, document)  # type: ignore[arg-type]  # pydantic takes unions
    if isinstance(config, UniformRouting | ZipfRouting):
        return config
    path = folder_of(document, "path", base) / Path(config.path).expanduser()
    if isinstance(config, ProfileRouting) and path.suffix == ".parquet":
        return RoutingProfile.from_trace(read_routing_trace(path))
    if isinstance(config, ProfileRouting) or is_profile(path):
        return read_routing_profile(path)
    trace = read_routing_trace(path, config.model, config.experts)
    if config.shuffle_seed is None:
        return trace
    return trace.select(np.random.default_rng(config.shuffle_seed).permutation(len(trace.names)))


def resolve_profile(
    routing: Routing, layers: int, experts: int, top_k: int, rng: np.random.Generator
) -> RoutingProfile:
    """The statistics of `routing` for a model with these dimensions.

    Args:
        routing: what `load_routing` returned. A profile of another model is adapted, and its `source` says so.
        layers: MoE layers of the model.
        experts: routed experts per layer.
        top_k: experts per token.
        rng: deals the ranks of a Zipf distribution.

    Raises:
        InputError: a trace of another model.
    """
    if isinstance(routing, UniformRouting):
        return RoutingProfile.uniform(layers, experts, top_k)
    if isinstance(routing, ZipfRouting):
        return RoutingProfile.zipf(layers, experts, top_k, routing.exponent, rng)
    if isinstance(routing, RoutingProfile):
        return routing.adapt(layers, experts, top_k)
    check_dimensions(routing.source, (routing.layers, routing.experts, routing.top_k), (layers, experts, top_k))
    return RoutingProfile.from_trace(routing)


def make_router(
    routing: Routing,
    layers: int,
    experts: int,
    top_k: int,
    rng: np.random.Generator,
    *,
    replay: bool = True,
) -> Router:
    """The router of a model with these dimensions.

    Args:
        routing: what `load_routing` returned.
        layers: MoE layers of the model.
        experts: routed experts per layer.
        top_k: experts per token.
        rng: gives the seed key, and deals the ranks of a Zipf distribution.
        replay: whether a trace is replayed, which needs requests that are those of the trace; else tokens are drawn
            from its statistics.

    Raises:
        InputError: a trace of another model.
    """
    from moesim.workloads.routing_draw import TokenRouter, TraceRouter  # numba loads slowly

    profile = resolve_profile(routing, layers, experts, top_k, rng)
    if replay and isinstance(routing, RoutingTrace):
        return TraceRouter(routing, rng, profile)
    return TokenRouter(profile, rng)
