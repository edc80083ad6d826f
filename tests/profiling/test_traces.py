"""Traces of the profiler written by hand, whose times are known."""

import itertools
from collections import Counter

import numpy as np
import pytest
from tensorflow.compiler.xla.service import hlo_pb2
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from kseg.profiling import operation_kinds, traces
from kseg.profiling.operation_kinds import BACKWARD, EXCHANGE, FORWARD, OPTIMISER, SUMS, UNNAMED, UPDATE
from kseg.profiling.trace_shares import BETWEEN, MEASURED, OUTSIDE, WAIT, shared_out
from kseg.profiling.traces import Span, TraceError

MODEL = "encnet_resnet18_os8_1/"
STEM_CONVOLUTION = f"{MODEL}backbone.stem.0_1/convolution:_MklNativeConv2D"
BOTTLENECK = f"gradient_tape/replica_1/{MODEL}decode_head.bottleneck.conv_1/convolution/"


class Plane:
    """A plane of a trace that is written line by line, its times in ms."""

    def __init__(self, space, name):
        self.plane, self.keys = space.planes.add(name=name), itertools.count(1)

    def key(self, kept, name):
        for number, known in kept.items():
            if known.name == name:
                return number
        number = next(self.keys)
        kept[number].id, kept[number].name = number, name
        return number

    def line(self, name, *events, start=0):
        """Add a line of (name, from, to) or (name, from, to, {attribute: text}), counted from `start`."""
        line = self.plane.lines.add(name=name, timestamp_ns=start * 10**6)
        for text, begin, end, *attributes in events:
            event = line.events.add(metadata_id=self.key(self.plane.event_metadata, text),
                                    offset_ps=(begin - start) * 10**9, duration_ps=(end - begin) * 10**9)
            for key, value in (attributes[0] if attributes else {}).items():
                stat = event.stats.add(metadata_id=self.key(self.plane.stat_metadata, key))
                # The profiler writes a text that comes again and again once.
                stat.ref_value = self.key(self.plane.stat_metadata, value)
        return self


def shares_of(space, steps=1):
    return shared_out(space, steps, lambda operation: operation_kinds.purpose(operation, "momentum_sgd"))


def milliseconds(rows):
    return {row.name: pytest.approx(1000 * row.seconds) for row in rows}


def cpu_trace():
    space = xplane_pb2.XSpace()
    Plane(space, traces.HOST).line(
        "python", (MEASURED, 100, 200), ("KernelAndDeviceFunc::Run", 104, 150), ("EagerExecute", 103, 151),
        ("KernelAndDeviceFunc::Run", 160, 196), start=50,
    ).line(
        # One that began before counts from then on; another lies beyond.
        "tf_Compute/1", ("ExecutorState::Process", 90, 199), (STEM_CONVOLUTION, 90, 120),
        (BOTTLENECK + "Conv2DBackpropInput:_MklNativeConv2DBackpropInput", 130, 140),
        ("while/momentum_sgd/AssignVariableOp:AssignVariableOp", 160, 166), ("AddN_3:AddN", 166, 168),
        (STEM_CONVOLUTION, 205, 230),
    ).line(
        "tf_Compute/2", (f"{MODEL}backbone.layer4.1.conv1_1/convolution:_MklNativeConv2D", 110, 120),
        (BOTTLENECK + "Conv2DBackpropFilter:_MklNativeConv2DBackpropFilter", 132, 140),
        # Nested: 2 ms of its own.
        (f"gradient_tape/{MODEL}backbone.layer4.1.bn1_1/outer:Mul", 170, 180), ("AddN_4:AddN", 172, 180),
        start=100,
    ).line(
        "collective_ops/3", ("CollectiveReduceV2_1:CollectiveReduceV2", 178, 184),
    ).line(
        "tf_data_iterator_get_next/4", ("IteratorGetNextOp::DoCompute", 103, 112),
        ("IteratorGetNextOp::DoCompute", 147, 155),
    ).line(
        "tf_data_private_threadpool/5", ("cond/DecodePng:DecodePng", 95, 125), ("KernelAndDeviceFunc::Run", 100, 200))
    return space


