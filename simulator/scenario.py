"""A scenario: everything a simulation depends on, from YAML, with `--set` edits, ready to run.

load_scenario: text -> `Scenario`, names and settings, validated.
prepare: `Scenario` -> `Setup`, with model, system, requests and routing loaded and checked against each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from moesim.configs.loader import Config, Document, Finder, Reference, find, override, validate
from moesim.errors import ConfigError, InputError
from moesim.hw_models.system import System, load_system, system_document
from moesim.simulator.memory import Demand, KvCache, MemoryPlan, check_capacity
from moesim.simulator.parallelism import Parallelism, check_parallelism
from moesim.simulator.placement import CONTIGUOUS, Placement, load_placement
from moesim.simulator.prefix_cache import check_prefix_caching
from moesim.simulator.scheduler import SchedulerSettings
from moesim.workloads.models import Model, load_model
from moesim.workloads.requests import Requests, load_requests
from moesim.workloads.routing import Router, Routing, load_routing, make_router
from moesim.workloads.routing_trace import RoutingTrace

REFERENCES: Mapping[str, Finder] = {
    "model": "models",
    "system": system_document,
    "system.device": "devices",
    "requests": "requests",
    "scheduler": "schedulers",
}
"""Keys of a scenario that name other configurations, and where those are found."""

Named = str | dict[str, Any]
_MAX_REQUESTS = 10**8
_LATEST_ARRIVAL_S = 1e8
"""Three years; there the clock, a float64, still tells times 15 ns apart, a hundredth of the shortest kernel."""


class Scenario(Config):
    """What to simulate. `model`, `system` and `requests` are names of shipped configurations, paths, or mappings."""

    model: Named = Field(description="name, path of a YAML file or a Hugging Face config.json, or mapping")
    system: Named = Field(description="name such as h100-sxm-8, path, or mapping")
    requests: Named = Field(description="name, path of a YAML, CSV or JSONL file, or mapping")
    num_requests: int | None = Field(None, ge=1, le=_MAX_REQUESTS, description="take only the first so many requests")
    concurrency: PositiveInt | None = Field(
        None, description="closed loop: so many requests in flight, arrivals ignored"
    )
    routing: Named = Field("uniform", description="uniform, zipf:EXPONENT, a shipped profile, a profile or trace file")
    parallelism: Parallelism | None = Field(None, description="tp, dp, ep; without it tp = number of devices")
    placement: str = Field(CONTIGUOUS, description="contiguous, or the path of a placement file")
    warmup_requests: int = Field(
        0, ge=0, description="the first so many requests are simulated but left out of latency and throughput"
    )
    scheduler: SchedulerSettings = SchedulerSettings()
    seed: int = Field(0, ge=0, description="seed of every random draw")
    engine: Literal["compiled", "simpy"] = Field("compiled", description="which engine plays the task graphs")


@dataclass(frozen=True)
class Setup:
    """A scenario with everything loaded and checked."""

    scenario: Scenario
    model: Model
    system: System
    parallelism: Parallelism
    placement: Placement | None
    requests: Requests
    router: Router | None
    routing_source: str
    cache: KvCache
    memory: MemoryPlan


def load_scenario(reference: Reference, assignments: Sequence[str] = ()) -> tuple[Scenario, Document]:
    """A scenario by shipped name, path or mapping, with `key.subkey=value` edits applied before validation.

    Raises:
        ConfigError: all broken rules at once, each with its place.
    """
    document = find("scenarios", reference)
    if isinstance(document.data, dict):
        document = override(document, assignments, REFERENCES)
        if isinstance(document.data.get("scheduler"), str):
            document = document.graft(("scheduler",), find("schedulers", document.child("scheduler")))
    return validate(Scenario, document), document


def prepare(scenario: Scenario, document: Document) -> Setup:
    """Load what the scenario names and check that it fits together.

    Raises:
        InputError: something is missing or broken, the parallelism does not divide, or the memory does not suffice.
            What is wrong with model, system, requests and routing is reported at once.
    """
    request_rng, routing_rng = np.random.default_rng(scenario.seed).spawn(2)
    model, system, routing, requests = _load_parts(scenario, document, request_rng)
    parallelism = _parallelism(scenario, document, model, system)
    placement = _placement(scenario, document, model, parallelism)
    router = _router(model, routing, routing_rng, requests)
    cache = KvCache.of(model, parallelism.tp, scenario.scheduler.block_tokens)
    _check_requests(scenario, document, requests, cache)
    return Setup(
        scenario=scenario,
        model=model,
        system=system,
        parallelism=parallelism,
        placement=placement,
        requests=requests,
        router=router,
        routing_source=router.profile.source if router else "none, the model is dense",
        cache=cache,
        memory=_memory(scenario, model, system, parallelism, placement, requests),
    )


# --- parts -------------------------------------------------------------------------------------------------------


def _load_parts(
    scenario: Scenario, document: Document, rng: np.random.Generator
) -> tuple[Model, System, Routing, Requests]:
    """What the scenario names, or all that is wrong with it."""
    noted = _Noted()
    with noted:
        model = load_model(document.child("model"))
    with noted:
        system = load_system(document.child("system"), kernels=scenario.scheduler.kernels)
    routing: Routing | None = None
    with noted:
        routing = load_routing(_optional(document, "routing", scenario.routing))
    if routing is not None or not _is_trace(scenario.requests):  # those of a trace need it
        with noted:
            requests = _requests(scenario, document, routing, rng)
    noted.raise_all()
    assert routing is not None  # else there was an error
    return model, system, routing, requests


class _Noted:
    """Notes what is wrong in `with` blocks and goes on, so that a user sees everything at once."""

    def __init__(self) -> None:
        self.errors: list[InputError] = []

    def __enter__(self) -> None:
        """Start of a block."""

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        """End of a block; its input error is noted, another one goes its way."""
        if isinstance(error, InputError):
            self.errors.append(error)
        return isinstance(error, InputError)

    def raise_all(self) -> None:
        """Raise the error, or one with the messages of all; nothing if there is none."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            first = self.errors[0]
            kind = type(first) if len(set(map(type, self.errors))) == 1 else InputError
            joined = kind(first.place, first.rule, first.got)
            joined.args = ("\n".join(str(error) for error in self.errors),)
            raise joined


