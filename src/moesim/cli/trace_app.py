"""The `moesim trace` commands and their flags. As in `app`, everything heavy is imported inside the commands.

A further command is a function here and a module beside this one.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.help_text import examples
from moesim.cli.options import OUTPUT, FixedSeed, Json, JsonOutput

trace_app = typer.Typer(
    no_args_is_help=True,
    help="Routing of real models: capture it, import it, see what is in it, and draw more like it.",
    epilog=examples(
        "moesim trace capture --model ./OLMoE-1B-7B --text book.txt -o trace.parquet",
        "moesim trace import sample.json.gz --format fingerprint --model gpt-oss-20b -o trace.parquet",
        "moesim trace stats trace.parquet --out report",
    ),
)

_PLACES = "Where experts are"


@trace_app.command(
    "stats",
    epilog=examples(
        "moesim trace stats trace.parquet",
        "moesim trace stats gpt-oss-20b_decode_top4_ids.npz --out report --figures svg",
        "moesim trace stats trace.parquet --devices 8 --placement balanced.json --nodes 2",
        "moesim trace stats trace.parquet --group code --json",
    ),
)
def trace_stats(
    trace: Annotated[Path, typer.Argument(help="Routing trace: .parquet, or .npz of gpt-oss.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write page, tables, matrices and figures there.", rich_help_panel=OUTPUT),
    ] = None,
    figures: Annotated[str, typer.Option(help="png, svg or none.", rich_help_panel=OUTPUT)] = "png",
    as_json: JsonOutput = False,
    group: Annotated[str | None, typer.Option(help="Only requests of this group (data set).")] = None,
    windows: Annotated[int, typer.Option(help="Equal parts of the trace, for imbalance over time.")] = 32,
    model: Annotated[str | None, typer.Option(help="Name of the model, where the file does not say it.")] = None,
    experts: Annotated[int | None, typer.Option(help="Experts per layer, where the file does not say it.")] = None,
    devices: Annotated[
        str | None, typer.Option(help="Devices, separated by commas; by default 2, 4, 8, ...", rich_help_panel=_PLACES)
    ] = None,
    placement: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Placement on --devices, as `search placement` writes.", rich_help_panel=_PLACES
        ),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Nodes that share --devices equally.", rich_help_panel=_PLACES)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of drawn batches and random halves.")] = 0,
    threads: Annotated[int, typer.Option(help="Layers worked on at the same time.")] = 2,
) -> None:
    """Load, imbalance, reuse, caches, co-activation, transitions, batches and drift of a recording."""
    from moesim.cli.trace_stats import stats_command

    settings = {"windows": windows, "seed": seed, "threads": threads}
    places = {"devices": devices, "placement": placement, "nodes": nodes}
    about = {"model": model, "experts": experts, "group": group}
    stats_command(trace, about, settings, places, out=out, figures=figures, as_json=as_json)


@trace_app.command(
    "attention",
    epilog=examples(
        "moesim trace attention attention.parquet", "moesim trace attention attention.parquet -o attention.png"
    ),
)
def trace_attention(
    trace: Annotated[Path, typer.Argument(help="Attention trace, as `moesim trace capture --attention` writes.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Figure to write: .svg or .png.")
    ] = None,
    shortest: Annotated[int | None, typer.Option(help="Leave out tokens that see fewer keys.")] = None,
    as_json: Json = False,
) -> None:
    """How few keys hold the attention of every head, and where they are."""
    from moesim.cli.trace_attention import attention_command

    attention_command(trace, output, shortest, as_json=as_json)


@trace_app.command(
    "import",
    epilog=examples(
        "moesim trace import dump.json --format sglang --model deepseek-v3 -o trace.parquet",
        "moesim trace import responses.jsonl --format vllm --model qwen3-30b-a3b -o trace.parquet",
        "moesim trace import frac_vecs.npz --format fractions --model mixtral-8x7b -o mixtral.npz",
        "moesim trace import loads.csv --format loads --model mine --top-k 8 -o mine.npz",
    ),
)
def trace_import(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of one format and one model.")],
    name: Annotated[
        str,
        typer.Option("--format", help="sglang, vllm, vllm-eplb, fingerprint, fractions, loads or trace."),
    ],
    output: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Trace (.parquet) or profile (.npz) to write.")
    ],
    model: Annotated[str | None, typer.Option(help="Name of the model; a shipped one gives its dimensions.")] = None,
    experts: Annotated[int | None, typer.Option(help="Routed experts per layer.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts per token, for profiles.")] = None,
    group: Annotated[str | None, typer.Option(help="Only this group (data set), where the format has groups.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the recording comes from; by default the file.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the recording.")] = "",
    capture: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A setting of the recording, to be kept with it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read routing that SGLang, vLLM or others recorded into a trace, or loads into a profile; nothing is unpickled."""
    from moesim.cli.trace_import import import_command

    options = {"model": model, "experts": experts, "top_k": top_k, "group": group, "source": source, "licence": licence}
    import_command(files, name, output, options, capture or [], as_json=as_json)


