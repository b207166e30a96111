"""These tests run kernels in numba's CUDA simulator, which has to be chosen before numba is imported.

`tests/hw_models/measure/test_simulated.py` runs each file in a process of its own; by hand:
`NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/hw_models/measure/simulated`.
"""

import os

import numpy as np
import pytest

from moesim.hw_models.measure.problem import TOLERANCE, relative_error

if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def check():
    """A function that runs a benchmark on random data and compares every row of the result with float64."""

    def run(benchmark, launches=1):
        problem = benchmark.problem
        inputs = problem.inputs(np.random.default_rng(1))
        buffers = benchmark.make_buffers(inputs)
        for _ in range(launches):
            benchmark.launch(buffers)
        result = benchmark.result(buffers)
        reference = problem.reference(inputs, np.arange(problem.output_rows))
        assert result.shape == reference.shape
        assert relative_error(result, reference) <= TOLERANCE[problem.dtype]

    return run
