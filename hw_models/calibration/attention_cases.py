"""Which attention kernels were measured on what, and how each is laid out.

Layouts are those of the kernels' sources where these say so (FlashAttention packs the query heads of a KV head, and its
version 2 neither packs nor splits with a window or without grouped heads), and otherwise those that fit best.
These were chosen on all rows, so that errors on heads left out do not include the choice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.hw_models.attention_config import AttentionKernel
from moesim.hw_models.calibration.attention_fit import DECODE_SPACE, PREFILL_SPACE, US
from moesim.hw_models.calibration.fit import Free
from moesim.hw_models.calibration.measured import Measured
from moesim.workloads.operator_table import OperatorTable

_VLLM = ("a100-sxm", "h100-sxm", "h200-sxm", "rtx-pro-6000")
"""Devices on which vLLM's kernels were measured; those of other frameworks were on the H200."""
_BF16, _FP8 = ("bf16", "fp16"), ("fp8",)
_PREFILL: dict[str, Any] = {"phase": "prefill", "query_tile": 64, "key_tile": 64}
_DECODE: dict[str, Any] = {"phase": "decode", "query_tile": 64, "key_tile": 64}
_PACKED = {"packs_heads": True, "splits_keys": True}
_WHOLE = {"packs_heads": True, "splits_keys": False}
_SINGLE = {"packs_heads": False, "splits_keys": False}
_SINGLE_SPLIT = {"packs_heads": False, "splits_keys": True}
_START: dict[str, Any] = {"launch": US, "tile": US, "sustained": 0.5, "dram_sustained": 0.9}
_SHORT_NAMES = {
    "FlashAttention-2": "fa2",
    "FlashAttention-3": "fa3",
    "FlashAttention-4": "fa4",
    "Triton": "triton",
    "FlashInfer": "flashinfer",
    "Fused attention": "fmha",
    "XQA": "xqa",
    "Masked multi-head attention": "mmha",
    "Latent attention": "latent",
}
_FA4_SEQUENCES = 992
"""Sequences up to which FlashAttention's scheduler kernel plans splits (31 per warp, 32 warps)."""
_FA4_SPLITS = 32
"""Parts in which it splits the keys of a sequence at most, by the rates of one and two long ones."""
_SHORT_PROMPTS = {"bf16": 512, "fp8": 128}
"""Most new tokens per sequence with which vLLM's latent attention (FlashAttention, FlashMLA) runs a prompt as it runs
decodes, in the latent space."""
_ANY_QUERIES = 2**31
_BLOCK = ("block", Free(0.5 * US, 1e-3 * US, 20 * US))
_SPLIT_ALIKE = (
    ("resident", Free(2.0, 1.0, 16.0)),
    ("whole_waves", Free(0.5, 1e-3, 1.0)),
    ("merge", Free(US, 0.01 * US, 20 * US)),
    ("merge_tile", Free(0.01 * US, 1e-4 * US, US)),
)
"""Of a kernel that cuts all sequences alike while tiles are few."""
_SPLIT_FILL = ("split_fill", Free(0.9, 0.1, 1.0))


