"""A scenario: everything a simulation depends on, from YAML, with `--set` edits, ready to run.

load_scenario: text -> `Scenario`, names and settings, validated.
prepare: `Scenario` -> `Setup`, with model, system, requests and routing loaded and checked against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from moesim.configs.loader import Config, Document, Reference, find, override, validate
from moesim.errors import ConfigError
from moesim.hw_models.system import System, load_system, system_document
from moesim.simulator.memory import Demand, KvCache, MemoryPlan, check_capacity
from moesim.simulator.parallelism import Parallelism, check_parallelism
from moesim.simulator.placement import Placement, load_placement
from moesim.simulator.scheduler import SchedulerSettings
from moesim.workloads.models import Model, load_model
from moesim.workloads.requests import Requests, load_requests
from moesim.workloads.routing import Router, Routing, load_routing, make_router
from moesim.workloads.routing_trace import RoutingTrace

REFERENCES = {"model": "models", "system": system_document, "system.device": "devices", "requests": "requests"}
"""Keys of a scenario that name other configurations, and where those are found."""


class Scenario(Config):
    """What to simulate. `model`, `system` and `requests` are names of shipped configurations, paths, or mappings."""

    model: Any = Field(description="name, path of a YAML file or a Hugging Face config.json, or mapping")
    system: Any = Field(description="name such as h100-sxm-8, path, or mapping")
    requests: Any = Field(description="name, path of a YAML, CSV or JSONL file, or mapping")
    num_requests: PositiveInt | None = Field(None, description="take only the first so many requests")
    concurrency: PositiveInt | None = Field(
        None, description="closed loop: so many requests in flight, arrivals ignored"
    )
    routing: Any = Field("uniform", description="uniform, zipf:EXPONENT, a shipped profile, a profile or trace file")
    parallelism: Parallelism | None = Field(None, description="tp, dp, ep; without it tp = number of devices")
    placement: str = Field("contiguous", description="contiguous, or the path of a placement file")
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
    document = override(find("scenarios", reference), assignments, REFERENCES)
    return validate(Scenario, document), document


def prepare(scenario: Scenario, document: Document) -> Setup:
    """Load what the scenario names and check that it fits together.

    Raises:
        InputError: something is missing or broken, the parallelism does not divide, or the memory does not suffice.
    """
    model = load_model(document.child("model"))
    system = load_system(document.child("system"))
    parallelism = _parallelism(scenario, document, system)
    check_parallelism(model, parallelism, document.place(("parallelism",)))
    request_rng, routing_rng = np.random.default_rng(scenario.seed).spawn(2)
    routing = load_routing(_optional(document, "routing", scenario.routing)) if model.moe_layers else None
    requests = _requests(scenario, document, routing, request_rng)
    router = _router(model, routing, routing_rng, requests)
    memory = _memory(scenario, model, system, parallelism, requests)
    return Setup(
        scenario=scenario,
        model=model,
        system=system,
        parallelism=parallelism,
        placement=load_placement(scenario.placement, model, parallelism.ep, document.folder) if router else None,
        requests=requests,
        router=router,
        routing_source=router.profile.source if router else "none, the model is dense",
        cache=KvCache.of(model, parallelism.tp, scenario.scheduler.block_tokens),
        memory=memory,
    )


def _optional(document: Document, key: str, default: str) -> Reference:
    """The part under `key`, or the default where the document does not have it."""
    return document.child(key) if key in document.data else default


def _parallelism(scenario: Scenario, document: Document, system: System) -> Parallelism:
    """The scenario's parallelism, which must use every device; without one, tensor parallelism over all."""
    parallelism = scenario.parallelism or Parallelism(tp=system.device_count)
    if parallelism.devices != system.device_count:
        rule = f"dp * tp must be the {system.device_count} devices of {system.name}"
        raise ConfigError(document.place(("parallelism",)), rule, parallelism.devices)
    return parallelism


def _requests(scenario: Scenario, document: Document, routing: Routing | None, rng: np.random.Generator) -> Requests:
    trace = routing if isinstance(routing, RoutingTrace) else None
    requests = load_requests(document.child("requests"), rng, num_requests=scenario.num_requests, trace=trace)
    if scenario.concurrency is None:
        return requests
    return replace(requests, arrival_s=np.zeros(len(requests)), concurrency=scenario.concurrency)


def _router(model: Model, routing: Routing | None, rng: np.random.Generator, requests: Requests) -> Router | None:
    """The router; a trace is replayed if the requests are its own, else its statistics are drawn from."""
    if routing is None:
        return None
    block = model.moe_layers[0][1]
    replay = isinstance(routing, RoutingTrace) and requests.source == routing.source
    return make_router(routing, len(model.moe_layers), block.experts, block.top_k, rng, replay=replay)


def _memory(
    scenario: Scenario, model: Model, system: System, parallelism: Parallelism, requests: Requests
) -> MemoryPlan:
    settings = scenario.scheduler
    longest = int((requests.prompt_tokens + requests.output_tokens).max()) - 1  # the last token is never fed back
    demand = Demand(settings.memory_utilization, settings.token_budget, settings.block_tokens, longest)
    return check_capacity(model, system, parallelism, demand)
