"""Read the traces of TensorFlow's profiler and divide wall time among the operations in them.

On the CPU an operation is an event in a thread of the host's plane and is called NAME:TYPE as in the graph. On a GPU it
is a kernel in a stream with the attribute tf_op=NAME:TYPE. Events of code that XLA compiled name an instruction; the
trace contains the compiled program, which maps instructions to operations of the graph.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tensorflow.compiler.xla.service import hlo_pb2
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from kseg.errors import UserError

HOST, METADATA = "/host:CPU", "/host:metadata"
# The only colon in the name of such an event precedes the type.
OPERATION = re.compile(r"(?P<name>[^:\s]+):(?P<type>\w+)")
# Prefix of the threads of tf.data, which prepare batches of later steps.
INPUT_THREADS = "tf_data"
# XLA's name of the compiled step (kseg.training.step.Steps). XLA compiles functions of tf.data as well, and both run on
# the same threads.
STEP_MODULE = re.compile(r"_step_")
# The event, on a separate thread, in which a step waits for its batch.
WAIT = re.compile(r"IteratorGetNext\w*::DoCompute")
# The event of a running compiled function.
CALL = re.compile(r"KernelAndDeviceFunc::Run")
# The profiler's time unit is the picosecond.
TICKS = 10**12


class TraceError(UserError):
    """The profiler's trace lacks the expected events."""


class Operation(NamedTuple):
    """Hold an interval in which an operation ran and no operation nested in it did.

    name, type: as in the graph; the type of unknown operations is "".
    start, end: ps.
    prefetches: whether the operation belongs to tf.data, which prepares batches of later steps.
    """

    name: str
    type: str
    start: int
    end: int
    prefetches: bool = False


class Span(NamedTuple):
    """Hold an interval, ps, that belongs to `key` unless a span of lower `priority` number overlaps it."""

    start: int
    end: int
    priority: int
    key: Hashable


def read_trace(directory: Path) -> xplane_pb2.XSpace:
    """Read the newest trace that the profiler wrote into a directory; raises TraceError if there is none."""
    paths = sorted(directory.glob("plugins/profile/*/*.xplane.pb"))
    if not paths:
        raise TraceError(f"the profiler has written no trace into {directory}")
    return xplane_pb2.XSpace.FromString(paths[-1].read_bytes())


def event_windows(space: xplane_pb2.XSpace, name: re.Pattern, prefetching: bool = False) -> list[tuple[int, int]]:
    """Return the intervals (start, end) of the host's events with a name, ps, in ascending order.

    Args:
        space: the trace.
        name: must match the name of the event completely.
        prefetching: whether to include the threads of tf.data.
    """
    return sorted(
        (start, end)
        for plane in space.planes
        if plane.name == HOST
        for line in plane.lines
        if prefetching or not line.name.startswith(INPUT_THREADS)
        for event, start, end in _events(line)
        if name.fullmatch(plane.event_metadata[event.metadata_id].name)
    )


def operations(space: xplane_pb2.XSpace) -> Iterator[Operation]:
    """Yield the operations on the GPUs if the trace has any, otherwise the operations on the CPU."""
    devices = [plane for plane in space.planes if plane.name.startswith("/device:GPU")]
    origins = _origins(space)
    for plane in devices or [plane for plane in space.planes if plane.name == HOST]:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):
                # Lines other than streams repeat the same kernels, grouped by name.
                continue
            named = [(start, end, _named(plane, event, origins, bool(devices))) for event, start, end in _events(line)]
            prefetches = line.name.startswith(INPUT_THREADS)
            for start, end, (name, kind, in_step) in innermost([event for event in named if event[2]]):
                yield Operation(name, kind, start, end, prefetches or not in_step)


def _events(line) -> Iterator[tuple]:
    """Yield (event, start, end) of the events of a thread or stream, ps."""
    for event in line.events:
        start = line.timestamp_ns * 1000 + event.offset_ps
        yield event, start, start + event.duration_ps


