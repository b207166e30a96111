"""Files of other tools: what they hold comes back, and what is broken is refused with file, row and rule."""

import base64
import gzip
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import DataError, InputError
from moesim.workloads.importers import FORMATS, ImportOptions, import_routing
from moesim.workloads.routing_files import read_routing_trace, write_routing_trace
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_trace import DECODE, PREFILL, RoutingTrace
from tests.workloads.random_traces import random_trace

SMALL = ImportOptions(model="small", experts=8, top_k=2)


def ids(tokens: int, layers: int = 3, experts: int = 8, k: int = 2, seed: int = 0) -> Any:
    keys = np.random.default_rng(seed).random((tokens, layers, experts))
    return np.argsort(keys, axis=2)[:, :, :k]


def save(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def trace_of(path: Path | list[Path], name: str, options: ImportOptions = SMALL) -> RoutingTrace:
    found = import_routing(path if isinstance(path, list) else [path], name, options)
    assert isinstance(found, RoutingTrace)
    return found


def profile_of(path: Path, name: str, options: ImportOptions = SMALL) -> RoutingProfile:
    found = import_routing([path], name, options)
    assert isinstance(found, RoutingProfile)
    return found


def message(path: Path | list[Path], name: str, options: ImportOptions = SMALL) -> str:
    with pytest.raises(InputError) as error:
        import_routing(path if isinstance(path, list) else [path], name, options)
    return str(error.value)


# --- fingerprints of gpt-oss ---------------------------------------------------------------------------------------


def fingerprint(tokens: Any, first: int = 5, dataset: str = "facts") -> dict[str, Any]:
    def layer(chosen: Any) -> dict[str, Any]:
        return {"selected_experts": chosen.tolist(), "selected_probs": [0.75, 0.25]}

    data = [
        {f"token_{first + row}": {f"layer_{index}": layer(chosen) for index, chosen in enumerate(token)}}
        for row, token in enumerate(tokens)
    ]
    return {"dataset": dataset, "category": "c", "row_index": 3, "router_data": data}


def test_fingerprints(tmp_path: Path) -> None:
    samples = [fingerprint(ids(4)), fingerprint(ids(2, seed=1), first=9, dataset="code")]
    found = trace_of(save(tmp_path / "f.json", samples), "fingerprint")
    np.testing.assert_array_equal(found.expert, np.concatenate([ids(4), ids(2, seed=1)]))
    assert found.expert.dtype == np.uint8
    assert found.position.tolist() == [5, 6, 7, 8, 9, 10]
    assert (found.names, found.groups) == (("facts/c/3", "code/c/3"), ("facts", "code"))
    assert found.first_decode_position.tolist() == [5, 9]
    assert (found.phase == DECODE).all()
    assert found.weight is not None
    assert found.weight[0, 0].tolist() == [0.75, 0.25]
    only = trace_of(tmp_path / "f.json", "fingerprint", ImportOptions(model="small", experts=8, group="code"))
    assert only.groups == ("code",)


def test_one_sample_gzipped_with_a_shipped_model(tmp_path: Path) -> None:
    path = tmp_path / "f.json.gz"
    path.write_bytes(gzip.compress(json.dumps(fingerprint(ids(2, 24, 32, 2))).encode()))
    options = ImportOptions(model="gpt-oss-20b", licence="Apache-2.0", source="here", capture={"seed": 1})
    found = trace_of(path, "fingerprint", options)
    assert (found.experts, found.layers, found.licence, found.source) == (32, 24, "Apache-2.0", "here")
    assert found.capture["seed"] == 1


def spoilt(change: Any) -> dict[str, Any]:
    sample = fingerprint(ids(3))
    change(sample["router_data"])
    return sample


def drop_layer(tokens: Any) -> None:
    del tokens[1]["token_6"]["layer_1"]


def rename_token(tokens: Any) -> None:
    tokens[1] = {"token_9": tokens[1]["token_6"]}


def set_experts(value: list[int] | int) -> Any:
    def change(tokens: Any) -> None:
        tokens[2]["token_7"]["layer_0"]["selected_experts"] = value

    return change


def set_flat(tokens: Any) -> None:
    del tokens[1:]
    for layer in tokens[0]["token_5"].values():
        layer["selected_experts"] = 3


def set_probs(tokens: Any) -> None:
    tokens[2]["token_7"]["layer_0"]["selected_probs"] = [0.5, float("nan")]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (set_experts([1, 8]), "sample 0, row 2: expert ids must be from 0 to 7 (MoE layer 0), got 8"),
        (set_experts([1, -1]), "sample 0, row 2: expert ids must be from 0 to 7 (MoE layer 0), got -1"),
        (set_experts([3, 3]), "sample 0, row 2: a token must use each expert once per layer (MoE layer 0), got 3"),
        (set_experts([3]), "sample 0: selected_experts: rows must be equally long"),
        (set_flat, "sample 0: must be whole numbers with axes"),
        (drop_layer, "sample 0, row 1: every token must have 3 MoE layers, as the first one has"),
        (rename_token, "sample 0, row 1: positions of a request must rise by 1 from >= 0, got 9"),
        (set_probs, "sample 0, row 2: gate weights must be finite and >= 0 (MoE layer 0), got nan"),
        (lambda tokens: tokens.clear(), "sample 0: must be a sample with a list of tokens under `router_data`"),
        (lambda tokens: tokens.append({"tok": {}}), 'sample 0, row 3: must be {"token_<position>"'),
    ],
)
def test_broken_fingerprints(tmp_path: Path, change: Any, rule: str) -> None:
    path = save(tmp_path / "f.json", spoilt(change))
    assert message(path, "fingerprint").startswith(f"{path}: {rule}")