@dataclass(frozen=True)
class Case:
    """One measured kernel: its layout, which rows are its own, and what is fitted beside the usual."""

    kernel: AttentionKernel
    measured_as: str = ""  # part of the data's kernel names
    activations: str | None = None  # format of queries; None for any
    extra: tuple[tuple[str, Free], ...] = ()
    without: tuple[str, ...] = ("sort",)

    @property
    def fit(self) -> str:
        """Name of the calibration, such as decode_mmha_fp8_single_heads."""
        kernel, cache, *rest = self.kernel.name.split(", ")
        short = next(short for name, short in _SHORT_NAMES.items() if kernel.startswith(name))
        return "_".join([self.kernel.phase, short, cache.split()[0], *(part.replace(" ", "_") for part in rest)])

    def space(self) -> dict[str, Free]:
        """What is fitted."""
        space = dict(PREFILL_SPACE if self.kernel.phase == "prefill" else DECODE_SPACE) | dict(self.extra)
        if "fp8" in self.kernel.cache:
            start = space["sustained"]
            space["sustained"] = Free(start.start, start.low, 2.0)
        splits = self.kernel.splits_keys or self.kernel.part_keys or self.kernel.split_tiles
        unused = (*self.without, *(() if splits else ("merge",)))
        return {name: free for name, free in space.items() if name not in unused}

    def rows_of(self, measured: Measured[OperatorTable]) -> NDArray[np.int64]:
        """The rows that ran on this kernel."""
        kernel, labels = self.kernel, measured.labels
        cache = "fp8" if "fp8" in kernel.cache else "bf16"
        own = (labels["cache"] == cache) & (np.char.find(labels["kernel"], self.measured_as) >= 0)
        if self.activations is not None:
            own &= labels["activations"] == self.activations
        own &= (labels["tokens"] >= kernel.queries[0]) & (labels["tokens"] <= kernel.queries[1])
        if kernel.latent:
            return np.flatnonzero(own)
        group = labels["heads"] / np.maximum(labels["kv_heads"], 1)
        limited = labels["window"] > 0
        own &= (labels["head_dim"] >= kernel.head_dim[0]) & (labels["head_dim"] <= kernel.head_dim[1])
        own &= (group >= kernel.heads_per_kv_head[0]) & (group <= kernel.heads_per_kv_head[1])
        own &= {"any": True, "none": ~limited, "only": limited}[kernel.window]
        return np.flatnonzero(own)


def _case(name: str, cache: tuple[str, ...], layout: dict[str, Any], **others: Any) -> Case:
    given = _START | layout | others
    own = {key: given.pop(key) for key in ("measured_as", "activations", "extra", "without") if key in given}
    kernel = AttentionKernel(name=name, source="fitted", cache=cache, **given)
    return Case(kernel, **own)


def cases(device: str, framework: str) -> list[Case]:
    """The kernels measured on a device with a framework, in order of preference; empty where there are none."""
    if framework == "vllm" and device == "a100-sxm":
        return list(_flash_attention_2("vllm_flash_attn"))
    if framework == "vllm" and device == "rtx-pro-6000":
        return [*_flash_attention_2("vllm_flash_attn_fa2"), *_flash_infer()]
    if framework == "vllm" and device in _VLLM:
        return [*_flash_attention_3("vllm_flash_attn_fa3"), *_flash_attention_4(), *_latent(device, framework)]
    if device != "h200-sxm":
        return []
    if framework == "sglang":
        return [*_flash_attention_3("fa3"), *_triton(), *_latent(device, framework)]
    return [*_trtllm(), *_latent(device, framework)] if framework == "trtllm" else []


def _flash_attention_3(measured_as: str) -> Iterator[Case]:
    wide = {"head_dim": (1, 256), "measured_as": measured_as}
    together = measured_as.startswith("vllm")  # vLLM runs a mixed step as one call; SGLang does not mix
    # Windows on wide heads are left to Triton in SGLang.
    apart: dict[str, dict[str, Any]] = {"": {"window": "none"}, ", windows": {"head_dim": (1, 192), "window": "only"}}
    for cache in (_BF16, _FP8):
        for text, limits in ({"": {}} if together else apart).items():
            name, own = f"FlashAttention-3, {cache[0]} cache{text}", wide | limits
            prefill = _PREFILL | _PACKED | {"query_tile": 128, "takes_decodes": together}
            yield _case(name, cache, prefill, **own, without=("sort", "merge"), merge=2 * US)
            yield _case(name, cache, _DECODE | _PACKED, **own, without=())


