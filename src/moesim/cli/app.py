"""The commands and their flags. Everything heavy is imported inside the commands, to keep `--help` fast."""

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli import options, validate_kernels
from moesim.cli.help_text import examples as _examples
from moesim.cli.trace_app import trace_app

app = typer.Typer(
    name="moesim",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How fast, how costly and how efficient is a Mixture-of-Experts model on this hardware?",
    epilog=_examples("moesim simulate", "moesim models list", "moesim hardware show h100-sxm-8"),
)
models_app = typer.Typer(
    no_args_is_help=True,
    help="Shipped models and what they weigh.",
    epilog=_examples("moesim models list", "moesim models show mixtral-8x7b"),
)
hardware_app = typer.Typer(
    no_args_is_help=True,
    help="Shipped devices and systems, with the source of every number.",
    epilog=_examples("moesim hardware list", "moesim hardware show h100-sxm"),
)
search_app = typer.Typer(
    no_args_is_help=True,
    help="Which choice is best, and how far from the best it can be at most.",
    epilog=_examples("moesim search placement --trace gpt-oss-20b --devices 8 --slots 40"),
)
validate_app = typer.Typer(
    no_args_is_help=True,
    help="How far predictions are from what was measured.",
    epilog=_examples("moesim validate serving --data ./serving"),
)
app.add_typer(search_app, name="search")
app.add_typer(validate_app, name="validate")
app.add_typer(trace_app, name="trace")
app.add_typer(models_app, name="models")
app.add_typer(hardware_app, name="hardware")


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"moesim {version('moesim')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog=_examples(
        "moesim simulate --num-requests 50",
        "moesim simulate --model mixtral-8x7b --system h100-sxm-4 --tp 4",
        "moesim simulate --model ./config.json --requests trace.csv --out out/run",
        "moesim simulate mine.yaml --set scheduler.token_budget=2048 --json",
    )
)
def simulate(
    scenario: Annotated[str, typer.Argument(help="Shipped scenario or YAML file.")] = "quickstart",
    model: options.Model = None,
    system: options.System = None,
    requests: options.RequestFile = None,
    num_requests: options.NumRequests = None,
    concurrency: options.Concurrency = None,
    warmup_requests: options.WarmupRequests = None,
    routing: options.Routing = None,
    scheduler: options.Scheduler = None,
    fast_forward: options.FastForward = None,
    seed: options.Seed = None,
    engine: options.Engine = None,
    assignments: options.Assignments = None,
    tp: options.TensorParallel = None,
    dp: options.DataParallel = None,
    ep: options.ExpertParallel = None,
    pp: options.PipelineParallel = None,
    replicas: options.Replicas = None,
    load_balancing: options.LoadBalancing = None,
    placement: options.Placement = None,
    out: options.Out = None,
    timeline: options.Timeline = False,
    as_json: options.JsonOutput = False,
) -> None:
    """Simulate a model on a system serving requests: latency, throughput, energy, and where the time goes."""
    from moesim.cli.simulate import simulate_command

    flags = {
        "model": model,
        "system": system,
        "requests": requests,
        "routing": routing,
        "scheduler": scheduler,
        "num_requests": num_requests,
        "concurrency": concurrency,
        "warmup_requests": warmup_requests,
        "parallelism.tp": tp,
        "parallelism.dp": dp,
        "parallelism.ep": ep,
        "parallelism.pp": pp,
        "replicas": replicas,
        "load_balancing": load_balancing,
        "placement": placement,
        "fast_forward": fast_forward,
        "engine": engine,
        "seed": seed,
    }
    simulate_command(scenario, flags, assignments or [], out=out, timeline=timeline, as_json=as_json)


