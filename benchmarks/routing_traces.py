"""Reading a large routing trace and computing all its statistics, against a limit of time and memory."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from table import Row, show

from moesim.workloads.routing_files import write_routing_trace
from moesim.workloads.routing_trace import DECODE, RoutingTrace

LAYERS, EXPERTS, TOP_K = 24, 32, 4
ROWS = 10_000_000
"""Token-layer rows."""
REQUEST_TOKENS = 512
LIMIT_S, LIMIT_GB = 30.0, 2.0
_MEASURED = """
import resource, sys, time
from moesim.workloads.routing_files import read_routing_trace
from moesim.workloads.trace_statistics import TraceSettings, trace_statistics
begin_s = time.perf_counter()
trace = read_routing_trace(sys.argv[1])
trace_statistics(trace, TraceSettings(threads=2))
print(time.perf_counter() - begin_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


def large_trace() -> RoutingTrace:
    """Requests of random tokens whose experts are used in proportion to rank^-0.8, and by a request's own taste."""
    rng = np.random.default_rng(0)
    tokens = -(-ROWS // LAYERS)
    requests = -(-tokens // REQUEST_TOKENS)
    chosen = np.empty((tokens, LAYERS, TOP_K), np.uint8)
    popularity = -0.8 * np.log(np.arange(1, EXPERTS + 1, dtype=np.float32))
    for request in range(requests):
        rows = slice(request * REQUEST_TOKENS, min(tokens, (request + 1) * REQUEST_TOKENS))
        taste = rng.gumbel(size=(LAYERS, EXPERTS)).astype(np.float32)
        keys = rng.gumbel(size=(rows.stop - rows.start, LAYERS, EXPERTS)).astype(np.float32) + popularity + taste
        chosen[rows] = np.argpartition(-keys, TOP_K, axis=2)[..., :TOP_K]
    request = (np.arange(tokens) // REQUEST_TOKENS).astype(np.int32)
    return RoutingTrace(
        model="drawn",
        experts=EXPERTS,
        source="benchmark",
        names=tuple(map(str, range(requests))),
        groups=tuple("ab"[index % 2] for index in range(requests)),
        first_decode_position=np.zeros(requests, np.int64),
        request=request,
        position=(np.arange(tokens) % REQUEST_TOKENS).astype(np.int32),
        phase=np.full(tokens, DECODE, np.uint8),
        expert=chosen,
    )


def routing_traces() -> list[Row]:
    """Seconds and peak memory of a process that does nothing else; kernels are compiled before."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.parquet"
        small = Path(folder) / "small.parquet"
        trace = large_trace()
        write_routing_trace(trace, path)
        write_routing_trace(trace.select([0]), small)
        for file in (small, path):
            command = [sys.executable, "-c", _MEASURED, str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, gigabytes = map(float, done.stdout.split())
    name = f"all statistics of a trace, {ROWS:,} token-layer rows"
    return [
        Row(name, seconds, "s", "limit", LIMIT_S, 1, better="lower"),
        Row(f"{name}, memory", gigabytes, "GB", "limit", LIMIT_GB, 1, better="lower"),
    ]


if __name__ == "__main__":
    measured = routing_traces()
    show(measured)
    sys.exit(not all(row.holds for row in measured))
