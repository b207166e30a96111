"""Sets of kernels: what a device does under one serving framework or another."""

from typing import Any

import numpy as np
import pytest

from moesim.configs.loader import shipped
from moesim.errors import ConfigError
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.hw_models.system import load_system
from moesim.simulator.scenario import load_scenario, prepare
from tests.conformance.tables import attention_table, experts_table, gemm_table


def config(name: str, kernels: str | None) -> GpuConfig:
    processor = load_device(name, kernels=kernels).processor
    assert isinstance(processor, GPU)
    return processor.config


def test_a_set_overrides_what_it_names_and_nothing_else() -> None:
    own, sglang = config("h200-sxm", None), config("h200-sxm", "sglang")
    assert sglang.default_kernels == "sglang"
    assert sglang.dram_sustained != own.dram_sustained
    assert sglang.fits["gemm_bf16"].data != own.fits["gemm_bf16"].data
    assert sglang.fits["experts_fp8"] == own.fits["experts_fp8"]
    assert sglang.formats["bf16"].peak == own.formats["bf16"].peak


def test_a_set_replaces_the_attention_kernels_whole() -> None:
    own, sglang = config("h200-sxm", None), config("h200-sxm", "sglang")
    assert not set(own.attention.kernels) & set(sglang.attention.kernels)
    assert GPU(own).price(attention_table(4, 1, 99)).time_s != GPU(sglang).price(attention_table(4, 1, 99)).time_s


def test_the_default_framework_and_unmeasured_ones_are_the_device_itself() -> None:
    assert config("h200-sxm", "vllm") == config("h200-sxm", None)
    assert config("mi300x", "trtllm") == config("mi300x", None)


@pytest.mark.parametrize("name", [name for name in shipped("devices") if name != "duplex"])
def test_every_shipped_set_is_valid(name: str) -> None:
    for kernels in config(name, None).kernels:
        assert config(name, kernels).default_kernels == kernels


def test_schedulers_choose_kernels() -> None:
    systems = {
        preset: prepare(*load_scenario("quickstart", ["system=h200-sxm-1", f"scheduler={preset}"])).pools[0].system
        for preset in ("vllm", "sglang", "tensorrt-llm")
    }
    frameworks = [system.device.config.processors["gpu"] for system in systems.values()]
    assert [part.default_kernels for part in frameworks if isinstance(part, GpuConfig)] == ["vllm", "sglang", "trtllm"]
    table = gemm_table(64, 4096, 4096)
    assert len({system.device.processor.price(table).time_s[0] for system in systems.values()}) == 3


def test_the_command_line_has_the_last_word() -> None:
    edits = ["residual=null", "dram_sustained.value=0.5"]
    assignments = ["system=h200-sxm-1", *(f"system.device.processors.gpu.{edit}" for edit in edits), "scheduler=sglang"]
    part = prepare(*load_scenario("quickstart", assignments)).pools[0].system.device.config.processors["gpu"]
    assert isinstance(part, GpuConfig)
    assert part.default_kernels == "sglang"
    assert part.residual is None
    assert part.dram_sustained.value == 0.5


def test_an_unknown_framework_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scheduler.kernels: .*'sglang' or 'trtllm'.*got 'tgi'"):
        load_scenario("quickstart", ["scheduler.kernels=tgi"])


@pytest.mark.parametrize("device", ["h100-sxm-1", "h200-sxm-1"])
def test_marlin_changes_mxfp4_experts_alone_and_multiplies_slower(device: str) -> None:
    systems = [load_system(device, kernels=name) for name in ("vllm", "vllm_marlin")]
    processors = [system.device.config.processors["gpu"] for system in systems]
    configs = [config for config in processors if isinstance(config, GpuConfig)]
    others = [{name: own for name, own in config.grouped_gemm.weights.items() if name != "mxfp4"} for config in configs]
    assert others[0] == others[1]
    rates = [config.grouped_gemm.weights["mxfp4"].sustained for config in configs]
    assert rates[0] is not None
    assert rates[1] is not None
    assert rates[1].value < rates[0].value


def test_a_broken_set_names_its_place() -> None:
    document: dict[str, Any] = {
        "title": "mine",
        "device": {
            "title": "mine",
            **{
                key: {"value": value, "source": "test"}
                for key, value in (("memory_capacity", "80 GiB"), ("idle_power", "80 W"), ("design_power", "700 W"))
            },
            "processors": {"gpu": config("h200-sxm", None).model_dump(exclude_none=True)},
        },
        "device_count": 1,
        "devices_per_node": 8,
        "intra_node": "h200-sxm.intra_node",
        "inter_node": "h200-sxm.inter_node",
    }
    document["device"]["processors"]["gpu"]["kernels"] = {"sglang": {"dram_sustained": {"value": 2.0, "source": "x"}}}
    load_system(document)
    with pytest.raises(ConfigError, match=r"gpu.dram_sustained.value: .*got 2"):
        load_system(document, kernels="sglang")


def test_tritons_experts_are_faster_with_many_tokens_and_only_in_bf16() -> None:
    own, triton = (load_system("rtx-pro-6000-1", kernels=name).device for name in ("vllm", "vllm_triton"))
    few, many = (experts_table(np.full((1, 64), tokens), 768, 2048) for tokens in (1, 256))
    assert triton.processor.price(many).time_s[0] < 0.8 * own.processor.price(many).time_s[0]
    assert triton.processor.price(few).time_s[0] == pytest.approx(own.processor.price(few).time_s[0], rel=0.1)
    products = gemm_table(64, 4096, 4096)
    assert np.array_equal(triton.processor.price(products).time_s, own.processor.price(products).time_s)
