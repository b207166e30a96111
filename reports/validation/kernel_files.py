"""Finds measured kernels in folders as their publishers lay them out, and reads them.

aiconfigurator: any folder in which `<gpu>/<operation>/<framework>/<version>/*_perf.parquet` lies, at any depth.
LLMServingSim: any folder with profiles, at any depth (see `calibration.llmservingsim`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.configs.loader import shipped
from moesim.errors import DataError
from moesim.hw_models.calibration.aiconfigurator import read_experts, read_products
from moesim.hw_models.calibration.llmservingsim import Profile, find_profiles, read_profile
from moesim.hw_models.calibration.measured import Measured
from moesim.workloads.operator_table import OperatorTable

OPERATORS = ("gemm", "moe", "elementwise")
"""Kinds of kernels; folders of aiconfigurator have these names, `elementwise` is in LLMServingSim's profiles alone."""
_READERS = {"gemm": read_products, "moe": read_experts}
_PROFILE_OPS = {"gemm": "gemm", "elementwise": "elementwise", "experts": "moe"}
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
    """Rows of one kernel under the names by which errors are told."""

    op: str
    model: str
    measured: Measured[OperatorTable]


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
                    yield MeasuredSet(op, measured.source.kernel.split()[-1], measured)
    for profile in found.profiles:
        for measured in read_profile(profile):
            kernel, dtype = measured.source.kernel.split()
            if _PROFILE_OPS[kernel] in operators:
                yield MeasuredSet(_PROFILE_OPS[kernel], f"{profile.published_model} {dtype}", measured)


def parts(whole: MeasuredSet, label: str) -> Iterator[MeasuredSet]:
    """The rows of each value of a label, as sets of their own."""
    values = whole.measured.labels[label]
    for value in np.unique(values):
        yield MeasuredSet(whole.op, str(value), whole.measured.take(np.flatnonzero(values == value)))
