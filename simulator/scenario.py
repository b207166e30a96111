"""A scenario: everything a simulation depends on, from YAML, with `--set` edits, ready to run.

load_scenario: text -> `Scenario`, names and settings, validated.
prepare: `Scenario` -> `Setup`, with model, system, requests and routing loaded and checked against each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from moesim.configs.loader import Config, Document, Finder, Reference, find, override, validate
from moesim.configs.rules import did_you_mean
from moesim.errors import ConfigError, NotedErrors
from moesim.hw_models.system import System, system_document
from moesim.simulator.load_balancing import PolicyName
from moesim.simulator.parallelism import Parallelism
from moesim.simulator.placement import CONTIGUOUS
from moesim.simulator.pool import Pool, PoolSettings
from moesim.simulator.pool_loading import PoolPlan, build_pools, load_systems
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
    "pools.*.system": system_document,
    "pools.*.system.device": "devices",
    "pools.*.scheduler": "schedulers",
}
"""Keys of a scenario that name other configurations, and where those are found."""

MAIN_POOL = "main"
"""The pool of a scenario that names none."""
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
    routing: Named = Field(
        "small-moe",
        description="a shipped profile (the default: of a small model recorded for the package, adapted), uniform, "
        "zipf:EXPONENT, a profile or trace file",
    )
    parallelism: Parallelism | None = Field(
        None, description="tp, dp, ep, pp of each replica; without it tp = devices / replicas"
    )
    replicas: PositiveInt = Field(1, description="copies of the model, each on its share of the devices")
    load_balancing: PolicyName = Field(
        "least_outstanding",
        description="which data-parallel rank of which replica gets a request: the one with the fewest requests (equal "
        "ones take turns), each in turn, or the one whose prefix cache holds most of the prompt",
    )
    pools: dict[str, PoolSettings] = Field(
        default_factory=dict,
        description="replicas of several kinds, by name; without it one pool of what stands above, which is otherwise "
        "the default of each pool",
    )
    placement: str = Field(CONTIGUOUS, description="contiguous, or the path of a placement file")
    warmup_requests: int = Field(
        0, ge=0, description="the first so many requests are simulated but left out of latency and throughput"
    )
    scheduler: SchedulerSettings = SchedulerSettings()
    fast_forward: PositiveInt = Field(
        1,
        description="while a batch decodes unchanged, play one step for up to so many; requests that arrive meanwhile "
        "wait for their end",
    )
    seed: int = Field(0, ge=0, description="seed of every random draw")
    engine: Literal["compiled", "simpy"] = Field("compiled", description="which engine plays the task graphs")


@dataclass(frozen=True)
class Setup:
    """A scenario with everything loaded and checked."""

    scenario: Scenario
    model: Model
    pools: tuple[Pool, ...]
    requests: Requests
    router: Router | None
    routing_source: str

    @property
    def devices(self) -> int:
        """Devices of all pools."""
        return sum(pool.system.device_count for pool in self.pools)

    @property
    def caches_prefixes(self) -> bool:
        """Whether a pool that runs prompts keeps a prefix cache."""
        return any(pool.caches_prefixes for pool in self.pools)

    @property
    def is_disaggregated(self) -> bool:
        """Whether prefill and decode have pools of their own."""
        return any(pool.role == "decode" for pool in self.pools)


def load_scenario(reference: Reference, assignments: Sequence[str] = ()) -> tuple[Scenario, Document]:
    """A scenario by shipped name, path or mapping, with `key.subkey=value` edits applied before validation.

    Raises:
        ConfigError: all broken rules at once, each with its place.
    """
    document = find("scenarios", reference)
    if isinstance(document.data, dict):
        _check_edited_pools(document.data.get("pools"), assignments)
        document = override(document, assignments, REFERENCES)
        document = _read_presets(document)
    return validate(Scenario, document), document


def _check_edited_pools(pools: Any, assignments: Sequence[str]) -> None:
    """Refuse an edit inside a pool that is not there: its name is misspelt, and a pool would come from nowhere."""
    names = list(pools) if isinstance(pools, dict) else []
    for assignment in assignments:
        key = assignment.partition("=")[0].strip()
        head, *rest = key.split(".")
        if head == "pools" and len(rest) <= 1:  # all of them, or a whole new one
            names = names + rest if rest else []
        elif head == "pools" and names and rest[0] not in names:
            hint = did_you_mean(rest[0], names) or f"there is {' and '.join(names)}"
            raise ConfigError(f"--set {key}", f"no such pool ({hint}); a new one is --set pools.{rest[0]}={{...}}")


def _read_presets(document: Document) -> Document:
    """The document with the schedulers that are named read in: the scenario's and those of its pools."""
    pools = document.data.get("pools")
    names = [name for name, pool in pools.items() if isinstance(pool, dict)] if isinstance(pools, dict) else []
    paths: list[tuple[str, ...]] = [("scheduler",), *(("pools", name, "scheduler") for name in names)]
    for path in paths:
        held = document
        for key in path[:-1]:
            held = held.child(key)
        if isinstance(held.data.get("scheduler"), str):
            document = document.graft(path, find("schedulers", held.child("scheduler")))
    return document


