"""Whatever is wrong with a JSON document, an importer refuses it or reads it; it never fails otherwise."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.workloads.importers import ImportOptions, import_routing
from tests.workloads.importers.test_importers import fingerprint, ids, npy, record, response

WRONG: tuple[Any, ...] = (None, True, -1, 3, 2.5, 10**30, "x", "", [], [1], [[1, 2], [3]], {}, {"a": 1}, float("nan"))
OPTIONS = ImportOptions(model="m", experts=8, top_k=2)
DOCUMENTS = {
    "fingerprint": fingerprint(ids(3)),
    "vllm": response(ids(4).tolist(), 2, 3, prompt_routed_experts=ids(2).tolist()),
    "vllm base64": response(npy(ids(4)), 2, 3),
    "sglang": {
        "records": [record(0, ids(3), [0, 1, 2], [3]), record(1, ids(1), [3])],
        "last_physical_to_logical_map": np.tile(np.arange(8), (4, 1)).tolist(),
    },
    "sglang stat": {"logical_count": np.ones((2, 3, 8), int).tolist()},
    "vllm-eplb": {"expert_load_window": np.ones((2, 3, 8), int).tolist(), "physical_to_logical_map": [[0] * 8] * 3},
    "loads": {"loads": np.ones((3, 8)).tolist()},
}


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside, of lists only the first entry."""
    inside = list(document.items()) if isinstance(document, dict) else []
    inside = list(enumerate(document[:1])) if isinstance(document, list) else inside
    return [path, *(found for key, value in inside for found in places(value, (*path, key)))]


def with_change(document: Any, path: tuple[Any, ...], value: Any, *, drop: bool) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if drop:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return changed


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_change_breaks_an_importer(tmp_path: Path, name: str) -> None:
    document, path = DOCUMENTS[name], tmp_path / "d.json"
    refused = 0
    for place in places(document):
        for drop, value in [(True, None), *((False, value) for value in WRONG)]:
            path.write_text(json.dumps(with_change(document, place, value, drop=drop)))
            try:
                import_routing([path], name.split(maxsplit=1)[0], OPTIONS)
            except InputError:
                refused += 1
    assert refused > len(WRONG)
