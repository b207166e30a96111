"""Simulations kept in a folder, each under the hash of everything it depends on, so that none is repeated."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

import moesim
from moesim.hw_models.gpu import GPU
from moesim.simulator.result import Result, is_result, load_result
from moesim.simulator.scenario import Setup
from moesim.simulator.simulate import run, settings_of
from moesim.workloads.routing_draw import TraceRouter
from moesim.workloads.routing_profile_arrays import optional_arrays

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
            return replace(load_result(target), settings=settings_of(setup))
        result = run(setup, on_progress=on_progress)
        result.save(target)
        return result


@cache
def _code_hash() -> str:
    """Hash of the source that results come from: a run of other code is another run."""
    digest = hashlib.sha256()
    for layer in ("workloads", "hw_models", "simulator"):
        folder = (Path(moesim.__file__).parent / layer).resolve()  # a link in a checkout, a folder when installed
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def setup_key(setup: Setup) -> str:
    """Hash of everything that the result of `setup` depends on, as 16 hexadecimal digits.

    The engine is left out: both give the same result.
    """
    digest = hashlib.sha256()
    scenario = setup.scenario.model_dump(mode="json", exclude={"model", "system", "requests", "routing", "engine"})
    configurations: list[BaseModel] = [setup.model]
    for pool in setup.pools:
        configurations += [pool.system.config, pool.system.device.config, pool.parallelism]
        for processor in pool.system.device.processors.values():
            if isinstance(processor, GPU) and processor.residual_file is not None:
                digest.update(processor.residual_file.read_bytes())
    texts = [json.dumps(scenario, sort_keys=True), *(config.model_dump_json() for config in configurations)]
    texts += [_code_hash(), setup.routing_source, str(setup.requests.concurrency), type(setup.router).__name__]
    digest.update("\n".join(texts).encode())
    columns = (setup.requests.arrival_s, setup.requests.prompt_tokens, setup.requests.output_tokens)
    arrays: list[NDArray[Any]] = [*columns, *(pool.placement.slots for pool in setup.pools if pool.placement)]
    if setup.requests.prefix is not None:
        arrays += [setup.requests.prefix.ids, setup.requests.prefix.offsets]
        digest.update(str(setup.requests.prefix.block_tokens).encode())
    if setup.router:
        profile = setup.router.profile
        arrays += [profile.popularity, *([] if profile.transitions is None else [profile.transitions])]
        arrays += optional_arrays(profile, np.float64).values()
    if isinstance(setup.router, TraceRouter):
        trace = setup.router.trace
        arrays += [trace.request, trace.position, trace.expert]
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
