from pathlib import Path
from typing import Any

import pytest

from moesim.configs.loader import Document, find, shipped
from moesim.errors import ConfigError
from moesim.hw_models.system import describe_links, load_system

SYSTEMS = shipped("systems")


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(("count", "per_node"), [(1, 1), (3, 3), (8, 8), (16, 8), (64, 8)])
def test_shipped_systems_come_in_counts(name: str, count: int, per_node: int) -> None:
    system = load_system(f"{name}-{count}")
    assert system.name == f"{name}-{count}"
    assert (system.device_count, system.devices_per_node) == (count, per_node)
    assert system.memory_bytes == system.device.memory_bytes
    assert system.idle_w == system.device.idle_w


def test_a_system_without_a_count_is_one_node() -> None:
    assert load_system("h100-sxm").device_count == 8


@pytest.mark.parametrize("reference", ["h100-sxm-12", "h100-sxm-0", Document("scenario.yaml", "h100-sxm-9")])
def test_counts_fill_their_nodes(reference: Any) -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        load_system(reference)


@pytest.mark.parametrize("reference", ["h100-8", "h100-sxm-x", "nope"])
def test_unknown_systems_are_refused(reference: str) -> None:
    with pytest.raises(ConfigError, match="shipped names"):
        load_system(reference)


def test_a_system_can_be_a_mapping_or_a_file_with_its_own_device(tmp_path: Path) -> None:
    mapping = dict(find("systems", "h100-sxm").data) | {"device_count": 2}
    assert load_system(mapping).device_count == 2
    device = (Path(__file__).resolve().parents[2] / "configs/devices/h100-sxm.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(device.replace("80 GiB", "20 GiB"), encoding="utf-8")
    system = load_system(mapping | {"device": "./mine.yaml"}, base=tmp_path)
    assert system.memory_bytes == 20 * 2**30
    inline = load_system(mapping | {"device": find("devices", tmp_path / "mine.yaml").data})
    assert inline.device.config == system.device.config


def test_link_descriptions_carry_sources() -> None:
    rows = {row.name: row for row in describe_links(load_system("h200-sxm-8"))}
    assert rows["intra_node.bandwidth"].value == "450 GB/s"
    assert "NCCL" in rows["intra_node.ring.simple.sustained"].error
    assert all(row.source for row in rows.values())
