"""Routing drawn from a profile that was fitted on 500 requests, against those requests and against 203 others.

Every figure is printed beside the real difference between the two sets (`pytest -s`).
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.simulator.simulate import simulate
from moesim.workloads.load_statistics import mutual_information_bits
from moesim.workloads.routing_draw import TokenRouter
from moesim.workloads.routing_files import read_routing_trace, write_routing_trace
from moesim.workloads.routing_fit import fit_profile, measure_overlap
from moesim.workloads.routing_trace import RoutingTrace
from moesim.workloads.trace_kernels import count_transitions

pytestmark = [pytest.mark.reference, pytest.mark.slow]

TRACE = "routing/gpt-oss-20b/gpt-oss-20b_decode_top4_ids.npz"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
SEGMENT, CACHED = 16, 8  # twice top-4
Sets = dict[str, RoutingTrace]


@pytest.fixture(scope="module")
def sets(reference_data: Path) -> Sets:
    fitted, others = read_routing_trace(reference_data / TRACE).split(500 / 703, np.random.default_rng(0))
    assert (len(fitted.names), len(others.names)) == (500, 203)
    router = TokenRouter(fit_profile(fitted), np.random.default_rng(1))
    drawn = router.experts(fitted.request.astype(np.int64), fitted.position.astype(np.int64)).astype(np.uint8)
    return {"fitted": fitted, "others": others, "drawn": replace(fitted, expert=drawn)}


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def counts(expert: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.int64]:
    """int64[group x layer, expert] selections, of `expert` [group, token, layer, k]."""
    groups, _, layers, _ = expert.shape
    place = np.arange(groups)[:, None, None, None] * layers + np.arange(layers)[:, None]
    flat = (place * 32 + expert).ravel()
    return np.bincount(flat, minlength=groups * layers * 32).reshape(-1, 32)


def batches(trace: RoutingTrace, size: int) -> NDArray[np.int64]:
    rows = np.random.default_rng(2).integers(0, trace.tokens, (max(60, 20_000 // size), size))
    return counts(trace.expert[rows])


def touched(trace: RoutingTrace) -> NDArray[np.float64]:
    """Experts touched per batch and layer, for each batch size."""
    return np.array([(batches(trace, size) > 0).sum(axis=1).mean() for size in BATCHES])


def imbalance(trace: RoutingTrace) -> NDArray[np.float64]:
    """Load of the busiest expert over the mean, mean of batches and layers."""
    return np.array([batches(trace, size).max(axis=1).mean() / (4 * size / 32) for size in BATCHES])


def information(trace: RoutingTrace) -> NDArray[np.float64]:
    """Bits between experts of adjacent layers, mean of layers."""
    return np.array([mutual_information_bits(count_transitions(trace.expert, 32)).mean()])


def reuse(trace: RoutingTrace) -> NDArray[np.float64]:
    """Share of experts that neighbours have in common, and tokens 16 apart."""
    return np.array([measure_overlap(trace, lag, np.random.default_rng(3)).mean() for lag in (1, 16)])


def nodes(trace: RoutingTrace) -> NDArray[np.float64]:
    """Distinct nodes per token and layer under contiguous placement on 2 and on 4 nodes."""
    on = [np.stack([(trace.expert // (32 // n) == i).any(axis=2) for i in range(n)]) for n in (2, 4)]
    return np.array([hosts.sum(axis=0).mean() for hosts in on])


def cache_hits(trace: RoutingTrace) -> NDArray[np.float64]:
    """Hit rate of the `CACHED` experts that each segment uses most (SCH of arXiv 2505.16056)."""
    starts = np.arange(0, trace.tokens - SEGMENT, SEGMENT)
    starts = starts[trace.request[starts] == trace.request[starts + SEGMENT - 1]]
    used = np.sort(counts(trace.expert[starts[:, None] + np.arange(SEGMENT)]), axis=1)
    return np.array([used[:, -CACHED:].sum() / used.sum()])


@pytest.mark.parametrize(
    ("figure", "limit", "relative"),
    [
        (touched, 0.03, True),
        (information, 0.15, True),
        (reuse, 0.03, False),
        (nodes, 0.03, True),
        (imbalance, 0.05, True),
        (cache_hits, 0.03, False),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_drawn_tokens_have_the_statistics_of_recorded_ones(sets: Sets, figure, limit, relative):
    found = {name: figure(trace) for name, trace in sets.items()}
    scale = found["fitted"] if relative else 1.0
    error, real = ((found[name] - found["fitted"]) / scale for name in ("drawn", "others"))
    say(f"\n{figure.__name__}: fitted {found['fitted'].round(4)}, drawn {found['drawn'].round(4)}")
    say(f"    drawn - fitted {error.round(4)}, others - fitted {real.round(4)}, limit {limit}")
    assert abs(error).max() < limit


@pytest.mark.parametrize(("system", "parallelism"), [("h100-sxm-1", {}), ("h100-sxm-8", {"dp": 8, "ep": 8})])
def test_decode_steps_take_as_long(sets: Sets, tmp_path, system, parallelism):
    step_s = {}
    for name, trace in sets.items():
        chosen = np.random.default_rng(4).permutation(len(trace.names))[:160]
        write_routing_trace(trace.select(chosen), tmp_path / f"{name}.parquet")
        scenario = {"model": "gpt-oss-20b", "system": system, "parallelism": parallelism, "requests": "trace"}
        result = simulate(scenario | {"routing": str(tmp_path / f"{name}.parquet"), "concurrency": 64})
        steps = result.tables["steps"]
        decode = (steps["prefill_tokens"] == 0) & (steps["sequences"] == 64)  # full batches: the tail is another matter
        step_s[name] = steps["duration_s"][decode].mean()
    error, real = (step_s[name] / step_s["fitted"] - 1 for name in ("drawn", "others"))
    say(f"\n{system}: {step_s['fitted'] * 1e3:.3f} ms, drawn {error:+.2%}, others {real:+.2%}")
    assert abs(error) < 0.03