def _flash_attention_4() -> Iterator[Case]:
    wide = {"head_dim": (257, 512), "measured_as": "vllm_flash_attn_fa4"}
    name = "FlashAttention-4, bf16 cache"
    yield _case(name, _BF16, _PREFILL | _SINGLE | {"takes_decodes": True}, **wide)
    planning = (
        ("sequence", Free(0.1 * US, 1e-3 * US, 20 * US)),
        ("sort", Free(1e-3 * US, 1e-6 * US, 0.1 * US)),
        ("sort_head", Free(1e-4 * US, 1e-7 * US, 1e-2 * US)),
    )
    limited = {"query_tile": 16, "scheduled_sequences": _FA4_SEQUENCES, "max_splits": _FA4_SPLITS}
    yield _case(name, _BF16, _DECODE | _PACKED | limited, **wide, extra=(*planning, _BLOCK), without=("head",))


def _flash_attention_2(measured_as: str) -> Iterator[Case]:
    name = "FlashAttention-2, bf16 cache"
    yield _case(name, _BF16, _PREFILL | _SINGLE | {"takes_decodes": True}, measured_as=measured_as)
    grouped = {"heads_per_kv_head": (2, 1024), "window": "none"}
    yield _case(f"{name}, grouped heads", _BF16, _DECODE | _PACKED | grouped, measured_as=measured_as)
    single = _DECODE | _SINGLE | {"query_tile": 16}
    yield _case(f"{name}, single heads", _BF16, single | {"heads_per_kv_head": (1, 1)}, measured_as=measured_as)
    windows = single | {"heads_per_kv_head": (2, 1024), "window": "only"}
    if measured_as.endswith("fa2"):
        yield _case(f"{name}, windows", _BF16, windows, measured_as=measured_as)


def _flash_infer() -> Iterator[Case]:
    triton = {"head_dim": (129, 192), "measured_as": "vllm_triton_attn"}
    yield _case("Triton, fp8 cache", _FP8, _PREFILL | _WHOLE | {"takes_decodes": True}, **triton)
    # Up to 128 tiles, it cuts every sequence in 16 parts; keys of 16 tokens a block (triton_unified_attention.py).
    split = {"query_tile": 16, "key_tile": 16, "split_tiles": 128, "max_splits": 16, "extra": (_BLOCK, *_SPLIT_ALIKE)}
    yield _case("Triton, fp8 cache", _FP8, _DECODE | _WHOLE | split, **triton)
    flash = {"head_dim": (1, 256), "measured_as": "vllm_flashinfer"}
    yield _case("FlashInfer, fp8 cache", _FP8, _PREFILL | _WHOLE | {"query_tile": 128}, **flash)
    yield _case("FlashInfer, fp8 cache", _FP8, _DECODE | _PACKED, **flash)


def _triton() -> Iterator[Case]:
    outside = (("outside_window", Free(0.3, 1e-3, 1.0)),)
    shapes: tuple[tuple[str, dict[str, Any], tuple[Any, ...]], ...] = (
        ("windows", {"head_dim": (193, 256), "window": "only"}, outside),
        ("wide heads", {"head_dim": (257, 512), "query_tile": 32}, ()),
    )
    for cache in (_BF16, _FP8):
        name = f"Triton, {cache[0]} cache"
        for text, limits, extra in shapes:
            for bits, queries in ((0, "bf16"),) if cache is _BF16 else ((16, "bf16"), (8, "fp8")):
                own = limits | {"query_bits": bits, "measured_as": "triton", "activations": queries, "extra": extra}
                yield _case(f"{name}, {text}" + f", {bits}-bit queries" * (bits > 0), cache, _PREFILL | _SINGLE | own)
        tiles = {"query_tile": 16, "key_tile": 32, "head_dim": (193, 512), "measured_as": "triton", "extra": (_BLOCK,)}
        # Heads of their own are multiplied outside the tensor cores.
        yield _case(f"{name}, single heads", cache, _DECODE | _SINGLE | tiles | {"heads_per_kv_head": (1, 1)})
        yield _case(f"{name}, grouped heads", cache, _DECODE | _WHOLE | tiles | {"heads_per_kv_head": (2, 1024)})


