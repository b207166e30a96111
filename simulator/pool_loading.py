"""From what a scenario says about its pools to pools with systems, cuts, placements and memory that fit together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moesim.configs.loader import Document
from moesim.errors import CapacityError, ConfigError, NotedErrors
from moesim.hw_models.system import System, load_system
from moesim.simulator.memory import Demand, KvCache, MemoryPlan, check_capacity
from moesim.simulator.parallelism import Parallelism, check_parallelism
from moesim.simulator.placement import CONTIGUOUS, Placement, load_placement
from moesim.simulator.pool import Pool, Role
from moesim.simulator.scheduler import SchedulerSettings
from moesim.workloads.models import Model
from moesim.workloads.requests import Requests


@dataclass(frozen=True)
class PoolPlan:
    """What a scenario says about one pool, its own settings or those for all pools, and where it says so."""

    name: str
    role: Role
    parallelism: Parallelism | None
    replicas: int
    placement: str
    scheduler: SchedulerSettings
    document: Document

    @property
    def is_named(self) -> bool:
        """Whether the scenario has pools, and this is one of them."""
        return self.name in (self.document.data.get("pools") or {})

    def path(self, *keys: str) -> tuple[str, ...]:
        """Where the scenario says something: in the pool, or for all of them."""
        pool = (self.document.data.get("pools") or {}).get(self.name) or {}
        return ("pools", self.name, *keys) if keys[0] in pool else keys

    def part(self, key: str) -> Document | None:
        """What the scenario says of `key`; None if nothing."""
        path = self.path(key)
        return self.document.at(path) if len(path) > 1 or key in self.document.data else None

    def place(self, *keys: str) -> str:
        """That as a place, for errors."""
        return self.document.place(self.path(*keys))

    @property
    def parallelism_place(self) -> str:
        """Where the parallelism was given: in the file, on the command line, or by the number of devices."""
        if self.parallelism is None:
            return self.place("replicas") if self.replicas > 1 else f"{self.place('system')}: parallelism"
        given = (self.path("parallelism", degree) for degree in Parallelism.model_fields)
        path = next((path for path in given if self.document.is_set(path)), self.path("parallelism"))
        return self.document.place(path)


def load_systems(plans: Sequence[PoolPlan]) -> Mapping[str, System]:
    """The system of each pool, by name of the pool, with the kernels of the pool's serving framework.

    Raises:
        ConfigError: one does not exist or breaks a rule.
    """

    def load(plan: PoolPlan) -> System:
        return load_system(plan.part("system") or plan.document.child("system"), kernels=plan.scheduler.kernels)

    return {plan.name: load(plan) for plan in plans}


def build_pools(
    plans: Sequence[PoolPlan], model: Model, systems: Mapping[str, System], requests: Requests
) -> tuple[Pool, ...]:
    """Pools, the devices of which are numbered one after the other.

    Raises:
        ConfigError: roles, replicas, parallelism or placement that do not fit.
        CapacityError: a pool has too little memory.
    """
    _check_roles(plans)
    pools: list[Pool] = []
    for plan in plans:
        first_device = sum(pool.system.device_count for pool in pools)
        pools.append(_build_pool(plan, model, systems[plan.name], requests, first_device))
    return tuple(pools)


def _check_roles(plans: Sequence[PoolPlan]) -> None:
    """Every request must be served from prompt to last token, and all in one way."""
    roles = {plan.role for plan in plans}
    if roles not in ({"both"}, {"prefill", "decode"}):
        rule = "the roles must be all `both`, or `prefill` of some and `decode` of the others"
        raise ConfigError(plans[0].document.place(("pools",)), rule, ", ".join(sorted(roles)))


def _build_pool(plan: PoolPlan, model: Model, system: System, requests: Requests, first_device: int) -> Pool:
    parallelism = _parallelism(plan, model, system)
    placement = _placement(plan, model, parallelism)
    _check_kernels(plan, system)
    memory, cache = _memory(plan, model, system, parallelism, placement, requests)
    return Pool(
        name=plan.name,
        role=plan.role,
        system=system,
        parallelism=parallelism,
        replicas=plan.replicas,
        placement=placement,
        scheduler=plan.scheduler,
        cache=cache,
        memory=memory,
        first_device=first_device,
    )


def _parallelism(plan: PoolPlan, model: Model, system: System) -> Parallelism:
    """The pool's parallelism; without one, tensor parallelism over the devices of each replica.

    Raises:
        ConfigError: every rule that is broken, a line each.
    """
    parallelism = plan.parallelism or Parallelism(tp=max(1, system.device_count // plan.replicas))
    place = plan.parallelism_place
    noted = NotedErrors()
    with noted:
        _check_devices(plan.replicas, parallelism, system, place)
    with noted:
        check_parallelism(model, parallelism, place)
    noted.raise_all()
    return parallelism


def _check_devices(replicas: int, parallelism: Parallelism, system: System, place: str) -> None:
    """The replicas must use every device, and a stage must lie within a node or fill whole nodes."""
    if replicas * parallelism.devices != system.device_count:
        factors = "dp * tp" + " * pp" * (parallelism.pp > 1) + " * replicas" * (replicas > 1)
        rule = f"{factors} must be the {system.device_count} devices of {system.name}"
        raise ConfigError(place, rule, replicas * parallelism.devices)
    stage, node = parallelism.stage_devices, system.devices_per_node
    if stage % node and node % stage:
        rule = f"dp * tp must divide the {node} devices of a node or be a multiple of them"
        raise ConfigError(place, rule, stage)


def _check_kernels(plan: PoolPlan, system: System) -> None:
    """The links must have the kernels that the engine calls for its experts."""
    for kind in sorted(plan.scheduler.communication.primitives()):
        if not system.interconnect.offers(kind):
            rule = f"the links of {system.name} have no parameters of {kind}"
            raise ConfigError(plan.place("scheduler", "expert_exchange"), rule, plan.scheduler.expert_exchange)


def _placement(plan: PoolPlan, model: Model, parallelism: Parallelism) -> Placement | None:
    """Where the experts are; None for a dense model, which must not ask for anything."""
    if plan.placement == CONTIGUOUS and not model.moe_layers:
        return None
    part = plan.part("placement")
    if part is None:
        return load_placement(plan.placement, model, parallelism.ep)
    return load_placement(plan.placement, model, parallelism.ep, part.folder, part.place())


def _memory(
    plan: PoolPlan,
    model: Model,
    system: System,
    parallelism: Parallelism,
    placement: Placement | None,
    requests: Requests,
) -> tuple[MemoryPlan, KvCache]:
    settings = plan.scheduler
    generated = 0 if plan.role == "prefill" else requests.output_tokens - 1  # the last token is never fed back
    longest = int((requests.prompt_tokens + generated).max())
    slots = None if placement is None else int(placement.slots.shape[1])
    demand = Demand(settings.memory_utilization, settings.token_budget, settings.block_tokens, longest, slots)
    try:
        return check_capacity(model, system, parallelism, demand)
    except CapacityError as error:
        if not plan.is_named:
            raise
        place = plan.document.place(("pools", plan.name))
        raise CapacityError(f"{place}: {error.place}", error.rule, error.got) from None
