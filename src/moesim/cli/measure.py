"""`moesim measure`: time kernels on the GPU of this machine."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moesim.cli.output import print_json, seconds, show, si, table
from moesim.cli.progress import progress_bar
from moesim.errors import ConfigError, InputError
from moesim.files import check_output
from moesim.hw_models.measure.measured import About, MeasuredKernels, Measurement
from moesim.hw_models.measure.suite import Planned, all_problems, build, installed_vendors, plan, select

_RESULTS = ("time", "spread", "FLOP/s", "B/s", "error")


def list_command(settings: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what would be measured."""
    planned = _planned(settings)
    if as_json:
        print_json(dict(settings), {"rows": [_plan_row(one) for one in planned]})
        return
    shown = table("kernel", "by", "format", "shape", "FLOP", "bytes", right=("FLOP", "bytes"))
    for one in planned:
        work = one.problem.work
        sizes = si(work.flops, ""), si(work.moved_bytes, "B")
        shown.add_row(one.problem.kernel, one.implementation, one.problem.dtype, one.problem.label, *sizes)
    show(shown, f"{len(planned)} measurements")


def measure_command(settings: Mapping[str, Any], output: Path, *, as_json: bool) -> None:
    """Measure, save after every kernel, and print a table."""
    check_output("--out", output, ".parquet")
    planned = _planned(settings)
    measured = _measured(planned, settings, output)
    if not measured.rows:
        raise InputError("moesim measure", "nothing could be measured", measured.about.skipped[0].reason)
    if as_json:
        print_json(dict(settings), _json(measured), output=str(output))
    else:
        _print(measured, output)


def _planned(settings: Mapping[str, Any]) -> list[Planned]:
    by = _implementations(settings["by"])
    planned = plan(select(all_problems(quick=settings["quick"]), settings["only"]), by)
    planned = [one for one in planned if one.implementation in by]
    if not planned:
        raise ConfigError("--only and --by", "must leave something to measure", f"{settings['only']} {settings['by']}")
    return planned


def _implementations(text: str) -> Sequence[Any]:
    installed = ("moesim", *installed_vendors())
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in installed:
            raise ConfigError("--by", f"must be some of {', '.join(installed)}, which are installed", name)
    return names or installed


def _measured(planned: Sequence[Planned], settings: Mapping[str, Any], output: Path) -> MeasuredKernels:
    from moesim.hw_models.measure import cuda
    from moesim.hw_models.measure.machine import clocks, machine
    from moesim.hw_models.measure.recording import record
    from moesim.hw_models.measure.runner import Effort, measure

    reason = cuda.why_no_gpu()
    if reason is not None:
        raise InputError("moesim measure", f"needs an NVIDIA GPU on this machine; {reason}")
    gpu = cuda.describe()
    about = About(
        machine=machine(gpu),
        moesim=version("moesim"),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=settings["seed"],
        planned=len(planned),
    )
    effort = Effort(repeats=settings["repeats"], seed=settings["seed"])
    measured = MeasuredKernels(about, ())
    with warnings.catch_warnings(), progress_bar("measuring", len(planned), "kernels") as update:
        warnings.filterwarnings("ignore", "Grid size")  # numba: that small steps leave a GPU idle is what we measure
        outcomes = measure(planned, lambda one: build(one, gpu.multiprocessors), gpu, cuda.GpuTimer(), effort)
        try:
            for measured in record(about, outcomes, output, lambda: clocks(gpu.uuid)):
                update(len(measured.rows) + len(measured.about.skipped))
        except KeyboardInterrupt:
            if measured.rows:
                sys.stderr.write(f"{output} holds {len(measured.rows)} of {len(planned)} measurements\n")
            raise
    return measured


def _print(measured: MeasuredKernels, output: Path) -> None:
    machine = measured.about.machine
    shown = table("kernel", "by", "format", "shape", *_RESULTS, right=_RESULTS)
    for row in measured.rows:
        label = " ".join(f"{name}={size}" for name, size in row.shape.items())
        shown.add_row(row.kernel, row.implementation, row.dtype, label, *_results(row))
    skipped = [
        f"not measured: {one.kernel} by {one.implementation}, {one.shape}: {one.reason}"
        for one in measured.about.skipped
    ]
    driver = f", driver {machine.driver}" if machine.driver else ""
    show(f"{machine.gpu}{driver}", shown, *skipped, f"saved to {output}")


def _results(row: Measurement) -> tuple[str, ...]:
    flops = si(row.flops_per_s, "") if row.flops else "-"
    return seconds(row.median_s), f"{row.spread:.1%}", flops, si(row.bytes_per_s, ""), f"{row.error:.1e}"


def _json(measured: MeasuredKernels) -> dict[str, Any]:
    rates = ("median_s", "spread", "flops_per_s", "bytes_per_s")
    rows = [vars(row) | {name: getattr(row, name) for name in rates} for row in measured.rows]
    return {"about": measured.about.model_dump(mode="json"), "rows": rows}


def _plan_row(planned: Planned) -> dict[str, Any]:
    problem = planned.problem
    names = {"kernel": problem.kernel, "implementation": planned.implementation, "dtype": problem.dtype}
    return names | {"shape": problem.shape, "lengths": problem.lengths} | problem.work._asdict()
