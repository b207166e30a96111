"""What `moesim validate kernels` does."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from moesim.cli.output import print_json, show, table
from moesim.cli.progress import progress_bar
from moesim.errors import DataError, InputError
from moesim.files import check_folder, make_folder, write_text
from moesim.hw_models.calibration.fit import Settings
from moesim.reports.validation.kernel_figure import draw_kernels
from moesim.reports.validation.kernel_files import OPERATORS, GpuData, find_gpus, read_sets
from moesim.reports.validation.kernel_measured import read_measured_sets
from moesim.reports.validation.kernel_prices import Prices, priced, prices_of
from moesim.reports.validation.kernel_refits import can_refit, refitted
from moesim.reports.validation.kernel_tables import (
    LOAD_COLUMNS,
    NOTES,
    TIME_COLUMNS,
    VARIANT_COLUMNS,
    as_csv,
    as_markdown,
    load_cells,
    sections,
    time_cells,
    variant_cells,
)
from moesim.reports.validation.kernel_transfer import TransferError, transfers
from moesim.reports.validation.kernels import Kernels, as_dict, by_distribution, group_errors, group_rows
from moesim.simulator.scheduler import FRAMEWORKS


class Request(NamedTuple):
    """The flags."""

    data: Path | None
    measured: Path | None
    gpu: str | None
    operators: str | None
    framework: str | None
    folds: int | None
    rows: int
    transfer: bool
    out: Path | None


def kernels_command(request: Request, *, as_json: bool) -> None:
    """Price what was measured, print and save how far off the prices are."""
    operators = _operators(request.operators)
    if (request.data is None) == (request.measured is None):
        raise InputError("validate kernels", "needs either --data or --measured")
    if request.framework is not None and request.framework not in FRAMEWORKS:
        raise InputError("--framework", f"must be one of {', '.join(FRAMEWORKS)}", request.framework)
    if request.out is not None:
        check_folder(request.out, "--out")
    if request.measured is not None:
        kernels, left_out, moved = _of_file(request, operators), list[str](), list[TransferError]()
    else:
        kernels, left_out, moved = _of_folder(request, operators)
    if request.folds is not None:
        kernels = _refit(kernels, request)
    if request.out is not None:
        _save(request.out, kernels, moved)
    if as_json:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in request._asdict().items()}
        apart = list(by_distribution(kernels))
        errors = [as_dict(error) for error in group_errors(apart)]
        results = {"groups": group_rows(apart), "errors": errors, "transfer": [one.as_dict() for one in moved]}
        print_json(settings, results | {"left_out": left_out}, output=str(request.out) if request.out else None)
    else:
        _print(kernels, moved, left_out, request.out)


def _operators(text: str | None) -> tuple[str, ...]:
    chosen = tuple(name.strip() for name in text.split(",")) if text else OPERATORS
    if unknown := [name for name in chosen if name not in OPERATORS]:
        raise InputError("--operators", f"must be some of {', '.join(OPERATORS)}, separated by commas", unknown[0])
    return chosen


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


# --- what to price ---------------------------------------------------------------------------------------------------


def _of_folder(request: Request, operators: Sequence[str]) -> tuple[list[Kernels], list[str], list[TransferError]]:
    assert request.data is not None  # the caller looked
    found, left_out = find_gpus(request.data)
    chosen = _chosen(found, _names(request.gpu), request.data)
    kernels: list[Kernels] = []
    with progress_bar("pricing", len(chosen), "GPUs") as update:
        for done, one in enumerate(chosen):
            kernels += _priced(one, operators, request.framework)
            update(done + 1)
    if not kernels:
        kinds = f"{', '.join(operators)}" + (f" of {request.framework}" if request.framework else "")
        raise DataError(str(request.data), f"must hold measurements of {kinds} on {', '.join(o.gpu for o in chosen)}")
    moved: list[TransferError] = []
    if request.transfer:
        with progress_bar("fitting families", len(chosen), "GPUs") as update:
            for done, one in enumerate(chosen):
                moved += transfers(found, one.gpu, operators, Settings(rows=min(request.rows, 1000), starts=1))
                update(done + 1)
    return kernels, left_out, moved


def _chosen(found: Sequence[GpuData], names: Sequence[str], data: Path) -> list[GpuData]:
    known = {one.gpu: one for one in found}
    if missing := [name for name in names if name not in known]:
        raise DataError(
            str(data), f"must hold measurements of --gpu (there are: {', '.join(known) or 'none'})", missing[0]
        )
    return [known[name] for name in names] if names else list(found)


def _priced(found: GpuData, operators: Sequence[str], framework: str | None) -> Iterator[Kernels]:
    prices: dict[str, Prices] = {}
    for one in read_sets(found, operators):
        if framework is None or one.framework == framework:
            if one.framework not in prices:
                prices[one.framework] = prices_of(found.gpu, one.framework)
            yield priced(found.gpu, one, prices[one.framework])


def _of_file(request: Request, operators: Sequence[str]) -> list[Kernels]:
    assert request.measured is not None  # the caller looked
    if request.gpu is None:
        raise InputError("--gpu", "is needed with --measured: a shipped device or a YAML file")
    if request.transfer:
        raise InputError("--transfer", "needs --data")
    prices = prices_of(request.gpu, request.framework or "")
    sets = [one for one in read_measured_sets(request.measured) if one.op in operators]
    if not sets:
        raise DataError(str(request.measured), f"must hold measurements of {', '.join(operators)}")
    return [priced(request.gpu, one, prices) for one in sets]


def _refit(kernels: Sequence[Kernels], request: Request) -> list[Kernels]:
    assert request.folds is not None  # the caller looked
    settings = Settings(rows=request.rows, starts=1, folds=request.folds)
    todo = sum(can_refit(one) for one in kernels)
    changed, done = [], 0
    with progress_bar("refitting", todo * (request.folds + 1), "fits") as update:
        for one in kernels:
            if not can_refit(one):
                changed.append(one)
                continue
            before, prices = done * (request.folds + 1), prices_of(one.gpu, one.framework)
            changed.append(refitted(one, prices, settings, partial(_advance, update, before)))
            done += 1
    return changed


def _advance(update: Callable[[int], None], before: int, made: int, _: int) -> None:
    """Progress within one fit, after `before` steps of others."""
    update(before + made)


# --- output ----------------------------------------------------------------------------------------------------------


def _save(out: Path, kernels: Sequence[Kernels], moved: Sequence[TransferError]) -> None:
    make_folder("--out", out)
    apart = list(by_distribution(kernels))
    errors = list(group_errors(apart))
    write_text(out / "kernels.csv", as_csv(errors))
    across = (TransferError.COLUMNS, [one.cells() for one in moved])
    write_text(out / "kernels.md", as_markdown(kernels, [across]))
    held: dict[str, Any] = {"groups": group_rows(apart), "errors": [as_dict(error) for error in errors]}
    held["transfer"] = [one.as_dict() for one in moved]
    write_text(out / "kernels.json", json.dumps(held, indent=2) + "\n")
    panels = [chosen for _, chosen in sections(kernels)]
    with progress_bar("drawing", len(panels), "figures") as update:
        for done, chosen in enumerate(panels):
            draw_kernels(chosen, out / f"kernels-{Path(chosen[0].gpu).stem}-{chosen[0].op}.png")
            update(done + 1)


def _print(
    kernels: Sequence[Kernels], moved: Sequence[TransferError], left_out: Sequence[str], out: Path | None
) -> None:
    parts: list[Any] = []
    for title, chosen in sections(kernels):
        parts.append(title)
        for columns, cells in ((VARIANT_COLUMNS, variant_cells(chosen)), (TIME_COLUMNS, time_cells(chosen))):
            shown = table(*columns, right=columns[1:])
            for row in cells:
                shown.add_row(*row)
            parts.append(shown)
        if loads := load_cells(chosen):
            shown = table(*LOAD_COLUMNS, right=LOAD_COLUMNS[4:])
            for row in loads:
                shown.add_row(*row)
            parts.append(shown)
    parts += [*NOTES, *_transfer_table(moved)]
    parts += [f"left out: {line}" for line in left_out]
    show(*parts, *([f"saved to {out}"] if out else []))


def _transfer_table(moved: Sequence[TransferError]) -> list[Any]:
    if not moved:
        return []
    shown = table(*TransferError.COLUMNS, right=TransferError.COLUMNS[3:])
    for one in moved:
        shown.add_row(*one.cells())
    return ["from other families, by physics and data sheets alone", shown]
