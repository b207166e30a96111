from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb2

from moesim.simulator.perfetto import TimelineWriter

Slice = tuple[str, int, int, int]


def read_back(trace: bytes) -> tuple[dict[int, Any], list[Any]]:
    """(track descriptors by uuid, packets with events)."""
    packets = pb2.Trace.FromString(trace).packet
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in packets if p.HasField("track_descriptor")}
    return tracks, [p for p in packets if p.HasField("track_event")]


def slices_of(events: list[Any], track: int) -> list[Slice]:
    """(name, begin in ns, end in ns, depth) as Perfetto reads them: an end closes what began last."""
    found: list[Slice] = []
    open_slices: list[tuple[str, int]] = []
    for packet in (event for event in events if event.track_event.track_uuid == track):
        if packet.track_event.type == pb2.TrackEvent.TYPE_SLICE_BEGIN:
            open_slices.append((packet.track_event.name, packet.timestamp))
        elif packet.track_event.type == pb2.TrackEvent.TYPE_SLICE_END:
            name, begin = open_slices.pop()
            found.append((name, begin, packet.timestamp, len(open_slices)))
    assert open_slices == []
    return found


def written(slices: list[tuple[str, float, float]]) -> list[Slice]:
    """Slices (name, start_s, duration_s) after a trip through the file format."""
    writer = TimelineWriter()
    track = writer.track("group", "track")
    writer.slices(track, [s[0] for s in slices], [s[1] for s in slices], [s[2] for s in slices])
    return slices_of(read_back(writer.build())[1], track)


def test_tracks_stand_in_their_groups_in_order_of_making() -> None:
    writer = TimelineWriter()
    compute, network = writer.track("device 0", "compute"), writer.track("device 0", "network")
    other = writer.track("device 1", "compute")
    assert writer.track("device 0", "compute") == compute
    tracks, events = read_back(writer.build())
    assert events == []
    assert [tracks[uuid].name for uuid in (compute, network, other)] == ["compute", "network", "compute"]
    group = tracks[tracks[compute].parent_uuid]
    assert (group.name, group.parent_uuid, group.child_ordering) == ("device 0", 0, pb2.TrackDescriptor.EXPLICIT)
    assert tracks[network].parent_uuid == group.uuid
    assert tracks[network].sibling_order_rank > tracks[compute].sibling_order_rank
    assert tracks[tracks[other].parent_uuid].name == "device 1"
    assert len(tracks) == 5


def test_slices_come_back_with_names_and_times() -> None:
    assert written([("b", 2e-6, 1e-6), ("a", 0.0, 2e-6)]) == [("a", 0, 2000, 0), ("b", 2000, 3000, 0)]


def test_events_of_all_tracks_are_in_order_of_time() -> None:
    writer = TimelineWriter()
    rng = np.random.default_rng(0)
    for number in range(5):
        lengths_s = rng.exponential(1e-6, 100)
        starts_s = np.concatenate([[0.0], np.cumsum(lengths_s)[:-1]])
        writer.slices(writer.track("group", f"track {number}"), ["task"] * 100, starts_s, lengths_s)
    writer.counter("tokens", rng.uniform(0.0, 1e-4, 50), np.ones(50))
    _, events = read_back(writer.build())
    assert len(events) == 5 * 100 * 2 + 50
    assert all(first.timestamp <= second.timestamp for first, second in pairwise(events))


def test_slices_without_length_stay_out_of_their_neighbours() -> None:
    slices = [("first", 0.0, 1e-6), ("point", 1e-6, 0.0), ("point", 1e-6, 0.0), ("second", 1e-6, 1e-6)]
    expected = [("first", 0, 1000, 0), ("point", 1000, 1000, 0), ("point", 1000, 1000, 0), ("second", 1000, 2000, 0)]
    assert written(slices) == expected
    assert written(slices[::-1]) == expected


def test_a_slice_may_contain_others() -> None:
    slices = [("inner", 0.0, 1e-6), ("request", 0.0, 5e-6), ("inner", 4e-6, 1e-6), ("point", 2e-6, 0.0)]
    assert written(slices) == [
        ("inner", 0, 1000, 1),
        ("point", 2000, 2000, 1),
        ("inner", 4000, 5000, 1),
        ("request", 0, 5000, 0),
    ]