def test_layers_of_another_model(tmp_path: Path) -> None:
    path = save(tmp_path / "f.json", fingerprint(ids(3)))
    options = ImportOptions(model="gpt-oss-20b")
    assert "every token must have 24 MoE layers with 2 experts each, got '3 layers" in message(
        path, "fingerprint", options
    )
    assert "experts: must be given" in message(path, "fingerprint", ImportOptions(model="new"))


# --- vLLM ----------------------------------------------------------------------------------------------------------


def npy(array: Any) -> str:
    with io.BytesIO() as file:
        np.save(file, array)
        return base64.b64encode(file.getvalue()).decode()


def response(routed: Any, prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    choices = [{"index": 0, "routed_experts": routed}]
    return {"id": "cmpl-1", "model": "small", "choices": choices, "usage": usage, **more}


def test_responses_with_lists_for_prompt_and_output(tmp_path: Path) -> None:
    """v0.21; the last generated token never goes through the model."""
    whole = ids(6)
    one = response(whole[4:].tolist(), 4, 3, prompt_routed_experts=whole[:4].tolist())
    found = trace_of(save(tmp_path / "r.json", one), "vllm", ImportOptions(experts=8))
    np.testing.assert_array_equal(found.expert, whole)
    assert found.phase.tolist() == [PREFILL] * 4 + [DECODE] * 2
    assert (found.model, found.names, found.first_decode_position.tolist()) == ("small", ("cmpl-1/0",), [4])


def test_responses_with_base64_arrays_in_lines(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    lines = [response(npy(ids(6).astype(np.uint8)), 4, 3), response(npy(ids(2, seed=3)), 2, 1)]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    found = trace_of(path, "vllm")
    np.testing.assert_array_equal(found.expert, np.concatenate([ids(6), ids(2, seed=3)]))
    assert found.position.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert found.phase.tolist() == [0, 0, 0, 0, 1, 1, 0, 0]


def test_responses_without_their_prompts(tmp_path: Path) -> None:
    found = trace_of(save(tmp_path / "r.json", response(ids(2).tolist(), 40, 3)), "vllm")
    assert found.position.tolist() == [40, 41]
    assert (found.phase == DECODE).all()


def test_responses_without_a_model_are_of_an_unknown_one(tmp_path: Path) -> None:
    nameless = response(ids(2).tolist(), 1, 2, model=None)
    assert trace_of(save(tmp_path / "r.json", nameless), "vllm", ImportOptions(experts=8)).model == "unknown"


def test_arrays_saved_offline(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", a=ids(5).astype(np.int16), b=ids(3, seed=1), prompt_tokens=np.array([2, 3]))
    found = trace_of(tmp_path / "r.npz", "vllm")
    assert found.names == ("a", "b")
    assert found.phase.tolist() == [0, 0, 1, 1, 1, 0, 0, 0]


def test_dense_layers_are_left_out(tmp_path: Path) -> None:
    padded = np.concatenate([np.zeros((5, 2, 2), np.int64), ids(5)], axis=1)
    np.savez(tmp_path / "r.npz", a=padded, prompt_tokens=np.array([2]))
    found = trace_of(tmp_path / "r.npz", "vllm")
    np.testing.assert_array_equal(found.expert, ids(5))
    assert found.capture["layers_without_experts"] == "0,1"


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        (
            [response(ids(2).tolist(), 1, 2), response(ids(2).tolist(), 1, 2, model="big")],
            "all responses must be of one model",
        ),
        (response(None, 1, 2), "response 0: choice 0: must have `routed_experts`; start vLLM with"),
        (response("%%%", 1, 2), "choice 0: routed_experts: must be the base64 text of a .npy file"),
        (response(base64.b64encode(pickle.dumps([1])).decode(), 1, 2), "must be the base64 text of a .npy file"),
        (response(npy(np.array([{}])), 1, 2), "must be the base64 text of a .npy file"),
        (response(ids(2).tolist(), 2**31, 2), "prompt_tokens: must be a whole number >= 0"),
        (response(ids(2).tolist(), 2**31 - 1, 3), "positions and prompts must be below 2147483648 tokens"),
        (response([[1, 2]], 1, 2), "routed_experts: must be whole numbers with axes [token, layer, k], got (1, 2)"),
        (response(np.zeros((3, 3, 2), int).tolist(), 2, 2), "a token must use each expert once per layer"),
        ({"id": 1}, "response 0: must be a response of vLLM with `choices`"),
        ({"choices": []}, "response 0: usage: must have prompt_tokens and completion_tokens"),
    ],
)
def test_broken_responses(tmp_path: Path, document: Any, rule: str) -> None:
    assert rule in message(save(tmp_path / "r.json", document), "vllm")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(response(ids(2).tolist(), 1, 2)) + "\n{broken\n")
    assert message(path, "vllm").startswith(f"{path}:2: cannot be read as JSON")


