"""Readers of the measurements that NVIDIA's aiconfigurator publishes.

Layout: `<gpu>/<operation>/<framework>/<version>/<operation>_perf.parquet`, latency in ms.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.hw_models.calibration.measured import NOT_TUNED, Ints, Measured, Source, group_numbers
from moesim.hw_models.calibration.routed_tokens import BALANCED, GroupLimit, RankBatch, rank_batch, rank_tokens
from moesim.hw_models.calibration.tables import Held, expert_table, product_table
from moesim.hw_models.calibration.tuning import not_tuned
from moesim.workloads.operator_table import OperatorTable

if TYPE_CHECKING:
    import pandas as pd

PUBLISHER = "aiconfigurator (NVIDIA)"
PRODUCT_DTYPES = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
EXPERT_DTYPES = PRODUCT_DTYPES | {"w4a16_mxfp4": "mxfp4"}
FOREIGN_SHARE = {"oaitriton": 0.05, "triton": 0.75, "marlin": 0.75, "moe_torch_flow$": 0.75, "": 0.05}
"""Share of the traffic of a pair of token and expert that is moved although the expert is on another rank, by what the
name of the kernel contains ($: ends with), the first that fits. Triton's fused kernel, Marlin and TensorRT-LLM's use of
OpenAI's kernels keep rows of zeros for such pairs; CUTLASS's sort them out, and so does vLLM's use of OpenAI's. Fitted:
0.70 to 0.79 and 0.02 to 0.09 (vLLM 0.24.0 on H100 and H200, SGLang 0.5.14 and TensorRT-LLM 1.3.0rc20 on H200)."""
_S_PER_MS = 1e-3
_FIRST_NEW_VLLM = (0, 17)
"""Before, vLLM's collector measured gated experts of every model, and gave what rounding left to leading experts."""
_UNGATED_TOP_K = 22
"""Of the one model family measured whose experts have a single up projection (Nemotron 3)."""
_LIMITED_SHAPES = {(7168, 2048, 8, 256): GroupLimit(groups=8, best=4)}
"""Hidden and intermediate size, top-k and experts of the models whose routers look into the best groups only:
DeepSeek-V3 and R1 (their `config.json`: n_group, topk_group). vLLM's and SGLang's collectors route as the model does;
TensorRT-LLM's has one router for all."""
_ONE_ROUTER = ("trtllm",)
_NOT_LESS = 0.8
"""Time of one of two ranks over that of one alone, above which it does as much work. On the H200, kernels that leave
out other ranks' pairs have 0.45 to 0.7 at some number of shards, those that do not 0.88 and more at all."""
_TUNED = ("trtllm",)
"""Frameworks that search for a configuration of expert kernels; see `tuning`."""
_CASE_COLUMNS = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size", "distribution")
_PRODUCT_COLUMNS = ("gemm_dtype", "m", "n", "k", "latency", "kernel_source")
_EXPERT_COLUMNS = (
    "moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size",
    "distribution", "latency", "kernel_source",
)  # fmt: skip


def gpu_folder(data: Path, device: str) -> Path:
    """Folder of a device, whose name there may go on (`rtx_pro_6000_server` for rtx-pro-6000).

    Raises:
        DataError: there is none, or more than one.
    """
    start = device.replace("-", "_")
    found = sorted(path for path in data.glob(f"{start}*") if path.is_dir())
    if len(found) != 1:
        known = ", ".join(sorted(path.name for path in data.iterdir() if path.is_dir())) if data.is_dir() else "none"
        raise DataError(str(data), f"must hold one folder {start}* (there are: {known})", len(found))
    return found[0]


def read_products(folder: Path, framework: str = "*") -> list[Measured[OperatorTable]]:
    """Single products, an entry per framework, version and number format; groups are weight shapes.

    Labels: tokens, kernel.

    Raises:
        DataError: there is no such table, or it lacks a column.
    """
    measured = []
    for path, rows in _tables(folder, "gemm", framework, _PRODUCT_COLUMNS):
        for name, part in rows[rows.gemm_dtype.isin(PRODUCT_DTYPES)].groupby("gemm_dtype", sort=True):
            dtype = PRODUCT_DTYPES[str(name)]
            m, n, k = (part[column].to_numpy(np.int64) for column in "mnk")
            source = _source(path, part, f"gemm {dtype}")
            table, time_s = product_table(m, n, k, dtype), part.latency.to_numpy(np.float64) * _S_PER_MS
            labels = {"tokens": m, "kernel": part.kernel_source.to_numpy()}
            measured.append(Measured(table, time_s, group_numbers([n, k]), source, labels))
    return measured