@app.command(
    epilog=_examples(
        "moesim roofline --model gpt-oss-20b --hardware h100-sxm,h200-sxm -o roofline.png",
        "moesim roofline --model deepseek-v3 --hardware h200-sxm --tp 8 --batch 1,64,256 -o roofline.svg",
    )
)
def roofline(
    model: Annotated[str, typer.Option(help="Shipped model, YAML file, or Hugging Face config.json.")],
    hardware: Annotated[str, typer.Option(help="Devices, separated by commas: a panel each.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Figure to write: .svg or .png.")],
    batch: Annotated[str, typer.Option(help="Sequences per decode step, separated by commas.")] = "1,16,128",
    context: Annotated[int, typer.Option(min=1, help="Tokens each decoding sequence has cached.")] = 1024,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prefill step.")] = 1024,
    tp: Annotated[int, typer.Option(min=1, help="Tensor parallelism; one shard is drawn.")] = 1,
    as_json: options.Json = False,
) -> None:
    """Draw what limits a model's operators on devices: attained rate over arithmetic intensity."""
    from moesim.cli.figures import roofline_command

    roofline_command(model, hardware, batch, output, context=context, prompt=prompt, tp=tp, as_json=as_json)


@app.command(
    epilog=_examples(
        "moesim latency out/a out/b -o latency.png", "moesim latency out/a --figure devices -o devices.svg"
    )
)
def latency(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that `moesim simulate --out` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Figure to write: .svg or .png.")],
    figure: Annotated[str, typer.Option(help="steps, layers, devices, latency, or all.")] = "all",
    as_json: options.Json = False,
) -> None:
    """Draw where the time of saved runs went, by operator, layer and device, and what requests saw of it."""
    from moesim.cli.figures import latency_command

    latency_command(runs, output, figure=figure, as_json=as_json)


