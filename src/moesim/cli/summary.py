"""The summary of a simulation as a person wants to read it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from moesim.cli.output import number, seconds, show, table
from moesim.simulator.metrics import PERCENTILES
from moesim.simulator.result import Result, describe_pools

Summary = Mapping[str, Any]

_LATENCIES = {
    "ttft": "TTFT  arrival to first token",
    "itl": "ITL   between tokens",
    "tpot": "TPOT  mean gap of a request",
    "e2e": "E2E   arrival to last token",
}
_BAR_WIDTH = 30
_SMALLEST_SHARE = 0.005  # operators below half a percent of the busy time are summed up in one line


def print_summary(result: Result, saved: Path | None) -> None:
    """Print the summary on stdout."""
    summary = result.summary
    footer = [] if saved is None else [Text(f"saved to {saved}", overflow="ignore", no_wrap=True)]
    show(_headline(result), _latency_table(summary), _facts_table(result), _time_table(summary), *footer)


def _headline(result: Result) -> Text:
    settings, resolved = result.settings, result.settings["resolved"]
    text = Text(f"{resolved['model']} on ", style="bold")
    text.append(f"{describe_pools(settings)}\n")
    concurrency = resolved["concurrency"]
    loop = f"closed loop of {concurrency}" if concurrency else "open loop"
    line = f"{result.summary['requests']:,} requests ({_reference(settings['requests'])}), {loop}"
    return text.append(line + _routing(settings, resolved), style="not bold dim")


def _routing(settings: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    """Where expert choices come from; nothing for a dense model."""
    if resolved["routing"].startswith("none"):
        return ""
    adapted = " (adapted)" if "assumed to hold" in resolved["routing"] else ""
    return f"; routing {_reference(settings['routing'])}{adapted}"


def _reference(value: object) -> str:
    """What the scenario says: a name, the name of a file, or the kind of a mapping."""
    return Path(value).name if isinstance(value, str) else str(dict(value).get("kind", "inline"))  # type: ignore[call-overload]


def _latency_table(summary: Summary) -> Table:
    names = ["mean", *(f"p{p}" for p in PERCENTILES)]
    latencies = table("latency", *names, right=tuple(names))
    for key, label in _LATENCIES.items():
        latencies.add_row(label, *(seconds(summary[f"{key}_{name}_s"]) for name in names))
    return latencies


def _facts_table(result: Result) -> Table:
    facts = Table.grid(padding=(0, 2))
    for label, fact in _facts(result.summary, result.settings["resolved"]["devices"]):
        facts.add_row(Text(f" {label}", style="bold"), fact)
    return facts


def _facts(s: Summary, devices: int) -> Iterator[tuple[str, str]]:
    """Label and text of each line."""
    dropped = f", {s['dropped_requests']:,} of zero length dropped" if s["dropped_requests"] else ""
    warmup = f" after {s['warmup_requests']:,} of warm-up" if s["warmup_requests"] else ""
    preempted = f", {s['preemptions']:,} preemptions" if s["preemptions"] else ""
    rate = f"{number(s['requests_per_s'])}/s"
    yield "requests", f"{s['requests']:,}{warmup} in {seconds(s['duration_s'])}, {rate}{dropped}{preempted}"
    share = f", {number(s['output_tokens_per_s_per_device'])} per device" if devices > 1 else ""
    yield "throughput", f"{number(s['output_tokens_per_s'])} output tokens/s{share}"
    yield "", f"{number(s['total_tokens_per_s'])} tokens/s with prompts"
    yield (
        "steps",
        f"{s['steps']:,} of {seconds(s['step_mean_s'])}, {number(s['sequences_per_step_mean'])} sequences each",
    )
    power = f"{number(s['mean_power_per_device_w'])} W per device"
    yield "energy", f"{number(s['energy_per_output_token_j'])} J per output token, {power}"
    yield (
        "utilisation",
        f"compute {s['compute_utilization']:.1%} of the time, network {s['network_utilization']:.1%}",
    )
    yield "KV cache", f"at most {s['kv_used_fraction_peak']:.1%} of {s['kv_capacity_bytes_per_device'] / 1e9:.1f} GB"
    if "kv_transfer_bytes" in s:
        moved = f"{s['kv_transfer_bytes'] / 1e9:.1f} GB from prefill to decode"
        yield "KV transfer", f"{moved}, {seconds(s['kv_transfer_mean_s'])} after the first token"
    if "prefix_hit_rate" in s:
        yield "prefix cache", f"{s['prefix_hit_rate']:.1%} of prompt tokens found"
    if s["expert_load_imbalance"] is not None:
        rank = f", busiest rank {number(s['rank_load_imbalance_mean'])}x" if devices > 1 else ""
        yield "expert load", f"busiest expert {number(s['expert_load_imbalance'])}x the mean{rank}"
    if s.get("kernel_error_of_90_percent") is not None:  # runs that were saved before have none
        share = f"{s['kernel_error_time_fraction']:.0%} of the time"
        yield "kernel error", f"{s['kernel_error_of_90_percent']:.1%} stated on unseen shapes, for {share}"
    if s["extrapolated_time_fraction"]:
        yield "extrapolated", f"{s['extrapolated_time_fraction']:.1%} of the time, priced outside the fitted ranges"


def _time_table(summary: Summary) -> Table:
    """Busy time per device by operator, largest first."""
    times = {key[5:-2]: value for key, value in summary.items() if key.startswith("time_") and value > 0}
    total = sum(times.values())
    shares = table("where the time goes", "share", "per device", "", right=("share", "per device"))
    large = {name: value for name, value in times.items() if value >= _SMALLEST_SHARE * total}
    longest = max(large.values(), default=0.0)
    for name, value in large.items():
        bar = Text("█" * max(1, round(_BAR_WIDTH * value / longest)), style="cyan")
        shares.add_row(name, f"{value / total:.1%}", seconds(value), bar)
    if len(times) > len(large):
        small = total - sum(large.values())
        shares.add_row("others", f"{small / total:.1%}", seconds(small), "")
    return shares
