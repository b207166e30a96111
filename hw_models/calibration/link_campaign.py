"""All fits of a system's links inside a node to measured collectives, and the system's YAML with what they found."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moesim.configs.loader import find, shipped
from moesim.errors import ConfigError
from moesim.hw_models.calibration.aiconfigurator import gpu_folder
from moesim.hw_models.calibration.errors import ErrorSummary
from moesim.hw_models.calibration.links import SETTINGS, fit_link, fitted_names, measured_links
from moesim.hw_models.calibration.publish import fit_lines, parameter_lines, with_block
from moesim.hw_models.link_config import LinkConfig
from moesim.hw_models.parameters import parameters
from moesim.hw_models.system import load_system

FITS: Mapping[str, tuple[str, ...]] = {
    "nccl": ("nccl", "nccl_all_to_all"),
    "custom_all_reduce": ("custom_all_reduce",),
    "deepep": ("deepep", "deepep_low_latency"),
}
"""Calibrations of links by what measures them."""
_SECTION = ("intra_node",)


@dataclass(frozen=True)
class LinkOutcome:
    """One fit, and the system's YAML after it.

    Attributes:
        errors: on sizes left out of the fit, by part (dispatch and combine of DeepEP) and bucket of time.
        text: the YAML.
    """

    errors: dict[str, dict[str, ErrorSummary]]
    text: str


def link_campaign(
    system: str,
    data: Path,
    operators: Sequence[str],
    rows: int = SETTINGS.rows,
) -> Iterator[LinkOutcome]:
    """Fit the links of a shipped system inside a node, one kind of collective after the other.

    Args:
        system: name of the system without a number of devices, such as `h200-sxm`.
        data: folder of aiconfigurator's layout, with a folder per GPU.
        operators: which of `FITS`.
        rows: most measurements that one fit looks at.

    Raises:
        ConfigError: there is no such system, or its links have no parameters that such measurements set.
        DataError: no measurements.
    """
    if system not in shipped("systems"):
        raise ConfigError("--gpu", "must be the name of a shipped system to fit its links", system)
    file = Path(find("systems", system).file)
    text, link = file.read_text(encoding="utf-8"), load_system(f"{system}-1").interconnect.intra_node
    wanted = [(operator, fit) for operator in operators for fit in FITS[operator]]
    if missing := [operator for operator, fit in wanted if fit not in link.fits]:
        raise ConfigError(f"{file}: intra_node.fits", f"must hold a calibration of {missing[0]}")
    folder = gpu_folder(data, system)
    for _, fit in wanted:
        measured = measured_links(folder, link, fit)
        found = fit_link(link, fit, measured, replace(SETTINGS, rows=rows))
        link, names = found.link, [part or fit for part, _ in measured]
        text = _published(text, link, fit)
        yield LinkOutcome(dict(zip(names, found.unseen, strict=True)), text)


def _published(text: str, link: LinkConfig, fit: str) -> str:
    known = dict(parameters(link))
    for name in fitted_names(link, fit):
        text = with_block(text, [*_SECTION, *name.split(".")], parameter_lines(known[name]))
    return with_block(text, [*_SECTION, "fits", fit], fit_lines(link.fits[fit]))
