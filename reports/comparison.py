"""Runs side by side: the numbers people compare, their ratios to a base run, and what makes the difference."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moesim.errors import DataError
from moesim.reports.latency import Run, load_run
from moesim.simulator.result import Result


@dataclass(frozen=True)
class Metric:
    """A number of the summary, how to call it, and which way is better."""

    key: str
    label: str
    unit: str
    scale: float = 1.0  # from the summary's SI unit to `unit`
    higher_is_better: bool = False


METRICS = (
    Metric("output_tokens_per_s", "output throughput", "tok/s", higher_is_better=True),
    Metric("output_tokens_per_s_per_device", "per device", "tok/s", higher_is_better=True),
    Metric("requests_per_s", "requests", "1/s", higher_is_better=True),
    Metric("ttft_p50_s", "TTFT p50", "ms", 1e3),
    Metric("ttft_p99_s", "TTFT p99", "ms", 1e3),
    Metric("tpot_p50_s", "TPOT p50", "ms", 1e3),
    Metric("tpot_p99_s", "TPOT p99", "ms", 1e3),
    Metric("e2e_p50_s", "E2E p50", "s"),
    Metric("energy_per_output_token_j", "energy per output token", "J"),
    Metric("mean_power_per_device_w", "mean power per device", "W"),
)


@dataclass(frozen=True)
class ComparedRun(Run):
    """A run, and the position among all runs of the one that it is compared with (its own if none)."""

    base: int


@dataclass(frozen=True)
class MetricRow:
    """One metric of all runs: values in the metric's unit and ratios to the base run; None where undefined."""

    metric: Metric
    values: tuple[float | None, ...]
    ratios: tuple[float | None, ...]


@dataclass(frozen=True)
class OperatorRow:
    """One operator's busy seconds per device and output token, in every run."""

    operator: str
    seconds: tuple[float, ...]
    differences: tuple[float, ...]  # to the base run


def load_comparable(folder: Path) -> Result:
    """A saved result that has what comparisons need.

    Raises:
        DataError: no simulation saved the folder, or its files lack something.
    """
    result = load_run(folder)
    needed = {"output_tokens", "requests", "extrapolated_time_fraction", *(metric.key for metric in METRICS)}
    missing = sorted(needed - result.summary.keys())
    if missing:
        raise DataError(f"{folder}: summary.json", "must have the key", missing[0])
    return result


def metric_rows(runs: Sequence[ComparedRun]) -> list[MetricRow]:
    """`METRICS` of all runs."""
    return [_metric_row(metric, runs) for metric in METRICS]


def _metric_row(metric: Metric, runs: Sequence[ComparedRun]) -> MetricRow:
    found = [run.result.summary[metric.key] for run in runs]
    values = tuple(None if value is None else value * metric.scale for value in found)
    bases = [values[run.base] for run in runs]
    ratios = (value / base if value is not None and base else None for value, base in zip(values, bases, strict=True))
    return MetricRow(metric, values, tuple(ratios))


def operator_rows(runs: Sequence[ComparedRun], most: int = 8) -> list[OperatorRow]:
    """The operators that differ most from the base run, by time per output token; the largest where none differs.

    Seconds are busy seconds per device divided by the output tokens of the whole run, so they add up to the time that
    the devices spend per output token, and runs of different length can be compared.
    """
    times = [_operator_seconds(run.result) for run in runs]
    names = dict.fromkeys(name for per_run in times for name in per_run)
    rows = [_operator_row(name, [per_run.get(name, 0.0) for per_run in times], runs) for name in names]
    return sorted(rows, key=lambda row: (-max(map(abs, row.differences)), -max(row.seconds)))[:most]


def _operator_row(name: str, seconds: Sequence[float], runs: Sequence[ComparedRun]) -> OperatorRow:
    differences = tuple(value - seconds[run.base] for value, run in zip(seconds, runs, strict=True))
    return OperatorRow(name, tuple(seconds), differences)


def _operator_seconds(result: Result) -> dict[str, float]:
    tokens = int(result.tables["requests"]["output_tokens"].sum())  # like the times, of warm-up requests too
    return {key[5:-2]: value / tokens for key, value in result.summary.items() if key.startswith("time_")}
