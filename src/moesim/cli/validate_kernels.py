"""`moesim validate kernels`: flags; everything heavy is imported when the command runs."""

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.options import Json

EXAMPLES = (
    "moesim validate kernels --data ./kernels",
    "moesim validate kernels --data ./kernels --gpu h200-sxm --operators gemm,moe --folds 5 --out out/kernels",
    "moesim validate kernels --data ./kernels --transfer",
    "moesim validate kernels --measured my-gpu.parquet --gpu my-gpu.yaml",
)


def kernels(
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with tables of aiconfigurator or LLMServingSim, at any depth."),
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of `moesim measure`; needs --gpu.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Devices, separated by commas; by default all that were measured.")
    ] = None,
    operators: Annotated[str | None, typer.Option(help="Such as gemm,moe; by default all.")] = None,
    framework: Annotated[
        str | None, typer.Option(help="Only these kernels: vllm, sglang, trtllm (with --measured: whose to price).")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Refit so many times, each without a part of the shapes; minutes per kernel."),
    ] = None,
    rows: Annotated[int, typer.Option(min=100, help="Most measurements that one refit looks at.")] = 2500,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Also predict each GPU from GPUs of other families, by physics.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write tables (.csv, .md, .json) and figures there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Price measured kernels by a roofline, by physics and with residuals, and say how far off each is."""
    from moesim.cli.kernel_validation import Request, kernels_command

    chosen = Request(data, measured, gpu, operators, framework, folds, rows, transfer, out)
    kernels_command(chosen, as_json=as_json)
