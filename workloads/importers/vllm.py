"""What vLLM says about routing: `routed_experts` of requests, and the load windows of EPLB.

**Routed experts** (`--enable-return-routed-experts`). Three shapes are read:

- v0.21: responses of /v1/completions and /v1/chat/completions with `prompt_routed_experts`, nested lists
  [prompt token, layer, k], and `routed_experts` of each choice, nested lists [generated token, layer, k];
- later (main, summer of 2026): `routed_experts` of each choice is the base64 text of a .npy file, int
  [token, layer, k], of the prompt and all generated tokens but the last, which is never fed to the model;
- offline: `CompletionOutput.routed_experts`, the same array, saved by the user: an .npz with an array per request and
  `prompt_tokens`, int[request] in the same order.

**EPLB** (`vllm/distributed/eplb/eplb_state.py`, v0.10 to main): `expert_load_window` int32[step, layer, physical
expert] and `physical_to_logical_map` [layer, physical expert], saved by the user as .npz or JSON, summed over ranks.
"""

import base64
import binascii
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.workloads.importers.recorded import ImportOptions, Recorded, make_profile, make_trace
from moesim.workloads.importers.safe_files import check_file, named_arrays, numbers, read_json, read_json_lines, whole
from moesim.workloads.npz_files import npz_members
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_trace import RoutingTrace

_PROMPTS = "prompt_tokens"
_USAGE = ("prompt_tokens", "completion_tokens")
_AXES = ("token", "layer", "k")


def read_vllm(paths: Sequence[Path], options: ImportOptions) -> RoutingTrace:
    """Requests of all files. Layers that only hold 0 are dense ones and left out.

    Raises:
        InputError, DataError: as `import_routing`; responses of several models are refused.
    """
    requests: list[Recorded] = []
    models: dict[str, str] = {}
    for path in paths:
        if check_file(path, ".json", ".jsonl", ".npz") == ".npz":
            requests += _saved_requests(path)
            continue
        for place, response in _responses(path):
            requests += _response_requests(place, response)
            if name := response.get("model", options.model):
                models.setdefault(str(name), place)
    if len(models) > 1:
        (first, _), (second, place) = list(models.items())[:2]
        raise DataError(place, f"all responses must be of one model, the first is of {first!r}", second)
    if options.model is None and models:
        options = replace(options, model=next(iter(models)))
    requests, dense = _without_dense_layers(requests)
    return make_trace(requests, paths, options, {"recorder": "vLLM routed_experts", "layers_without_experts": dense})


