"""moesim simulates Mixture-of-Experts inference on hardware that exists and hardware that does not.

>>> import moesim
>>> result = moesim.simulate("quickstart", ["num_requests=50"])
>>> ttft_s, energy_j = result.summary["ttft_p50_s"], result.summary["energy_per_output_token_j"]
>>> first = result.requests.head()  # a pandas data frame
>>> folder = result.save("out/quickstart")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.errors import ConfigError, DataError, InputError, MoeSimError
    from moesim.hw_models.system import load_system
    from moesim.simulator.result import Result, load_result
    from moesim.simulator.simulate import simulate
    from moesim.workloads.models import Model, load_model

_EXPORTS = {
    "ConfigError": "moesim.errors",
    "DataError": "moesim.errors",
    "InputError": "moesim.errors",
    "Model": "moesim.workloads.models",
    "MoeSimError": "moesim.errors",
    "Result": "moesim.simulator.result",
    "load_model": "moesim.workloads.models",
    "load_result": "moesim.simulator.result",
    "load_system": "moesim.hw_models.system",
    "simulate": "moesim.simulator.simulate",
}

__all__ = [
    "ConfigError",
    "DataError",
    "InputError",
    "Model",
    "MoeSimError",
    "Result",
    "load_model",
    "load_result",
    "load_system",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `import moesim` costs nothing."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
