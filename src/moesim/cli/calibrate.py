"""`moesim calibrate`: measured kernels in, a device's YAML with fitted parameters out."""

from collections.abc import Callable, Iterator
from pathlib import Path

from moesim.cli.output import print_json, show, table
from moesim.cli.progress import progress_bar
from moesim.errors import ConfigError, InputError
from moesim.hw_models.calibration.campaign import OPERATORS, Outcome, campaign, campaign_residuals
from moesim.hw_models.calibration.fit import Progress, Settings
from moesim.hw_models.calibration.measured_campaign import measured_campaign
from moesim.reports.style import check_place, write_text

_STEPS = 6


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
    """Fit, write the device and say what came out."""
    chosen = _checked(data, measured, operators, output, residual=residual)
    settings = Settings(rows=rows)

    def fits(progress: Progress) -> Iterator[Outcome]:
        if measured is not None:
            return measured_campaign(gpu, measured, chosen, settings, progress)
        assert data is not None  # else refused above
        return campaign(gpu, data, framework, chosen, settings, progress)

    outcomes = _fit(fits, framework)
    errors = {item.plan.name: item.result.unseen for item in outcomes}
    text = outcomes[-1].text
    write_text(output, text)
    if residual:
        with progress_bar("learning residuals", len(outcomes), "fits") as update:
            learned = campaign_residuals(outcomes, output, framework, settings, update)
        errors |= {f"{item.name} with residual": item.unseen for item in learned}
    if as_json:
        rounded = {name: {key: vars(value) for key, value in parts.items()} for name, parts in errors.items()}
        settings_of = {"gpu": gpu, "data": str(data or measured), "framework": framework}
        print_json(settings_of, {"errors": rounded}, output=str(output))
        return
    shown = table("fit", "rows", "mean", "median", "p90", "bias", right=("rows", "mean", "median", "p90", "bias"))
    for name, parts in errors.items():
        for bucket, item in parts.items():
            label = name if bucket == "all" else f"  {bucket}"
            values = (item.mean, item.median, item.p90, item.bias)
            shown.add_row(label, str(item.rows), *(f"{value:.1%}" for value in values))
    show(shown, "errors on shapes that the fit did not see", f"saved to {output}")


def _checked(
    data: Path | None, measured: Path | None, operators: str, output: Path, *, residual: bool
) -> tuple[str, ...]:
    """The operators, once the flags are known to make sense."""
    if (data is None) == (measured is None):
        raise InputError("calibrate", "needs either --data or --measured")
    if residual and measured is not None:
        raise InputError("--residual", "needs --data: a file of moesim measure has too few shapes to learn from")
    chosen = tuple(name.strip() for name in operators.split(","))
    if unknown := [name for name in chosen if name not in OPERATORS]:
        raise InputError("--operators", f"must be some of {', '.join(OPERATORS)}, separated by commas", unknown[0])
    if output.suffix != ".yaml":
        raise ConfigError(f"--output {output}", "must end in .yaml")
    check_place(output)
    return chosen


def _fit(fits: Callable[[Progress], Iterator[Outcome]], framework: str) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with progress_bar("fitting", _STEPS, "steps of this fit") as update:
        for outcome in fits(lambda done, _: update(done)):
            outcomes.append(outcome)
            update(0)
    if not outcomes:
        raise InputError("--framework", "no set of kernels has enough rows", framework)
    return outcomes