def _named(plane, event, origins: dict, on_device: bool) -> tuple[str, str, bool] | None:
    """Return (name, type, whether it may belong to the step) of an event's operation; None for other events."""
    text = plane.event_metadata[event.metadata_id].name
    attributes = {plane.stat_metadata[stat.metadata_id].name: stat for stat in event.stats}
    if "hlo_op" in attributes:
        # This event only marks the end of another one.
        if text.startswith("end: "):
            return None
        module, instruction = (_text(plane, attributes.get(key)) for key in ("hlo_module", "hlo_op"))
        return *origins.get((module, instruction), (instruction, "")), bool(STEP_MODULE.search(module))
    match = OPERATION.fullmatch(_text(plane, attributes.get("tf_op")) or text)
    if match:
        return *match.group("name", "type"), True
    # Every event of a stream is work of the device, even without a name.
    return (text, "", True) if on_device else None


def _text(plane, attribute) -> str:
    """Return the text of an attribute, which may be a reference; "" for no attribute."""
    if attribute is None:
        return ""
    if attribute.WhichOneof("value") == "ref_value":
        return plane.stat_metadata[attribute.ref_value].name
    return attribute.str_value


def _origins(space: xplane_pb2.XSpace) -> dict[tuple[str, str], tuple[str, str]]:
    """Return {(module, instruction): (name, type)} of the operations that XLA compiled into instructions."""
    origins = {}
    for plane in space.planes:
        for metadata in plane.event_metadata.values() if plane.name == METADATA else ():
            for stat in metadata.stats:
                module = hlo_pb2.HloProto.FromString(stat.bytes_value).hlo_module
                for computation in module.computations:
                    for instruction in computation.instructions:
                        if instruction.metadata.op_type:
                            origins[module.name, instruction.name] = (
                                instruction.metadata.op_name,
                                instruction.metadata.op_type,
                            )
    return origins


def innermost(events: Iterable[tuple[int, int, Hashable]]) -> Iterator[tuple[int, int, Hashable]]:
    """Yield the intervals (start, end, key) of one thread's events without their nested events."""
    open_events: list[tuple[int, Hashable]] = []
    now = 0

    def close_until(limit: int) -> Iterator[tuple[int, int, Hashable]]:
        nonlocal now
        while open_events:
            end, key = open_events[-1]
            if min(end, limit) > now:
                yield now, min(end, limit), key
                now = min(end, limit)
            if end > limit:
                return
            open_events.pop()

    for start, end, key in sorted(events, key=lambda event: (event[0], -event[1])):
        yield from close_until(start)
        now = max(now, start)
        open_events.append((end, key))
    if open_events:
        yield from close_until(max(end for end, _ in open_events))


def wall_time_by_key(spans: Iterable[Span], within: tuple[int, int]) -> Counter:
    """Divide the wall time of an interval among the keys of spans.

    An instant is divided equally among the spans with the lowest priority number that cover it.

    Args:
        spans: may overlap.
        within: the interval (start, end), ps.

    Returns:
        Picoseconds by key; they add up to the length of the interval if spans cover all of it.
    """
    first, last = within
    edges: list[tuple[int, int, int, Hashable]] = []
    for span in spans:
        start, end = max(span.start, first), min(span.end, last)
        if start < end:
            edges += [(start, 1, span.priority, span.key), (end, -1, span.priority, span.key)]
    edges.sort(key=lambda edge: edge[0])
    active: dict[int, Counter] = {}
    wall: Counter = Counter()
    for index, (now, change, priority, key) in enumerate(edges):
        counts = active.setdefault(priority, Counter())
        counts[key] += change
        if not counts[key]:
            del counts[key]
        if index + 1 < len(edges) and (length := edges[index + 1][0] - now):
            counts = next((active[priority] for priority in sorted(active) if active[priority]), Counter())
            total = sum(counts.values())
            for running, count in counts.items():
                wall[running] += length * count / total
    return wall


def durations_by_key(spans: Iterable[Span], within: tuple[int, int]) -> Counter:
    """Sum the durations of spans inside an interval by key, ps; overlapping spans count in full."""
    total: Counter = Counter()
    for span in spans:
        total[span.key] += max(0, min(span.end, within[1]) - max(span.start, within[0]))
    return total