def _responses(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = path.suffixes[-1] == ".jsonl" or path.suffixes[-2:-1] == [".jsonl"]
    document = None if lines else read_json(path)
    listed = document if isinstance(document, list) else [document]
    found = read_json_lines(path) if lines else ((f"{path}: response {i}", one) for i, one in enumerate(listed))
    for place, response in found:
        if not isinstance(response, dict) or not isinstance(response.get("choices"), list):
            raise DataError(place, "must be a response of vLLM with `choices`")
        yield place, response


def _response_requests(place: str, response: dict[str, Any]) -> Iterator[Recorded]:
    usage = response.get("usage")
    if not isinstance(usage, dict):
        raise DataError(f"{place}: usage", "must have prompt_tokens and completion_tokens", usage)
    prompt, completion = (whole(f"{place}: usage: {name}", usage.get(name)) for name in _USAGE)
    before = response.get("prompt_routed_experts")
    for index, choice in enumerate(response["choices"]):
        where = f"{place}: choice {index}"
        if not isinstance(choice, dict) or choice.get("routed_experts") is None:
            raise DataError(where, "must have `routed_experts`; start vLLM with --enable-return-routed-experts")
        ids = _decoded(f"{where}: routed_experts", choice["routed_experts"])
        all_tokens = before is None and len(ids) >= prompt + max(0, completion - 1)
        if before is not None:
            ids = _joined(where, _decoded(f"{place}: prompt_routed_experts", before), ids)
        first = 0 if all_tokens or before is not None else prompt
        name = f"{response.get('id', place)}/{choice.get('index', index)}"
        yield Recorded(where, name, prompt, first + np.arange(len(ids)), ids)


def _joined(place: str, prompt: NDArray[Any], generated: NDArray[Any]) -> NDArray[Any]:
    if prompt.shape[1:] != generated.shape[1:] and len(generated):
        raise DataError(place, "prompt and generated tokens must have the same layers and k", generated.shape)
    return np.concatenate([prompt, generated]) if len(generated) else prompt


def _decoded(place: str, value: Any) -> NDArray[Any]:
    """Ids [token, layer, k] from nested lists or from the base64 text of a .npy file."""
    if isinstance(value, str):
        try:
            array: NDArray[Any] = np.load(io.BytesIO(base64.b64decode(value, validate=True)), allow_pickle=False)
        except (ValueError, OSError, EOFError, binascii.Error) as error:
            raise DataError(place, f"must be the base64 text of a .npy file ({error})") from None
    else:
        array = numbers(place, value)
    if array.ndim != len(_AXES) or array.dtype.kind not in "iu":
        raise DataError(place, "must be whole numbers with axes [token, layer, k]", array.shape)
    return array


def _saved_requests(path: Path) -> Iterator[Recorded]:
    arrays = npz_members(path)
    prompts = arrays.pop(_PROMPTS, None)
    if prompts is None or prompts.shape != (len(arrays),) or prompts.dtype.kind not in "iu":
        rule = f"must hold `{_PROMPTS}`, a whole number for each of its {len(arrays)} arrays of ids"
        raise DataError(str(path), rule, None if prompts is None else prompts.shape)
    for (name, ids), prompt in zip(arrays.items(), prompts.tolist(), strict=True):
        place = f"{path}: {name}"
        decoded = _decoded(place, ids)
        yield Recorded(place, name, prompt, np.arange(len(decoded)), decoded)


def _without_dense_layers(requests: list[Recorded]) -> tuple[list[Recorded], str]:
    """Requests without the layers that hold only 0 in all of them, which no layer with k > 1 can; and those layers."""
    shapes = {request.expert.shape[1:] for request in requests}
    if len(shapes) != 1 or next(iter(shapes))[1] == 1:
        return requests, ""
    used = np.any([request.expert.any(axis=(0, 2)) for request in requests], axis=0)
    if used.all() or not used.any():
        return requests, ""
    dense = ",".join(map(str, np.flatnonzero(~used)))
    return [replace(one, expert=one.expert[:, used]) for one in requests], dense


def read_eplb(paths: Sequence[Path], options: ImportOptions) -> RoutingProfile:
    """Loads of logical experts, summed over the steps of the windows and over files, as a profile.

    Raises:
        InputError, DataError: as `import_routing`.
    """
    total: NDArray[np.float64] | None = None
    for path in paths:
        load = _logical_load(path)
        if total is not None and load.shape != total.shape:
            raise DataError(str(path), "all files must be of one model, the first has (layers, experts)", total.shape)
        total = load if total is None else total + load
    assert total is not None
    return make_profile(total, str(paths[0]), paths, options, "expert_load_window of vLLM EPLB")


def _logical_load(path: Path) -> NDArray[np.float64]:
    """float64[layer, logical expert]."""
    arrays = named_arrays(path, "expert_load_window", "expert_load_pass", "physical_to_logical_map")
    window = arrays.get("expert_load_window", arrays.get("expert_load_pass"))
    if window is None or window.ndim not in {2, 3} or 0 in window.shape[-2:]:
        raise DataError(str(path), "must hold `expert_load_window` with axes [step, layer, physical expert]")
    physical: NDArray[np.float64] = window.reshape(-1, *window.shape[-2:]).sum(axis=0, dtype=np.float64)
    owner = arrays.get("physical_to_logical_map")
    if owner is None:
        return physical
    place = f"{path}: physical_to_logical_map"
    if owner.shape != physical.shape or owner.dtype.kind not in "iu":
        rule = f"must be whole numbers for {physical.shape} layers and physical experts"
        raise DataError(place, rule, (str(owner.dtype), owner.shape))
    experts = physical.shape[1]
    if owner.min() < 0 or owner.max() >= experts:
        wrong = int(owner.min() if owner.min() < 0 else owner.max())
        raise DataError(place, f"must be logical experts from 0 to {experts - 1}, no more than physical ones", wrong)
    load = np.zeros((len(physical), int(owner.max()) + 1))
    np.add.at(load, (np.arange(len(physical))[:, np.newaxis], owner), physical)
    return load
