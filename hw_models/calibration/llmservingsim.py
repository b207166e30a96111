"""Readers of the layers that LLMServingSim's profiler measured inside vLLM.

Layout: `<gpu>/[<publisher>/]<model>/<format>/meta.yaml`, beside it `tp<N>/dense.csv`, `per_sequence.csv`, `moe.csv` and
`attention.csv`, times in microseconds. Rows are lowered from the shipped model of that name, as every step is. Other
layers run between repetitions there, so weights and caches come from DRAM.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.configs.loader import shipped
from moesim.errors import DataError, InputError
from moesim.hw_models.calibration.measured import Floats, Ints, Measured, Source, group_numbers
from moesim.hw_models.calibration.tables import joined_sets, joined_tables
from moesim.workloads.models import load_model
from moesim.workloads.operator_plan import EXPERTS, OperatorPlan
from moesim.workloads.operator_table import OperatorTable
from moesim.workloads.steps import Step

if TYPE_CHECKING:
    import pandas as pd

PUBLISHER = "LLMServingSim (KAIST)"
META = "meta.yaml"
_S_PER_US = 1e-6
EXPERTS_KERNELS = "vllm_triton"
"""Kernels that vLLM 0.19, which was profiled, runs experts with."""
SAMPLER = "sampler"
PRODUCTS = {
    "qkv_proj": "qkv",
    "o_proj": "attention_out",
    "gate_up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "lm_head": "lm_head",
}
"""Layers that are single products, and the operators they are here."""
ELEMENTWISE = {
    "embedding": "embedding",
    "layernorm": "attention_norm",
    "final_layernorm": "output_norm",
    "rotary_emb": "rope",
    "act_fn": "ffn_activation",
    SAMPLER: "sampling",
}
"""Layers that are no products."""
_L2_BYTES = 128e6
"""Of the GPU with profiles, the RTX PRO 6000 (data sheet). The profiler runs models of one layer."""
_TOKENS_PER_EXPERT = 8
"""On average, for which all experts have tokens."""
_SAMPLES = ("lm_head", SAMPLER)
"""Layers that run once per sequence."""
_FILES = {
    "dense.csv": ("layer", "tokens", "time_us"),
    "per_sequence.csv": ("layer", "sequences", "time_us"),
    "moe.csv": ("tokens", "activated_experts", "time_us"),
}


@dataclass(frozen=True)
class Profile:
    """Measurements of one model in one number format on one GPU.

    Attributes:
        folder: that holds `meta.yaml`.
        hardware: the GPU as the publisher names its folder, such as `RTXPRO6000`.
        gpu: as the driver names it.
        model: name of the shipped model, None where no shipped model has that name.
        published_model: name of the model there.
        version: of vLLM.
    """

    folder: Path
    hardware: str
    gpu: str
    model: str | None
    published_model: str
    version: str

    @property
    def shards(self) -> list[tuple[int, Path]]:
        """Tensor parallelism and folder of each part."""
        found = [(path.name.removeprefix("tp"), path) for path in self.folder.glob("tp*") if path.is_dir()]
        return sorted((int(number), path) for number, path in found if number.isdigit())

    def source(self, kernel: str) -> Source:
        """Where rows of a kernel come from."""
        return Source(PUBLISHER, self.gpu, "vllm", self.version, kernel)


def find_profiles(data: Path) -> list[Profile]:
    """Every profile in or below `data`, in order of their folders.

    Raises:
        DataError: a `meta.yaml` beside profiled layers cannot be read or lacks a key.
    """
    folders = [path.parent for path in sorted(data.rglob(META)) if any(path.parent.glob("tp*/*.csv"))]
    return [_profile(folder) for folder in folders]


def profiles_of(data: Path, device: str) -> list[Profile]:
    """The profiles in or below `data` of a device and of shipped models.

    Folders of GPUs go on from the device's name, by letters and digits alone (`RTXPRO6000` is rtx-pro-6000).

    Raises:
        DataError: there are none, or as `find_profiles`.
    """
    found = find_profiles(data)
    own = [item for item in found if item.model and _plain(item.hardware).startswith(_plain(device))]
    if not own:
        known = ", ".join(sorted({item.hardware for item in found})) or "none"
        raise DataError(str(data), f"must hold LLMServingSim's profiles of {device} (there are: {known})", 0)
    return own


def read_elementwise(data: Path, device: str) -> Measured[OperatorTable]:
    """Elementwise layers of all models that were profiled on a device; groups are layers of a model, however sharded.

    Samplers are left out: what they run depends on how requests ask for tokens, which is not published.

    Raises:
        DataError: as `profiles_of` and `read_profile`.
    """
    parts = [
        measured.take(np.flatnonzero(measured.labels["layer"] != SAMPLER))
        for profile in profiles_of(data, device)
        for measured in read_profile(profile)
        if measured.source.kernel.startswith("elementwise")
    ]
    rows = _in_order(data, "dense.csv", parts)
    model = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return replace(rows, group=group_numbers([model, rows.labels["layer"]]))


def read_routed(data: Path, device: str) -> Measured[OperatorTable]:
    """Experts of all models that were profiled on a device, those whose weights come from DRAM.

    Groups are numbers of activated experts of a model: of few models there is a profile.

    Raises:
        DataError: as `profiles_of` and `read_profile`, or there are none.
    """
    found = [
        (number, part.take(np.flatnonzero(~stays_in_l2(part))))
        for number, profile in enumerate(profiles_of(data, device))
        for part in read_profile(profile)
        if part.source.kernel.startswith(EXPERTS)
    ]
    rows = _in_order(data, "moe.csv", [part for _, part in found])
    active = np.concatenate([(part.table.expert_tokens > 0).sum(axis=1) for _, part in found])
    model = np.repeat([number for number, _ in found], [len(part) for _, part in found])
    return replace(rows, group=group_numbers([model, active]))


def read_cold_products(data: Path, device: str) -> Measured[OperatorTable]:
    """Single products of all models that were profiled on a device; groups are layers of a shard.

    Of models with experts, only where tokens are enough to reach all of them: the weights of few experts leave those
    of the products in the L2 cache, as the profiler runs models of one layer.

    Raises:
        DataError: as `profiles_of` and `read_profile`.
    """
    parts: list[Measured[OperatorTable]] = []
    for profile in profiles_of(data, device):
        experts = OperatorPlan(load_model(str(profile.model))).experts
        least = 0 if experts is None else _TOKENS_PER_EXPERT * experts.slots // experts.block.top_k
        products = [part for part in read_profile(profile) if part.source.kernel.startswith("gemm")]
        parts += [part.take(np.flatnonzero(part.labels["tokens"] >= least)) for part in products]
    return _in_order(data, "dense.csv", parts)


def _in_order(data: Path, file: str, parts: Sequence[Measured[OperatorTable]]) -> Measured[OperatorTable]:
    """The rows of all parts; groups of two parts are distinct.

    Raises:
        DataError: there are none.
    """
    kept = [part for part in parts if len(part)]
    if not kept:
        raise DataError(str(data), f"must hold rows of {file} in profiles of shipped models", 0)
    return joined_sets(kept)


def stays_in_l2(experts: Measured[OperatorTable]) -> NDArray[np.bool_]:
    """bool[row]: which rows read weights that L2 may keep from one repetition to the next, unlike those of a model."""
    kept: NDArray[np.bool_] = experts.table.weight_bytes_read <= _L2_BYTES
    return kept


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _profile(folder: Path) -> Profile:
    from moesim.configs.loader import read_yaml

    file = folder / META
    held = read_yaml(file).data
    needed = ("hardware", "gpu", "model", "vllm_version")
    missing = [key for key in needed if not isinstance(held, dict) or not isinstance(held.get(key), str)]
    if missing:
        raise DataError(str(file), f"must have the keys {', '.join(needed)}, with texts", f"no {missing[0]}")
    name = held["model"].rsplit("/", 1)[-1]
    return Profile(folder, held["hardware"], held["gpu"], _shipped_model(name), name, held["vllm_version"])


def _shipped_model(name: str) -> str | None:
    """The shipped model whose name begins that of a published one, the longest if there are several."""
    lower = name.lower()
    return max((known for known in shipped("models") if lower.startswith(known)), key=len, default=None)


def read_profile(profile: Profile) -> list[Measured[OperatorTable]]:
    """Products, elementwise layers and experts of all its shards, an entry each; groups are layers of a shard.

    Labels: `layer`, `tokens` (sequences, for layers that run per sequence), `kernel` (the layer too).

    Raises:
        DataError: a file lacks a column, or has a time that is not above 0.
        InputError: no shipped model has the profile's name.
    """
    if profile.model is None:
        raise InputError(str(profile.folder), "must be of a shipped model", profile.published_model)
    model = load_model(profile.model)
    parts: dict[str, list[_Rows]] = {}
    for shards, folder in profile.shards:
        plan = OperatorPlan(model, tp=shards)
        for kernel, rows in _layers(folder, plan, shards):
            parts.setdefault(kernel, []).append(rows)
        if (folder / "moe.csv").is_file() and plan.experts is not None:
            parts.setdefault("experts", []).append(_experts(folder / "moe.csv", plan, shards))
    dtype = model.dtypes.weights
    return [_joined(profile.source(f"{kernel} {dtype}"), rows) for kernel, rows in parts.items()]


@dataclass(frozen=True)
class _Rows:
    """Rows of one kind of kernel and one shard."""

    table: OperatorTable
    time_s: Floats
    layer: Sequence[str]
    tokens: Ints
    shards: int


def _joined(source: Source, parts: Sequence[_Rows]) -> Measured[OperatorTable]:
    layer = np.concatenate([np.array(part.layer, dtype=np.str_) for part in parts])
    shards = np.concatenate([np.full(len(part.tokens), part.shards) for part in parts])
    labels = {"layer": layer, "tokens": np.concatenate([part.tokens for part in parts]), "kernel": layer}
    time_s = np.concatenate([part.time_s for part in parts])
    table = joined_tables([part.table for part in parts])
    return Measured(table, time_s, group_numbers([layer, shards]), source, labels)


def _layers(folder: Path, plan: OperatorPlan, shards: int) -> Iterator[tuple[str, _Rows]]:
    """Layers outside attention and experts: single products, and elementwise ones."""
    found = _dense_rows(folder)
    for kernel, names in (("gemm", PRODUCTS), ("elementwise", ELEMENTWISE)):
        chosen = [row for row in found if row[0] in names]
        if chosen:
            table = joined_tables(
                [_lowered(plan, names[layer], count, per_sequence=layer in _SAMPLES) for layer, count, _ in chosen]
            )
            layers, tokens, time_us = zip(*chosen, strict=True)
            yield kernel, _Rows(table, np.array(time_us) * _S_PER_US, layers, np.array(tokens, np.int64), shards)


def _dense_rows(folder: Path) -> list[tuple[str, int, float]]:
    """Layer, tokens (or sequences) and microseconds of the rows of both files."""
    rows: list[tuple[str, int, float]] = []
    for name in ("dense.csv", "per_sequence.csv"):
        if (folder / name).is_file():
            held = _read(folder / name)
            rows += zip(held.layer.astype(str), held.iloc[:, 1].astype(int), held.time_us.astype(float), strict=True)
    return rows


def _lowered(plan: OperatorPlan, operator: str, count: int, *, per_sequence: bool) -> OperatorTable:
    """The row of `operator` where `count` tokens of a prompt run, or as many sequences decode."""
    step = _step(np.ones(count, np.int64), 1) if per_sequence else _step(np.array([count], np.int64), 0)
    table = plan.lower(step)
    return table.take(np.flatnonzero(table.operator == table.operators.index(operator))[:1])


def _step(new_tokens: Ints, context: int) -> Step:
    cached, zeros = np.full_like(new_tokens, context), np.zeros_like(new_tokens)
    everyone = np.ones(len(new_tokens), np.bool_)
    return Step(np.arange(len(new_tokens)), zeros, new_tokens, cached, everyone, new_tokens + cached, zeros)


def _experts(file: Path, plan: OperatorPlan, shards: int) -> _Rows:
    """Experts of one layer; the pairs of tokens and experts are spread evenly over those that are activated."""
    rows = _read(file)
    assert plan.experts is not None  # the caller looked
    pairs = rows.tokens.to_numpy(np.int64) * plan.experts.block.top_k
    active = rows.activated_experts.to_numpy(np.int64)
    if (bad := np.flatnonzero((active < 1) | (active > plan.experts.slots))).size:
        place = f"{file}:{bad[0] + 2}: activated_experts"
        raise DataError(place, f"must be 1 to the model's {plan.experts.slots}", int(active[bad[0]]))
    tables = [_expert_row(plan, int(total), int(count)) for total, count in zip(pairs, active, strict=True)]
    layers = [EXPERTS] * len(rows)
    time_s = rows.time_us.to_numpy(np.float64) * _S_PER_US
    return _Rows(joined_tables(tables), time_s, layers, rows.tokens.to_numpy(np.int64), shards)


def _expert_row(plan: OperatorPlan, pairs: int, active: int) -> OperatorTable:
    assert plan.experts is not None  # else there are no rows
    tokens = np.zeros((len(plan.experts.layers), plan.experts.slots), np.int64)
    tokens[:, :active] = np.diff(np.linspace(0, pairs, active + 1).astype(np.int64))
    table = plan.lower(_step(np.array([max(pairs // plan.experts.block.top_k, 1)], np.int64), 0), tokens)
    return table.take(np.flatnonzero(table.operator == table.operators.index(EXPERTS))[:1])


def _read(file: Path) -> "pd.DataFrame":
    import pandas as pd

    columns = _FILES[file.name]
    try:
        rows = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise DataError(str(file), f"must be a CSV file ({error})") from None
    if list(rows.columns[: len(columns)]) != list(columns):
        raise DataError(str(file), f"must have the columns {', '.join(columns)}", ", ".join(map(str, rows.columns)))
    for column in columns:
        if column != "layer":
            values: Any = pd.to_numeric(rows[column], errors="coerce").to_numpy(np.float64)
            if (bad := np.flatnonzero(~(values > 0))).size:
                raise DataError(f"{file}:{bad[0] + 2}: {column}", "must be > 0", str(rows[column].iloc[bad[0]]))
    return rows
