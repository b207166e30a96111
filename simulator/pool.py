"""Pools: replicas of one kind, and the part of serving that they do."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from moesim.configs.loader import Config
from moesim.hw_models.collective_table import COLLECTIVES, CollectiveTable
from moesim.hw_models.system import System
from moesim.simulator.memory import KvCache, MemoryPlan
from moesim.simulator.parallelism import Parallelism
from moesim.simulator.placement import Placement
from moesim.simulator.scheduler import SchedulerSettings

Role = Literal["both", "prefill", "decode"]


class PoolSettings(Config):
    """Replicas of one kind. What is left out is taken from the scenario."""

    role: Role = Field("both", description="what the pool serves: both, prefill or decode")
    system: str | dict[str, Any] | None = Field(None, description="name such as h100-sxm-8, path, or mapping")
    parallelism: Parallelism | None = Field(None, description="tp, dp, ep, pp of each replica")
    replicas: PositiveInt | None = Field(None, description="copies of the model on the pool's system")
    placement: str | None = Field(None, description="contiguous, or the path of a placement file")
    scheduler: SchedulerSettings | None = Field(None, description="settings or preset of the serving engine")


@dataclass(frozen=True)
class Pool:
    """Replicas of one kind with everything loaded and checked.

    Attributes:
        name: what the scenario calls the pool.
        first_device: number of its first device among those of all pools.
        cache, memory: of a device on the tightest pipeline stage.
    """

    name: str
    role: Role
    system: System
    parallelism: Parallelism
    replicas: int
    placement: Placement | None
    scheduler: SchedulerSettings
    cache: KvCache
    memory: MemoryPlan
    first_device: int

    @property
    def caches_prefixes(self) -> bool:
        """Whether its ranks keep prefixes of prompts; where none run there are none to find."""
        return self.scheduler.prefix_caching and self.role != "decode"


@dataclass(frozen=True)
class KvTransfer:
    """How caches get from a rank that prefills to one that decodes: over the links between nodes of both systems.

    Every device of a rank moves an equal part of the cache, once, whatever copies of it tensor parallelism keeps. The
    slower side decides. The start is that of a point-to-point transfer over the links.
    """

    source: Pool
    destination: Pool
    whole: KvCache  # the cache of the whole model on one device

    def bytes(self, tokens: int) -> float:
        """Bytes that move for a cache of so many tokens."""
        return float(self.whole.bytes(np.array([tokens]))[0])

    def price(self, tokens: int) -> tuple[float, float]:
        """Seconds and joules for a cache of so many tokens."""
        costs = [_send(pool, self.bytes(tokens)) for pool in (self.source, self.destination)]
        return max(time_s for time_s, _ in costs), costs[0][1]


def _send(pool: Pool, nbytes: float) -> tuple[float, float]:
    """Seconds and joules in which the devices of one rank of `pool` send `nbytes` to other nodes, each its part."""
    devices = pool.parallelism.tp * pool.parallelism.pp
    table = CollectiveTable.of(COLLECTIVES.index("all_to_all"), 2, 2, sent_internode_bytes=nbytes / devices)
    cost = pool.system.interconnect.price(table)
    return float(cost.time_s[0]), float(cost.energy_j[0]) * devices
