"""Timelines of stored graphs: the same bytes as when the file was written, with either engine."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from moesim.simulator.engines import ENGINES, get_engine
from moesim.simulator.graph import TaskGraph

GOLDEN = json.loads(Path(__file__).with_name("timelines.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stored", GOLDEN, ids=[stored["name"] for stored in GOLDEN])
def test_a_stored_graph_has_the_stored_timeline(engine: str, stored: dict[str, Any]) -> None:
    names = [f"stream {number}" for number in range(stored["streams"])]
    duration_s = [float.fromhex(duration) for duration in stored["duration_s"]]
    graph = TaskGraph.build(duration_s, stored["stream"], stored["edges"], stream_names=names)
    timeline = get_engine(engine)(graph)
    columns = (timeline.start_s, timeline.finish_s)
    digest = hashlib.sha256(b"".join(column.astype("<f8").tobytes() for column in columns)).hexdigest()
    assert digest == stored["sha256"]
