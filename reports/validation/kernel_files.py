"""Finds measured kernels in folders as their publishers lay them out, and reads them.

aiconfigurator: any folder in which `<gpu>/<operation>/<framework>/<version>/*_perf.parquet` lies, at any depth.
LLMServingSim: any folder with profiles, at any depth (see `calibration.llmservingsim`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moesim.configs.loader import shipped
from moesim.errors import DataError
from moesim.hw_models.calibration.aiconfigurator import read_experts, read_products
from moesim.hw_models.calibration.attention_rows import read_attention, read_latent_attention, read_mixed_attention
from moesim.hw_models.calibration.link_readers import read_custom_all_reduce, read_deepep, read_nccl
from moesim.hw_models.calibration.llmservingsim import (
    EXPERTS_KERNELS,
    Profile,
    find_profiles,
    read_profile,
    stays_in_l2,
)
from moesim.hw_models.calibration.measured import NOT_TUNED, Measured
from moesim.workloads.attention_blocks import GroupedQueryAttention
from moesim.workloads.models import load_model

OPERATORS = ("gemm", "moe", "attention", "mla", "comm", "elementwise")
"""Kinds of kernels; folders of aiconfigurator have these names, `elementwise` is in LLMServingSim's profiles alone."""
_READERS = {"gemm": read_products, "moe": read_experts}
_ATTENTION = {"attention": read_attention, "mla": read_latent_attention}
_PHASES = {"context": "prefill", "generation": "decode"}
_PROFILE_OPS = {"gemm": "gemm", "elementwise": "elementwise", "experts": "moe"}
_FITTED_TOGETHER = ("elementwise", "mixed_attention")
"""Kinds in profiles to which one fit is made over all models."""
_LEVELS = 4
"""Folders from a GPU's down to a table."""


@dataclass(frozen=True)
class GpuData:
    """Measurements of one GPU that ships as a device.

    Attributes:
        gpu: name of the device.
        folders: of aiconfigurator's tables.
        profiles: of LLMServingSim.
    """

    gpu: str
    folders: tuple[Path, ...]
    profiles: tuple[Profile, ...]


@dataclass(frozen=True)
class MeasuredSet:
    """Rows of one kernel under the names by which errors are told.

    Attributes:
        op: such as `gemm` or `decode_attention`.
        framework: whose kernel ran, as its folder is called.
        model: number format, or kernel.
        measured: operators or collectives.
        published: rows of the whole set that the publisher's kernel has, of which these are a part.
    """

    op: str
    framework: str
    model: str
    measured: Measured[Any]
    published: int


def find_gpus(data: Path) -> tuple[list[GpuData], list[str]]:
    """Measurements by GPU; and what was found that nothing can be held against, with the reason.

    Raises:
        DataError: `data` is no folder, or holds no measurements.
    """
    if not data.is_dir():
        raise DataError(str(data), "must be a folder")
    operations = _operations(data.resolve())
    profiles = find_profiles(data)
    if not operations and not profiles:
        rule = "must hold <gpu>/<operation>/<framework>/<version>/*_perf.parquet or <gpu>/<model>/<format>/meta.yaml"
        raise DataError(str(data), rule)
    folders: dict[str | None, list[Path]] = {}
    for folder in operations:
        folders.setdefault(device_of(folder.name), []).append(folder)
    known: dict[str | None, list[Profile]] = {}
    for profile in profiles:
        known.setdefault(device_of(profile.hardware) if profile.model else None, []).append(profile)
    left_out = [f"{folder}: no device ships with that name" for folder in folders.pop(None, [])]
    left_out += [f"{profile.folder}: no device or model ships with that name" for profile in known.pop(None, [])]
    left_out += _without_reader(operations)
    names = sorted(name for name in {*folders, *known} if name is not None)
    gpus = [GpuData(name, tuple(folders.get(name, ())), tuple(known.get(name, ()))) for name in names]
    return gpus, left_out


def _operations(data: Path) -> dict[Path, set[str]]:
    """Operations of which there are tables, by folder of a GPU."""
    found: dict[Path, set[str]] = {}
    for path in sorted(data.rglob("*_perf.parquet")):
        if len(path.parents) >= _LEVELS:
            found.setdefault(path.parents[_LEVELS - 1], set()).add(path.parents[_LEVELS - 2].name)
    return found


def _without_reader(operations: dict[Path, set[str]]) -> Iterator[str]:
    for folder, names in operations.items():
        if device_of(folder.name) is not None:
            yield from (f"{folder / name}: no reader of these kernels" for name in sorted(names - set(OPERATORS)))


