"""`moesim sweep`: a grid of settings into one table."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesim.cli.output import number, print_json, seconds, show, table
from moesim.cli.progress import progress_bar
from moesim.errors import InputError
from moesim.files import check_folder, check_output, write_text
from moesim.search.grid import expand, varied_keys
from moesim.search.sweep import Variant, check_variants, sweep

_SHOWN = {
    "output_tokens_per_s": "tok/s",
    "output_tokens_per_s_per_device": "per device",
    "ttft_p50_s": "TTFT p50",
    "tpot_p50_s": "TPOT p50",
    "e2e_p50_s": "E2E p50",
    "energy_per_output_token_j": "J/token",
}


def sweep_command(
    scenario: str, assignments: Sequence[str], *, output: Path | None, runs: Path | None, workers: int, as_json: bool
) -> None:
    """Run the grid and print, or write, a row per point."""
    if workers < 1:
        raise InputError("--workers", "must be >= 1", workers)
    if output is not None:
        check_output("--output", output, ".csv")
    grid = expand(assignments)
    variants = [Variant(scenario, tuple(point)) for point in grid]
    check_variants(variants)
    if runs is not None:
        check_folder(runs, "--runs")
    summaries = _run(variants, runs, workers)
    keys = varied_keys(assignments) or [text.partition("=")[0] for text in assignments]
    rows = [_row(keys, point, summary) for point, summary in zip(grid, summaries, strict=True)]
    if output is not None:
        write_text(output, _csv(rows))
    if as_json:
        print_json(
            {"scenario": scenario, "set": list(assignments)}, {"rows": rows}, output=str(output) if output else None
        )
    else:
        _print(keys, rows, output)


def _run(variants: Sequence[Variant], runs: Path | None, workers: int) -> list[Mapping[str, Any]]:
    summaries: dict[int, Mapping[str, Any]] = {}
    with progress_bar("sweeping", len(variants), "runs") as update:
        for position, summary in sweep(variants, workers=workers, runs=runs):
            summaries[position] = summary
            update(len(summaries))
    return [summaries[position] for position in range(len(variants))]


def _row(keys: Sequence[str], point: Sequence[str], summary: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(text.split("=", 1) for text in point)
    return {key: values[key] for key in keys} | dict(summary)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row; operators that a run does not have are empty."""
    columns = dict.fromkeys(key for row in rows for key in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _print(keys: Sequence[str], rows: Sequence[Mapping[str, Any]], output: Path | None) -> None:
    shown = table(*keys, *_SHOWN.values(), right=tuple(_SHOWN.values()))
    for row in rows:
        shown.add_row(*(str(row[key]) for key in keys), *(_cell(key, row[key]) for key in _SHOWN))
    show(shown, *([f"saved to {output}"] if output else []))


def _cell(key: str, value: float | None) -> str:
    return seconds(value) if key.endswith("_p50_s") else "-" if value is None else number(value)