@app.command(
    epilog=_examples(
        "moesim compare mixtral-8x7b-tp4 mixtral-8x7b-duplex --set concurrency=32,64,128 -o compare.html",
        "moesim compare quickstart --set system=a100-sxm-1,h100-sxm-1,h200-sxm-1 -o gpus.md",
        "moesim compare out/before out/after -o change.html",
    )
)
def compare(
    scenarios: Annotated[list[str], typer.Argument(help="Shipped scenarios, YAML files, or folders of saved runs.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page: .html or .md.")],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=A,B", help="Any setting; a run for each value.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep runs there, and run only what is missing.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Compare scenarios, settings or saved runs: one page with tables, ratios, causes and figures."""
    from moesim.cli.compare import compare_command

    compare_command(scenarios, assignments or [], output, runs=runs, as_json=as_json)


@app.command(
    epilog=_examples(
        "moesim sweep quickstart --set system=a100-sxm-1,h100-sxm-1 --set requests.rate_per_s=2,4,8",
        "moesim sweep mixtral-8x7b-tp4 --set concurrency=16,32,64 -o sweep.csv --runs runs",
    )
)
def sweep(
    scenario: Annotated[str, typer.Argument(help="Shipped scenario or YAML file.")],
    assignments: Annotated[
        list[str], typer.Option("--set", metavar="KEY=A,B", help="Any setting; the grid has every combination.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write all numbers of the summaries: .csv.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep runs there, and run only what is missing.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    as_json: options.Json = False,
) -> None:
    """Simulate a grid of settings into one table."""
    from moesim.cli.sweep import sweep_command

    sweep_command(scenario, assignments, output=output, runs=runs, workers=workers, as_json=as_json)


@app.command(
    epilog=_examples(
        "moesim calibrate --data kernels/aiconfigurator --gpu h200-sxm -o h200-fitted.yaml",
        "moesim calibrate --data kernels/aiconfigurator --gpu h200-sxm --framework sglang -o fitted.yaml --residual",
        "moesim calibrate --measured my-gpu.parquet --gpu h200-sxm -o my-gpu.yaml",
        "moesim calibrate --data kernels/aiconfigurator --gpu h200-sxm --operators attention,mla -o fitted.yaml",
        "moesim calibrate --data kernels/aiconfigurator --gpu h200-sxm --operators nccl,deepep -o h200-system.yaml",
        "moesim calibrate --data kernels/llmservingsim --gpu rtx-pro-6000 --operators elementwise -o fitted.yaml",
    )
)
def calibrate(
    gpu: Annotated[str, typer.Option(help="Shipped device or YAML file, from which the fit starts.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Device or system to write: .yaml.")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measurements in aiconfigurator's or LLMServingSim's layout."),
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead of --data: a file of `moesim measure`.")
    ] = None,
    framework: Annotated[str, typer.Option(help="Whose kernels: vllm, sglang or trtllm; or vllm_triton.")] = "vllm",
    operators: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Of the GPU: gemm (single products), moe (expert FFNs), attention, mla (latent heads); from"
            " LLMServingSim's profiles: elementwise, mixed_attention, and what a model adds, profiled_gemm,"
            " profiled_decodes, profiled_experts. Of its links in a node: nccl, custom_all_reduce,"
            " deepep. With both, the system goes to FILE-system.yaml.",
        ),
    ] = "gemm,moe",
    rows: Annotated[int, typer.Option(min=100, help="Most measurements that one fit looks at.")] = 2500,
    residual: Annotated[
        bool, typer.Option("--residual", help="Also learn residuals; needs the extra `calibrate`.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Fit a GPU's parameters, and its links', to measured kernels, with the error on shapes left out."""
    from moesim.cli.calibrate import calibrate_command

    calibrate_command(gpu, data, measured, framework, operators, output, rows=rows, residual=residual, as_json=as_json)


@app.command(
    epilog=_examples(
        "moesim measure --list",
        "moesim measure --quick --out first.parquet",
        "moesim measure --only gemm,expert_ffn --out my-gpu.parquet",
    )
)
def measure(
    output: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write: .parquet.")] = Path(
        "measured.parquet"
    ),
    only: Annotated[str, typer.Option(help="Kernels, separated by commas, such as gemm,decode_attention.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="A few shapes of each kernel.")] = False,
    implementations: Annotated[
        str, typer.Option("--by", help="Whose kernels, separated by commas: moesim, torch, cupy; by default all.")
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Samples per kernel and shape.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random inputs.")] = 0,
    only_list: Annotated[bool, typer.Option("--list", help="Show what would be measured; needs no GPU.")] = False,
    as_json: options.Json = False,
) -> None:
    """Time copies, products, experts and attention on the NVIDIA GPU of this machine, to calibrate a device with."""
    from moesim.cli.measure import list_command, measure_command

    settings = {"only": only, "quick": quick, "by": implementations, "repeats": repeats, "seed": seed}
    if only_list:
        list_command(settings, as_json=as_json)
    else:
        measure_command(settings, output, as_json=as_json)


@search_app.command(
    "placement",
    epilog=_examples(
        "moesim search placement --trace gpt-oss-20b --devices 8 --out balanced.json",
        "moesim search placement --trace trace.parquet --devices 8 --slots 40 --json",
        "moesim search placement --loads loads.csv --devices 4 --method milp --gap 0",
        "moesim simulate --model gpt-oss-20b --system h100-sxm-8 --dp 8 --ep 8 --placement balanced.json",
    ),
)
def search_placement(
    trace: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Routing trace (.parquet, .npz) or profile, or a shipped profile."),
    ] = None,
    loads: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Table of loads, a row per layer and a column per expert: .csv, .json, .npz."
        ),
    ] = None,
    devices: Annotated[int, typer.Option(help="Devices that share every layer.")] = ...,  # type: ignore[assignment]
    slots: Annotated[
        int | None, typer.Option(help="Slots per layer on all devices together; by default one per expert.")
    ] = None,
    method: Annotated[str, typer.Option(help="auto, milp (exact), lpt (heuristic), eplb or contiguous.")] = "auto",
    time_limit: Annotated[float, typer.Option(help="Seconds for the exact solver, which is killed then.")] = 10.0,
    gap: Annotated[
        float, typer.Option(help="Stop in a layer when its fullest device could fall by no more than this share.")
    ] = 1e-4,
    seed: Annotated[int, typer.Option(help="Seed of the heuristic's random draws.")] = 0,
    model: Annotated[
        str | None, typer.Option(help="Model of the placement, where the file does not name it: shipped, or a file.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the placement there, for --placement.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Place experts, with replicas, such that the fullest device has as little to do as possible."""
    from moesim.cli.search import placement_command

    settings = {
        "devices": devices,
        "slots": slots,
        "method": method,
        "time_limit_s": time_limit,
        "gap": gap,
        "seed": seed,
    }
    placement_command(trace, loads, model, settings, output=output, as_json=as_json)


@validate_app.command(
    "serving",
    epilog=_examples(
        "moesim validate serving --data ./serving --sample 30",
        "moesim validate serving --data ./serving --only moe --fit --runs runs --out out/serving",
        "moesim validate serving --result vllm-result.json --scenario llama-3.1-8b",
    ),
)
def validate_serving(
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with silicon_points.csv or recorded runs, at any depth."),
    ] = None,
    result: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Result of `vllm bench serve` (.json) or `sglang.bench_serving` (.jsonl)."),
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="With --result: the server, as a shipped scenario or YAML file.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            help="Some of recorded (request by request), moe, dense (servers of such models) and apart (prefill and "
            "decode on different servers, slow to replay), separated by commas.",
        ),
    ] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Only so many measurements, spread over the data.")] = None,
    waves: Annotated[
        int | None,
        typer.Option(min=3, help="Requests per slot of a closed loop, at most as many as the benchmark sent."),
    ] = 4,
    max_concurrency: Annotated[
        int | None, typer.Option(min=1, help="Leave out measurements with more requests in flight.")
    ] = None,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Also fit host times and time scales, and test them on deployments left out."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    runs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep outcomes there, and replay only what is missing.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write tables (.csv, .md, .json) and figures there.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Replay measured servers through the simulator and compare TTFT, TPOT and E2E."""
    from moesim.cli.validate import serving_command

    serving_command(
        data,
        result or [],
        scenario,
        only=only,
        sample=sample,
        waves=waves,
        max_concurrency=max_concurrency,
        fits=fit,
        workers=workers,
        runs=runs,
        out=out,
        as_json=as_json,
    )


validate_app.command("kernels", epilog=_examples(*validate_kernels.EXAMPLES))(validate_kernels.kernels)


@models_app.command("list", epilog=_examples("moesim models list --json"))
def models_list(as_json: options.Json = False) -> None:
    """Models that ship with moesim."""
    from moesim.cli.catalogue import list_models

    list_models(as_json=as_json)


@models_app.command("show", epilog=_examples("moesim models show gpt-oss-20b", "moesim models show ./config.json"))
def models_show(
    model: Annotated[str, typer.Argument(help="Shipped model, YAML file, or Hugging Face config.json.")],
    as_json: options.Json = False,
) -> None:
    """One model: dimensions, parameters, bytes, KV cache."""
    from moesim.cli.catalogue import show_model

    show_model(model, as_json=as_json)


@hardware_app.command("list", epilog=_examples("moesim hardware list --json"))
def hardware_list(as_json: options.Json = False) -> None:
    """Devices and systems that ship with moesim."""
    from moesim.cli.catalogue import list_hardware

    list_hardware(as_json=as_json)


@hardware_app.command(
    "show", epilog=_examples("moesim hardware show h100-sxm", "moesim hardware show h100-sxm-4 --json")
)
def hardware_show(
    name: Annotated[str, typer.Argument(help="Device, or system such as h100-sxm-8, or YAML file.")],
    as_json: options.Json = False,
) -> None:
    """Every parameter of a device or system, with its source and, where fitted, its error."""
    from moesim.cli.catalogue import show_hardware

    show_hardware(name, as_json=as_json)