def test_overlap_by_rounding_is_cut_off() -> None:
    assert written([("a", 0.0, 10.6e-9), ("b", 10.4e-9, 5e-9)]) == [("a", 0, 10, 0), ("b", 10, 15, 0)]
    assert written([("outer", 0.0, 10.4e-9), ("inner", 5e-9, 5.6e-9)]) == [("inner", 5, 10, 1), ("outer", 0, 10, 0)]


def test_slices_that_touch_in_seconds_touch_in_the_trace() -> None:
    rng = np.random.default_rng(1)
    lengths_s = rng.exponential(3e-9, 2000)
    starts_s = 1234.5 + np.concatenate([[0.0], np.cumsum(lengths_s)[:-1]])
    found = written(list(zip(["task"] * 2000, starts_s.tolist(), lengths_s.tolist(), strict=True)))
    assert len(found) == 2000
    assert all(end >= begin for _, begin, end, _ in found)


def test_slices_that_cross_are_refused_with_their_track() -> None:
    with pytest.raises(ValueError, match=r"group / track: slices must follow or contain each other, got 'a' and 'b'"):
        written([("a", 0.0, 2e-6), ("b", 1e-6, 2e-6)])


def test_args_come_back_with_their_types() -> None:
    writer = TimelineWriter()
    track = writer.track("group", "track")
    args: dict[str, Any] = {
        "layer": np.array([3, 4]),
        "share": [0.5, 1.0],
        "fused": [True, False],
        "expert": ["a", "b"],
    }
    writer.slices(track, ["x", "y"], [0.0, 1.0], [1.0, 1.0], args)
    _, events = read_back(writer.build())
    annotations = {annotation.name: annotation for annotation in events[0].track_event.debug_annotations}
    assert annotations["layer"].int_value == 3
    assert annotations["share"].double_value == 0.5
    assert annotations["fused"].bool_value is True
    assert annotations["expert"].string_value == "a"
    assert len(events[1].track_event.debug_annotations) == 0


def test_counters_come_back_with_values_and_unit() -> None:
    writer = TimelineWriter()
    writer.counter("waiting", [0.0, 1e-6], [3, 4.5], parent="replica", unit="requests")
    tracks, events = read_back(writer.build())
    counter = tracks[events[0].track_event.track_uuid]
    assert (counter.name, counter.counter.unit_name) == ("waiting", "requests")
    assert tracks[counter.parent_uuid].name == "replica"
    assert [(event.timestamp, event.track_event.double_counter_value) for event in events] == [(0, 3.0), (1000, 4.5)]


@pytest.mark.parametrize(
    ("names", "start_s", "duration_s", "message"),
    [
        (["a"], [0.0, 1.0], [1.0, 1.0], "there must be 1 times"),
        (["a"], [-1.0], [1.0], "times must be finite and >= 0"),
        (["a"], [np.nan], [1.0], "times must be finite and >= 0"),
        (["a"], [2.0], [-1.0], "durations must be >= 0"),
    ],
)
def test_impossible_slices_are_refused(
    names: list[str], start_s: list[float], duration_s: list[float], message: str
) -> None:
    writer = TimelineWriter()
    with pytest.raises(ValueError, match=message):
        writer.slices(writer.track("group", "track"), names, start_s, duration_s)


def test_args_must_have_a_value_per_slice() -> None:
    writer = TimelineWriter()
    with pytest.raises(ValueError, match="one value per slice in args, got 2 for 1"):
        writer.slices(writer.track("group", "track"), ["a"], [0.0], [1.0], {"layer": [1, 2]})


def test_equal_timelines_give_equal_bytes_and_building_changes_nothing() -> None:
    def writer() -> TimelineWriter:
        made = TimelineWriter()
        made.slices(made.track("g", "t"), ["a", "b"], [0.0, 1.0], [1.0000000004, 1.0], {"x": [1, 2]})
        made.counter("c", [0.0], [1.0])
        return made

    once = writer()
    assert once.build() == once.build() == writer().build()


def test_save_writes_the_whole_file_or_none(tmp_path: Path) -> None:
    writer = TimelineWriter()
    track = writer.track("group", "track")
    writer.slices(track, ["a"], [0.0], [2.0])
    path = tmp_path / "timeline.perfetto-trace"
    writer.save(path)
    whole = writer.build()
    assert path.read_bytes() == whole
    writer.slices(track, ["crosses"], [1.0], [2.0])
    with pytest.raises(ValueError, match="follow or contain"):
        writer.save(path)
    assert path.read_bytes() == whole
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