def _optional(document: Document, key: str, default: Named) -> Reference:
    """The part under `key`, or the default where the document does not have it."""
    return document.child(key) if key in document.data else default


def _is_trace(requests: Named) -> bool:
    return (requests if isinstance(requests, str) else requests.get("kind")) == "trace"


def _requests(scenario: Scenario, document: Document, routing: Routing | None, rng: np.random.Generator) -> Requests:
    trace = routing if isinstance(routing, RoutingTrace) else None
    requests = load_requests(document.child("requests"), rng, num_requests=scenario.num_requests, trace=trace)
    if scenario.concurrency is not None:
        return replace(requests, arrival_s=np.zeros(len(requests)), concurrency=scenario.concurrency)
    last_s = float(requests.arrival_s[-1])
    if not last_s <= _LATEST_ARRIVAL_S:
        rule = f"arrivals must lie within {_LATEST_ARRIVAL_S:g} s of the start, for the clock to resolve steps"
        raise ConfigError(document.place(("requests",)), rule, last_s)
    return requests


# --- how they fit together ---------------------------------------------------------------------------------------


def _parallelism(scenario: Scenario, document: Document, model: Model, system: System) -> Parallelism:
    """The scenario's parallelism, which must use every device; without one, tensor parallelism over all.

    Raises:
        ConfigError: every rule that is broken, a line each.
    """
    parallelism = scenario.parallelism or Parallelism(tp=system.device_count)
    place = _parallelism_place(scenario, document)
    noted = _Noted()
    if parallelism.devices != system.device_count:
        rule = f"dp * tp must be the {system.device_count} devices of {system.name}"
        noted.errors.append(ConfigError(place, rule, parallelism.devices))
    with noted:
        check_parallelism(model, parallelism, place)
    noted.raise_all()
    return parallelism


def _parallelism_place(scenario: Scenario, document: Document) -> str:
    """Where the parallelism was given: in the file, on the command line, or by the number of devices."""
    if scenario.parallelism is None:
        return f"{document.place(('system',))}: parallelism"
    given = (("parallelism", key) for key in Parallelism.model_fields)
    return document.place(next((path for path in given if document.is_set(path)), ("parallelism",)))


def _placement(scenario: Scenario, document: Document, model: Model, parallelism: Parallelism) -> Placement | None:
    """Where the experts are; None for a dense model, which must not ask for anything."""
    if scenario.placement == CONTIGUOUS and not model.moe_layers:
        return None
    if "placement" not in document.data:
        return load_placement(scenario.placement, model, parallelism.ep)
    part = document.child("placement")
    return load_placement(scenario.placement, model, parallelism.ep, part.folder, part.place())


def _router(model: Model, routing: Routing, rng: np.random.Generator, requests: Requests) -> Router | None:
    """The router; a trace is replayed if the requests are its own, else its statistics are drawn from."""
    if not model.moe_layers:
        return None
    block = model.moe_layers[0][1]
    replay = isinstance(routing, RoutingTrace) and requests.source == routing.source
    return make_router(routing, len(model.moe_layers), block.experts, block.top_k, rng, replay=replay)


def _check_requests(scenario: Scenario, document: Document, requests: Requests, cache: KvCache) -> None:
    """Check that some requests are measured, and that their prefixes can be cached if they should be."""
    if scenario.warmup_requests >= len(requests):
        rule = f"must be less than the {len(requests)} requests"
        raise ConfigError(document.place(("warmup_requests",)), rule, scenario.warmup_requests)
    if scenario.scheduler.prefix_caching:
        check_prefix_caching(requests, cache, document.place(("scheduler", "prefix_caching")))


def _memory(
    scenario: Scenario,
    model: Model,
    system: System,
    parallelism: Parallelism,
    placement: Placement | None,
    requests: Requests,
) -> MemoryPlan:
    settings = scenario.scheduler
    longest = int((requests.prompt_tokens + requests.output_tokens).max()) - 1  # the last token is never fed back
    slots = None if placement is None else int(placement.slots.shape[1])
    demand = Demand(settings.memory_utilization, settings.token_budget, settings.block_tokens, longest, slots)
    return check_capacity(model, system, parallelism, demand)