def test_a_trace_by_hand():
    trace = shares_of(cpu_trace(), steps=2)
    assert trace.seconds == pytest.approx(0.05)
    # Of 100 ms: forward 100..120 of two threads at times, backward 130..140 and from 166 on, the update 160..166, the
    # all-reduce where it alone goes on, a wait where not even that does.
    expected = {WAIT: 8, FORWARD: 20, BACKWARD: 22, UPDATE: 6, EXCHANGE: 4}
    # The calls last from 104 to 150 and from 160 to 196.
    expected[BETWEEN] = (130 - 120) + (147 - 140) + (170 - 168) + (196 - 184)
    expected[OUTSIDE] = 100 - sum(expected.values())
    assert milliseconds(trace.phases) == {name: value / 2 for name, value in expected.items()}
    assert sum(row.share for row in trace.phases) == pytest.approx(1)
    kinds = {row.name: row for row in trace.kinds}
    by_input, by_kernel = kinds["convolution, gradient by input"], kinds["convolution, gradient by kernel"]
    # 130 to 132 alone, 8 ms together.
    assert (by_input.seconds, by_kernel.seconds) == pytest.approx((0.003, 0.002))
    assert (by_input.operation_seconds, by_kernel.operation_seconds) == pytest.approx((0.005, 0.004))
    assert by_input.operations == 0.5 and kinds["convolution, forward"].operations == 1
    assert kinds["convolution, forward"].operation_seconds == pytest.approx(0.015)
    assert sum(row.seconds for row in trace.kinds) == pytest.approx(trace.seconds)
    parts = {part.name: (part.forward, part.backward, part.other) for part in trace.parts}
    assert list(parts) == ["backbone.stem", "backbone.layer4", "decode_head", SUMS, OPTIMISER, WAIT, BETWEEN, OUTSIDE]
    assert parts["backbone.stem"] == pytest.approx((0.0075, 0, 0))
    assert parts["backbone.layer4"] == pytest.approx((0.0025, 0.001, 0))
    assert parts["decode_head"] == pytest.approx((0, 0.005, 0)) and parts[SUMS] == pytest.approx((0, 0.005, 0))
    assert parts[OPTIMISER] == pytest.approx((0, 0, 0.005))
    assert sum(part.share for part in trace.parts) == pytest.approx(1)
    # From 100 to 125 of what tf.data did.
    assert trace.ahead_seconds == pytest.approx(0.0125)


def test_a_trace_of_two_gpus():
    space = xplane_pb2.XSpace()
    Plane(space, traces.HOST).line(
        "python", (MEASURED, 0, 100), ("KernelAndDeviceFunc::Run", 0, 20),
    ).line(
        # It launches what runs elsewhere.
        "tf_Compute/1", (STEM_CONVOLUTION, 1, 19),
    ).line("tf_data_iterator_get_next/2", ("IteratorGetNextOp::DoCompute", 85, 100))
    Plane(space, "/device:GPU:0").line(
        "Stream #14(Compute)", ("sm90_xmma_fprop", 10, 50, {"tf_op": STEM_CONVOLUTION, "kernel_details": "grid"}),
        ("nameless_kernel", 60, 70),
    ).line(
        "Stream #15(MemcpyH2D)", ("MemcpyH2D", 40, 50, {"tf_op": "IteratorGetNext/_2:_Recv"}),
    ).line("TensorFlow Ops", (STEM_CONVOLUTION, 0, 100))
    Plane(space, "/device:GPU:1").line(
        "Stream #3(Compute)",
        ("ncclDevKernel_AllReduce", 30, 80, {"tf_op": "momentum_sgd/NcclAllReduce:NcclAllReduce"}))
    trace = shares_of(space)
    assert milliseconds(trace.phases) == {
        WAIT: 15, FORWARD: 40, BACKWARD: 0, UPDATE: 0, EXCHANGE: 20, UNNAMED: 10, BETWEEN: 10, OUTSIDE: 5}
    kinds = milliseconds(trace.kinds)
    assert kinds["convolution, forward"] == 35 and kinds["copy or rearrangement"] == 5


