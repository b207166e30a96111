"""`moesim compare`: run what is missing, then write one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moesim.cli.output import print_json
from moesim.cli.progress import progress_bar
from moesim.errors import ConfigError, DataError
from moesim.reports.compare_page import TEMPLATES, comparison_figures, comparison_page
from moesim.reports.comparison import ComparedRun, metric_rows, operator_rows
from moesim.reports.latency import MOST_RUNS
from moesim.reports.style import write_text
from moesim.search.grid import expand, varied_keys
from moesim.search.runs import RunStore
from moesim.simulator.result import is_result, load_result
from moesim.simulator.scenario import Setup, load_scenario, prepare


@dataclass(frozen=True)
class _Planned:
    """A run to come: a saved folder, or a scenario ready to run."""

    label: str
    source: Path | Setup
    base: int


def compare_command(
    scenarios: Sequence[str], assignments: Sequence[str], output: Path, *, runs: Path | None, as_json: bool
) -> None:
    """Compare saved runs and scenarios, each with every combination of the assignments."""
    _check_output(output)
    planned = _plan(scenarios, assignments)
    if len(planned) > MOST_RUNS:
        raise ConfigError("SCENARIO and --set", f"a comparison shows at most {MOST_RUNS} runs", len(planned))
    finished = _run_all(planned, RunStore(runs))
    page = comparison_page(finished, comparison_figures(finished), output.suffix)
    write_text(output, page)
    if as_json:
        print_json({"runs": [run.result.settings for run in finished]}, _results(finished), output=str(output))
    else:
        print(f"wrote {output}")


def _check_output(output: Path) -> None:
    if output.suffix not in TEMPLATES:
        raise ConfigError(f"--output {output}", f"must end in {' or '.join(TEMPLATES)}")
    if not output.absolute().parent.is_dir():
        raise DataError(str(output), "the folder does not exist", str(output.parent))


def _plan(scenarios: Sequence[str], assignments: Sequence[str]) -> list[_Planned]:
    """All runs, everything checked before the first one starts.

    With several scenarios, each is compared with the first one under the same settings; with one, all of its variants
    are compared with the first variant.
    """
    variants, varied = expand(assignments), varied_keys(assignments)
    paired = len(scenarios) > 1 and not is_result(Path(scenarios[0]))
    planned: list[_Planned] = []
    for name in scenarios:
        if Path(name).is_dir():
            if not is_result(Path(name)):
                raise DataError(name, "must be a scenario, or a folder that a simulation saved")
            planned.append(_Planned(Path(name).name, Path(name), 0))
            continue
        for number, variant in enumerate(variants):
            label = _label(name, [text for text in variant if text.partition("=")[0] in varied])
            planned.append(_Planned(label, prepare(*load_scenario(name, variant)), number if paired else 0))
    return planned


def _label(scenario: str, varied: Sequence[str]) -> str:
    return " ".join([Path(scenario).stem if "/" in scenario else scenario, *varied])


def _run_all(planned: Sequence[_Planned], store: RunStore) -> list[ComparedRun]:
    finished = []
    for number, plan in enumerate(planned, start=1):
        if isinstance(plan.source, Path):
            result = load_result(plan.source)
        else:
            what = f"run {number} of {len(planned)}: {plan.label}"
            with progress_bar(what, len(plan.source.requests), "requests") as update:
                result = store.result(plan.source, on_progress=update)
        finished.append(ComparedRun(plan.label, result, plan.base))
    return finished


def _results(runs: Sequence[ComparedRun]) -> dict[str, object]:
    rows = metric_rows(runs)
    compared = [
        {
            "label": run.label,
            "base": runs[run.base].label,
            "summary": run.result.summary,
            "ratios": {row.metric.key: row.ratios[position] for row in rows},
        }
        for position, run in enumerate(runs)
    ]
    differences = [
        {"operator": row.operator, "time_per_output_token_s": row.seconds, "difference_s": row.differences}
        for row in operator_rows(runs)
    ]
    return {"runs": compared, "operators": differences}
