"""`moesim simulate`: flags to a scenario, a progress bar, a summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from moesim.cli.output import print_json
from moesim.cli.summary import print_summary
from moesim.errors import ConfigError
from moesim.simulator.result import Result, check_target
from moesim.simulator.scenario import Setup, load_scenario, prepare
from moesim.simulator.simulate import run


def simulate_command(
    scenario: str,
    flags: Mapping[str, object],
    assignments: Sequence[str],
    *,
    out: Path | None,
    timeline: bool,
    as_json: bool,
) -> None:
    """Run one simulation and print or save what came out."""
    if timeline and out is None:
        raise ConfigError("--timeline", "needs --out DIR, where the trace is saved")
    if out is not None:
        check_target(out)
    edits = [f"{key}={value}" for key, value in flags.items() if value is not None]
    setup = prepare(*load_scenario(scenario, [*edits, *assignments]))
    result = _run_with_progress(setup, timeline=timeline)
    saved = None if out is None else result.save(out)
    if as_json:
        print_json({"settings": result.settings, "results": result.summary, "out": str(saved) if saved else None})
    else:
        print_summary(result, saved)


def _run_with_progress(setup: Setup, *, timeline: bool) -> Result:
    """Simulate with a progress bar on stderr, which shows only on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TextColumn("requests"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("simulating", total=len(setup.requests.arrival_s))
        return run(setup, timeline=timeline, on_progress=lambda done: progress.update(task, completed=done))
