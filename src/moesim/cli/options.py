"""Flags: those that several commands share, and those of `simulate`, under the headings of its help."""

from pathlib import Path
from typing import Annotated

import typer

_WORKLOAD, _CUTS, OUTPUT = "What to simulate", "How the model is spread over devices", "Output"
_JSON = "Print one JSON object on stdout and nothing else there."

Json = Annotated[bool, typer.Option("--json", help=_JSON)]
JsonOutput = Annotated[bool, typer.Option("--json", help=_JSON, rich_help_panel=OUTPUT)]

FixedSeed = Annotated[int, typer.Option(min=0, help="Seed of every random draw.")]

Model = Annotated[
    str | None, typer.Option(help="Shipped model, YAML file, or Hugging Face config.json.", rich_help_panel=_WORKLOAD)
]
System = Annotated[str | None, typer.Option(help="System such as h100-sxm-8, or YAML file.", rich_help_panel=_WORKLOAD)]
RequestFile = Annotated[
    str | None,
    typer.Option(
        help="Shipped requests, YAML, CSV (Azure's too) or JSONL file; `trace` replays.", rich_help_panel=_WORKLOAD
    ),
]
NumRequests = Annotated[
    int | None, typer.Option(help="Take only the first so many requests.", rich_help_panel=_WORKLOAD)
]
Concurrency = Annotated[
    int | None, typer.Option(help="Closed loop with so many requests in flight.", rich_help_panel=_WORKLOAD)
]
WarmupRequests = Annotated[
    int | None,
    typer.Option(help="Leave the first so many requests out of latency and throughput.", rich_help_panel=_WORKLOAD),
]
Routing = Annotated[
    str | None,
    typer.Option(
        help="uniform, zipf:EXPONENT, shipped profile, or a profile or trace file.", rich_help_panel=_WORKLOAD
    ),
]
Scheduler = Annotated[
    str | None, typer.Option(help="vllm, sglang, tensorrt-llm, or YAML file.", rich_help_panel=_WORKLOAD)
]
FastForward = Annotated[
    int | None,
    typer.Option(
        help="Play one of up to so many equal decode steps: faster, nearly the same.", rich_help_panel=_WORKLOAD
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of every random draw.", rich_help_panel=_WORKLOAD)]
Engine = Annotated[
    str | None, typer.Option(help="compiled, or the slower simpy; the results are the same.", rich_help_panel=_WORKLOAD)
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, such as scheduler.token_budget=2048.",
        rich_help_panel=_WORKLOAD,
    ),
]
TensorParallel = Annotated[int | None, typer.Option(help="Tensor parallelism.", rich_help_panel=_CUTS)]
DataParallel = Annotated[int | None, typer.Option(help="Data parallelism of attention.", rich_help_panel=_CUTS)]
ExpertParallel = Annotated[int | None, typer.Option(help="Expert parallelism.", rich_help_panel=_CUTS)]
PipelineParallel = Annotated[int | None, typer.Option(help="Pipeline parallelism.", rich_help_panel=_CUTS)]
Replicas = Annotated[int | None, typer.Option(help="Copies of the model.", rich_help_panel=_CUTS)]
LoadBalancing = Annotated[
    str | None, typer.Option(help="least_outstanding, round_robin or cache_aware.", rich_help_panel=_CUTS)
]
Placement = Annotated[str | None, typer.Option(help="contiguous, or a placement file.", rich_help_panel=_CUTS)]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Save settings, summary and tables there.", rich_help_panel=OUTPUT)
]
Timeline = Annotated[
    bool,
    typer.Option("--timeline", help="Also save a trace for ui.perfetto.dev (needs --out).", rich_help_panel=OUTPUT),
]