@trace_app.command(
    "capture",
    epilog=examples(
        "moesim trace capture --model ./OLMoE-1B-7B --text book.txt -o trace.parquet",
        "moesim trace capture --model ./model --text a.txt --decode 64 -o t.parquet",
        "moesim trace capture --model ./m --text a -o t.parquet --attention a.parquet",
    ),
)
def trace_capture(
    model: Annotated[
        str, typer.Option(metavar="PATH_OR_ID", help="Folder of a Hugging Face model, or its name there.")
    ],
    text: Annotated[list[Path], typer.Option(metavar="FILE", help="Text to run; once per file.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Routing trace to write: .parquet.")],
    attention: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write how few keys hold the attention of each head: .parquet."),
    ] = None,
    prompt: Annotated[int, typer.Option(help="Longest prompt; longer texts become several requests.")] = 512,
    decode: Annotated[int, typer.Option(help="Decode steps per request, on tokens that the model draws.")] = 0,
    requests: Annotated[int | None, typer.Option(help="Take so many requests, at equal distances.")] = None,
    batch: Annotated[int, typer.Option(help="Requests that run, and are written, together.")] = 8,
    chunk: Annotated[int, typer.Option(help="Prompt tokens per forward pass.")] = 256,
    temperature: Annotated[float, typer.Option(help="Of drawn tokens; 0 takes the likeliest.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of drawn tokens.")] = 0,
    every: Annotated[int, typer.Option(help="Record attention at every so many prompt positions.")] = 16,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or name of a tokenizer, or `bytes`; by default the model's.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (as the files), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, or another device of PyTorch.")] = "cpu",
    name: Annotated[str | None, typer.Option(help="Name of the model in the trace.")] = None,
    as_json: Json = False,
) -> None:
    r"""Record the routing of a Mixture-of-Experts model that reads texts and goes on.

    Needs PyTorch and transformers: pip install 'moesim\[capture]'. Families: mixtral, olmoe, qwen2_moe, qwen3_moe,
    deepseek_v2, deepseek_v3, gpt_oss, phimoe. A capture that was stopped goes on when the same command is given again.
    """
    from moesim.cli.capture import capture_command

    settings = {
        "prompt_tokens": prompt,
        "decode_tokens": decode,
        "requests": requests,
        "batch": batch,
        "chunk_tokens": chunk,
        "temperature": temperature,
        "seed": seed,
        "attention_every": every,
        "tokenizer": tokenizer,
        "dtype": dtype,
        "device": device,
    }
    capture_command(model, text, out, attention, settings, name=name, as_json=as_json)


@trace_app.command(
    "synth",
    epilog=examples(
        "moesim trace synth --profile gpt-oss-20b --out drawn.parquet",
        "moesim trace synth --profile gpt-oss-20b --model deepseek-v3 --skew 1.5 --num-requests 20 --out sharp.parquet",
        "moesim trace synth --profile mixtral-8x7b-mmlu --domain astronomy --out stars.parquet",
        "moesim simulate --model gpt-oss-20b --system h100-sxm-1 --requests trace --routing drawn.parquet",
    ),
)
def trace_synth(
    profile: Annotated[str, typer.Option(help="Shipped profile, profile or trace file, uniform, or zipf:EXPONENT.")],
    output: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Trace to write: .parquet.")],
    model: Annotated[
        str | None, typer.Option(help="Model to draw for: shipped, or a file. By default the profile's dimensions.")
    ] = None,
    num_requests: Annotated[int, typer.Option(min=1, help="Requests.")] = 100,
    prompt_tokens: Annotated[int, typer.Option(min=0, help="Tokens of each prompt.")] = 256,
    output_tokens: Annotated[int, typer.Option(min=0, help="Decoded tokens of each request.")] = 256,
    prefill: Annotated[bool, typer.Option(help="Tokens of the prompts are in the trace.")] = True,
    skew: Annotated[
        float, typer.Option(help="Power of the experts' popularity: 1 as it is, 0 uniform, more is sharper.")
    ] = 1.0,
    domain: Annotated[str | None, typer.Option(help="One of the profile's domains, such as a data set.")] = None,
    seed: FixedSeed = 0,
    as_json: Json = False,
) -> None:
    """Draw a routing trace from a profile, for its model or another one."""
    from moesim.cli.trace_synth import synth_command

    lengths = (num_requests, prompt_tokens, output_tokens)
    synth_command(
        profile,
        output,
        model=model,
        lengths=lengths,
        changes=(skew, domain),
        prefill=prefill,
        seed=seed,
        as_json=as_json,
    )


@trace_app.command(
    "fit",
    epilog=examples(
        "moesim trace fit --trace recorded.parquet --out profile.npz",
        "moesim simulate --model deepseek-v3 --system h200-sxm-8 --tp 8 --routing profile.npz",
    ),
)
def trace_fit(
    trace: Annotated[str, typer.Option(metavar="FILE", help="Routing trace: .parquet or gpt-oss .npz.")],
    output: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Profile to write: .npz.")],
    states: Annotated[int, typer.Option(min=1, max=256, help="Kinds of tokens per layer, at most.")] = 128,
    seed: FixedSeed = 0,
    as_json: Json = False,
) -> None:
    """Fit a profile to a routing trace: its statistics, from which tokens can be drawn for any model."""
    from moesim.cli.trace_synth import fit_command

    fit_command(trace, output, states=states, seed=seed, as_json=as_json)
