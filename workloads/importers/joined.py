"""Traces that moesim already reads, joined to one, with a licence and a source of their own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from moesim.errors import DataError
from moesim.workloads.importers.recorded import ImportOptions, check_shipped
from moesim.workloads.importers.safe_files import check_file
from moesim.workloads.routing_files import read_routing_trace
from moesim.workloads.routing_trace import RoutingTrace


def read_traces(paths: Sequence[Path], options: ImportOptions) -> RoutingTrace:
    """Requests of all traces (.parquet, or the .npz of gpt-oss), one file after the other.

    Raises:
        InputError, DataError: as `import_routing`; traces of several models are refused.
    """
    traces = []
    for path in paths:
        check_file(path, ".parquet", ".npz")
        traces.append(read_routing_trace(path, options.model, options.experts))
        check_shipped(traces[-1])
    first = traces[0]
    for path, trace in zip(paths, traces, strict=True):
        found = (trace.model, trace.experts, trace.layers, trace.top_k)
        expected = (first.model, first.experts, first.layers, first.top_k)
        if found != expected:
            raise DataError(
                str(path), f"all traces must be of one model; the first is (name, experts, layers, k) {expected}", found
            )
    joined = first if len(traces) == 1 else _join(traces)
    kept = np.flatnonzero([options.group in {None, group} for group in joined.groups])
    if not kept.size:
        raise DataError(str(paths[0]), "must hold requests of the group", options.group)
    part = joined if len(kept) == len(joined.names) else joined.select(kept)
    return replace(
        part,
        source=options.source or part.source,
        licence=options.licence or part.licence,
        capture={**part.capture, **options.capture},
    )


def _join(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    first = traces[0]
    before = np.cumsum([0, *(len(trace.names) for trace in traces)])[:-1]
    weights = [trace.weight for trace in traces if trace.weight is not None]
    return replace(
        first,
        source=f"{first.source} and {len(traces) - 1} more files",
        names=tuple(name for trace in traces for name in trace.names),
        groups=tuple(group for trace in traces for group in trace.groups),
        first_decode_position=np.concatenate([trace.first_decode_position for trace in traces]),
        request=np.concatenate([trace.request + np.int32(start) for trace, start in zip(traces, before, strict=True)]),
        position=np.concatenate([trace.position for trace in traces]),
        phase=np.concatenate([trace.phase for trace in traces]),
        expert=np.concatenate([trace.expert for trace in traces]),
        weight=np.concatenate(weights) if len(weights) == len(traces) else None,
    )
