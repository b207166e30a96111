"""Engines: each plays a task graph and returns its timeline, and all of them agree to the last bit.

`compiled` is the fast one. `simpy` is the readable reference, and quicker for a single small graph, because it has no
machine code to load. An engine is a module with a function `run(graph) -> Timeline`, imported when it is asked for.
"""

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module

from moesim.errors import ConfigError
from moesim.simulator.graph import TaskGraph, Timeline

Engine = Callable[[TaskGraph], Timeline]

ENGINES = {
    "compiled": "moesim.simulator.engines.compiled",
    "simpy": "moesim.simulator.engines.simpy_engine",
}
"""The module of each engine."""


def get_engine(name: str) -> Engine:
    """The `run` function of the engine called `name`.

    Raises:
        ConfigError: there is no such engine; the message names the nearest and all of them.
    """
    if name not in ENGINES:
        near = get_close_matches(name, ENGINES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError("engine", f"must be one of {', '.join(ENGINES)}{hint}", name)
    engine: Engine = import_module(ENGINES[name]).run
    return engine