def read_experts(folder: Path, framework: str = "*") -> list[Measured[OperatorTable]]:
    """Expert FFNs of one rank, an entry per framework, version and number format; groups are MoE shapes.

    A number format that was measured on one model only has its shards as groups. Labels: tokens, ranks, distribution,
    kernel, and of TensorRT-LLM whether rows are `NOT_TUNED`.

    Raises:
        DataError: there is no such table, it lacks a column, or it has a distribution that is not known.
    """
    measured = []
    for path, rows in _tables(folder, "moe", framework, _EXPERT_COLUMNS):
        for name, part in rows[rows.moe_dtype.isin(EXPERT_DTYPES)].groupby("moe_dtype", sort=True):
            dtype = EXPERT_DTYPES[str(name)]
            source = _source(path, part, f"experts {dtype}")
            table = _experts(path, part, dtype, source)
            labels = {
                "tokens": part.num_tokens.to_numpy(),
                "ranks": part.moe_ep_size.to_numpy(),
                "distribution": part.distribution.to_numpy(str),
                "kernel": part.kernel_source.to_numpy(),
            }
            time_s = part.latency.to_numpy(np.float64) * _S_PER_MS
            if source.framework in _TUNED:
                case = group_numbers([part[column].to_numpy() for column in _CASE_COLUMNS])
                labels[NOT_TUNED] = not_tuned(table, time_s, case)
            measured.append(Measured(table, time_s, _moe_groups(part), source, labels))
    return measured


def read_table(path: Path) -> "pd.DataFrame":
    """A parquet file with at least one row.

    Raises:
        DataError: it is none.
    """
    import pandas as pd

    try:
        rows = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"must be a parquet file ({str(error).splitlines()[0]})") from None
    if rows.empty:
        raise DataError(str(path), "must have rows")
    return rows


def check_times(path: Path, rows: "pd.DataFrame") -> None:
    """That every latency is above 0.

    Raises:
        DataError: one is not.
    """
    bad = np.flatnonzero(~(rows.latency.to_numpy(np.float64) > 0))
    if len(bad):
        raise DataError(f"{path}:{bad[0]}: latency", "must be > 0", float(rows.latency.iloc[bad[0]]))


def _tables(
    folder: Path, operation: str, framework: str, columns: Sequence[str]
) -> Iterator[tuple[Path, "pd.DataFrame"]]:
    paths = sorted(folder.glob(f"{operation}/{framework}/*/{operation}_perf.parquet"))
    if not paths:
        raise DataError(str(folder), f"must hold {operation}/{framework}/<version>/{operation}_perf.parquet")
    for path in paths:
        rows = read_table(path)
        if missing := [column for column in columns if column not in rows]:
            raise DataError(str(path), f"must have the columns {', '.join(columns)}", f"no {', '.join(missing)}")
        check_times(path, rows)
        yield path, rows


def _source(path: Path, rows: "pd.DataFrame", kernel: str) -> Source:
    version, framework = path.parent.name, path.parent.parent.name
    device = str(rows.device.iloc[0]) if "device" in rows else path.parents[3].name
    return Source(PUBLISHER, device, framework, version, kernel)


