from typing import Any

import numpy as np
import pytest

from moesim.configs.loader import shipped
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU
from moesim.hw_models.logic_pim import LogicPim
from moesim.hw_models.parameters import scaled
from moesim.hw_models.processor import Processor
from tests.conformance.processor_suite import ProcessorSuite
from tests.conformance.tables import mixed_table

GPUS = [name for name in shipped("devices") if isinstance(load_device(name).processor, GPU)]


def gpu(processor: Processor) -> GPU:
    assert isinstance(processor, GPU)
    return processor


def physics(name: str) -> GPU:
    """The GPU without its residual, which follows real kernels where these are slower with less to do (512 rows take
    less time than 511), so that it rises and falls; its own tests say what holds of it."""
    return GPU(gpu(load_device(name).processor).config.model_copy(update={"residual": None}))


MEASURED = [name for name in GPUS if gpu(load_device(name).processor).config.fits]


class TestGpu(ProcessorSuite):
    bandwidth_parameters = ("dram_bandwidth", "l2_bandwidth")
    rate_parameters = ("formats.bf16.peak", "formats.tf32.peak", "formats.int8.peak")

    @pytest.fixture(params=MEASURED)
    def processor(self, request: pytest.FixtureRequest) -> Processor:
        return physics(request.param)

    def any_processor(self) -> Processor:
        return physics(GPUS[0])

    def cached_bytes(self, processor: Processor) -> tuple[float, float]:
        config = gpu(processor).config
        products, others = (
            0.0 if of is None else of.value for of in (config.cached_bytes, config.elementwise.cached_bytes)
        )
        return products, others

    def scaled(self, processor: Processor, factors: dict[str, float]) -> Processor:
        config: Any = scaled(gpu(processor).config, factors)
        return GPU(config)

    def peak_flops_per_s(self, processor: Processor) -> float:
        return gpu(processor).config.formats["bf16"].peak.value

    def peak_mxfp4_flops_per_s(self, processor: Processor) -> float:
        formats = gpu(processor).config.formats
        return formats.get("fp4", formats["bf16"]).peak.value

    def peak_bytes_per_s(self, processor: Processor) -> float:
        return gpu(processor).config.dram_bandwidth.value

    def sustained(self, processor: Processor) -> tuple[float, float]:
        config = gpu(processor).config
        bf16 = config.formats["bf16"]
        return (
            bf16.peak.value * bf16.sustained.value / (config.power_slowdown.value if config.power_slowdown else 1.0),
            config.dram_bandwidth.value * config.dram_sustained.value,
        )


class TestUnmeasuredGpu(TestGpu):
    """GPUs whose parameters are those of a measured relative."""

    is_calibrated = False

    @pytest.fixture(params=[name for name in GPUS if name not in MEASURED])
    def processor(self, request: pytest.FixtureRequest) -> Processor:
        return load_device(request.param).processor

    def any_processor(self) -> Processor:
        return load_device("mi300x").processor

    def test_every_price_is_extrapolated(self, processor: Processor) -> None:
        table = mixed_table()
        assert np.array_equal(processor.price(table).extrapolated, table.m > 0)


def logic_pim(processor: Processor) -> LogicPim:
    assert isinstance(processor, LogicPim)
    return processor


class TestLogicPim(ProcessorSuite):
    bandwidth_parameters = ("dram_bandwidth",)
    rate_parameters = ("peak",)
    is_calibrated = False

    @pytest.fixture
    def processor(self) -> Processor:
        return self.any_processor()

    def any_processor(self) -> Processor:
        return load_device("duplex").processors["pim"]

    def scaled(self, processor: Processor, factors: dict[str, float]) -> Processor:
        config: Any = scaled(logic_pim(processor).config, factors)
        return LogicPim(config)

    def peak_flops_per_s(self, processor: Processor) -> float:
        return logic_pim(processor).config.peak.value

    def peak_bytes_per_s(self, processor: Processor) -> float:
        return logic_pim(processor).config.dram_bandwidth.value

    def sustained(self, processor: Processor) -> tuple[float, float]:
        config = logic_pim(processor).config
        return config.peak.value, config.dram_bandwidth.value * config.dram_sustained.value