def device_of(name: str) -> str | None:
    """The shipped device whose name begins `name`, by letters and digits alone; the longest of several."""
    plain = _plain(name)
    return max((device for device in shipped("devices") if plain.startswith(_plain(device))), key=len, default=None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def read_sets(found: GpuData, operators: Sequence[str]) -> Iterator[MeasuredSet]:
    """Every set of rows of one GPU.

    Raises:
        DataError: a file cannot be read, or breaks a rule.
    """
    for folder in found.folders:
        for op in operators:
            if op in _READERS and (folder / op).is_dir():
                for measured in _READERS[op](folder):
                    dtype = measured.source.kernel.split()[-1]
                    yield from _by_tuning(MeasuredSet(op, measured.source.framework, dtype, measured, len(measured)))
            elif op in _ATTENTION:
                yield from _attention(folder, op)
            elif op == "comm":
                yield from _collectives(folder)
    of_profiles = [one for profile in found.profiles for one in _profile(profile, operators)]
    for one in of_profiles:
        if one.op in _FITTED_TOGETHER:
            together = sum(len(other.measured) for other in of_profiles if other.op == one.op)
            yield replace(one, published=together)
        else:
            yield one


def _attention(folder: Path, op: str) -> Iterator[MeasuredSet]:
    """A set per phase, kernel and cache format."""
    for path in sorted((folder / op).glob("*/*/*_perf.parquet")):
        phase = _PHASES.get(path.name.split("_")[0])
        if path.name not in {f"{name}_{op}_perf.parquet" for name in _PHASES} or phase is None:
            continue
        measured = _ATTENTION[op](path)
        labels = measured.labels
        names = np.char.add(np.char.add(labels["kernel"], " "), labels["cache"])
        whole = replace(measured, labels=labels | {"model": names})
        yield from _parts(MeasuredSet(f"{phase}_{op}", path.parent.parent.name, "", whole, len(whole)), "model")


def _collectives(folder: Path) -> Iterator[MeasuredSet]:
    """A set per collective of NCCL, vLLM's own all-reduce, and DeepEP's kernels."""
    if any(folder.glob("comm/nccl/*/nccl_perf.parquet")):
        both = read_nccl(folder)
        for measured in both:
            for part in _parts(MeasuredSet("", "nccl", "", measured, sum(map(len, both))), "kind"):
                yield replace(part, op=part.model.replace("alltoall", "all_to_all"), model="nccl")
    if any(folder.glob("comm/vllm/*/custom_allreduce_perf.parquet")):
        custom = read_custom_all_reduce(folder)
        yield MeasuredSet("all_reduce", "vllm", "custom", custom, len(custom))
    for name, low_latency in (("normal", False), ("ll", True)):
        if any(folder.glob(f"comm/sglang/*/wideep_deepep_{name}_perf.parquet")):
            ways = read_deepep(folder, low_latency=low_latency)
            for way, measured in zip(("dispatch", "combine"), ways, strict=True):
                model = "low latency" if low_latency else "normal"
                yield MeasuredSet(f"deepep_{way}", "sglang", model, measured, sum(map(len, ways)))


def _profile(profile: Profile, operators: Sequence[str]) -> Iterator[MeasuredSet]:
    """Layers of one profile of LLMServingSim, and its mixed steps of attention."""
    assert profile.model is not None  # others are left out
    for measured in read_profile(profile):
        op = _PROFILE_OPS[measured.source.kernel.split()[0]]
        if op == "moe" and op in operators:
            yield from _profiled_experts(profile.model, measured)
        elif op in operators:
            yield MeasuredSet(op, "vllm", profile.model, measured, len(measured))
    first = load_model(profile.model).layers[0].attention
    if "attention" not in operators or not isinstance(first, GroupedQueryAttention):
        return
    for shards, folder in profile.shards:
        if (folder / "attention.csv").is_file():
            heads = first.heads // shards, max(1, first.kv_heads // shards), first.head_dim
            measured = read_mixed_attention(folder / "attention.csv", *heads)
            measured = replace(measured, source=profile.source(measured.source.kernel))
            model = f"{profile.model} tp{shards}"
            yield MeasuredSet("mixed_attention", "vllm", model, measured, len(measured))


def _profiled_experts(model: str, measured: Measured[Any]) -> Iterator[MeasuredSet]:
    """Experts whose weights come from DRAM, and apart from them those that L2 may keep, of which no fit was made."""
    kept = stays_in_l2(measured)
    for name, rows in ((model, ~kept), (f"{model} in L2", kept)):
        part = measured.take(np.flatnonzero(rows))
        if len(part):
            yield MeasuredSet("moe", EXPERTS_KERNELS, name, part, len(part))


def _by_tuning(whole: MeasuredSet) -> Iterator[MeasuredSet]:
    """The rows of kernels as they are meant, and apart from them those that were not tuned for their shape, if any."""
    broken = whole.measured.labels.get(NOT_TUNED, np.zeros(len(whole.measured), np.bool_))
    yield replace(whole, measured=whole.measured.take(np.flatnonzero(~broken))) if broken.any() else whole
    if broken.any():
        measured = whole.measured.take(np.flatnonzero(broken))
        source = replace(measured.source, kernel=f"{measured.source.kernel}, {NOT_TUNED}")
        yield replace(whole, model=f"{whole.model} {NOT_TUNED}", measured=replace(measured, source=source))


def _parts(whole: MeasuredSet, label: str) -> Iterator[MeasuredSet]:
    """The rows of each value of a label, as sets of their own."""
    values = whole.measured.labels[label]
    for value in np.unique(values):
        yield replace(whole, model=str(value), measured=whole.measured.take(np.flatnonzero(values == value)))
