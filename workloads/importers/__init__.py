"""Routing that other tools recorded, read into our traces and profiles.

`import_routing` is the way in; `FORMATS` says what there is. Nothing here unpickles: a file from elsewhere cannot run
code. What each tool writes, and which version of it was looked at, stands in the module of the format.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from moesim.errors import InputError
from moesim.workloads.importers.recorded import ImportOptions
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_trace import RoutingTrace

__all__ = ["FORMATS", "Format", "ImportOptions", "Imported", "import_routing"]

Imported = RoutingTrace | RoutingProfile
Reader = Callable[[Sequence[Path], ImportOptions], Imported]


class Format(NamedTuple):
    """A format that can be imported: where its reader is, and what it holds."""

    module: str
    reader: str
    gives: str
    holds: str


FORMATS = {
    "sglang": Format("sglang", "read_sglang", "trace or profile", "expert_distribution dumps, as JSON or npz"),
    "vllm": Format("vllm", "read_vllm", "trace", "responses with routed_experts, JSON or JSON lines, or npz"),
    "vllm-eplb": Format("vllm", "read_eplb", "profile", "expert_load_window of EPLB, npz or JSON"),
    "fingerprint": Format("fingerprint", "read_fingerprints", "trace", "GPT-OSS-MoE-ExpertFingerprinting, JSON"),
    "fractions": Format("load_tables", "read_fractions", "profile", "load fractions of requests by group, npz"),
    "loads": Format("load_tables", "read_loads", "profile", "a table of loads, layer by expert: CSV, JSON or npz"),
    "trace": Format("joined", "read_traces", "trace", "routing traces of moesim or gpt-oss npz, joined to one"),
}
"""By the name of the format."""


def import_routing(paths: Sequence[str | Path], name: str, options: ImportOptions | None = None) -> Imported:
    """Read files of one format into one trace or profile.

    Args:
        paths: files, at least one, all recorded with one model.
        name: a key of `FORMATS`.
        options: what the files do not say.

    Raises:
        InputError: an unknown format, no file, or an option that is missing.
        DataError: a file that is missing, cut off, a pickle, or breaks a rule; the message names file, row and rule.
    """
    if name not in FORMATS:
        raise InputError("format", f"must be one of {', '.join(FORMATS)}", name)
    if not paths:
        raise InputError("files", "at least one must be given")
    chosen = FORMATS[name]
    read: Reader = getattr(import_module(f"moesim.workloads.importers.{chosen.module}"), chosen.reader)
    return read([Path(path) for path in paths], options or ImportOptions())