def _trtllm() -> Iterator[Case]:
    """XQA splits keys by their number alone; it has other kernels for an fp8 cache on Hopper, but for narrow heads."""
    planned = (_BLOCK, ("parts_per_multiprocessor", Free(8.0, 1.0, 32.0)), ("whole_waves", Free(0.5, 1e-3, 1.0)))
    xqa = _DECODE | _WHOLE | {"part_keys": 128, "heads_per_kv_head": (2, 32), "extra": planned}
    few, many = {"heads_per_kv_head": (2, 8)}, {"heads_per_kv_head": (9, 32)}
    for cache in (_BF16, _FP8):
        yield _case(f"Fused attention, {cache[0]} cache", cache, _PREFILL | _SINGLE)
        name = f"XQA, {cache[0]} cache"
        if cache is _BF16:
            yield _case(name, cache, xqa)
        else:
            yield _case(f"{name}, narrow heads", cache, xqa | {"head_dim": (1, 64), "query_tile": 16})
            yield _case(name, cache, xqa | few | {"head_dim": (65, 1024), "query_tile": 16})
            yield _case(f"{name}, more heads", cache, xqa | many | {"head_dim": (65, 1024), "query_tile": 16})
        name = f"Masked multi-head attention, {cache[0]} cache"
        single = _DECODE | _SINGLE_SPLIT | {"query_tile": 16, "extra": (_BLOCK, _SPLIT_FILL)}
        yield _case(f"{name}, single heads", cache, single | {"heads_per_kv_head": (1, 1)})
        yield _case(f"{name}, wide groups", cache, single | {"heads_per_kv_head": (33, 1024)})


def _latent(device: str, framework: str) -> Iterator[Case]:
    """Latent attention, measured on the H200 only; vLLM's without CUDA graphs."""
    if device != "h200-sxm":
        return
    if framework == "vllm":
        yield from _latent_of_vllm()
        return
    absorbs = framework == "sglang"
    for cache in (_BF16, _FP8):
        name = f"Latent attention of {framework}, {cache[0]} cache"
        prefill = _PREFILL | (_WHOLE if absorbs else _SINGLE) | {"query_tile": 128, "latent": True, "absorbs": absorbs}
        yield _case(name, cache, prefill)
        tiles = {"key_tile": 128 if framework == "trtllm" else 64, "latent": True}
        yield _case(name, cache, _DECODE | _PACKED | tiles)


def _latent_of_vllm() -> Iterator[Case]:
    """Measured without CUDA graphs; a launch that hides behind the host's time cannot be fitted."""
    floor = ("floor", Free(130 * US, 80 * US, 300 * US))
    token = ("token", Free(1e-3 * US, 1e-6 * US, US))
    fixed: dict[str, Any] = {"without": ("sort", "launch", "launch_per_element"), "launch": 10 * US, "latent": True}
    for cache in (_BF16, _FP8):
        name, limit = f"Latent attention of vllm, {cache[0]} cache", _SHORT_PROMPTS[cache[0]]
        prefill = _PREFILL | fixed | {"query_tile": 128, "extra": (floor, token)}
        short = _WHOLE | {"absorbs": True, "queries": (1, limit)}
        yield _case(f"{name}, short prompts", cache, prefill | short)
        yield _case(name, cache, prefill | _SINGLE | {"queries": (limit + 1, _ANY_QUERIES)})
        tiles = {"query_tile": 64 if cache is _BF16 else 128, "extra": (floor, _BLOCK, _SPLIT_FILL)}
        yield _case(name, cache, _DECODE | _PACKED | fixed | tiles)


def data_file(folder: Path, framework: str, case: Case) -> Path:
    """The file that holds a case's rows.

    Args:
        folder: of a GPU, in aiconfigurator's layout.
        framework: vllm, sglang or trtllm.
        case: a kernel.

    Raises:
        DataError: there is none, or one of each of several versions.
    """
    kind = "mla" if case.kernel.latent else "attention"
    phase = "context" if case.kernel.phase == "prefill" else "generation"
    pattern = f"{kind}/{framework}/*/{phase}_{kind}_perf.parquet"
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(str(folder), f"must hold one {pattern}", len(found))
    return found[0]
