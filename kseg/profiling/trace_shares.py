"""A step's time in a trace of the profiler, shared out over phases, kinds of operations and parts of the model.

An instant in which n operations run counts 1/n for each of them, and one in which none does is put down to what the
step waits for. So the shares add up to the wall time, however many threads and devices there are.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tensorflow.tsl.profiler.protobuf import xplane_pb2

from kseg.profiling import operation_kinds, traces
from kseg.profiling.operation_kinds import BACKWARD, EXCHANGE, FORWARD, LOSS, OPTIMISER, SUMS, UNNAMED, UPDATE, Purpose
from kseg.profiling.traces import Operation, Span, TraceError

WAIT, BETWEEN, OUTSIDE = "waiting for input", "between operations", "Python outside the compiled step"
PHASES = (WAIT, FORWARD, BACKWARD, UPDATE, EXCHANGE, UNNAMED, BETWEEN, OUTSIDE)
# What an instant is put down to where several things go on: the first of these. A wait costs nothing while others work.
WORKS, EXCHANGES, WAITS, CALLED, REST = range(5)
PARTS = ("backbone", "decode_head", "auxiliary_head", LOSS, SUMS, OPTIMISER, UNNAMED, WAIT, BETWEEN, OUTSIDE)
# The event in which the steps are taken.
MEASURED = "kseg.measured"


@dataclass(frozen=True)
class Row:
    """What something takes of a step: its seconds of the wall time and their share; the seconds of all its operations,
    which are more than that where operations run at once; the number of its operations."""

    name: str
    seconds: float
    share: float
    operation_seconds: float
    operations: float


@dataclass(frozen=True)
class Part:
    """What a part of the model takes of a step's wall time, seconds, and its share of it."""

    name: str
    forward: float
    backward: float
    other: float
    share: float


@dataclass(frozen=True)
class Trace:
    """The wall time of a traced step, seconds, shared out over phases, kinds of operations and parts of the model; and
    the seconds in which threads of tf.data worked ahead meanwhile."""

    seconds: float
    phases: tuple[Row, ...]
    kinds: tuple[Row, ...]
    parts: tuple[Part, ...]
    ahead_seconds: float


def shared_out(space: xplane_pb2.XSpace, steps: int, purpose: Callable[[Operation], Purpose]) -> Trace:
    """Return the time of a trace's event MEASURED, in which `steps` steps were taken, shared out, for one step.

    Raises TraceError where no operation was seen in it.
    """
    windows = traces.windows(space, re.compile(MEASURED))
    if len(windows) != 1:
        raise TraceError(f"the profiler's trace holds {len(windows)} events {MEASURED}, not one")
    window, ahead, spans = windows[0], 0, []
    for operation in traces.operations(space):
        within = max(0, min(operation.end, window[1]) - max(operation.start, window[0]))
        if operation.ahead:
            ahead += within
        elif within:
            key = purpose(operation)
            rank = EXCHANGES if key.kind == EXCHANGE else WORKS
            spans.append(Span(operation.start, operation.end, rank, key))
    if not spans:
        raise TraceError("the profiler saw no operation of the training step; on a GPU it needs CUPTI, which "
                         "comes with CUDA")
    idle = [(WAITS, WAIT, traces.windows(space, traces.WAIT, ahead=True)),
            (CALLED, BETWEEN, traces.windows(space, traces.CALL)), (REST, OUTSIDE, [window])]
    idle_spans = [Span(start, end, rank, Purpose(name, name, name))
                  for rank, name, found in idle for start, end in found]
    shares = traces.share([*spans, *idle_spans], window)
    unit = steps * traces.TICKS
    shares = {key: value / unit for key, value in shares.items()}
    durations = {key: value / unit for key, value in traces.durations(spans, window).items()}
    counts = {key: value / steps for key, value in Counter(span.key for span in spans).items()}
    seconds = (window[1] - window[0]) / unit

    def rows(field: str, names: Iterable[str]) -> tuple[Row, ...]:
        return tuple(Row(name, total := _sum(shares, field, name), total / seconds, _sum(durations, field, name),
                         _sum(counts, field, name)) for name in names)

    kinds = {key.kind for key in shares}
    found = {key.phase for key in shares}
    return Trace(
        seconds, rows("phase", [phase for phase in PHASES if phase in found or phase not in (EXCHANGE, UNNAMED)]),
        tuple(sorted(rows("kind", kinds), key=lambda row: -row.seconds)), _parts(shares, seconds), ahead / unit)


def _sum(values: dict[Purpose, float], field: str, name: str) -> float:
    return sum(value for key, value in values.items() if getattr(key, field) == name)


def _parts(shares: dict[Purpose, float], seconds: float) -> tuple[Part, ...]:
    """Return what the parts of the model take, in the order of the forward pass; what else there is stands last."""
    found: dict[str, Counter] = {}
    for key, value in shares.items():
        found.setdefault(key.part, Counter())[key.phase] += value
    names = sorted(found, key=lambda name: (PARTS.index(name.split(".")[0]), name != operation_kinds.STEM, name))
    return tuple(Part(name, found[name][FORWARD], found[name][BACKWARD],
                      sum(found[name].values()) - found[name][FORWARD] - found[name][BACKWARD],
                      sum(found[name].values()) / seconds) for name in names)
