"""The same function on many items, on several processes."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def as_they_finish(
    function: Callable[[Item], Outcome], items: Sequence[Item], *, workers: int
) -> Iterator[tuple[int, Outcome]]:
    """(position in `items`, outcome) of each item, in any order.

    Args:
        function: what to do with an item; as outcome and items, it must be picklable unless all happens here.
        items: what to do it with.
        workers: processes; 1, or one item, stays in this one.
    """
    if workers == 1 or len(items) <= 1:
        yield from ((position, function(item)) for position, item in enumerate(items))
        return
    # Forked children would inherit numba's threads and SimPy's state; spawned ones start clean, everywhere alike.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(items)), mp_context=context, initializer=_end_with_parent)
    try:
        futures = {pool.submit(function, item): position for position, item in enumerate(items)}
        yield from ((futures[future], future.result()) for future in as_completed(futures))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when its parent is gone, which may have been killed without a chance to say so."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
