"""`moesim roofline` and `moesim latency`: check what was asked for, compute, draw, save."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moesim.cli.output import print_json, show
from moesim.configs.documents import Document
from moesim.errors import ConfigError, InputError
from moesim.hw_models.device import Device, load_device
from moesim.reports import latency
from moesim.reports.latency_figure import FIGURES, latency_figure
from moesim.reports.roofline import Point, Roofline, plotted_steps, rooflines
from moesim.reports.roofline_figure import roofline_figure
from moesim.reports.style import check_output, save
from moesim.simulator.parallelism import Parallelism, check_parallelism
from moesim.workloads.models import load_model

_MOST_BATCHES, _MOST_DEVICES = 10, 6
"""More would neither be told apart nor fit."""
_ALL = "all"
_WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")


def roofline_command(
    model: str, hardware: str, batch: str, out: Path, *, context: int, prompt: int, tp: int, as_json: bool
) -> None:
    """Draw the operators of decode and prefill steps under the roofs of devices."""
    check_output(out)
    batches = _batches(batch)
    steps = plotted_steps(batches, context, prompt)
    loaded = load_model(Document("--model", model))
    check_parallelism(loaded, Parallelism(tp=tp), "--tp")
    devices = [_device(name) for name in _names("--hardware", hardware, _MOST_DEVICES)]
    panels = rooflines(loaded, devices, steps, tp=tp)
    save(roofline_figure(panels), out)
    settings = {
        "model": loaded.name,
        "hardware": [panel.device for panel in panels],
        "batches": batches,
        "context_tokens": context,
        "prompt_tokens": prompt,
        "tp": tp,
        "routing": "uniform",
    }
    _finish(out, settings, {"devices": [_panel_facts(panel) for panel in panels]}, as_json=as_json)


def latency_command(folders: Sequence[Path], out: Path, *, figure: str, as_json: bool) -> None:
    """Draw where the time of saved runs went."""
    check_output(out)
    figures = _figures(figure)
    runs = latency.load_runs(folders)
    save(latency_figure(runs, figures), out)
    settings = {
        "figures": figures,
        "runs": [
            {"run": run.label, "folder": str(folder), "description": run.description}
            for run, folder in zip(runs, folders, strict=True)
        ],
    }
    _finish(out, settings, {run.label: _run_facts(run, figures) for run in runs}, as_json=as_json)


def _finish(out: Path, settings: dict[str, Any], results: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(settings, results, out=str(out))
    else:
        show(f"saved to {out}")


# --- what was asked for ------------------------------------------------------------------------------------------


def _names(flag: str, text: str, most: int) -> list[str]:
    """The distinct names in a list with commas."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names) or len(names) > most:
        raise ConfigError(flag, f"must be 1 to {most} names separated by commas", text)
    return names


def _batches(text: str) -> list[int]:
    """Batch sizes in ascending order."""
    parts = [part.strip() for part in text.split(",")]
    if not all(_WHOLE_NUMBER.fullmatch(part) and int(part) > 0 for part in parts):
        raise ConfigError("--batch", "must be whole numbers above 0, separated by commas, such as 1,16,128", text)
    batches = sorted({int(part) for part in parts})
    if len(batches) > _MOST_BATCHES:
        raise ConfigError("--batch", f"must be at most {_MOST_BATCHES} batch sizes", len(batches))
    return batches


def _device(name: str) -> Device:
    return load_device(Document("--hardware", name))


def _figures(figure: str) -> list[str]:
    if figure == _ALL:
        return list(FIGURES)
    if figure not in FIGURES:
        raise InputError("--figure", f"must be one of {', '.join((*FIGURES, _ALL))}", figure)
    return [figure]


# --- what was drawn ----------------------------------------------------------------------------------------------


def _panel_facts(panel: Roofline) -> dict[str, Any]:
    return {
        "device": panel.device,
        "title": panel.title,
        "memory_bytes": panel.memory_bytes,
        "weight_bytes_per_device": panel.weight_bytes,
        "roofs": [asdict(roof) for roof in panel.roofs],
        "points": [_point_facts(point) for point in panel.points],
    }


def _point_facts(point: Point) -> dict[str, Any]:
    return {
        "phase": point.step.phase,
        "sequences": point.step.sequences,
        "tokens": point.step.tokens,
        "kind": point.kind.label,
        "operators": point.operators,
        "executions": point.executions,
        "processors": [roof.processor for roof in point.roofs],
        "formats": [roof.format for roof in point.roofs],
        "flops": point.flops,
        "bytes": point.bytes,
        "time_s": point.time_s,
        "time_fraction": point.time_fraction,
        "intensity_flops_per_byte": point.intensity_flops_per_byte,
        "attained_flops_per_s": point.attained_flops_per_s,
        "roof_flops_per_s": point.roof_flops_per_s,
        "bound": point.bound,
        "extrapolated_time_fraction": point.extrapolated_fraction,
    }


def _run_facts(run: latency.Run, figures: Sequence[str]) -> dict[str, Any]:
    facts = {"steps": _step_facts, "layers": _layer_facts, "devices": _device_facts, "latency": _latency_facts}
    return {name: facts[name](run) for name in figures}


def _step_facts(run: latency.Run) -> dict[str, Any]:
    by_kind = latency.step_time_by_kind(run.result)
    return {
        "step_count": latency.steps(run.result),
        "step_mean_s": latency.mean_step_s(run.result),
        "waiting_per_step_s": latency.waiting_s(run.result),
        "time_per_step_by_kind_s": {kind.label: time_s for kind, time_s in by_kind.items()},
        "time_per_step_by_operator_s": latency.step_time_by_operator(run.result),
    }


def _layer_facts(run: latency.Run) -> dict[str, Any]:
    layers, time_s, outside_s = latency.step_time_by_layer(run.result)
    return {"layer": layers.tolist(), "time_per_step_s": time_s.tolist(), "outside_layers_s": outside_s}


def _device_facts(run: latency.Run) -> dict[str, Any]:
    shares = latency.device_shares(run.result)
    return {f"{activity}_fraction": values.tolist() for activity, values in shares.items()}


def _latency_facts(run: latency.Run) -> dict[str, Any]:
    """Times in ascending order; the i-th of n is reached by (i + 1) / n of the requests."""
    return {metric: latency.request_ecdf(run.result, metric)[0].tolist() for metric in ("ttft_s", "tpot_s")}
