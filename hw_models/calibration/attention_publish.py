"""Fitted attention kernels as the text of a device YAML."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from moesim.hw_models.attention_config import AttentionKernel
from moesim.hw_models.parameters import quantity_text
from moesim.workloads.operator_table import OperatorTable

_SECONDS = (
    *("floor", "launch", "launch_per_element", "sequence", "token", "sort", "sort_head", "head"),
    *("tile", "tile_per_element", "block", "merge", "merge_tile", "decode_block", "idle_tile", "late"),
)
_UNITS = dict.fromkeys(_SECONDS, "s") | {"kept": "B", "shared": "B", "late_bytes": "B", "kept_bandwidth": "B/s"}
_FOR = ("cache", "latent", "head_dim", "heads_per_kv_head", "window", "query_bits", "queries")
_LAYOUT = (
    *("query_tile", "key_tile", "packs_heads", "splits_keys", "takes_decodes", "absorbs"),
    *("max_splits", "part_keys", "split_tiles", "scheduled_sequences"),
)
_FITS = ("fit", "mixed_fit", "late_fit")
_DIGITS = 4


def kernel_lines(kernel: AttentionKernel) -> Iterator[str]:
    """The kernel as a YAML list item in flow style; values that are the defaults are left out."""
    defaults = {name: field.default for name, field in AttentionKernel.model_fields.items()}
    given = {name: value for name, value in kernel if value != defaults[name]}
    head = {name: given.pop(name) for name in ("name", "phase", "source", *_FITS) if name in given}
    yield f"- name: {_quoted(head['name'])}"
    yield f"  phase: {head['phase']}"
    yield f"  source: {_quoted(head['source'])}"
    for name in _FITS:
        if name in head:
            yield f"  {name}: {head[name]}"
    for names in (_FOR, _LAYOUT, tuple(given)):
        for name in names:
            if name in given:
                yield f"  {name}: {_text(name, given.pop(name))}"


def valid_of(table: OperatorTable) -> dict[str, tuple[float, float]]:
    """Least and greatest tokens, FLOPs and bytes of attention rows, to three digits away from the middle."""
    columns = {"m": table.m, "flops": table.flops, "bytes": table.read_bytes + table.write_bytes}
    return {
        name: (_rounded(column.min(), down=True), _rounded(column.max(), down=False))
        for name, column in columns.items()
    }


def _rounded(value: float, *, down: bool) -> float:
    digits = 10.0 ** (np.floor(np.log10(max(value, 1.0))) - 2)
    whole = (np.floor if down else np.ceil)(value / digits) * digits
    return float(f"{whole:.3g}")


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(str(item) for item in value)}]"
    if isinstance(value, float):
        number = float(f"{value:.{_DIGITS - 1}g}")
        return quantity_text(number, _UNITS.get(name, ""))
    return str(value)


def _quoted(text: str) -> str:
    return f'"{text}"'