def prepare(scenario: Scenario, document: Document) -> Setup:
    """Load what the scenario names and check that it fits together.

    Raises:
        InputError: something is missing or broken, the parallelism does not divide, or the memory does not suffice.
            What is wrong with model, system, requests and routing is reported at once.
    """
    request_rng, routing_rng = np.random.default_rng(scenario.seed).spawn(2)
    _check_overridden(scenario, document)
    plans = _pool_plans(scenario, document)
    model, systems, routing, requests = _load_parts(scenario, document, plans, request_rng)
    pools = build_pools(plans, model, systems, requests)
    router = _router(model, routing, routing_rng, requests)
    _check_warmup(scenario, document, requests)
    _check_prefix_caching(scenario, plans, pools, requests)
    return Setup(
        scenario=scenario,
        model=model,
        pools=pools,
        requests=requests,
        router=router,
        routing_source=router.profile.source if router else "none, the model is dense",
    )


def _pool_plans(scenario: Scenario, document: Document) -> list[PoolPlan]:
    """Each pool's own settings, or the scenario's."""
    return [
        PoolPlan(
            name=name,
            role=pool.role,
            parallelism=pool.parallelism or scenario.parallelism,
            replicas=pool.replicas or scenario.replicas,
            placement=pool.placement or scenario.placement,
            scheduler=pool.scheduler or scenario.scheduler,
            document=document,
        )
        for name, pool in (scenario.pools or {MAIN_POOL: PoolSettings()}).items()
    ]


def _check_overridden(scenario: Scenario, document: Document) -> None:
    """Refuse an edit of a setting that every pool has its own of: it would change nothing."""
    edits = [path for path in document.sources if path and document.is_set(path)]
    for key in ("system", "parallelism", "replicas", "placement", "scheduler"):
        edit = next((path for path in edits if path[0] == key), None)
        own = [name for name, pool in scenario.pools.items() if getattr(pool, key) is not None]
        if edit and own and len(own) == len(scenario.pools):
            rule = f"changes nothing, every pool has its own {key}; edit that with --set pools.{own[0]}.{key}"
            raise ConfigError(document.place(edit), rule)


# --- parts -------------------------------------------------------------------------------------------------------


def _load_parts(
    scenario: Scenario, document: Document, plans: Sequence[PoolPlan], rng: np.random.Generator
) -> tuple[Model, Mapping[str, System], Routing, Requests]:
    """What the scenario names, or all that is wrong with it."""
    noted = NotedErrors()
    with noted:
        model = load_model(document.child("model"))
    with noted:
        systems = load_systems(plans)
    routing: Routing | None = None
    with noted:
        routing = load_routing(_optional(document, "routing", scenario.routing))
    if routing is not None or not _is_trace(scenario.requests):  # those of a trace need it
        with noted:
            requests = _requests(scenario, document, routing, rng)
    noted.raise_all()
    assert routing is not None  # else there was an error
    return model, systems, routing, requests


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


def _router(model: Model, routing: Routing, rng: np.random.Generator, requests: Requests) -> Router | None:
    """The router; a trace is replayed if the requests are its own, else its statistics are drawn from."""
    if not model.moe_layers:
        return None
    block = model.moe_layers[0][1]
    replay = isinstance(routing, RoutingTrace) and requests.source == routing.source
    return make_router(routing, len(model.moe_layers), block.experts, block.top_k, rng, replay=replay)


def _check_warmup(scenario: Scenario, document: Document, requests: Requests) -> None:
    """Some requests must be measured."""
    if scenario.warmup_requests >= len(requests):
        rule = f"must be less than the {len(requests)} requests"
        raise ConfigError(document.place(("warmup_requests",)), rule, scenario.warmup_requests)


def _check_prefix_caching(
    scenario: Scenario, plans: Sequence[PoolPlan], pools: Sequence[Pool], requests: Requests
) -> None:
    """Check that prefixes can be cached where they should be, and are where the router asks for them."""
    caching = [pair for pair in zip(plans, pools, strict=True) if pair[1].caches_prefixes]
    for plan, pool in caching:
        check_prefix_caching(requests, pool.cache, plan.place("scheduler", "prefix_caching"))
    if scenario.load_balancing == "cache_aware" and not caching:
        rule = "cache_aware needs scheduler.prefix_caching"
        raise ConfigError(plans[0].place("load_balancing"), rule, scenario.load_balancing)
