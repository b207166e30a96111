from dataclasses import replace

from moesim.hw_models.calibration.link_readers import Links
from moesim.hw_models.calibration.measured import group_numbers


def regrouped(measured: Links, *labels: str) -> Links:
    """The same rows, grouped by other labels, such as `ranks`, to leave those out instead."""
    return replace(measured, group=group_numbers([measured.labels[label] for label in labels]))
