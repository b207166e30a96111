"""`moesim compare`: run what is missing, then write one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moesim.cli.output import print_json
from moesim.cli.progress import progress_bar
from moesim.errors import ConfigError
from moesim.files import check_folder, check_output, write_text
from moesim.reports.compare_page import TEMPLATES, comparison_figures, comparison_page
from moesim.reports.comparison import ComparedRun, load_comparable, metric_rows, operator_rows
from moesim.reports.latency import MOST_RUNS
from moesim.reports.style import distinct_labels
from moesim.search.grid import expand, varied_keys
from moesim.search.runs import RunStore
from moesim.simulator.result import Result
from moesim.simulator.scenario import Setup, load_scenario, prepare


@dataclass(frozen=True)
class _Planned:
    """A saved run, or a scenario ready to run."""

    label: str
    source: Result | Setup
    base: int


def compare_command(
    scenarios: Sequence[str], assignments: Sequence[str], output: Path, *, runs: Path | None, as_json: bool
) -> None:
    """Compare saved runs and scenarios, each with every combination of the assignments."""
    check_output("--output", output, *TEMPLATES)
    planned = _plan(scenarios, assignments)
    if len(planned) > MOST_RUNS:
        raise ConfigError("SCENARIO and --set", f"a comparison shows at most {MOST_RUNS} runs", len(planned))
    if runs is not None:
        check_folder(runs, "--runs")
    finished = _run_all(planned, RunStore(runs))
    page = comparison_page(finished, comparison_figures(finished), output.suffix)
    write_text(output, page)
    if as_json:
        print_json({"runs": [run.result.settings for run in finished]}, _results(finished), output=str(output))
    else:
        print(f"wrote {output}")


def _plan(scenarios: Sequence[str], assignments: Sequence[str]) -> list[_Planned]:
    """All runs, everything checked before the first one starts.

    With several scenarios, each is compared with the first one under the same settings; with one, all of its variants
    are compared with the first variant.
    """
    variants, varied = expand(assignments), varied_keys(assignments)
    paired = len(scenarios) > 1 and not Path(scenarios[0]).is_dir()
    planned: list[_Planned] = []
    for name, label in zip(scenarios, _labels(scenarios), strict=True):
        if Path(name).is_dir():
            planned.append(_Planned(label, load_comparable(Path(name)), 0))
            continue
        for number, variant in enumerate(variants):
            settings = [text for text in variant if text.partition("=")[0] in varied]
            setup = prepare(*load_scenario(name, variant))
            planned.append(_Planned(" ".join([label, *settings]), setup, number if paired else 0))
    return planned


def _labels(scenarios: Sequence[str]) -> list[str]:
    """Names of shipped scenarios as they are; of paths, the trailing parts that tell them apart."""
    paths = [Path(name) for name in scenarios if Path(name).exists()]
    labels = dict(zip(paths, distinct_labels(paths), strict=True)) if paths else {}
    return [labels.get(Path(name), name) for name in scenarios]


def _run_all(planned: Sequence[_Planned], store: RunStore) -> list[ComparedRun]:
    finished = []
    for number, plan in enumerate(planned, start=1):
        if isinstance(plan.source, Result):
            result = plan.source
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