def test_eplb_windows_of_logical_experts(tmp_path: Path) -> None:
    owner = np.array([[0, 1, 2, 3, 0, 1], [0, 2, 0, 1, 0, 3]])
    window = np.random.default_rng(0).integers(0, 9, (5, 2, 6)).astype(np.int32)
    np.savez(tmp_path / "w.npz", expert_load_window=window, physical_to_logical_map=owner)
    expected = np.zeros((2, 4))
    for step in window:
        for layer in range(2):
            for slot in range(6):
                expected[layer, owner[layer, slot]] += step[layer, slot]
    found = profile_of(tmp_path / "w.npz", "vllm-eplb", ImportOptions(model="m", top_k=1))
    np.testing.assert_allclose(found.popularity, expected / expected.sum(axis=1, keepdims=True))
    assert "expert_load_window of vLLM EPLB" in found.source


def test_broken_windows(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", other=np.ones(3))
    assert "must hold `expert_load_window`" in message(tmp_path / "w.npz", "vllm-eplb")
    np.savez(tmp_path / "v.npz", expert_load_window=np.ones((1, 2, 4)), physical_to_logical_map=np.ones((2, 5), int))
    assert "physical_to_logical_map: must be whole numbers for (2, 4)" in message(tmp_path / "v.npz", "vllm-eplb")
    for expert in (-1, 4, 2**40):
        owner = np.array([[0, 1, 2, 3], [0, expert, 2, 3]])
        np.savez(tmp_path / "x.npz", expert_load_window=np.ones((1, 2, 4)), physical_to_logical_map=owner)
        rule = f"must be logical experts from 0 to 3, no more than physical ones, got {expert}"
        assert rule in message(tmp_path / "x.npz", "vllm-eplb")
    np.savez(tmp_path / "y.npz", expert_load_window=np.ones((1, 2, 0)))
    assert "must hold `expert_load_window`" in message(tmp_path / "y.npz", "vllm-eplb")
    np.savez(tmp_path / "u.npz", expert_load_window=np.ones((1, 2, 4)))
    assert "top_k: must be given" in message(tmp_path / "u.npz", "vllm-eplb", ImportOptions())


# --- SGLang --------------------------------------------------------------------------------------------------------


def record(number: int, tokens: Any, positions: list[int], lengths: list[int] | None = None) -> dict[str, Any]:
    """A pass, its ids filled up with -1 to 8 columns and with a dense layer before the others."""
    padded = np.full((tokens.shape[1] + 1, len(tokens), 8), -1)
    padded[1:, :, : tokens.shape[2]] = tokens.transpose(1, 0, 2)
    return {
        "forward_pass_id": number,
        "rank": 0,
        "positions": positions,
        "extend_seq_lens": lengths,
        "forward_mode": 2 if lengths is None else 1,
        "topk_ids_of_layer": padded.tolist(),
    }


def test_records_of_tokens_become_requests(tmp_path: Path) -> None:
    """Two prompts of 3 and 2 tokens, a step for both, one ends, the other goes on beside a new prompt of 2 tokens."""
    a, b, c = ids(5), ids(3, seed=1), ids(3, seed=2)
    records = [
        record(0, np.concatenate([a[:3], b[:2]]), [0, 1, 2, 0, 1], [3, 2]),
        record(1, np.stack([a[3], b[2]]), [3, 2]),
        record(3, np.concatenate([c[:2], a[4:]]), [0, 1, 4], [2, 1]),
        record(4, c[2:], [2]),
    ]
    path = save(tmp_path / "s.json", {"records": records[::-1]})
    found = trace_of(path, "sglang")
    np.testing.assert_array_equal(found.expert, np.concatenate([a, b, c]))
    assert np.diff(found.offset).tolist() == [5, 3, 3]
    assert found.first_decode_position.tolist() == [3, 2, 2]
    assert found.capture["layers_without_experts"] == "0"


def test_chunks_of_a_prompt_are_one_request_and_ids_become_logical(tmp_path: Path) -> None:
    tokens = ids(4)
    owner = np.stack([np.random.default_rng(layer).permutation(8) for layer in range(4)])
    idle = record(1, tokens[:0], [])
    records = [record(0, tokens[:2], [0, 1], [2]), idle, record(2, tokens[2:], [2, 3], [2])]
    path = save(tmp_path / "s.json", {"records": records, "last_physical_to_logical_map": owner.tolist()})
    found = trace_of(path, "sglang")
    assert (len(found.names), found.first_decode_position.tolist()) == (1, [4])
    for layer in range(3):
        np.testing.assert_array_equal(found.expert[:, layer], owner[layer + 1][tokens[:, layer]])


def test_counts_become_a_profile(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(5, 9, (4, 3, 8))
    json_file = save(tmp_path / "s.json", {"rank": 0, "logical_count": counts.tolist()})
    np.savez(tmp_path / "s.npz", logical_count=counts)
    total = counts.sum(axis=0)
    for path in (json_file, tmp_path / "s.npz"):
        found = profile_of(path, "sglang")
        np.testing.assert_allclose(found.popularity, total / total.sum(axis=1, keepdims=True))
        assert (found.top_k, found.model) == (2, "small")


def test_broken_dumps(tmp_path: Path) -> None:
    holes = record(0, ids(2), [0, 1], [2])
    holes["topk_ids_of_layer"][2][1] = [-1] * 8
    cases = [
        ({"records": [holes]}, "row 1: a token must have experts in every MoE layer, none in 1"),
        ({"records": [record(0, ids(2), [0, 1], [3])]}, "records[0]: extend_seq_lens: must add up to the 2 tokens"),
        ({"records": [record(0, ids(2), [0])]}, "records[0]: topk_ids_of_layer: must be whole numbers"),
        ({"records": [{"rank": 0}]}, "records[0]: must have `topk_ids_of_layer` and `positions`"),
        ({"records": []}, "must hold recorded requests, and there are none"),
        ({"records": 3}, "records: must be a list of passes"),
        ({"other": 3}, "must hold `logical_count`"),
        ({"logical_count": [[1, 2], [3]]}, "logical_count: rows must be equally long"),
    ]
    other = record(1, ids(1)[:, :2], [2])
    cases.append(({"records": [record(0, ids(2), [0, 1], [2]), other]}, "all passes must have 4 layers with 8 experts"))
    for document, rule in cases:
        assert rule in message(save(tmp_path / "s.json", document), "sglang")


def test_dumps_of_several_models_are_refused(tmp_path: Path) -> None:
    records = record(0, ids(2), [0, 1], [2]), record(0, ids(2)[:, :2], [0, 1], [2])
    paths = [save(tmp_path / f"{n}.json", {"records": [one]}) for n, one in enumerate(records)]
    with pytest.raises(DataError, match=r"1\.json: .*all dumps must be of one model, the first has \(layers, k\)"):
        import_routing(paths, "sglang", ImportOptions(experts=8))


# --- loads and fractions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "json", "npz"])
def test_tables_of_loads(tmp_path: Path, suffix: str) -> None:
    table = np.array([[4.0, 2, 1, 1], [2, 2, 2, 2]])
    path = tmp_path / f"l.{suffix}"
    if suffix == "csv":
        path.write_text("e0,e1,e2,e3\n4,2,1,1\n\n2,2,2,2\n")
    elif suffix == "json":
        save(path, {"loads": table.tolist()})
    else:
        np.savez(path, table)
    found = profile_of(path, "loads", ImportOptions(model="m", top_k=2))
    np.testing.assert_allclose(found.popularity, table / 8)


def test_shares_beyond_one_in_top_k_are_cut(tmp_path: Path) -> None:
    path = save(tmp_path / "l.json", [[8, 1, 1]])
    assert profile_of(path, "loads", ImportOptions(top_k=2)).popularity.tolist() == [[0.5, 0.25, 0.25]]


def test_fractions_count_every_request_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = {name: rng.dirichlet(np.full(8, 20.0), (count, 3)) for name, count in (("a", 5), ("b", 2))}
    np.savez(tmp_path / "f.npz", a=parts["a"].astype(np.float16), b=parts["b"].astype(np.float16))
    found = profile_of(tmp_path / "f.npz", "fractions")
    np.testing.assert_allclose(found.popularity, np.concatenate(list(parts.values())).mean(axis=0), atol=1e-3)
    only = profile_of(tmp_path / "f.npz", "fractions", ImportOptions(top_k=2, group="b"))
    np.testing.assert_allclose(only.popularity, parts["b"].mean(axis=0), atol=1e-3)
    assert "group b" in only.source


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        ([[1, 2], [0, 0]], "layer 1: a layer must have load"),
        ([[1, -2]], "layer 0, expert 1: loads must be finite and >= 0, got -2.0"),
        ([[1, 2], [3]], "rows must be equally long"),
        ([["a"]], "must hold numbers"),
        ([1, 2], "must hold numbers with axes [layer, expert]"),
        ([[1.0]], "top_k: must be from 1 to 1, the experts, got 2"),
    ],
)
def test_broken_tables(tmp_path: Path, document: Any, rule: str) -> None:
    assert rule in message(save(tmp_path / "l.json", document), "loads", ImportOptions(top_k=2))


