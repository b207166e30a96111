"""Measured collectives of aiconfigurator (NVIDIA), as tables that the interconnect prices.

Sizes of messages there are in elements. A group of rows is a message size (DeepEP: a number of tokens), so that a fit
is judged on sizes that it never saw.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.hw_models.calibration.aiconfigurator import read_table
from moesim.hw_models.calibration.measured import Measured, Source, group_numbers
from moesim.hw_models.collective_table import (
    ALL_TO_ALL,
    COLLECTIVES,
    COMBINED_ELEMENT_BYTES,
    CUSTOM_ALL_REDUCE,
    DEEPEP_DISPATCH,
    DEEPEP_LOW_LATENCY_DISPATCH,
    DISPATCHED_ELEMENT_BYTES,
    CollectiveTable,
)

PUBLISHER = "aiconfigurator (NVIDIA)"
ELEMENT_BYTES = {"half": 2.0, "int8": 1.0, "bfloat16": 2.0}
_OF_NCCL = {name.replace("all_to_all", "alltoall"): COLLECTIVES.index(name) for name in COLLECTIVES[: ALL_TO_ALL + 1]}
"""Names of collectives in the files."""
DEEPEP_RANKS = 8
"""The DeepEP rows are of one node of eight GPUs, with experts chosen at random."""

Links = Measured[CollectiveTable]
Floats = NDArray[np.float64]


def read_nccl(folder: Path) -> tuple[Links, Links]:
    """Collectives of NCCL: (all-reduce, all-gather and reduce-scatter; all-to-all).

    Args:
        folder: of a GPU, such as `kernels/aiconfigurator/h200_sxm`.

    Raises:
        DataError: the file is not there, or lacks a column.
    """
    known: dict[str, Collection[str]] = {"nccl_dtype": ELEMENT_BYTES, "op_name": _OF_NCCL}
    rows, version = _read(folder, "nccl", "nccl_perf.parquet", ("latency",), known, "num_gpus", "message_size")
    element = rows.nccl_dtype.map(ELEMENT_BYTES).to_numpy(np.float64)
    nbytes, ranks = rows.message_size.to_numpy(np.float64) * element, rows.num_gpus.to_numpy(np.float64)
    kind = rows.op_name.map(_OF_NCCL).to_numpy(np.int64)
    exchanged = np.where(kind == ALL_TO_ALL, nbytes * (ranks - 1) / ranks, 0.0)
    table = CollectiveTable.of(
        kind,
        ranks,
        payload_bytes=np.where(kind == ALL_TO_ALL, 0.0, nbytes),
        element_bytes=element,
        sent_bytes=exchanged,
        received_bytes=exchanged,
    )
    labels = {"kind": rows.op_name.to_numpy(str), "ranks": ranks, "bytes": nbytes}
    source = Source(PUBLISHER, rows.device.iloc[0], "NCCL", version, "collectives of one node")
    measured = Measured(table, rows.latency.to_numpy() * 1e-3, group_numbers([nbytes]), source, labels)
    exchanges = kind == ALL_TO_ALL
    return measured.take(np.flatnonzero(~exchanges)), measured.take(np.flatnonzero(exchanges))


def read_custom_all_reduce(folder: Path, backend: str = "vllm_graph") -> Links:
    """All-reduce by vLLM's own kernels, as its CUDA graphs replay it; above its largest sizes it is NCCL's.

    Raises:
        DataError: the file is not there, lacks a column, or has no rows of the backend.
    """
    known, others = {"allreduce_dtype": ELEMENT_BYTES}, ("num_gpus", "message_size", "backend")
    rows, version = _read(folder, "vllm", "custom_allreduce_perf.parquet", ("latency",), known, *others)
    rows = rows[rows.backend == backend]
    if rows.empty:
        raise DataError(str(folder / "comm/vllm" / version), f"must hold an all-reduce by {backend}")
    ranks = rows.num_gpus.to_numpy(np.float64)
    nbytes = rows.message_size.to_numpy(np.float64) * rows.allreduce_dtype.map(ELEMENT_BYTES).to_numpy(np.float64)
    table = CollectiveTable.of(CUSTOM_ALL_REDUCE, ranks, payload_bytes=nbytes)
    source = Source(PUBLISHER, rows.device.iloc[0], "vLLM", version, "custom all-reduce in CUDA graphs")
    labels = {"ranks": ranks, "bytes": nbytes}
    return Measured(table, rows.latency.to_numpy() * 1e-3, group_numbers([nbytes]), source, labels)


def read_deepep(folder: Path, *, low_latency: bool) -> tuple[Links, Links]:
    """DeepEP on one node: (dispatch, combine).

    Args:
        folder: of a GPU.
        low_latency: of the low-latency kernels instead of the normal ones.

    Raises:
        DataError: the file is not there, or lacks a column.
    """
    name = "ll" if low_latency else "normal"
    times = [f"{way}_{'avg_t_us' if low_latency else 'transmit_us'}" for way in ("dispatch", "combine")]
    others = ("num_token", "num_topk", "num_experts", "hidden_size", *["dispatch_sms"] * (not low_latency))
    rows, version = _read(folder, "sglang", f"wideep_deepep_{name}_perf.parquet", times, {}, *others)
    source = Source(PUBLISHER, rows.device.iloc[0], "DeepEP of SGLang", version, f"{name} kernels on one node")
    first = DEEPEP_LOW_LATENCY_DISPATCH if low_latency else DEEPEP_DISPATCH
    parts = []
    for way, element_bytes in enumerate((DISPATCHED_ELEMENT_BYTES, COMBINED_ELEMENT_BYTES)):
        table = _deepep_table(rows, first + way, element_bytes, low_latency=low_latency)
        time_s = rows[times[way]].to_numpy(np.float64) * 1e-6
        shape = [rows[column].to_numpy() for column in ("hidden_size", "num_topk", "num_experts")]
        labels = {"tokens": rows.num_token.to_numpy(), "shape": group_numbers(shape)}
        if not low_latency:
            labels["multiprocessors"] = table.multiprocessors
        parts.append(Measured(table, time_s, group_numbers([labels["tokens"]]), source, labels))
    return parts[0], parts[1]


def _deepep_table(rows: Any, kind: int, element_bytes: float, *, low_latency: bool) -> CollectiveTable:
    tokens, hidden = rows.num_token.to_numpy(np.float64), rows.hidden_size.to_numpy(np.float64)
    experts, top_k = rows.num_experts.to_numpy(np.int64), rows.num_topk.to_numpy(np.int64)
    fan_out = top_k.astype(np.float64) if low_latency else _ranks_reached(experts, top_k, DEEPEP_RANKS)
    copies, copy_bytes = tokens * fan_out, hidden * element_bytes
    exchanged = copies * copy_bytes * (DEEPEP_RANKS - 1) / DEEPEP_RANKS
    return CollectiveTable.of(
        kind,
        DEEPEP_RANKS,
        sent_bytes=exchanged,
        received_bytes=exchanged,
        tokens=tokens,
        copies=copies,
        copy_bytes=copy_bytes,
        fan_out=fan_out,
        experts=experts,
        multiprocessors=0.0 if low_latency else rows.dispatch_sms,
    )


def _ranks_reached(experts: NDArray[np.int64], top_k: NDArray[np.int64], ranks: int) -> Floats:
    """Ranks that a token is expected to reach when its experts are drawn at random, without repetition."""
    missed = [comb(int(e - e // ranks), int(k)) / comb(int(e), int(k)) for e, k in zip(experts, top_k, strict=True)]
    return ranks * (1 - np.array(missed))


def _read(
    folder: Path, library: str, file: str, times: Sequence[str], known: Mapping[str, Collection[str]], *others: str
) -> tuple[Any, str]:
    """Rows of the newest version of a file under `folder/comm/library`, and that version.

    Args:
        folder: of a GPU.
        library: whose collectives.
        file: name of the file.
        times: columns that must be > 0.
        known: columns that must hold one of these texts.
        others: further columns.
    """
    paths = sorted((folder / "comm" / library).glob(f"*/{file}"), key=_version)
    if not paths:
        raise DataError(str(folder), f"must hold comm/{library}/VERSION/{file}")
    path = paths[-1]
    rows = read_table(path)
    for column in (*known, *others, *times, "device"):
        if column not in rows:
            raise DataError(str(path), f"must have a column {column}", ", ".join(rows.columns))
    for column in times:
        _check_rows(path, rows, column, rows[column].to_numpy(np.float64) > 0, "must be > 0")
    for column, texts in known.items():
        _check_rows(path, rows, column, rows[column].isin(texts).to_numpy(), f"must be one of {', '.join(texts)}")
    return rows, path.parent.name


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path.parent.name))


def _check_rows(path: Path, rows: Any, column: str, is_right: NDArray[np.bool_], rule: str) -> None:
    wrong = np.flatnonzero(~is_right)
    if len(wrong):
        raise DataError(f"{path}:{wrong[0]}: {column}", rule, rows[column].tolist()[wrong[0]])
