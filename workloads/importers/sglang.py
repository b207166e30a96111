"""Dumps of SGLang's expert distribution recorder (`python/sglang/srt/eplb/expert_distribution.py`, v0.4.6 to v0.5).

SGLang writes them with `torch.save`, that is as pickles, which moesim does not open. Convert them where you trust them:

    dump = torch.load("expert_distribution_recorder_....pt", weights_only=True)
    plain = lambda x: x.tolist() if hasattr(x, "tolist") else x
    if "records" in dump:
        dump["records"] = [{k: plain(v) for k, v in r.items()} for r in dump["records"]]
    json.dump({k: plain(v) for k, v in dump.items()}, open("dump.json", "w"))

- Mode `stat` (and `stat_approx`): `logical_count` int[step, layer, expert]; becomes a profile. .json, the file that
  SGLang takes for `--init-expert-location` too, or .npz.
- Mode `per_token`: `records`, a list with `forward_pass_id`, `rank`, `positions`, `extend_seq_lens` and
  `topk_ids_of_layer` int[layer, token, 8], physical ids filled up with -1; and `last_physical_to_logical_map`; becomes
  a trace. .json.

Records do not name requests. A span of a prefill continues the request that stopped where it begins, or begins one. A
decoded token continues the first running request that stopped at its position; running requests keep their order in
SGLang's batches, so mistakes are possible only between requests of equal length. Of several ranks with tensor
parallelism give one file, because all recorded the same tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.workloads.importers.recorded import ImportOptions, Recorded, make_profile, make_trace
from moesim.workloads.importers.safe_files import check_file, named_arrays, numbers, read_json, whole
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_trace import RoutingTrace

_NOBODY = -1
_AXES = ("layer", "token", "k")


def read_sglang(paths: Sequence[Path], options: ImportOptions) -> RoutingTrace | RoutingProfile:
    """A trace of `per_token` dumps, a profile of `stat` dumps.

    Raises:
        InputError, DataError: as `import_routing`; dumps of both modes together are refused.
    """
    detailed = {}
    for path in paths:
        document = read_json(path) if check_file(path, ".json", ".npz") == ".json" else None
        if isinstance(document, dict) and "records" in document:
            detailed[path] = document
    if len(detailed) not in {0, len(paths)}:
        raise DataError(str(next(iter(detailed))), "dumps of mode per_token and mode stat must be imported separately")
    if not detailed:
        return _profile(paths, options)
    requests = [one for path, document in detailed.items() for one in _requests(path, document)]
    for one in requests:
        if one.expert.shape[1:] != requests[0].expert.shape[1:]:
            rule = f"all dumps must be of one model, the first has (layers, k) {requests[0].expert.shape[1:]}"
            raise DataError(one.place, rule, one.expert.shape[1:])
    used = np.any([(one.expert != _NOBODY).any(axis=(0, 2)) for one in requests], axis=0) if requests else np.ones(0)
    about = {
        "recorder": "SGLang expert_distribution, per_token",
        "layers_without_experts": ",".join(map(str, np.flatnonzero(used == 0))),
        "requests": "inferred from positions",
    }
    return make_trace([_trimmed(one, used) for one in requests], paths, options, about)


def _profile(paths: Sequence[Path], options: ImportOptions) -> RoutingProfile:
    total: NDArray[np.float64] | None = None
    for path in paths:
        count = named_arrays(path, "logical_count").get("logical_count")
        if count is None or count.ndim not in {2, 3} or 0 in count.shape[-2:]:
            raise DataError(str(path), "must hold `logical_count` with axes [step, layer, expert], or `records`")
        load = count.reshape(-1, *count.shape[-2:]).sum(axis=0, dtype=np.float64)
        if total is not None and load.shape != total.shape:
            raise DataError(str(path), "all dumps must be of one model, the first has (layers, experts)", total.shape)
        total = load if total is None else total + load
    assert total is not None
    return make_profile(total, str(paths[0]), paths, options, "logical_count of SGLang")


@dataclass(eq=False)
class _Running:
    """A request while its records are collected."""

    place: str
    first: int
    following: int
    prompt_end: int
    ids: list[NDArray[Any]] = field(default_factory=list)

    def add(self, ids: NDArray[Any], *, prefill: bool) -> None:
        self.ids.append(ids)
        self.following += len(ids)
        if prefill:
            self.prompt_end = self.following


@dataclass(frozen=True, eq=False)
class _Pass:
    """One forward pass: ids [token, layer, k], positions, and the first and last token of each span."""

    place: str
    ids: NDArray[Any]
    position: NDArray[Any]
    spans: list[tuple[int, int]]
    prefill: bool


def _requests(path: Path, document: dict[str, Any]) -> list[Recorded]:
    """Requests in the order in which they begin, rank by rank."""
    records = document["records"]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{path}: records", "must be a list of passes")
    owner = document.get("last_physical_to_logical_map")
    logical = None if owner is None else numbers(f"{path}: last_physical_to_logical_map", owner)
    done: list[Recorded] = []
    for rank in sorted({_rank(path, index, record) for index, record in enumerate(records)}):
        requests: list[_Running] = []
        running: list[_Running] = []
        for one in _passes(path, records, rank, logical):
            running = _continued(one, running, requests)
        done += [
            Recorded(
                place=f"{path}: request {index} of rank {rank}",
                name=f"rank{rank}-{index}",
                prompt_tokens=one.prompt_end,
                position=np.arange(one.first, one.following),
                expert=np.concatenate(one.ids),
            )
            for index, one in enumerate(requests)
        ]
    return done


def _rank(path: Path, index: int, record: dict[str, Any]) -> int:
    return whole(f"{path}: records[{index}]: rank", record.get("rank", 0))


def _passes(path: Path, records: list[dict[str, Any]], rank: int, logical: NDArray[Any] | None) -> Iterator[_Pass]:
    chosen = [(index, record) for index, record in enumerate(records) if record.get("rank", 0) == rank]
    order = [whole(f"{path}: records[{i}]: forward_pass_id", one.get("forward_pass_id", i)) for i, one in chosen]
    shape: tuple[int, int] | None = None
    for _, index, record in sorted((number, *pair) for number, pair in zip(order, chosen, strict=True)):
        place = f"{path}: records[{index}]"
        if "topk_ids_of_layer" not in record or "positions" not in record:
            raise DataError(place, "must have `topk_ids_of_layer` and `positions`, as mode per_token writes")
        if record["positions"] == []:  # a rank without requests runs along
            continue
        ids = numbers(f"{place}: topk_ids_of_layer", record["topk_ids_of_layer"])
        position = numbers(f"{place}: positions", record["positions"])
        if position.ndim != 1 or position.dtype.kind not in "iu":
            raise DataError(f"{place}: positions", "must be whole numbers, one per token", position.shape)
        if ids.ndim != len(_AXES) or ids.dtype.kind not in "iu" or ids.shape[1] != len(position):
            rule = f"must be whole numbers with axes [layer, token, k] of {len(position)} tokens"
            raise DataError(f"{place}: topk_ids_of_layer", rule, ids.shape)
        shape = shape or (ids.shape[0], ids.shape[2])
        if ids.shape != (shape[0], len(position), shape[1]):
            rule = f"all passes must have {shape[0]} layers with {shape[1]} experts, as the first one has"
            raise DataError(f"{place}: topk_ids_of_layer", rule, ids.shape)
        if logical is not None:
            ids = _to_logical(place, ids, logical)
        lengths = _lengths(f"{place}: extend_seq_lens", record.get("extend_seq_lens"))
        if lengths and sum(lengths) != len(position):
            raise DataError(f"{place}: extend_seq_lens", f"must add up to the {len(position)} tokens", sum(lengths))
        ends = np.cumsum(lengths or np.ones(len(position), np.int64)).tolist()
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        yield _Pass(place, ids.transpose(1, 0, 2), position, spans, bool(lengths))


def _lengths(place: str, values: Any) -> list[int]:
    if values is None:
        return []
    if not isinstance(values, list):
        raise DataError(place, "must be a list of the tokens of each request", values)
    return [length for length in (whole(place, value) for value in values) if length]


def _to_logical(place: str, ids: NDArray[Any], logical: NDArray[Any]) -> NDArray[Any]:
    if logical.ndim != len(("layer", "slot")) or len(logical) != len(ids) or ids.max(initial=0) >= logical.shape[1]:
        raise DataError(place, "physical expert ids must be in last_physical_to_logical_map", int(ids.max(initial=0)))
    layer = np.arange(len(ids))[:, np.newaxis, np.newaxis]
    return np.where(ids < 0, _NOBODY, logical[layer, np.maximum(ids, 0)])


def _continued(one: _Pass, running: list[_Running], requests: list[_Running]) -> list[_Running]:
    """Give the spans of a pass to requests; returns those that still run, new ones last."""
    waiting = iter(running) if not one.prefill else None
    after: list[_Running] = [] if not one.prefill else list(running)
    for begin, end in one.spans:
        first = int(one.position[begin])
        candidates = running if waiting is None else waiting
        request = next((candidate for candidate in candidates if candidate.following == first), None)
        if request is None:
            request = _Running(one.place, first, first, first)
            requests.append(request)
            after.append(request)
        elif not one.prefill:
            after.append(request)
        decoded = one.prefill and end - begin == 1 and request.following > request.first
        request.add(one.ids[begin:end], prefill=one.prefill and not decoded)
    return after


def _trimmed(request: Recorded, used: NDArray[Any]) -> Recorded:
    """Without layers that have no experts, and without the columns that only fill up to 8.

    Raises:
        DataError: a token without experts in a layer where others have some.
    """
    ids = request.expert[:, used.astype(bool)]
    ids = ids[:, :, (ids != _NOBODY).any(axis=(0, 1))] if ids.size else ids
    missing = np.argwhere(ids == _NOBODY)
    if missing.size:
        row, layer, _ = (int(index) for index in missing[0])
        raise DataError(f"{request.place}, row {row}", f"a token must have experts in every MoE layer, none in {layer}")
    return Recorded(request.place, request.name, request.prompt_tokens, request.position, ids)
