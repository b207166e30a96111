"""`moesim trace capture`: run a model over texts, and say what was recorded."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moesim.cli.output import number, print_json, show, table
from moesim.cli.progress import progress_bar
from moesim.errors import InputError
from moesim.files import check_output
from moesim.workloads.capture.run import CaptureReport, capture
from moesim.workloads.capture.settings import CaptureSettings
from moesim.workloads.capture.summary import summarize_capture

_FLAGS = {
    "prompt_tokens": "--prompt",
    "decode_tokens": "--decode",
    "chunk_tokens": "--chunk",
    "attention_every": "--every",
}


def capture_command(
    model: str,
    texts: Sequence[Path],
    out: Path,
    attention: Path | None,
    settings: dict[str, Any],
    *,
    name: str | None,
    as_json: bool,
) -> None:
    """Capture, and print what the trace holds."""
    for flag, path in (("--out", out), ("--attention", attention)):
        if path is not None:
            check_output(flag, path, ".parquet")
    if attention is not None and attention.absolute() == out.absolute():
        raise InputError(f"--attention {attention}", "must be another file than --out")
    report = _capture(model, texts, out, attention, _checked(settings), name)
    summary = summarize_capture(report.trace, report.attention)
    if as_json:
        print_json({"model": model, "text": [str(path) for path in texts], **settings}, _results(report) | summary)
    else:
        _print(report, summary)


def _checked(settings: dict[str, Any]) -> CaptureSettings:
    try:
        return CaptureSettings(**settings)
    except InputError as error:
        raise InputError(_FLAGS.get(error.place, f"--{error.place}"), error.rule, error.got) from None


def _capture(
    model: str, texts: Sequence[Path], out: Path, attention: Path | None, settings: CaptureSettings, name: str | None
) -> CaptureReport:
    try:
        with progress_bar("capturing", 0, "tokens") as update:
            return capture(model, texts, out, settings, attention=attention, name=name, progress=update)
    except KeyboardInterrupt:
        sys.stderr.write(f"finished batches are kept in {out}.parts; the same command goes on from there\n")
        raise


def _results(report: CaptureReport) -> dict[str, Any]:
    return {
        "model": report.model,
        "requests": report.requests,
        "tokens": report.tokens,
        "captured_tokens": report.captured_tokens,
        "layers": report.layers,
        "experts": report.experts,
        "top_k": report.top_k,
        "trace": str(report.trace),
        "attention_trace": None if report.attention is None else str(report.attention),
    }


def _print(report: CaptureReport, summary: dict[str, Any]) -> None:
    shape = f"{report.layers} MoE layers, top {report.top_k} of {report.experts} experts"
    lines = [
        f"{report.model}: {shape}",
        f"{report.requests} requests, {report.tokens:,} tokens, {report.captured_tokens:,} of them run now",
    ]
    columns = ("max/mean load", "chosen by token id", "chosen by popularity")
    rows = table("MoE layer", *columns, right=columns)
    keys = ("max_over_mean_load", "token_hit_rate", "popularity_hit_rate")
    for layer, values in enumerate(zip(*(summary[key] for key in keys), strict=True)):
        rows.add_row(str(layer), *("-" if value is None else number(value) for value in values))
    saved = [f"saved to {report.trace}; use it with moesim simulate --routing {report.trace}"]
    if report.attention is not None:
        shown = [f"{value:.1%}" for value in summary["keys_95_share"]]
        saved.append(f"keys that hold 95 % of attention, by layer: {', '.join(shown)}; saved to {report.attention}")
    show("\n".join(lines), rows, "\n".join(saved))