def test_broken_fractions(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", a=np.full((2, 3, 8), 0.2))
    assert "a, row 0: shares must be >= 0 and sum to 1 (layer 0)" in message(tmp_path / "f.npz", "fractions")
    assert "must hold the group, got 'z'" in message(tmp_path / "f.npz", "fractions", ImportOptions(group="z"))
    (tmp_path / "l.csv").write_text("1,2\n3,x\n")
    assert "layer 1: must be 2 numbers" in message(tmp_path / "l.csv", "loads")


# --- all formats -----------------------------------------------------------------------------------------------------


def test_traces_are_joined(tmp_path: Path) -> None:
    one, two = random_trace(groups="abab"), random_trace(lengths=(3,), seed=1, groups="a")
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for trace, path in zip((one, two), paths, strict=True):
        write_routing_trace(trace, path)
    joined = trace_of(paths, "trace", ImportOptions(licence="CC0"))
    np.testing.assert_array_equal(joined.expert, np.concatenate([one.expert, two.expert]))
    assert (joined.licence, joined.groups) == ("CC0", (*"abab", "a"))
    assert trace_of(paths, "trace", ImportOptions(group="b")).names == ("r1", "r3")


def test_traces_of_several_models_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for trace, path in zip((random_trace(), random_trace(experts=7)), paths, strict=True):
        write_routing_trace(trace, path)
    assert message(paths, "trace", ImportOptions()).startswith(f"{paths[1]}: all traces must be of one model")


def test_imported_traces_come_back_from_parquet(tmp_path: Path) -> None:
    found = trace_of(save(tmp_path / "f.json", fingerprint(ids(4))), "fingerprint")
    write_routing_trace(found, tmp_path / "t.parquet")
    again = read_routing_trace(tmp_path / "t.parquet")
    np.testing.assert_array_equal(again.expert, found.expert)
    np.testing.assert_array_equal(again.weight, found.weight)
    assert again.capture == {"source": str(tmp_path / "f.json")} | dict(found.capture)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("suffix", ["pt", "pkl", "npz", "json", "parquet"])
def test_pickles_are_refused_by_every_importer(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"dump.{suffix}"
    path.write_bytes(pickle.dumps({"logical_count": [[1]]}))
    assert f"{path}: is a pickle, which can run code when it is read" in message(path, name)


@pytest.mark.parametrize("name", FORMATS)
def test_missing_and_truncated_files(tmp_path: Path, name: str) -> None:
    assert "no such file" in message(tmp_path / "none.json", name)
    np.savez(tmp_path / "whole.npz", a=np.ones((40, 3, 8)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:500])
    assert str(tmp_path / "cut.npz") in message(tmp_path / "cut.npz", name)


def test_unknown_formats() -> None:
    with pytest.raises(InputError, match=r"format: must be one of sglang, vllm, .*, got 'csv'"):
        import_routing(["x"], "csv")
    with pytest.raises(InputError, match="files: at least one must be given"):
        import_routing([], "vllm")


@pytest.mark.reference
def test_published_files(reference_data: Path) -> None:
    """The sample in its own format is request s0034 of the published npz."""
    folder = reference_data / "routing/gpt-oss-20b"
    options = ImportOptions(model="gpt-oss-20b")
    sample = trace_of(folder / "original_sample/True_False_examples.json.gz", "fingerprint", options)
    published = read_routing_trace(folder / "gpt-oss-20b_decode_top4_ids.npz")
    index = published.names.index("s0034")
    rows = slice(*published.offset[index : index + 2])
    np.testing.assert_array_equal(sample.expert, published.expert[rows])
    np.testing.assert_array_equal(sample.position, published.position[rows])
    path = reference_data / "routing/mixtral-8x7b-mmlu/frac_vecs.npz"
    profile = profile_of(path, "fractions", ImportOptions(model="mixtral-8x7b"))
    assert (profile.layers, profile.experts, profile.top_k) == (32, 8, 2)
    assert "14042 requests" in profile.source
