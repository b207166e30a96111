"""`moesim trace import`: read what other tools recorded, write a trace or a profile."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moesim.cli.output import print_json, show
from moesim.errors import ConfigError, InputError
from moesim.files import check_place
from moesim.workloads.importers import Imported, ImportOptions, import_routing
from moesim.workloads.routing_files import write_routing_profile, write_routing_trace
from moesim.workloads.routing_trace import RoutingTrace

_TRACE, _PROFILE = ".parquet", ".npz"
_FLAGS = {"format": "--format", "experts": "--experts", "top_k": "--top-k", "model": "--model", "files": "FILE"}


def import_command(
    files: Sequence[Path], name: str, output: Path, options: dict[str, Any], capture: Sequence[str], *, as_json: bool
) -> None:
    """Import `files` and write what they hold.

    Args:
        files: of one format and one model.
        name: the format.
        output: file to write.
        options: arguments of `ImportOptions` but `capture`.
        capture: `KEY=VALUE` texts.
        as_json: print JSON in place of a line.
    """
    check_place(output)
    if output.suffix not in {_TRACE, _PROFILE}:
        raise ConfigError(
            "--out", f"must end in {_TRACE} (trace) or {_PROFILE} (profile)", output.suffix or str(output)
        )
    try:
        found = import_routing(files, name, ImportOptions(**options, capture=_capture(capture)))
    except InputError as error:
        if error.place in _FLAGS:
            raise ConfigError(_FLAGS[error.place], error.rule, error.got) from None
        raise
    _write(found, name, output)
    facts = _facts(found)
    if as_json:
        print_json({"files": [str(file) for file in files], "format": name, **options}, facts, out=str(output))
    else:
        show(f"{facts['kind']}: " + ", ".join(f"{key} {value}" for key, value in facts.items() if key != "kind"))
        show(f"saved to {output}")


def _capture(pairs: Sequence[str]) -> dict[str, str]:
    wrong = next((pair for pair in pairs if "=" not in pair or pair.startswith("=")), None)
    if wrong is not None:
        raise ConfigError("--capture", "must be KEY=VALUE", wrong)
    return dict(pair.split("=", 1) for pair in pairs)


def _write(found: Imported, name: str, output: Path) -> None:
    suffix = _TRACE if isinstance(found, RoutingTrace) else _PROFILE
    if output.suffix != suffix:
        what = "a trace" if suffix == _TRACE else "a profile"
        raise ConfigError("--out", f"must end in {suffix}, because --format {name} gives {what} here", output.suffix)
    if isinstance(found, RoutingTrace):
        write_routing_trace(found, output)
    else:
        write_routing_profile(found, output)


def _facts(found: Imported) -> dict[str, Any]:
    sizes = {"model": found.model, "moe_layers": found.layers, "experts": found.experts, "top_k": found.top_k}
    if not isinstance(found, RoutingTrace):
        return {"kind": "profile", **sizes}
    decoded = int(found.phase.sum())
    counts = {"requests": len(found.names), "tokens": found.tokens, "decode_tokens": decoded}
    return {"kind": "trace", **sizes, **counts, "gate_weights": found.weight is not None}
