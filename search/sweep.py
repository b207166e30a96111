"""A grid of scenarios on several processes."""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.configs.loader import Reference
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
    if workers == 1 or len(variants) == 1:
        yield from ((position, _summary(variant, runs)) for position, variant in enumerate(variants))
        return
    # Forked children would inherit numba's threads and SimPy's state; spawned ones start clean, everywhere alike.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(variants)), mp_context=context)
    try:
        futures = {pool.submit(_summary, variant, runs): position for position, variant in enumerate(variants)}
        yield from _as_they_finish(futures)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _as_they_finish(
    futures: Mapping[Future[Mapping[str, Any]], int],
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for future in as_completed(futures):
        yield futures[future], future.result()


def _summary(variant: Variant, runs: Path | None) -> Mapping[str, Any]:
    setup = prepare(*load_scenario(variant.scenario, variant.assignments))
    return RunStore(runs).result(setup).summary
