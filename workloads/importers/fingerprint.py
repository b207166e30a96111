"""Recordings of AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting (Apache-2.0), as published in 2025.

A .json (or .json.gz) file holds one sample, or a list of them: `dataset`, `category`, `row_index`, the texts, and
`router_data`, a list of the decoded tokens, each an object `{"token_315": {"layer_0": {"selected_experts": [31, 21, 22,
6], "selected_probs": [...]}, ...}}`; 315 is the position, prompt included. The files do not name their model.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import DataError
from moesim.workloads.importers.recorded import ImportOptions, Recorded, make_trace
from moesim.workloads.importers.safe_files import check_file, numbers, read_json
from moesim.workloads.routing_trace import RoutingTrace

_TOKEN = re.compile(r"token_(\d{1,9})")


def read_fingerprints(paths: Sequence[Path], options: ImportOptions) -> RoutingTrace:
    """Requests of all files; the group of a request is its data set.

    Raises:
        InputError, DataError: as `import_routing`.
    """
    requests = []
    for path in paths:
        check_file(path, ".json")
        document = read_json(path)
        samples = document if isinstance(document, list) else [document]
        read = (_request(f"{path}: sample {index}", sample) for index, sample in enumerate(samples))
        requests += [one for one in read if options.group in {None, one.group}]
    return make_trace(requests, paths, options, {"recorder": "GPT-OSS-MoE-ExpertFingerprinting", "phases": "decode"})


def _request(place: str, sample: Any) -> Recorded:
    tokens = sample.get("router_data") if isinstance(sample, dict) else None
    if not isinstance(tokens, list) or not tokens:
        raise DataError(place, "must be a sample with a list of tokens under `router_data`")
    position, expert, weight, layers = [], [], [], -1
    for row, token in enumerate(tokens):
        where = f"{place}, row {row}"
        key = next(iter(token), "") if isinstance(token, dict) else ""
        match = _TOKEN.fullmatch(key)
        if match is None or len(token) != 1 or not isinstance(token[key], dict):
            raise DataError(where, 'must be {"token_<position>": {"layer_0": ...}}', key)
        layers = len(token[key]) if layers < 0 else layers
        position.append(int(match[1]))
        expert.append(_layers(where, token[key], "selected_experts", layers))
        weight.append(_layers(where, token[key], "selected_probs", layers))
    name = f"{sample.get('dataset', '')}/{sample.get('category', '')}/{sample.get('row_index', '')}"
    return Recorded(
        place=place,
        name=name,
        prompt_tokens=position[0],
        position=np.array(position, np.int64),
        expert=numbers(f"{place}: selected_experts", expert),
        weight=numbers(f"{place}: selected_probs", weight),
        group=str(sample.get("dataset", "")),
    )


def _layers(place: str, token: dict[str, Any], key: str, layers: int) -> list[Any]:
    """The values of `key` in layer 0, 1, ..., all of which must be there."""
    names = [f"layer_{layer}" for layer in range(layers)]
    missing = [name for name in names if not isinstance(token.get(name), dict) or key not in token[name]]
    if missing or len(token) != layers:
        rule = f"every token must have {layers} MoE layers, as the first one has, with `{key}`"
        raise DataError(place, rule, f"missing {missing[0]}" if missing else f"{len(token)} layers")
    return [token[name][key] for name in names]
