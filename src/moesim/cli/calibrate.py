"""`moesim calibrate`: measured kernels in, the YAML of a device or of its links with fitted parameters out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from moesim.cli.output import print_json, show, table
from moesim.cli.progress import progress_bar
from moesim.configs.loader import Document, find
from moesim.errors import InputError
from moesim.files import check_output, write_text
from moesim.hw_models.calibration.campaign import FITTED, PRODUCTS, Outcome, campaign, campaign_residuals
from moesim.hw_models.calibration.errors import ErrorSummary
from moesim.hw_models.calibration.fit import Progress, Settings
from moesim.hw_models.calibration.link_campaign import FITS, LinkOutcome, link_campaign
from moesim.hw_models.calibration.measured_campaign import measured_campaign
from moesim.hw_models.calibration.residual_fit import LearnedResidual, check_learner
from moesim.simulator.scheduler import KERNEL_SETS

_STEPS = 6
Errors = dict[str, Mapping[str, ErrorSummary]]


def calibrate_command(
    gpu: str,
    data: Path | None,
    measured: Path | None,
    framework: str,
    operators: str,
    output: Path,
    *,
    rows: int,
    residual: bool,
    as_json: bool,
) -> None:
    """Fit, write the device, its links, or both, and say what came out."""
    of_gpu, of_links = _chosen(operators)
    links_output = output.with_name(f"{output.stem}-system.yaml") if of_gpu else output
    written = [output] * bool(of_gpu) + [links_output] * bool(of_links)
    for path in written:
        check_output("--output", path, ".yaml")
    find("devices", Document("--gpu", gpu))
    if framework not in KERNEL_SETS:
        raise InputError("--framework", f"must be one of {', '.join(KERNEL_SETS)}", framework)
    if residual:
        check_learner()
    settings, errors = Settings(rows=rows), Errors()
    if measured is not None:
        _check_measured(data, (*of_gpu, *of_links), residual=residual)
        errors |= _fit_gpu(output, lambda update: measured_campaign(gpu, measured, of_gpu, settings, update))
    elif data is None:
        raise InputError("calibrate", "needs either --data or --measured")
    else:
        if of_gpu:
            learn = partial(campaign_residuals, file=output, framework=framework, settings=settings)
            fits = partial(campaign, gpu, data, framework, of_gpu, settings)
            errors |= _fit_gpu(output, fits, learn if residual else None)
        if of_links:
            errors |= _fit_links(gpu, data, of_links, links_output, rows)
    asked = {"gpu": gpu, "data": str(data or measured), "framework": framework, "operators": operators}
    _report(errors, {**asked, "rows": rows, "residual": residual}, written, as_json=as_json)


def _chosen(operators: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Operators of the GPU and of its links."""
    chosen = tuple(name.strip() for name in operators.split(","))
    known = (*FITTED, *FITS)
    if unknown := [name for name in chosen if name not in known]:
        raise InputError("--operators", f"must be some of {', '.join(known)}, separated by commas", unknown[0])
    of_gpu, of_links = (tuple(name for name in chosen if name in part) for part in (FITTED, FITS))
    return of_gpu, of_links


def _check_measured(data: Path | None, operators: tuple[str, ...], *, residual: bool) -> None:
    """That nothing is asked for which a file of `moesim measure` cannot give."""
    if data is not None:
        raise InputError("calibrate", "needs either --data or --measured")
    if residual:
        raise InputError("--residual", "needs --data: a file of moesim measure has too few shapes to learn from")
    if unknown := [name for name in operators if name not in PRODUCTS]:
        raise InputError("--operators", f"with --measured must be some of {', '.join(PRODUCTS)}", unknown[0])


def _fit_gpu(
    output: Path,
    fits: Callable[[Progress], Iterator[Outcome]],
    learn: Callable[..., list[LearnedResidual]] | None = None,
) -> Errors:
    """Write the device with all fits, and then its residual."""
    outcomes: list[Outcome] = []
    with progress_bar("fitting", _STEPS, "steps of this fit") as update:
        for outcome in fits(lambda done, _: update(done)):
            outcomes.append(outcome)
            update(0)
    if not outcomes:
        raise InputError("--framework", "no set of kernels has enough rows")
    errors: Errors = {item.plan.name: item.result.unseen for item in outcomes}
    write_text(output, outcomes[-1].text)
    if learn is not None:
        with progress_bar("learning residuals", len(outcomes), "fits") as update:
            learned = learn(outcomes, progress=update)
        errors |= {f"{item.name} with residual": item.unseen for item in learned}
    return errors


def _fit_links(gpu: str, data: Path, operators: tuple[str, ...], output: Path, rows: int) -> Errors:
    outcomes: list[LinkOutcome] = []
    with progress_bar("fitting links", sum(len(FITS[name]) for name in operators), "fits") as update:
        for outcome in link_campaign(gpu, data, operators, rows):
            outcomes.append(outcome)
            update(len(outcomes))
    write_text(output, outcomes[-1].text)
    return {name: unseen for outcome in outcomes for name, unseen in outcome.errors.items()}


def _report(errors: Errors, settings: dict[str, object], written: Sequence[Path], *, as_json: bool) -> None:
    files = [str(path) for path in written]
    if as_json:
        rounded = {name: {key: vars(value) for key, value in parts.items()} for name, parts in errors.items()}
        print_json(settings, {"errors": rounded}, output=files[0] if len(files) == 1 else files)
        return
    shown = table("fit", "rows", "mean", "median", "p90", "bias", right=("rows", "mean", "median", "p90", "bias"))
    for name, parts in errors.items():
        for bucket, item in parts.items():
            label = name if bucket == "all" else f"  {bucket}"
            values = (item.mean, item.median, item.p90, item.bias)
            shown.add_row(label, str(item.rows), *(f"{value:.1%}" for value in values))
    show(shown, "errors on shapes that the fit did not see", f"saved to {' and '.join(files)}")