def test_a_trace_of_compiled_code():
    space, program = xplane_pb2.XSpace(), hlo_pb2.HloProto()
    program.hlo_module.name = "a_inference__step_7__XlaMustCompile.8"
    instructions = program.hlo_module.computations.add().instructions
    for name, path, kind in (
            ("fusion.3", f"gradient_tape/{MODEL}decode_head.conv_seg_1/convolution/x", "Conv2DBackpropFilter"),
            ("add.4", "momentum_sgd/mul", "Mul"), ("bitcast.5", "", "")):
        instructions.add(name=name).metadata.CopyFrom(type(instructions[0].metadata)(op_name=path, op_type=kind))
    metadata = Plane(space, traces.METADATA)
    metadata.key(metadata.plane.event_metadata, "program")
    [event] = metadata.plane.event_metadata.values()
    event.stats.add(metadata_id=1).bytes_value = program.SerializeToString()

    def instruction(name, begin, end, module=program.hlo_module.name):
        return name, begin, end, {"hlo_op": name.removeprefix("end: "), "hlo_module": module}

    Plane(space, traces.HOST).line(
        "python", (MEASURED, 0, 100), ("KernelAndDeviceFunc::Run", 0, 100),
    ).line(
        "tf_numa_-1_Eigen/2", instruction("fusion.3", 10, 50), instruction("end: fusion.3", 50, 60),
        instruction("add.4", 60, 70), instruction("bitcast.5", 70, 71),
        # tf.data's functions use the same threads.
        instruction("fusion.3", 71, 90, "a_inference_shift_hue_5__.1"))
    trace = shares_of(space)
    assert milliseconds(trace.phases) == {
        WAIT: 0, FORWARD: 0, BACKWARD: 40, UPDATE: 10, UNNAMED: 1, BETWEEN: 49, OUTSIDE: 0}
    assert milliseconds(trace.kinds)["convolution, gradient by kernel"] == 40
    assert trace.ahead_seconds == pytest.approx(0.019)


def test_what_a_trace_must_hold(tmp_path):
    with pytest.raises(TraceError, match=f"no trace into {tmp_path}"):
        traces.read(tmp_path)
    space = xplane_pb2.XSpace()
    host = Plane(space, traces.HOST)
    with pytest.raises(TraceError, match=f"holds 0 events {MEASURED}, not one"):
        shares_of(space)
    host.line("python", (MEASURED, 0, 100)).line("tf_data_private_threadpool/5", ("x/DecodePng:DecodePng", 1, 9))
    with pytest.raises(TraceError, match="saw no operation of the training step; on a GPU it needs CUPTI"):
        shares_of(space)


def test_time_is_shared_out_as_instant_by_instant():
    random = np.random.default_rng(0)
    for _ in range(20):
        spans = [Span(start, start + int(random.integers(0, 12)), int(random.integers(3)), "abcd"[random.integers(4)])
                 for start in random.integers(0, 50, 12).tolist()] + [Span(0, 60, 9, "rest")]
        expected = Counter()
        for instant in range(5, 55):
            active = [span for span in spans if span.start <= instant < span.end]
            first = [span.key for span in active if span.rank == min(each.rank for each in active)]
            for key in first:
                expected[key] += 1 / len(first)
        found = traces.share(spans, (5, 55))
        assert sum(found.values()) == pytest.approx(50)
        assert {key: pytest.approx(value) for key, value in expected.items()} == dict(found)


def test_events_inside_others_are_cut_out():
    events = [(0, 10, "a"), (2, 5, "b"), (3, 4, "c"), (5, 7, "d"), (20, 30, "e"), (20, 25, "f"), (28, 30, "g")]
    assert list(traces.innermost(events)) == [
        (0, 2, "a"), (2, 3, "b"), (3, 4, "c"), (4, 5, "b"), (5, 7, "d"), (7, 10, "a"),
        (20, 25, "f"), (25, 28, "e"), (28, 30, "g")]
    assert list(traces.innermost([])) == []
