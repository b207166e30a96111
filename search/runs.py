"""Simulations kept in a folder, each under the hash of everything it depends on, so that none is repeated."""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from moesim.simulator.result import Result, is_result, load_result
from moesim.simulator.scenario import Setup
from moesim.simulator.simulate import run

Progress = Callable[[int], None]


class RunStore:
    """Results by content; without a folder nothing is kept."""

    def __init__(self, folder: Path | None = None) -> None:
        """Keep results in `folder`, which is made when the first one is saved."""
        self.folder = folder

    def result(self, setup: Setup, on_progress: Progress | None = None) -> Result:
        """The result of `setup`: loaded if it is there, else simulated and saved."""
        if self.folder is None:
            return run(setup, on_progress=on_progress)
        target = self.folder / setup_key(setup)
        if is_result(target):
            return load_result(target)
        result = run(setup, on_progress=on_progress)
        result.save(target)
        return result


def setup_key(setup: Setup) -> str:
    """Hash of everything that the result of `setup` depends on, as 16 hexadecimal digits.

    The engine is left out: both give the same result.
    """
    digest = hashlib.sha256()
    scenario = setup.scenario.model_dump(mode="json", exclude={"model", "system", "requests", "routing", "engine"})
    configurations = (setup.model, setup.system.config, setup.system.device.config, setup.parallelism)
    texts = [json.dumps(scenario, sort_keys=True), *(config.model_dump_json() for config in configurations)]
    texts += [version("moesim"), setup.routing_source, str(setup.requests.concurrency), type(setup.router).__name__]
    digest.update("\n".join(texts).encode())
    columns = (setup.requests.arrival_s, setup.requests.prompt_tokens, setup.requests.output_tokens)
    arrays: list[NDArray[Any]] = [*columns, *([setup.placement.slots] if setup.placement else [])]
    if setup.router:
        profile = setup.router.profile
        arrays += [profile.popularity, *([] if profile.transitions is None else [profile.transitions])]
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
