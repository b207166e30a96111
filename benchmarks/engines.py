"""The two engines on the same task graph: one step of a 94-layer mixture of experts on 16 devices."""

import sys

import numpy as np
from table import Row, best_of, show

from moesim.simulator.engines import get_engine
from moesim.simulator.graph import JOIN, TaskGraph
from moesim.simulator.graph_builder import GraphBuilder

DEVICES = 16
LAYERS = 94
EXPERTS_PER_DEVICE = 8
MICRO_BATCHES = 2
ATTENTION = ("norm", "qkv", "rope", "attention", "output", "router", "top_k")
EXPERT = ("gather", "up_and_gate", "activation", "down", "scale")


class _MoeStep:
    """Micro-batches that share the compute and network streams of every device."""

    def __init__(self, devices: int) -> None:
        self.builder = GraphBuilder()
        self.devices = range(devices)
        self.compute = [self.builder.stream(f"device {device} compute") for device in self.devices]
        self.network = [self.builder.stream(f"device {device} network") for device in self.devices]

    def chain(self, kinds: tuple[str, ...], layer: int, after: int | None) -> range:
        """Operators one after the other on every device; returns the last one of each."""
        last = self.builder.add_block(
            self.compute, kinds[0], layer, self.devices, after=[] if after is None else [after]
        )
        for kind in kinds[1:]:
            last = self.builder.add_block(self.compute, kind, layer, self.devices, after_each=last)
        return last

    def all_to_all(self, kind: str, layer: int, after: list[int]) -> int:
        """Every device sends when all are ready; returns the join on all arrivals."""
        ready = self.builder.join(after, layer)
        return self.builder.join(self.builder.add_block(self.network, kind, layer, self.devices, after=[ready]), layer)

    def layer(self, layer: int, after: int | None) -> int:
        """Attention, dispatch, experts, combine; returns the join that ends the layer."""
        arrived = self.all_to_all("dispatch", layer, list(self.chain(ATTENTION, layer, after)))
        experts = [task for _ in range(EXPERTS_PER_DEVICE) for task in self.chain(EXPERT, layer, arrived)]
        return self.all_to_all("combine", layer, experts)


def moe_step(devices: int = DEVICES, layers: int = LAYERS, micro_batches: int = MICRO_BATCHES) -> TaskGraph:
    """The graph of a step, with durations around 10 us that differ from task to task."""
    step = _MoeStep(devices)
    ends: list[int | None] = [None] * micro_batches
    for layer in range(layers):
        ends = [step.layer(layer, end) for end in ends]
    graph = step.builder.build()
    durations_s = np.random.default_rng(0).lognormal(np.log(1e-5), 0.5, graph.tasks)
    return graph.with_durations(np.where(graph.stream == JOIN, 0.0, durations_s))


def engines() -> list[Row]:
    """Tasks per second of the compiled engine beside SimPy's, and what one small step costs.

    Raises:
        AssertionError: the engines disagree, in which case their speed is of no interest.
    """
    compiled, simpy = get_engine("compiled"), get_engine("simpy")
    graph = moe_step()
    warm, reference = compiled(graph), simpy(graph)
    assert warm.start_s.tobytes() == reference.start_s.tobytes()
    assert warm.finish_s.tobytes() == reference.finish_s.tobytes()
    compiled_s = best_of(lambda: compiled(graph), 20)
    simpy_s = best_of(lambda: simpy(graph), 2)
    small = moe_step(devices=4, layers=1, micro_batches=1)
    durations_s = small.duration_s.copy()
    calls = 1000

    def refill_and_play() -> None:
        for _ in range(calls):
            compiled(small.with_durations(durations_s))

    call_us = best_of(refill_and_play, 5) / calls * 1e6
    small_simpy_us = best_of(lambda: simpy(small.with_durations(durations_s)), 5) * 1e6
    return [
        Row(
            f"compiled engine, {graph.tasks} tasks",
            graph.tasks / compiled_s,
            "tasks/s",
            "simpy",
            graph.tasks / simpy_s,
            100,
        ),
        Row(f"refill and play {small.tasks} tasks", call_us, "us", "simpy", small_simpy_us, better="lower"),
    ]


if __name__ == "__main__":
    measured = engines()
    show(measured)
    sys.exit(not all(row.holds for row in measured))
