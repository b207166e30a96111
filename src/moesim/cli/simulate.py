"""`moesim simulate`: flags to a scenario, a progress bar, a summary."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from moesim.cli.output import print_json
from moesim.cli.progress import progress_bar
from moesim.cli.summary import print_summary
from moesim.errors import ConfigError, InputError
from moesim.simulator.result import check_target
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
    """Run one simulation and print or save what came out.

    Args:
        scenario: shipped name or path.
        flags: values by key of the scenario, None where the flag was not given.
        assignments: values of `--set`.
        out: folder to save to.
        timeline: also save a trace.
        as_json: print JSON in place of the summary.
    """
    if timeline and out is None:
        raise ConfigError("--timeline", "needs --out DIR, where the trace is saved")
    if out is not None:
        check_target(out)
    setup = _prepare(scenario, flags, assignments)
    with progress_bar("simulating", len(setup.requests), "requests") as update:
        result = run(setup, timeline=timeline, on_progress=update)
    _check_finite(result.summary)
    saved = None if out is None else result.save(out)
    if as_json:
        print_json(result.settings, result.summary, out=str(saved) if saved else None)
    else:
        print_summary(result, saved)


def _prepare(scenario: str, flags: Mapping[str, object], assignments: Sequence[str]) -> Setup:
    """The scenario with the flags as edits before those of `--set`; errors name the flags as they were typed."""
    given = {key: value for key, value in flags.items() if value is not None}
    edits = [f"{key}={json.dumps(value)}" for key, value in given.items()]  # quoted, so that text stays text
    try:
        return prepare(*load_scenario(scenario, [*edits, *assignments]))
    except InputError as error:
        message = str(error)
        for key in given:
            message = message.replace(f"--set {key}:", f"{_flag(key)}:")
        error.args = (message,)
        raise


def _check_finite(summary: Mapping[str, object]) -> None:
    """Refuse results that no JSON can hold; only absurd parameters, such as 1e300 J/B, lead to them."""
    for key, value in summary.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"results: {key}", "must be finite; a number of the scenario is out of all bounds", value)


def _flag(key: str) -> str:
    """`parallelism.tp` as `--tp`."""
    return "--" + key.rpartition(".")[2].replace("_", "-")
