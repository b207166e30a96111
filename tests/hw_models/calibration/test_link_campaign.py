"""Links of a shipped system fitted to collectives that the model itself priced, and written back."""

from pathlib import Path

import pandas as pd
import pytest

from moesim.configs.loader import find
from moesim.configs.yaml_reader import parse_yaml
from moesim.errors import ConfigError
from moesim.hw_models.calibration.link_campaign import link_campaign
from moesim.hw_models.calibration.links import link_price
from moesim.hw_models.collective_table import COLLECTIVES, CollectiveTable
from moesim.hw_models.parameters import parameters
from moesim.hw_models.system import load_system

NAMES = {"all_reduce": "all_reduce", "all_gather": "all_gather", "alltoall": "all_to_all"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    link = load_system("a100-sxm-8").interconnect.intra_node
    rows = []
    for name, kind in NAMES.items():
        for ranks in (2, 4, 8):
            for size in 2 ** pd.Series(range(10, 28)):
                parts = {"payload_bytes": 2.0 * size}
                if name == "alltoall":
                    moved = 2.0 * size * (ranks - 1) / ranks
                    parts = {"sent_bytes": moved, "received_bytes": moved}
                table = CollectiveTable.of(COLLECTIVES.index(kind), ranks, **parts)
                rows.append((name, "half", ranks, size, 1.1e3 * float(link_price(link)({}, table)[0]), "GPU"))
    folder = tmp_path / "a100_sxm" / "comm" / "nccl" / "9.9"
    folder.mkdir(parents=True)
    columns = ["op_name", "nccl_dtype", "num_gpus", "message_size", "latency", "device"]
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "nccl_perf.parquet")
    return tmp_path


def test_what_was_fitted_is_written_and_all_else_stays(data: Path) -> None:
    outcomes = list(link_campaign("a100-sxm", data, ["nccl"], rows=60))
    assert [list(outcome.errors) for outcome in outcomes] == [["nccl"], ["nccl_all_to_all"]]
    before = Path(find("systems", "a100-sxm").file).read_text(encoding="utf-8")
    after = outcomes[-1].text
    system = load_system(parse_yaml(after, "text").data | {"device": "a100-sxm"})
    old, new = (dict(parameters(one.config.intra_node)) for one in (load_system("a100-sxm-8"), system))
    assert list(old) == list(new)
    changed = {name for name in old if old[name] != new[name]}
    assert changed
    assert {old[name].fit for name in changed} <= {"nccl", "nccl_all_to_all"}
    assert {name: (item.source, item.fit) for name, item in old.items()} == {
        name: (item.source, item.fit) for name, item in new.items()
    }
    assert "NCCL 9.9 on GPU" in system.config.intra_node.fits["nccl"].data
    start, end = before.index("inter_node:"), after.index("inter_node:")
    assert before[start:] == after[end:]


def test_links_without_such_kernels_cannot_be_fitted(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"intra_node.fits: must hold a calibration of deepep"):
        next(link_campaign("a100-sxm", data, ["deepep"]))
    with pytest.raises(ConfigError, match="must be the name of a shipped system"):
        next(link_campaign("mine.yaml", data, ["nccl"]))
