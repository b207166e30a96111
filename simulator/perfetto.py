"""Writes timelines as Perfetto traces, which ui.perfetto.dev opens.

A trace has groups, tracks of slices in the groups, and counters. A slice is two events, begin and end, and an end
closes the slice of its track that began last; so the slices of a track must follow or contain each other, and the order
of events of equal time matters. Times are rounded to integer nanoseconds, which can make slices that touch overlap by
1 ns; that much is cut off, more is an error.

Format: TracePacket, TrackDescriptor and TrackEvent of perfetto.dev/docs/reference/synthetic-track-event. Nothing but
what was given goes into a trace, so equal timelines give equal bytes.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.files import whole_file

_NS_PER_S = 1e9
_ROUNDING_NS = 1
_SEQUENCE = 1
"""The one writer of the trace; Perfetto wants a number other than 0."""


@dataclass
class _Slices:
    """The slices of one track: parallel lists."""

    label: str
    name: list[str] = field(default_factory=list)
    begin_ns: list[int] = field(default_factory=list)
    end_ns: list[int] = field(default_factory=list)
    args: list[dict[str, object]] = field(default_factory=list)


@dataclass(frozen=True)
class _Track:
    parent: int
    name: str
    counter_unit: str | None = None


class TimelineWriter:
    """Collects tracks, slices and counters; `build` and `save` turn them into a trace."""

    def __init__(self) -> None:
        self._ids: dict[_Track, int] = {}
        self._slices: dict[int, _Slices] = {}
        self._counters: dict[int, tuple[list[int], list[float]]] = {}

    def track(self, parent: str, name: str) -> int:
        """The id of the track `name` in the group `parent`; both are made when they are named for the first time."""
        track = self._id(_Track(self._id(_Track(0, parent)), name))
        self._slices.setdefault(track, _Slices(f"{parent} / {name}"))
        return track

    def slices(
        self,
        track: int,
        names: Sequence[str],
        start_s: ArrayLike,
        duration_s: ArrayLike,
        args: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Add slices to a track, in any order.

        Args:
            track: what `track` returned.
            names: `[slice]` labels.
            start_s: `[slice]` seconds, >= 0.
            duration_s: `[slice]` seconds, >= 0.
            args: columns of values (numbers, truth values or texts), `[slice]` each, shown when a slice is selected.

        Raises:
            ValueError: the lengths differ, or a time is negative or not finite.
        """
        start = np.asarray(start_s, dtype=np.float64)
        begin_ns = _nanoseconds(start, len(names))
        end_ns = _nanoseconds(start + np.asarray(duration_s, dtype=np.float64), len(names))
        if (end_ns < begin_ns).any():
            raise ValueError("durations must be >= 0")
        columns = {key: np.asarray(column).tolist() for key, column in (args or {}).items()}
        rows = zip(*columns.values(), strict=True) if columns else [()] * len(names)
        rows_of_args = [dict(zip(columns, row, strict=True)) for row in rows]
        if len(rows_of_args) != len(names):
            raise ValueError(f"there must be one value per slice in args, got {len(rows_of_args)} for {len(names)}")
        slices = self._slices[track]
        slices.name.extend(names)
        slices.begin_ns.extend(begin_ns.tolist())
        slices.end_ns.extend(end_ns.tolist())
        slices.args.extend(rows_of_args)

    def counter(
        self, name: str, time_s: ArrayLike, value: ArrayLike, *, parent: str | None = None, unit: str = ""
    ) -> None:
        """Add values to the counter `name`, each of which holds until the next one.

        Args:
            name: label of the counter.
            time_s: `[value]` seconds, >= 0.
            value: `[value]` numbers.
            parent: group that the counter stands in; none if left out.
            unit: what the values count, such as "tokens".

        Raises:
            ValueError: the lengths differ, or a time is negative or not finite.
        """
        values = np.asarray(value, dtype=np.float64)
        times_ns = _nanoseconds(time_s, len(values))
        track = self._id(_Track(0 if parent is None else self._id(_Track(0, parent)), name, unit))
        times, held = self._counters.setdefault(track, ([], []))
        times.extend(times_ns.tolist())
        held.extend(values.tolist())

    def build(self) -> bytes:
        """The trace.

        Raises:
            ValueError: slices of one track overlap without one containing the other.
        """
        file = io.BytesIO()
        self._write(file)
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the trace to `path`, whole or not at all.

        Raises:
            ValueError: as `build`.
        """
        with whole_file(Path(path)) as unfinished, unfinished.open("wb") as file:
            self._write(file)

    def _id(self, track: _Track) -> int:
        """Ids count up from 1; 0 is the parent of what has none."""
        return self._ids.setdefault(track, len(self._ids) + 1)

    def _write(self, file: IO[bytes]) -> None:
        from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

        events = self._events()
        builder = StreamingTraceProtoBuilder(file)
        for described, uuid in self._ids.items():
            packet = builder.create_packet()
            _describe(packet.track_descriptor, described, uuid)
            builder.write_packet(packet)
        for time_ns, write, track, index in events:
            packet = builder.create_packet()
            packet.timestamp = time_ns
            packet.trusted_packet_sequence_id = _SEQUENCE
            packet.track_event.track_uuid = track
            write(packet.track_event, track, index)
            builder.write_packet(packet)

    def _events(self) -> list[tuple[int, Any, int, int]]:
        """(time in ns, what writes the event, track, index), in order of time; those of one track as they nest."""
        events = [
            (time_ns, self._begin if begins else self._end, track, index)
            for track, slices in self._slices.items()
            for time_ns, begins, index in _nest(slices)
        ]
        for track, (times_ns, _) in self._counters.items():
            events += [(time_ns, self._count, track, index) for index, time_ns in enumerate(times_ns)]
        events.sort(key=lambda event: event[0])
        return events

    def _begin(self, event: Any, track: int, index: int) -> None:
        slices = self._slices[track]
        event.type = event.TYPE_SLICE_BEGIN
        event.name = slices.name[index]
        for key, value in slices.args[index].items():
            _annotate(event.debug_annotations.add(), key, value)

    def _end(self, event: Any, _track: int, _index: int) -> None:
        event.type = event.TYPE_SLICE_END

    def _count(self, event: Any, track: int, index: int) -> None:
        event.type = event.TYPE_COUNTER
        event.double_counter_value = self._counters[track][1][index]


def _nanoseconds(time_s: ArrayLike, length: int) -> NDArray[np.int64]:
    """`int64[length]` of times in seconds."""
    time = np.asarray(time_s, dtype=np.float64)
    if time.shape != (length,):
        raise ValueError(f"there must be {length} times, got shape {time.shape}")
    if not ((time >= 0.0) & np.isfinite(time)).all():
        raise ValueError("times must be finite and >= 0")
    return np.rint(time * _NS_PER_S).astype(np.int64)


def _nest(slices: _Slices) -> Iterator[tuple[int, bool, int]]:
    """(time in ns, whether it begins, index of the slice) for each event of a track, as the format wants them.

    Of slices that begin together, those without length come first, so that they follow what ends there, and then the
    longest, so that it contains the others.
    """
    begin, end = slices.begin_ns, list(slices.end_ns)
    open_slices: list[int] = []

    def close_until(time_ns: int) -> Iterator[tuple[int, bool, int]]:
        while open_slices and end[open_slices[-1]] <= time_ns:
            index = open_slices.pop()
            yield end[index], False, index

    for index in sorted(range(len(begin)), key=lambda i: (begin[i], end[i] > begin[i], -end[i])):
        yield from close_until(begin[index])
        while open_slices and end[index] > end[open_slices[-1]]:
            outer = open_slices[-1]
            if end[outer] - begin[index] <= _ROUNDING_NS:
                end[outer] = begin[index]
                yield from close_until(begin[index])
            elif end[index] - end[outer] <= _ROUNDING_NS:
                end[index] = end[outer]
            else:
                names = f"{slices.name[outer]!r} and {slices.name[index]!r}"
                raise ValueError(f"{slices.label}: slices must follow or contain each other, got {names}")
        yield begin[index], True, index
        open_slices.append(index)
    yield from close_until(max(end, default=0))


def _describe(descriptor: Any, track: _Track, uuid: int) -> None:
    """Fill a TrackDescriptor; the tracks of a group are shown in the order in which they were made."""
    descriptor.uuid = uuid
    descriptor.name = track.name
    descriptor.sibling_order_rank = uuid
    if track.parent:
        descriptor.parent_uuid = track.parent
    if track.counter_unit is None:
        descriptor.child_ordering = descriptor.EXPLICIT
    else:
        descriptor.counter.unit_name = track.counter_unit


def _annotate(annotation: Any, name: str, value: object) -> None:
    """Fill a DebugAnnotation."""
    annotation.name = name
    if isinstance(value, bool):
        annotation.bool_value = value
    elif isinstance(value, int):
        annotation.int_value = value
    elif isinstance(value, float):
        annotation.double_value = value
    else:
        annotation.string_value = str(value)