def _experts(path: Path, rows: "pd.DataFrame", dtype: str, source: Source) -> OperatorTable:
    keys = rows[["num_tokens", "num_experts", "topk", "moe_ep_size", "distribution"]].itertuples(index=False)
    expert_tokens = np.zeros((len(rows), int((rows.num_experts // rows.moe_ep_size).max())), np.int64)
    try:
        for line, key, limit in zip(expert_tokens, keys, _limits(rows, source), strict=True):
            counts = _cached_tokens(*key, leading=not _is_new(source), limit=limit)
            line[: len(counts)] = counts
    except ValueError as error:
        raise DataError(f"{path}: distribution", str(error)) from None
    pairs, tokens = (rows.num_tokens * rows.topk).to_numpy(np.float64), rows.num_tokens.to_numpy(np.int64)
    foreign = (pairs - expert_tokens.sum(axis=1)) * rows.kernel_source.map(_foreign_share).to_numpy(np.float64)
    if source.framework == "sglang":
        alone = _computes_all(rows)
        tokens = _computed(rows, alone, expert_tokens)
        foreign[alone] = 0.0
    ungated = (rows.topk == _UNGATED_TOP_K).to_numpy() & _is_new(source)
    inner = (rows.inter_size // rows.moe_tp_size).to_numpy()
    hidden, up_matrices = rows.hidden_size.to_numpy(), np.where(ungated, 1, 2)
    held = Held(tokens, (rows.num_experts // rows.moe_ep_size).to_numpy(), rows.moe_ep_size)
    return expert_table(expert_tokens, inner, hidden, dtype, up_matrices, foreign, held)


@lru_cache(maxsize=50_000)
def _cached_tokens(
    tokens: int,
    experts: int,
    top_k: int,
    ranks: int,
    distribution: str,
    *,
    leading: bool,
    limit: GroupLimit | None,
) -> Ints:
    sizes = int(tokens), int(experts), int(top_k), int(ranks)
    return rank_tokens(*sizes, distribution, leading=leading, limit=limit)


def _limits(rows: "pd.DataFrame", source: Source) -> list[GroupLimit | None]:
    """The limit of each row's router."""
    if source.framework in _ONE_ROUTER or not _is_new(source):
        return [None] * len(rows)
    shapes = rows[["hidden_size", "inter_size", "topk", "num_experts"]].itertuples(index=False, name=None)
    return [_LIMITED_SHAPES.get(shape) for shape in shapes]


def _computes_all(rows: "pd.DataFrame") -> NDArray[np.bool_]:
    """bool[row]: rows of several ranks whose kernel computed the pairs of other ranks too; see `rank_batch`.

    Some shapes were measured so and others not. It shows where one of two ranks takes about as long as one that holds
    all experts, whatever the number of shards.
    """
    shape = group_numbers([rows[column].to_numpy() for column in ("hidden_size", "inter_size", "topk", "num_experts")])
    most = (rows.num_tokens == rows.num_tokens.max()) & (rows.distribution == BALANCED)
    alone = np.zeros(len(rows), np.bool_)
    for number in np.unique(shape):
        part = rows[most.to_numpy() & (shape == number)]
        times = part.pivot_table(index="moe_tp_size", columns="moe_ep_size", values="latency")
        limited = (
            tuple(rows[shape == number].iloc[0][["hidden_size", "inter_size", "topk", "num_experts"]])
            in _LIMITED_SHAPES
        )
        if {1, 2} <= set(times.columns) and not limited:
            alone |= (shape == number) & bool((times[2] / times[1]).min() > _NOT_LESS)
    return alone & (rows.moe_ep_size > 1).to_numpy()


def _computed(rows: "pd.DataFrame", alone: NDArray[np.bool_], expert_tokens: Ints) -> Ints:
    """Tokens that each row's kernel looks at; where `alone`, writes the tokens of its experts too."""
    tokens = rows.num_tokens.to_numpy(np.int64).copy()
    keys = rows[["num_tokens", "num_experts", "topk", "moe_ep_size", "distribution"]][alone]
    for at, key in zip(np.flatnonzero(alone), keys.itertuples(index=False), strict=True):
        batch = _cached_batch(*key)
        expert_tokens[at, : len(batch.expert_tokens)] = batch.expert_tokens
        tokens[at] = batch.tokens
    return tokens


@lru_cache(maxsize=50_000)
def _cached_batch(tokens: int, experts: int, top_k: int, ranks: int, distribution: str) -> RankBatch:
    return rank_batch(int(tokens), int(experts), int(top_k), int(ranks), distribution)


def _foreign_share(kernel: Any) -> float:
    return next(share for name, share in FOREIGN_SHARE.items() if name in f"{kernel}$")


def _is_new(source: Source) -> bool:
    version = tuple(int(number) for number in re.findall(r"\d+", source.version)[:2])
    return source.framework != "vllm" or version >= _FIRST_NEW_VLLM


def _moe_groups(rows: "pd.DataFrame") -> Ints:
    shape = [rows[column].to_numpy() for column in ("hidden_size", "inter_size", "topk", "num_experts")]
    groups = group_numbers(shape)
    if groups.max() > 0:
        return groups
    return group_numbers([rows.moe_tp_size.to_numpy(), rows.moe_ep_size.to_numpy()])
