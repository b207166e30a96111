"""The summary of a simulation as a person wants to read it."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from moesim.cli.output import seconds, si
from moesim.simulator.metrics import PERCENTILES
from moesim.simulator.result import Result

_LATENCIES = {
    "ttft": "TTFT  arrival to first token",
    "itl": "ITL   between tokens",
    "tpot": "TPOT  mean gap per request",
    "e2e": "E2E   arrival to last token",
}
_BAR_WIDTH = 28
_SMALLEST_SHARE = 0.005  # operators below half a percent of the busy time are summed up in one line


def print_summary(result: Result, saved: Path | None) -> None:
    """Print the summary on stdout."""
    console = Console(highlight=False)
    parts = [_headline(result), _latency_table(result.summary), _facts_table(result.summary), _time_table(result.summary)]
    console.print(Group(*parts))
    if saved is not None:
        console.print(f"saved to {saved}", soft_wrap=True)


def _headline(result: Result) -> Text:
    what, p = result.settings["resolved"], result.settings["parallelism"]
    degrees = " ".join(f"{name}={degree}" for name, degree in p.items())
    loop = f"closed loop, {what['concurrency']} in flight" if what["concurrency"] else "open loop"
    text = Text(f"{what['model']} on {what['system']}", style="bold")
    text.append(f"  ({degrees}, {loop})\n", style="not bold")
    text.append(f"requests: {what['requests']}\nrouting:  {what['routing']}", style="not bold dim")
    return text


def _latency_table(summary: Any) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("latency")
    names = ["mean", *(f"p{p}" for p in PERCENTILES)]
    for name in names:
        table.add_column(name, justify="right")
    for key, label in _LATENCIES.items():
        table.add_row(label, *(seconds(summary[f"{key}_{name}_s"]) for name in names))
    return table


def _facts_table(summary: Any) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    for _ in range(4):
        table.add_column()
    facts = _facts(summary)
    for left, right in zip(facts[::2], [*facts[1::2], ("", "")][: len(facts[::2])], strict=True):
        table.add_row(left[0], left[1], right[0], right[1])
    return table


def _facts(s: Any) -> list[tuple[str, str]]:
    facts = [
        ("requests", f"{s['requests']} in {seconds(s['duration_s'])}  ({s['requests_per_s']:.3g}/s)"),
        ("steps", f"{s['steps']} of {seconds(s['step_mean_s'])}, {s['sequences_per_step_mean']:.3g} sequences each"),
        ("output tokens", f"{si(s['output_tokens_per_s'], 'tok/s')}"),
        ("per device", f"{si(s['output_tokens_per_s_per_device'], 'tok/s')}"),
        ("all tokens", f"{si(s['total_tokens_per_s'], 'tok/s')}"),
        ("energy", f"{s['energy_per_output_token_j']:.3g} J per output token"),
        ("compute busy", f"{s['compute_utilization']:.1%} of the time"),
        ("mean power", f"{s['mean_power_per_device_w']:.3g} W per device"),
        ("network busy", f"{s['network_utilization']:.1%} of the time"),
        ("KV cache", f"{s['kv_used_fraction_peak']:.1%} of {s['kv_capacity_bytes_per_device'] / 1e9:.3g} GB at most"),
    ]
    if s["expert_load_imbalance"] is not None:
        facts.append(("expert load", f"busiest expert {s['expert_load_imbalance']:.3g}x the mean"))
        facts.append(("rank load", f"busiest rank {s['rank_load_imbalance_mean']:.3g}x the mean"))
    if s["preemptions"]:
        facts.append(("preemptions", str(s["preemptions"])))
    if s["dropped_requests"]:
        facts.append(("dropped requests", f"{s['dropped_requests']} of zero length"))
    if s["extrapolated_time_fraction"]:
        facts.append(("extrapolated", f"{s['extrapolated_time_fraction']:.1%} of the time, outside fitted ranges"))
    return facts


def _time_table(summary: Any) -> Table:
    """Busy time per device by operator, largest first."""
    times = {key[5:-2]: value for key, value in summary.items() if key.startswith("time_") and value > 0}
    total = sum(times.values())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("where the time goes")
    table.add_column("share", justify="right")
    table.add_column("per device", justify="right")
    table.add_column("")
    small = 0.0
    for name, value in times.items():
        if value < _SMALLEST_SHARE * total:
            small += value
            continue
        table.add_row(name, f"{value / total:.1%}", seconds(value), "█" * max(1, round(_BAR_WIDTH * value / total)))
    if small:
        table.add_row("others", f"{small / total:.1%}", seconds(small), "")
    return table
