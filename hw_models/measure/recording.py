"""Writes a file of measured kernels while it grows, so that an interrupted run leaves what it has."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from moesim.hw_models.measure.measured import About, Clocks, MeasuredKernels, Measurement, Skipped, write_measured


def record(
    about: About, outcomes: Iterable[Measurement | Skipped], path: Path, clocks: Callable[[], Clocks]
) -> Iterator[MeasuredKernels]:
    """Yield the file's contents after every outcome; by then they are on disk, if there is a measurement at all.

    Args:
        about: machine and plan, with nothing skipped yet.
        outcomes: what `runner.measure` yields.
        path: the file.
        clocks: asks for the clocks, after the last measurement.

    Raises:
        DataError: the file cannot be written.
    """
    rows: list[Measurement] = []
    skipped: list[Skipped] = []
    for outcome in outcomes:
        if isinstance(outcome, Measurement):
            rows.append(outcome)
        else:
            skipped.append(outcome)
        contents = MeasuredKernels(about.model_copy(update={"skipped": tuple(skipped)}), tuple(rows))
        if contents.is_complete:
            machine = about.machine.model_copy(update={"clocks_after": clocks()})
            contents = MeasuredKernels(contents.about.model_copy(update={"machine": machine}), contents.rows)
        if rows:
            write_measured(contents, path)
        yield contents
