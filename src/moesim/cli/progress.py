"""The progress bar of all commands: on stderr, and only on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(what: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """A bar that disappears at the end; yields a function that takes the number of `unit` done so far.

    Args:
        what: is being done.
        total: of `unit`; a second argument of the function changes it, where it is known only later.
        unit: what is counted.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done, total=None: progress.update(task, completed=done, total=total)


class StageBars:
    """A progress bar for each stage of something long, one after the other.

    Args:
        unit: what is counted.
    """

    def __init__(self, unit: str = "layers") -> None:
        self._unit = unit
        self._stage = ""
        self._open = ExitStack()
        self._update: Callable[[int], None] = lambda _: None

    def show(self, stage: str, done: int, total: int) -> None:
        """Move the bar of `stage`."""
        if stage != self._stage:
            self.close()
            self._stage, self._update = stage, self._open.enter_context(progress_bar(stage, total, self._unit))
        self._update(done)

    def close(self) -> None:
        """Remove the bar."""
        self._open.close()
