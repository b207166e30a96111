"""Builds task graphs one task, or one block of tasks, after the other."""

from collections.abc import Iterable, Sequence

import numpy as np

from moesim.simulator.graph import JOIN, NO_DEVICE, NO_LAYER, TaskGraph


class GraphBuilder:
    """Collects tasks one by one or in blocks. Ids count up from 0 in the order of adding.

    Nothing is checked before `build`. Durations left at 0 are filled in later with `TaskGraph.with_durations`.
    """

    def __init__(self) -> None:
        self._streams: dict[str, int] = {}
        self._kinds: dict[str, int] = {}
        self._duration_s: list[float] = []
        self._stream: list[int] = []
        self._kind: list[int] = []
        self._layer: list[int] = []
        self._device: list[int] = []
        self._before: list[int] = []
        self._after: list[int] = []

    def stream(self, name: str) -> int:
        """The id of the stream called `name`, which is added when it is named for the first time."""
        return self._streams.setdefault(name, len(self._streams))

    def add(
        self,
        stream: int,
        kind: str,
        layer: int = NO_LAYER,
        device: int = NO_DEVICE,
        *,
        after: Iterable[int] = (),
        duration_s: float = 0.0,
    ) -> int:
        """Add a task that waits for the tasks `after`; returns its id."""
        task = len(self._stream)
        self._duration_s.append(duration_s)
        self._stream.append(stream)
        self._kind.append(self._kinds.setdefault(kind, len(self._kinds)))
        self._layer.append(layer)
        self._device.append(device)
        self._before.extend(after)
        self._after.extend([task] * (len(self._before) - len(self._after)))
        return task

    def add_block(
        self,
        streams: Sequence[int],
        kind: str,
        layer: int = NO_LAYER,
        devices: Sequence[int] | None = None,
        *,
        after: Sequence[int] = (),
        after_each: Sequence[int] | None = None,
    ) -> range:
        """Add one task per entry of `streams`; returns their ids, which follow each other.

        Args:
            streams: stream of each task.
            kind: the kind of all of them.
            layer: the layer of all of them.
            devices: device of each task; NO_DEVICE for all if left out.
            after: tasks that every task of the block waits for.
            after_each: one task per task of the block, which that one waits for as well.

        Raises:
            ValueError: `devices` or `after_each` is not as long as `streams`.
        """
        first = len(self._stream)
        places = zip(streams, devices or [NO_DEVICE] * len(streams), strict=True)
        waits_for = [[*after]] * len(streams) if after_each is None else [[*after, task] for task in after_each]
        for (stream, device), tasks in zip(places, waits_for, strict=True):
            self.add(stream, kind, layer, device, after=tasks)
        return range(first, len(self._stream))

    def join(self, after: Iterable[int], layer: int = NO_LAYER) -> int:
        """Add a task of no duration and on no stream that completes when all tasks `after` have; returns its id."""
        return self.add(JOIN, "join", layer, after=after)

    def build(self) -> TaskGraph:
        """Check and build the graph.

        Raises:
            GraphError: as `TaskGraph.build`.
        """
        return TaskGraph.build(
            self._duration_s,
            self._stream,
            np.column_stack([self._before, self._after]).astype(np.int64),
            stream_names=tuple(self._streams),
            kind=self._kind,
            kinds=tuple(self._kinds),
            layer=self._layer,
            device=self._device,
        )
