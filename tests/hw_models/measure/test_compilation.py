"""Every kernel compiles for a real GPU, which the simulator cannot tell: it runs any Python.

Needs NVIDIA's compiler (libnvvm), but neither driver nor GPU.
"""

from types import SimpleNamespace

import pytest
from numba import types

from moesim.hw_models.measure import attention_kernels, cuda, matrix_kernels, memory_kernels
from moesim.hw_models.measure.attention_kernels import PartShape
from moesim.hw_models.measure.matrix_kernels import LARGE_TILE, SMALL_TILE

TARGET = (8, 0)


def array(element, dimensions):
    return types.Array(element, dimensions, "C")


INTS, INT_TABLE = array(types.int32, 1), array(types.int32, 2)
FLOATS, FLOAT_TABLE, FLOAT_CUBE, FLOAT_HYPERCUBE = (array(types.float32, n) for n in (1, 2, 3, 4))


def kernels(element):
    """Every kernel with the types it is launched with, for operands of `element`."""
    row, table, cube, cache = (array(element, n) for n in (1, 2, 3, 4))
    product = (table, cube, table, INTS, INTS, INTS)
    part = (cube, cache, cache, INT_TABLE, INTS, types.int64, FLOAT_HYPERCUBE, FLOAT_HYPERCUBE)
    return {
        "copy": (memory_kernels.copy_kernel, (row, row)),
        "triad": (memory_kernels.triad_kernel, (row, row, row)),
        "gather": (memory_kernels.gather_kernel, (table, INTS, table)),
        "combine": (memory_kernels.combine_kernel, (table, INT_TABLE, FLOAT_TABLE, table)),
        "clear": (memory_kernels.clear_kernel, (INTS,)),
        "histogram": (memory_kernels.histogram_kernel(64), (INTS, INTS)),
        "silu": (matrix_kernels.silu_kernel, (table, table)),
        "large product": (matrix_kernels.product_kernel(LARGE_TILE), product),
        "small product": (matrix_kernels.product_kernel(SMALL_TILE), product),
        "attention": (attention_kernels.part_kernel(PartShape(8, 128, 16, 32)), part),
        "join": (attention_kernels.join_kernel, (FLOAT_HYPERCUBE, FLOAT_HYPERCUBE, cube)),
        "spin": (cuda._spin, (types.int64, FLOATS)),
    }


@pytest.fixture(autouse=True, scope="module")
def compiler():
    """Skip without a compiler; without a driver, numba must not ask one for the target of device functions."""
    with pytest.MonkeyPatch.context() as patch:
        device = SimpleNamespace(compute_capability=TARGET)
        patch.setattr("numba.cuda.dispatcher.get_current_device", lambda: device)
        try:
            cuda.cuda.compile_ptx(memory_kernels.clear_kernel.py_func, (INTS,), cc=TARGET)
        except (OSError, RuntimeError, ImportError) as reason:
            pytest.skip(f"needs NVIDIA's compiler, but no GPU: pip install -e '.[cuda12]' ({reason})")
        yield


@pytest.mark.parametrize("name", list(kernels(types.float32)))
@pytest.mark.parametrize("element", [types.float32, types.float16], ids=["fp32", "fp16"])
def test_kernel(name, element):
    kernel, signature = kernels(element)[name]
    text, _ = cuda.cuda.compile_ptx(kernel.py_func, signature, cc=TARGET)
    assert ".entry" in text
    assert ".f64" not in text  # double precision is 2 to 64 times as slow, and creeps in through literals
    assert "ld.local" not in text  # sums stay in registers
