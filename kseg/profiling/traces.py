"""What TensorFlow's profiler wrote: which operations ran when, on which threads and devices, and the wall time shared
out among them.

On the CPU an operation is an event of a thread of the host's plane, named NAME:TYPE as in the graph; on a GPU it is
a kernel of a stream, which says the same of itself in its attribute tf_op. What XLA has compiled names the instruction,
and the compiled program, which is in the trace, says which operation of the graph that comes from.
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
# An operation's name holds no colon but the one before its type.
OPERATION = re.compile(r"(?P<name>[^:\s]+):(?P<type>\w+)")
# The threads of tf.data, which work ahead of the step.
INPUT_THREADS = "tf_data"
# What XLA has made of the compiled step (kseg.training.step.Steps); tf.data's functions use it, too, and all threads.
STEP_MODULE = re.compile(r"_step_")
# What a step waits in for its batch, on a thread made for that.
WAIT = re.compile(r"IteratorGetNext\w*::DoCompute")
# A compiled function at work.
CALL = re.compile(r"KernelAndDeviceFunc::Run")
# Picoseconds of a second.
TICKS = 10 ** 12


class TraceError(UserError):
    """The profiler's trace does not hold what it should."""


class Operation(NamedTuple):
    """A stretch of time, ps, in which an operation ran and none inside it; `type` is "" where nothing names it.

    `ahead` tells that it belongs to tf.data, which makes batches of later steps.
    """

    name: str
    type: str
    start: int
    end: int
    ahead: bool = False


class Span(NamedTuple):
    """A stretch of time, ps, that is put down to `key`, unless something of a lower rank goes on at the same time."""

    start: int
    end: int
    rank: int
    key: Hashable


def read(directory: Path) -> xplane_pb2.XSpace:
    """Return the newest trace that the profiler wrote into a directory; raises TraceError where there is none."""
    paths = sorted(directory.glob("plugins/profile/*/*.xplane.pb"))
    if not paths:
        raise TraceError(f"the profiler has written no trace into {directory}")
    return xplane_pb2.XSpace.FromString(paths[-1].read_bytes())


def windows(space: xplane_pb2.XSpace, name: re.Pattern, ahead: bool = False) -> list[tuple[int, int]]:
    """Return (start, end), ps, of each event of the host's threads with such a name, in their order.

    With `ahead`, of those of tf.data's threads, too.
    """
    return sorted((start, end) for plane in space.planes if plane.name == HOST for line in plane.lines
                  if ahead or not line.name.startswith(INPUT_THREADS) for event, start, end in _events(line)
                  if name.fullmatch(plane.event_metadata[event.metadata_id].name))


def operations(space: xplane_pb2.XSpace) -> Iterator[Operation]:
    """Yield what ran on the devices: the kernels of GPUs where there are any, else the operations of the CPU."""
    devices = [plane for plane in space.planes if plane.name.startswith("/device:GPU")]
    origins = _origins(space)
    for plane in devices or [plane for plane in space.planes if plane.name == HOST]:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):
                # The same kernels once more, gathered by their names.
                continue
            named = [(start, end, _named(plane, event, origins, bool(devices))) for event, start, end in _events(line)]
            ahead = line.name.startswith(INPUT_THREADS)
            for start, end, (name, kind, own) in innermost([each for each in named if each[2]]):
                yield Operation(name, kind, start, end, ahead or not own)


def _events(line) -> Iterator[tuple]:
    """Yield (event, start, end) of a thread's or stream's events, ps."""
    for event in line.events:
        start = line.timestamp_ns * 1000 + event.offset_ps
        yield event, start, start + event.duration_ps


def _named(plane, event, origins: dict, on_device: bool) -> tuple[str, str, bool] | None:
    """Return (name, type, whether the step may own it) of an event's operation; None where it stands for none."""
    text = plane.event_metadata[event.metadata_id].name
    attributes = {plane.stat_metadata[each.metadata_id].name: each for each in event.stats}
    if "hlo_op" in attributes:
        # The end of one that has been noted at its beginning.
        if text.startswith("end: "):
            return None
        module, instruction = (_text(plane, attributes.get(key)) for key in ("hlo_module", "hlo_op"))
        return *origins.get((module, instruction), (instruction, "")), bool(STEP_MODULE.search(module))
    match = OPERATION.fullmatch(_text(plane, attributes.get("tf_op")) or text)
    if match:
        return *match.group("name", "type"), True
    # Every event of a stream is work of the device.
    return (text, "", True) if on_device else None


def _text(plane, attribute) -> str:
    """Return an attribute's text, which may be written elsewhere."""
    if attribute is None:
        return ""
    if attribute.WhichOneof("value") == "ref_value":
        return plane.stat_metadata[attribute.ref_value].name
    return attribute.str_value


def _origins(space: xplane_pb2.XSpace) -> dict[tuple[str, str], tuple[str, str]]:
    """Return {(module, instruction): (name, type)} of the operations from which XLA's instructions come."""
    found = {}
    for plane in space.planes:
        for metadata in plane.event_metadata.values() if plane.name == METADATA else ():
            for stat in metadata.stats:
                module = hlo_pb2.HloProto.FromString(stat.bytes_value).hlo_module
                for computation in module.computations:
                    for each in computation.instructions:
                        if each.metadata.op_type:
                            found[module.name, each.name] = each.metadata.op_name, each.metadata.op_type
    return found


def innermost(events: Iterable[tuple[int, int, Hashable]]) -> Iterator[tuple[int, int, Hashable]]:
    """Yield (start, end, key) of one thread's events without the stretches in which others inside them go on."""
    open_events: list[tuple[int, Hashable]] = []
    now = 0

    def until(limit: int) -> Iterator[tuple[int, int, Hashable]]:
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
        yield from until(start)
        now = max(now, start)
        open_events.append((end, key))
    if open_events:
        yield from until(max(end for end, _ in open_events))


def share(spans: Iterable[Span], within: tuple[int, int]) -> Counter:
    """Return the ps of a stretch of time by key; they add up to it as far as spans cover it.

    An instant belongs to the spans of the lowest rank among those that go on, in equal parts.
    """
    first, last = within
    edges: list[tuple[int, int, int, Hashable]] = []
    for span in spans:
        start, end = max(span.start, first), min(span.end, last)
        if start < end:
            edges += [(start, 1, span.rank, span.key), (end, -1, span.rank, span.key)]
    edges.sort(key=lambda edge: edge[0])
    active: dict[int, Counter] = {}
    shared: Counter = Counter()
    for number, (now, change, rank, key) in enumerate(edges):
        counts = active.setdefault(rank, Counter())
        counts[key] += change
        if not counts[key]:
            del counts[key]
        if number + 1 < len(edges) and (length := edges[number + 1][0] - now):
            counts = next((active[each] for each in sorted(active) if active[each]), Counter())
            whole = sum(counts.values())
            for each, count in counts.items():
                shared[each] += length * count / whole
    return shared


def durations(spans: Iterable[Span], within: tuple[int, int]) -> Counter:
    """Return the summed ps of spans inside a stretch of time by key; what goes on at once counts each time."""
    total: Counter = Counter()
    for span in spans:
        total[span.key] += max(0, min(span.end, within[1]) - max(span.start, within[0]))
    return total
