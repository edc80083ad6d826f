"""Attribute the wall time of a traced step to its phases and to the parts of the model.

An instant in which n operations run counts 1/n for each of them, and an instant without operations is attributed to
what the step waits for. The times therefore add up to the wall time for any number of threads and devices.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tensorflow.tsl.profiler.protobuf import xplane_pb2

from kseg.profiling import traces
from kseg.profiling.operation_purpose import (
    BACKWARD,
    EXCHANGE,
    EXCHANGES,
    FORWARD,
    LOSS,
    OPTIMIZER,
    STEM,
    SUMS,
    UNNAMED,
    UPDATE,
    Purpose,
)
from kseg.profiling.traces import Operation, Span, TraceError

WAIT, BETWEEN, OUTSIDE = "waiting for input", "between operations", "Python outside the compiled step"
PHASES = (WAIT, FORWARD, BACKWARD, UPDATE, EXCHANGE, UNNAMED, BETWEEN, OUTSIDE)
# An instant with several activities is attributed to the one that comes first here, because a wait costs nothing while
# operations run.
WORKING, EXCHANGING, WAITING, CALLING, REST = range(5)
PARTS = ("backbone", "decode_head", "auxiliary_head", LOSS, SUMS, OPTIMIZER, UNNAMED, WAIT, BETWEEN, OUTSIDE)
# The name of the event that contains the measured steps.
MEASURED = "kseg.measured"


@dataclass(frozen=True)
class PhaseTime:
    """Hold the time of one phase in one step.

    seconds: wall time.
    fraction: fraction of the step's wall time.
    operation_seconds: summed durations of the operations, which exceed `seconds` if operations run at the same time.
    operations: number of operations.
    """

    name: str
    seconds: float
    fraction: float
    operation_seconds: float
    operations: float


@dataclass(frozen=True)
class PartTime:
    """Hold the wall time of a part of the model in one step, seconds, and its fraction of the step."""

    name: str
    forward: float
    backward: float
    other: float
    fraction: float


@dataclass(frozen=True)
class Trace:
    """Hold the attributed wall time of one step, seconds.

    seconds: wall time of the step.
    phases, parts: the two attributions; each adds up to `seconds`.
    multiplying_seconds: wall time of convolutions and matrix products.
    prefetch_seconds: time in which threads of tf.data prepared later batches.
    """

    seconds: float
    phases: tuple[PhaseTime, ...]
    parts: tuple[PartTime, ...]
    multiplying_seconds: float
    prefetch_seconds: float


def attribute_time(space: xplane_pb2.XSpace, steps: int, purpose: Callable[[Operation], Purpose]) -> Trace:
    """Attribute the time of a trace and return it for one step.

    Args:
        space: a trace with one event MEASURED.
        steps: number of steps in that event.
        purpose: returns the purpose of an operation.

    Raises:
        TraceError: The trace has no operation in the event, or not exactly one such event.
    """
    windows = traces.event_windows(space, re.compile(MEASURED))
    if len(windows) != 1:
        raise TraceError(f"the profiler's trace contains {len(windows)} events {MEASURED} instead of one")
    window, prefetched, spans = windows[0], 0, []
    for operation in traces.operations(space):
        inside = max(0, min(operation.end, window[1]) - max(operation.start, window[0]))
        if operation.prefetches:
            prefetched += inside
        elif inside:
            priority = EXCHANGING if EXCHANGES.search(operation.type) else WORKING
            spans.append(Span(operation.start, operation.end, priority, purpose(operation)))
    if not spans:
        raise TraceError(
            "the profiler recorded no operation of the training step; on a GPU it needs CUPTI, which is part of CUDA"
        )
    idle = [
        (WAITING, WAIT, traces.event_windows(space, traces.WAIT, prefetching=True)),
        (CALLING, BETWEEN, traces.event_windows(space, traces.CALL)),
        (REST, OUTSIDE, [window]),
    ]
    idle_spans = [
        Span(start, end, priority, Purpose(name, name)) for priority, name, found in idle for start, end in found
    ]
    unit = steps * traces.TICKS
    wall = {key: ticks / unit for key, ticks in traces.wall_time_by_key([*spans, *idle_spans], window).items()}
    durations = {key: ticks / unit for key, ticks in traces.durations_by_key(spans, window).items()}
    counts = {key: count / steps for key, count in Counter(span.key for span in spans).items()}
    seconds = (window[1] - window[0]) / unit

    def phase_time(phase: str) -> PhaseTime:
        total, operation_seconds, operations = (
            sum(value for key, value in values.items() if key.phase == phase) for values in (wall, durations, counts)
        )
        return PhaseTime(phase, total, total / seconds, operation_seconds, operations)

    present = {key.phase for key in wall}
    return Trace(
        seconds,
        tuple(phase_time(phase) for phase in PHASES if phase in present or phase not in (EXCHANGE, UNNAMED)),
        _part_times(wall, seconds),
        sum(value for key, value in wall.items() if key.multiplies),
        prefetched / unit,
    )


def _part_times(wall: dict[Purpose, float], seconds: float) -> tuple[PartTime, ...]:
    """Return the times of the parts in the order of the forward pass, with waits and the like at the end."""
    parts: dict[str, Counter] = {}
    for key, value in wall.items():
        parts.setdefault(key.part, Counter())[key.phase] += value
    names = sorted(parts, key=lambda name: (PARTS.index(name.split(".")[0]), name != STEM, name))
    return tuple(
        PartTime(
            name,
            parts[name][FORWARD],
            parts[name][BACKWARD],
            sum(parts[name].values()) - parts[name][FORWARD] - parts[name][BACKWARD],
            sum(parts[name].values()) / seconds,
        )
        for name in names
    )
