"""A grid of scenarios on several processes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from moesim.configs.loader import Reference
from moesim.search.processes import as_they_finish
from moesim.search.runs import RunStore
from moesim.simulator.scenario import load_scenario, prepare


@dataclass(frozen=True)
class Variant:
    """One point of a grid."""

    scenario: Reference
    assignments: tuple[str, ...]


def check_variants(variants: Sequence[Variant]) -> None:
    """Load every variant, so that a mistake in the last one is found before the first one runs.

    Raises:
        InputError: a scenario, or a file it names, breaks a rule.
    """
    for variant in variants:
        prepare(*load_scenario(variant.scenario, variant.assignments))


def sweep(
    variants: Sequence[Variant], *, workers: int = 1, runs: Path | None = None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Simulate every variant; yields (position in `variants`, summary) as they finish, in any order.

    Args:
        variants: what to simulate.
        workers: processes; 1 simulates in this one.
        runs: folder in which results are kept, and from which those that are there already are taken.
    """
    yield from as_they_finish(partial(_summary, runs=runs), variants, workers=workers)


def _summary(variant: Variant, runs: Path | None) -> Mapping[str, Any]:
    setup = prepare(*load_scenario(variant.scenario, variant.assignments))
    return RunStore(runs).result(setup).summary
