"""Requests: rules, arrivals, references, and requests of a trace."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.configs.loader import Document, shipped
from moesim.errors import ConfigError, DataError, InputError
from moesim.workloads.requests import Requests, load_requests, requests_from_trace
from moesim.workloads.routing_files import read_routing_trace
from moesim.workloads.routing_trace import RoutingTrace

CHAT = {"kind": "synthetic", "num_requests": 4000, "rate_per_s": "8 req/s", "prompt_tokens": 100, "output_tokens": 7}


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def three(**changes: Any) -> Requests:
    columns: dict[str, Any] = {
        "arrival_s": np.array([0.0, 0.0, 1.5]),
        "prompt_tokens": np.array([3, 2, 1]),
        "output_tokens": np.array([1, 1, 9]),
        "source": "hand",
    }
    return Requests(**(columns | changes))


def small_trace(first: list[int]) -> RoutingTrace:
    """Requests of one recorded prompt token and 1, 2, ... decode steps."""
    count = len(first)
    lengths = np.arange(2, count + 2)
    request = np.repeat(np.arange(count, dtype=np.int32), lengths)
    step = np.arange(len(request)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return RoutingTrace(
        model="small",
        experts=4,
        source="hand",
        names=tuple(map(str, range(count))),
        groups=("",) * count,
        first_decode_position=np.array(first),
        request=request,
        position=(np.array(first)[request] - 1 + step).astype(np.int32),
        phase=(step > 0).astype(np.uint8),
        expert=np.tile(np.array([[[0, 1]]], np.uint8), (len(request), 1, 1)),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival_s": np.array([0.0, np.nan, 1.0])}, "hand: request 1: arrival_s: must be finite and >= 0, got nan"),
        ({"arrival_s": np.array([0.0, 1.0, np.inf])}, "hand: request 2: arrival_s: must be finite and >= 0, got inf"),
        ({"arrival_s": np.array([-0.5, 1.0, 2.0])}, "hand: request 0: arrival_s: must be finite and >= 0, got -0.5"),
        ({"arrival_s": np.array([0.0, 2.0, 1.0])}, "request 2: arrival_s: must not be earlier than in the row before"),
        ({"prompt_tokens": np.array([3, 0, 1])}, "request 1: prompt_tokens: must be a whole number from 1 to"),
        ({"output_tokens": np.array([3, 1, -4])}, "request 2: output_tokens: must be a whole number from 1 to"),
        ({"output_tokens": np.array([3, 1])}, "hand: columns must be equally long, got [2, 3]"),
    ],
)
def test_broken_requests_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        three(**changes)
    assert message in str(error.value)


def test_no_requests() -> None:
    with pytest.raises(DataError, match="hand: must have at least one request"):
        three(arrival_s=np.zeros(0), prompt_tokens=np.zeros(0, int), output_tokens=np.zeros(0, int))


def test_head() -> None:
    assert three().head(2).prompt_tokens.tolist() == [3, 2]
    assert len(three().head(7)) == 3
    with pytest.raises(InputError, match="num_requests: must be >= 1, got 0"):
        three().head(0)


@pytest.mark.parametrize("name", sorted(set(shipped("requests")) - {"trace"}))
def test_shipped_requests(name: str) -> None:
    requests = load_requests(name, rng())
    again = load_requests(name, rng())
    assert requests.source
    assert requests.source != name
    np.testing.assert_array_equal(requests.prompt_tokens, again.prompt_tokens)
    np.testing.assert_array_equal(requests.arrival_s, again.arrival_s)
    assert requests.dropped == 0


def test_quickstart_is_a_moderate_load() -> None:
    requests = load_requests("quickstart", rng())
    assert len(requests) == 300
    assert requests.concurrency is None
    assert 300 / requests.arrival_s[-1] == pytest.approx(8, rel=0.2)


def test_poisson_arrivals() -> None:
    gaps = np.diff(load_requests(CHAT, rng()).arrival_s, prepend=0.0)
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.06


def test_rate_as_number_and_as_quantity() -> None:
    by_number = load_requests(CHAT | {"rate_per_s": 8}, rng())
    np.testing.assert_array_equal(by_number.arrival_s, load_requests(CHAT, rng()).arrival_s)
    assert (load_requests(CHAT | {"rate_per_s": None}, rng()).arrival_s == 0).all()


def test_closed_loop_ignores_arrivals() -> None:
    requests = load_requests(CHAT | {"concurrency": 16}, rng())
    assert requests.concurrency == 16
    assert (requests.arrival_s == 0).all()


def test_drops_are_counted() -> None:
    sometimes = CHAT | {"output_tokens": {"kind": "uniform", "min": 0, "max": 3}}
    requests = load_requests(sometimes, rng())
    assert len(requests) + requests.dropped == 4000
    assert requests.dropped == pytest.approx(1000, rel=0.1)
    never = CHAT | {"output_tokens": {"kind": "uniform", "min": 0, "max": 0}}
    with pytest.raises(DataError, match="must have at least one request, all 4000 draws had a zero length"):
        load_requests(never, rng())


def test_num_requests_from_outside() -> None:
    assert len(load_requests(CHAT, rng(), num_requests=5)) == 5
    with pytest.raises(InputError, match="num_requests: must be >= 1, got -1"):
        load_requests(CHAT, rng(), num_requests=-1)


def test_references_to_files(tmp_path: Path) -> None:
    rows = "arrival_s,prompt_tokens,output_tokens\n0,5,6\n1,7,8\n2,9,1\n"
    (tmp_path / "r.csv").write_text(rows)
    (tmp_path / "r.yaml").write_text("kind: file\npath: r.csv\nnum_requests: 2\n")
    scenario = Document(str(tmp_path / "scenario.yaml"), {"requests": "r.csv"})
    for reference, base, count in (
        ("r.csv", tmp_path, 3),
        (str(tmp_path / "r.csv"), None, 3),
        (tmp_path / "r.csv", None, 3),
        (scenario.child("requests"), None, 3),
        ({"kind": "file", "path": "r.csv"}, tmp_path, 3),
        (tmp_path / "r.yaml", None, 2),
        ("r.yaml", tmp_path, 2),
    ):
        requests = load_requests(reference, rng(), base=base)
        assert requests.prompt_tokens.tolist() == [5, 7, 9][:count]
        assert requests.source == str(tmp_path / "r.csv")
    assert len(load_requests(tmp_path / "r.csv", rng(), num_requests=1)) == 1
    assert len(load_requests(tmp_path / "r.csv", rng(), num_requests=9)) == 3


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("quickstrat", "did you mean `quickstart`?"),
        (CHAT | {"num_requests": 0}, "num_requests: must be > 0, got 0"),
        (CHAT | {"rate_per_s": -1}, "rate_per_s: must be > 0"),
        (CHAT | {"rate_per_s": "8 GB/s"}, "GB/s is in bytes/s"),
        (CHAT | {"concurrency": 0}, "concurrency: must be > 0"),
        (CHAT | {"burstiness": 0}, "burstiness: must be > 0.0, got 0"),
        (CHAT | {"rate_per_s": None, "burstiness": 2}, "`burstiness` needs `rate_per_s`"),
        (CHAT | {"prompt": 3}, "prompt: unknown key"),
        (CHAT | {"prompt_tokens": 0}, "prompt_tokens: must be > 0, got 0"),
        (CHAT | {"prompt_tokens": {"kind": "unifrom"}}, "did you mean `uniform`?"),
        (CHAT | {"prompt_tokens": {"kind": "uniform", "min": 5, "max": 2}}, "`min <= max` must hold"),
        ({"kind": "file"}, "path: required"),
        ("trace", "requests of kind trace need routing that is a trace"),
    ],
)
def test_wrong_configurations(reference: str | dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_requests(reference, rng())
    assert message in str(error.value)


def test_requests_of_a_trace() -> None:
    trace = small_trace([5, 3, 8])
    requests = requests_from_trace(trace)
    assert requests.prompt_tokens.tolist() == [5, 3, 8]
    assert requests.output_tokens.tolist() == [2, 3, 4]  # decode steps + 1
    assert requests.arrival_s.tolist() == [0, 0, 0]
    loaded = load_requests({"kind": "trace", "rate_per_s": 2, "num_requests": 2}, rng(), trace=trace)
    assert loaded.prompt_tokens.tolist() == [5, 3]
    assert (np.diff(loaded.arrival_s) > 0).all()
    assert load_requests("trace", rng(), trace=trace).output_tokens.tolist() == [2, 3, 4]
    with pytest.raises(InputError, match="random arrivals need a random generator"):
        requests_from_trace(trace, rate_per_s=1.0)


@pytest.mark.reference
def test_requests_of_the_published_trace(reference_data: Path) -> None:
    trace = read_routing_trace(reference_data / "routing/gpt-oss-20b/gpt-oss-20b_decode_top4_ids.npz")
    requests = requests_from_trace(trace)
    assert len(requests) == 703
    assert requests.output_tokens.sum() == 215_438 + 703
    assert (requests.prompt_tokens == trace.first_decode_position).all()


@pytest.mark.parametrize("burstiness", [0.25, 0.5, 4.0])
def test_burstiness_is_the_shape_of_the_gaps(burstiness: float) -> None:
    bursty = CHAT | {"num_requests": 40_000, "burstiness": burstiness}
    gaps = np.diff(load_requests(bursty, rng()).arrival_s, prepend=0.0)
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.03)


def test_burstiness_one_is_poisson_to_the_last_bit() -> None:
    expected = np.cumsum(rng().exponential(1 / 8, 4000))
    np.testing.assert_array_equal(load_requests(CHAT | {"burstiness": 1}, rng()).arrival_s, expected)
    np.testing.assert_array_equal(load_requests(CHAT, rng()).arrival_s, expected)


def test_prefix_blocks_of_a_file(tmp_path: Path) -> None:
    rows = ['{"arrival_s": 0, "prompt_tokens": 9, "output_tokens": 6, "hash_ids": [4, 5, 6]}']
    rows += ['{"arrival_s": 0, "prompt_tokens": 3, "output_tokens": 6, "hash_ids": [4]}']
    (tmp_path / "r.jsonl").write_text("\n".join(rows))
    requests = load_requests({"kind": "file", "path": str(tmp_path / "r.jsonl"), "prefix_block_tokens": 4}, rng())
    assert requests.prefix is not None
    assert requests.prefix.full_blocks(requests.prompt_tokens) == [[4, 5], []]
    requests.prefix.check(requests.prompt_tokens, "r")
    head = requests.head(1).prefix
    assert head is not None
    assert head.ids.tolist() == [4, 5, 6]
    other = load_requests(tmp_path / "r.jsonl", rng())
    assert other.prefix is not None
    with pytest.raises(DataError, match=r"r: request 0: hash_ids: must be one per 512 tokens .*, here 1, got 3"):
        other.prefix.check(other.prompt_tokens, "r")


@pytest.mark.parametrize("hashes", ["7", '"7"', "[1.5]", "[true]", "null", "[18446744073709551616]"])
def test_hashes_must_be_whole_numbers(tmp_path: Path, hashes: str) -> None:
    row = '{"arrival_s": 0, "prompt_tokens": 9, "output_tokens": 6, "hash_ids": '
    (tmp_path / "r.jsonl").write_text(row + "[1]}\n" + row + hashes + "}\n")
    with pytest.raises(DataError, match=r"r\.jsonl:2: hash_ids: must be a list of whole numbers"):
        load_requests(tmp_path / "r.jsonl", rng())
