"""`moesim calibrate`: measured kernels in, a device's YAML with fitted parameters out."""

from pathlib import Path

from moesim.cli.output import print_json, show, table
from moesim.cli.progress import progress_bar
from moesim.errors import ConfigError, InputError
from moesim.hw_models.calibration.campaign import OPERATORS, Outcome, campaign, campaign_residuals
from moesim.hw_models.calibration.fit import Settings
from moesim.reports.style import check_place, write_text

_STEPS = 6


def calibrate_command(
    gpu: str, data: Path, framework: str, operators: str, output: Path, *, rows: int, residual: bool, as_json: bool
) -> None:
    """Fit, write the device and say what came out."""
    chosen = tuple(name.strip() for name in operators.split(","))
    if unknown := [name for name in chosen if name not in OPERATORS]:
        raise InputError("--operators", f"must be some of {', '.join(OPERATORS)}, separated by commas", unknown[0])
    if output.suffix != ".yaml":
        raise ConfigError(f"--output {output}", "must end in .yaml")
    check_place(output)
    settings = Settings(rows=rows)
    outcomes = _fit(gpu, data, framework, chosen, settings)
    errors = {item.plan.name: item.result.unseen for item in outcomes}
    text = outcomes[-1].text
    write_text(output, text)
    if residual:
        with progress_bar("learning residuals", len(outcomes), "fits") as update:
            learned = campaign_residuals(outcomes, output, framework, settings, update)
        errors |= {f"{item.name} with residual": item.unseen for item in learned}
    if as_json:
        rounded = {name: {key: vars(value) for key, value in parts.items()} for name, parts in errors.items()}
        print_json({"gpu": gpu, "data": str(data), "framework": framework}, {"errors": rounded}, output=str(output))
        return
    shown = table("fit", "rows", "mean", "median", "p90", "bias", right=("rows", "mean", "median", "p90", "bias"))
    for name, parts in errors.items():
        for bucket, item in parts.items():
            label = name if bucket == "all" else f"  {bucket}"
            values = (item.mean, item.median, item.p90, item.bias)
            shown.add_row(label, str(item.rows), *(f"{value:.1%}" for value in values))
    show(shown, "errors on shapes that the fit did not see", f"saved to {output}")


def _fit(gpu: str, data: Path, framework: str, operators: tuple[str, ...], settings: Settings) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with progress_bar("fitting", _STEPS, "steps of this fit") as update:
        for outcome in campaign(gpu, data, framework, operators, settings, lambda done, _: update(done)):
            outcomes.append(outcome)
            update(0)
    if not outcomes:
        raise InputError("--framework", "no set of kernels has enough rows", framework)
    return outcomes
