"""A capture, in chunks and with a cache, against a forward pass over whole requests and routers written by hand."""

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from moesim.workloads.attention_trace import COUNTS, MASSES, SHARES, read_attention_trace
from moesim.workloads.capture.loading import ROUTERS, load_model
from moesim.workloads.capture.run import capture
from moesim.workloads.capture.settings import CaptureSettings
from moesim.workloads.routing_files import read_routing_trace

SETTINGS = CaptureSettings(
    prompt_tokens=40, decode_tokens=9, batch=2, chunk_tokens=15, tokenizer="bytes", attention_every=7, local_keys=5
)


def by_hand():
    """The module of routers beside this file; tests are no package."""
    path = Path(__file__).with_name("routers.py")
    spec = importlib.util.spec_from_file_location("routers_by_hand", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def captured(folder, tmp_path_factory):
    """Routing trace, token ids, gate weights and attention trace of each family's model."""
    out = tmp_path_factory.mktemp("captured")
    text = out / "text.txt"
    text.write_bytes(bytes(range(1, 101)))
    capture(str(folder), [text], out / "trace.parquet", SETTINGS, attention=out / "attention.parquet")
    table = pq.read_table(out / "trace.parquet")
    trace = read_routing_trace(out / "trace.parquet")
    gate = table["gate"].combine_chunks().flatten().to_numpy().reshape(trace.expert.shape)
    return trace, table["token"].to_numpy(), gate, read_attention_trace(out / "attention.parquet")


@pytest.fixture(scope="module")
def whole_passes(folder, captured):
    """For each request, one pass over all of its tokens: inputs of every router, and attention of every layer."""
    import torch

    trace, token, _, _ = captured
    loaded = load_model(str(folder), SETTINGS, attention=True)
    passes = []
    for request in range(len(trace.names)):
        inputs: list[np.ndarray] = []
        hooks = [
            router.register_forward_pre_hook(
                lambda _module, given, kept=inputs: kept.append(
                    given[0].reshape(-1, given[0].shape[-1]).double().numpy()
                )
            )
            for router in loaded.routers
        ]
        ids = torch.from_numpy(token[trace.request == request].astype(np.int64))
        with torch.no_grad():
            output = loaded.model(input_ids=ids[None], use_cache=False, output_attentions=True)
        for hook in hooks:
            hook.remove()
        passes.append((inputs, [layer[0].double().numpy() for layer in output.attentions]))
    return loaded, passes


def test_requests_positions_and_phases(captured):
    trace, token, _, _ = captured
    assert [len(range(start, stop)) for start, stop in zip(trace.offset[:-1], trace.offset[1:], strict=True)] == [
        49,
        49,
        29,
    ]
    assert trace.first_decode_position.tolist() == [40, 40, 20]
    decode = trace.position >= trace.first_decode_position[trace.request]
    assert np.array_equal(trace.phase, decode)
    assert token[~decode].tolist() == list(range(1, 101))
    assert trace.names[1].endswith("text.txt:40")


def test_every_token_goes_where_the_published_router_sends_it(family, captured, whole_passes):
    trace, _, gate, _ = captured
    loaded, passes = whole_passes
    route = by_hand().route
    for layer, router in enumerate(loaded.routers):
        weights = {name: tensor.double().numpy() for name, tensor in router.state_dict().items()}
        for request, (inputs, _) in enumerate(passes):
            rows = range(trace.offset[request], trace.offset[request + 1])
            for row, hidden in zip(rows, inputs[layer], strict=True):
                expected = route(family, hidden, weights, loaded.model.config)
                assert trace.expert[row, layer].tolist() == [expert for _, expert in expected]
                assert gate[row, layer] == pytest.approx([weight for weight, _ in expected], rel=2e-3, abs=1e-4)


def test_attention_is_that_of_a_pass_over_the_whole_request(captured, whole_passes):
    _, _, _, attention = captured
    _, passes = whole_passes
    visible = attention.visible_keys()
    for row, (request, position) in enumerate(zip(attention.request, attention.position, strict=True)):
        for layer, weights in enumerate(passes[request][1]):
            for head, whole in enumerate(weights[:, position, : position + 1]):
                assert np.count_nonzero(whole) <= visible[row, layer]
                share = whole / whole.sum()
                got = {name: attention.masses[name][row, layer, head] for name in MASSES}
                assert got["sink_mass"] == pytest.approx(share[:4].sum(), abs=2e-3)
                assert got["local_mass"] == pytest.approx(share[-5:].sum(), abs=2e-3)
                assert got["off_mass"] == pytest.approx(1 - whole.sum(), abs=2e-3)
                assert got["entropy"] == pytest.approx(-sum(s * np.log(s) for s in share if s > 0), rel=2e-3, abs=2e-3)
                check_counts({name: int(attention.keys[name][row, layer, head]) for name in COUNTS}, share)


def check_counts(counts, share):
    """The keys counted hold the share, and one key less does not; rounding may decide in between."""
    held = np.concatenate([[0.0], np.cumsum(np.sort(share)[::-1])])
    for name, part in SHARES.items():
        assert held[counts[name]] >= part - 1e-5
        assert held[counts[name] - 1] < part + 1e-5


def test_attention_is_sampled_in_the_prompt_and_complete_in_decode(captured):
    _, _, _, attention = captured
    first = attention.position[attention.request == 0]
    assert first.tolist() == [0, 7, 14, 21, 28, 35, *range(40, 49)]
    assert set(attention.phase[(attention.request == 0) & (attention.position < 40)]) == {0}


def test_windows_are_those_of_the_layers(family, captured):
    _, _, _, attention = captured
    windows = {"mixtral": (16, 16, 16), "gpt_oss": (16, 0, 16)}
    assert attention.header.window_tokens == windows.get(family, (0, 0, 0))


def test_only_learned_sinks_take_mass_from_keys(family, captured):
    _, _, _, attention = captured
    assert bool(attention.masses["off_mass"].any()) == (family == "gpt_oss")


def test_every_family_is_tested(family):
    assert family in ROUTERS
    assert set(by_hand().ROUTERS) == set(ROUTERS)
