"""Attribution of the time in profiler traces that are written by hand."""

import itertools
from collections import Counter

import numpy as np
import pytest
from tensorflow.compiler.xla.service import hlo_pb2
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from kseg.profiling import traces
from kseg.profiling.operation_purpose import (
    BACKWARD,
    EXCHANGE,
    FORWARD,
    OPTIMIZER,
    SUMS,
    UNNAMED,
    UPDATE,
    operation_purpose,
)
from kseg.profiling.time_attribution import BETWEEN, MEASURED, OUTSIDE, WAIT, attribute_time
from kseg.profiling.traces import Span, TraceError

MODEL = "encnet_resnet18_os8_1/"
STEM_CONVOLUTION = f"{MODEL}backbone.stem.0_1/convolution:_MklNativeConv2D"
BOTTLENECK = f"gradient_tape/replica_1/{MODEL}decode_head.bottleneck.conv_1/convolution/"


class Plane:
    """Write a plane of a trace line by line, with times in ms."""

    def __init__(self, space, name):
        self.plane, self.keys = space.planes.add(name=name), itertools.count(1)

    def key(self, metadata, name):
        for key, entry in metadata.items():
            if entry.name == name:
                return key
        key = next(self.keys)
        metadata[key].id, metadata[key].name = key, name
        return key

    def line(self, name, *events, start=0):
        """Add a line of events (name, begin, end) or (name, begin, end, {attribute: text}); it begins at `start`."""
        line = self.plane.lines.add(name=name, timestamp_ns=start * 10**6)
        for text, begin, end, *attributes in events:
            event = line.events.add(
                metadata_id=self.key(self.plane.event_metadata, text),
                offset_ps=(begin - start) * 10**9,
                duration_ps=(end - begin) * 10**9,
            )
            for key, value in (attributes[0] if attributes else {}).items():
                stat = event.stats.add(metadata_id=self.key(self.plane.stat_metadata, key))
                # The profiler stores repeated texts as references.
                stat.ref_value = self.key(self.plane.stat_metadata, value)
        return self


def attributed(space, steps=1):
    return attribute_time(space, steps, lambda operation: operation_purpose(operation, "momentum_sgd"))


def milliseconds(rows):
    return {row.name: pytest.approx(1000 * row.seconds) for row in rows}


def cpu_trace():
    space = xplane_pb2.XSpace()
    Plane(space, traces.HOST).line(
        "python",
        (MEASURED, 100, 200),
        ("KernelAndDeviceFunc::Run", 104, 150),
        ("EagerExecute", 103, 151),
        ("KernelAndDeviceFunc::Run", 160, 196),
        start=50,
    ).line(
        # The first operation starts before the measured event, and the last one is outside of it.
        "tf_Compute/1",
        ("ExecutorState::Process", 90, 199),
        (STEM_CONVOLUTION, 90, 120),
        (BOTTLENECK + "Conv2DBackpropInput:_MklNativeConv2DBackpropInput", 130, 140),
        ("while/momentum_sgd/AssignVariableOp:AssignVariableOp", 160, 166),
        ("AddN_3:AddN", 166, 168),
        (STEM_CONVOLUTION, 205, 230),
    ).line(
        "tf_Compute/2",
        (f"{MODEL}backbone.layer4.1.conv1_1/convolution:_MklNativeConv2D", 110, 120),
        (BOTTLENECK + "Conv2DBackpropFilter:_MklNativeConv2DBackpropFilter", 132, 140),
        # The multiplication runs 2 ms without the nested sum.
        (f"gradient_tape/{MODEL}backbone.layer4.1.bn1_1/outer:Mul", 170, 180),
        ("AddN_4:AddN", 172, 180),
        start=100,
    ).line("collective_ops/3", ("CollectiveReduceV2_1:CollectiveReduceV2", 178, 184)).line(
        "tf_data_iterator_get_next/4",
        ("IteratorGetNextOp::DoCompute", 103, 112),
        ("IteratorGetNextOp::DoCompute", 147, 155),
    ).line(
        "tf_data_private_threadpool/5", ("cond/DecodePng:DecodePng", 95, 125), ("KernelAndDeviceFunc::Run", 100, 200)
    )
    return space


def test_trace_of_a_cpu():
    trace = attributed(cpu_trace(), steps=2)
    assert trace.seconds == pytest.approx(0.05)
    # Of the 100 ms the forward pass takes 100..120, partly on two threads, the backward pass 130..140 and 166..180 with
    # a gap, and the update 160..166. The all-reduce counts when nothing else runs, a wait when no operation does.
    expected = {WAIT: 8, FORWARD: 20, BACKWARD: 22, UPDATE: 6, EXCHANGE: 4}
    # The compiled function runs from 104 to 150 and from 160 to 196.
    expected[BETWEEN] = (130 - 120) + (147 - 140) + (170 - 168) + (196 - 184)
    expected[OUTSIDE] = 100 - sum(expected.values())
    assert milliseconds(trace.phases) == {name: value / 2 for name, value in expected.items()}
    assert sum(phase.fraction for phase in trace.phases) == pytest.approx(1)
    forward, backward = (phase for phase in trace.phases if phase.name in (FORWARD, BACKWARD))
    # Two steps contain two convolutions forward and five operations backward.
    assert (forward.operations, backward.operations) == (1, 2.5)
    assert (forward.operation_seconds, backward.operation_seconds) == pytest.approx((0.015, 0.015))
    # The convolutions run from 100 to 120 and from 130 to 140.
    assert trace.multiplying_seconds == pytest.approx(0.015)
    parts = {part.name: (part.forward, part.backward, part.other) for part in trace.parts}
    assert list(parts) == ["backbone.stem", "backbone.layer4", "decode_head", SUMS, OPTIMIZER, WAIT, BETWEEN, OUTSIDE]
    assert parts["backbone.stem"] == pytest.approx((0.0075, 0, 0))
    assert parts["backbone.layer4"] == pytest.approx((0.0025, 0.001, 0))
    assert parts["decode_head"] == pytest.approx((0, 0.005, 0)) and parts[SUMS] == pytest.approx((0, 0.005, 0))
    assert parts[OPTIMIZER] == pytest.approx((0, 0, 0.005))
    assert sum(part.fraction for part in trace.parts) == pytest.approx(1)
    # tf.data decodes from 100 to 125 inside the measured event.
    assert trace.prefetch_seconds == pytest.approx(0.0125)


def test_trace_of_two_gpus():
    space = xplane_pb2.XSpace()
    Plane(space, traces.HOST).line("python", (MEASURED, 0, 100), ("KernelAndDeviceFunc::Run", 0, 20)).line(
        # The host only launches the kernels.
        "tf_Compute/1",
        (STEM_CONVOLUTION, 1, 19),
    ).line("tf_data_iterator_get_next/2", ("IteratorGetNextOp::DoCompute", 85, 100))
    Plane(space, "/device:GPU:0").line(
        "Stream #14(Compute)",
        ("sm90_xmma_fprop", 10, 50, {"tf_op": STEM_CONVOLUTION, "kernel_details": "grid"}),
        ("nameless_kernel", 60, 70),
    ).line("Stream #15(MemcpyH2D)", ("MemcpyH2D", 40, 50, {"tf_op": "IteratorGetNext/_2:_Recv"})).line(
        "TensorFlow Ops", (STEM_CONVOLUTION, 0, 100)
    )
    Plane(space, "/device:GPU:1").line(
        "Stream #3(Compute)", ("ncclDevKernel_AllReduce", 30, 80, {"tf_op": "momentum_sgd/NcclAllReduce:NcclAllReduce"})
    )
    trace = attributed(space)
    assert milliseconds(trace.phases) == {
        WAIT: 15,
        FORWARD: 40,
        BACKWARD: 0,
        UPDATE: 0,
        EXCHANGE: 20,
        UNNAMED: 10,
        BETWEEN: 10,
        OUTSIDE: 5,
    }
    # For 10 of the 40 ms a copy runs at the same time, and each counts half.
    assert trace.multiplying_seconds == pytest.approx(0.035)


def test_trace_of_code_compiled_by_xla():
    space, program = xplane_pb2.XSpace(), hlo_pb2.HloProto()
    program.hlo_module.name = "a_inference__step_7__XlaMustCompile.8"
    instructions = program.hlo_module.computations.add().instructions
    for name, path, kind in (
        ("fusion.3", f"gradient_tape/{MODEL}decode_head.conv_seg_1/convolution/x", "Conv2DBackpropFilter"),
        ("add.4", "momentum_sgd/mul", "Mul"),
        ("bitcast.5", "", ""),
    ):
        instructions.add(name=name).metadata.CopyFrom(type(instructions[0].metadata)(op_name=path, op_type=kind))
    metadata = Plane(space, traces.METADATA)
    metadata.key(metadata.plane.event_metadata, "program")
    [event] = metadata.plane.event_metadata.values()
    event.stats.add(metadata_id=1).bytes_value = program.SerializeToString()

    def instruction(name, begin, end, module=program.hlo_module.name):
        return name, begin, end, {"hlo_op": name.removeprefix("end: "), "hlo_module": module}

    Plane(space, traces.HOST).line("python", (MEASURED, 0, 100), ("KernelAndDeviceFunc::Run", 0, 100)).line(
        "tf_numa_-1_Eigen/2",
        instruction("fusion.3", 10, 50),
        instruction("end: fusion.3", 50, 60),
        instruction("add.4", 60, 70),
        instruction("bitcast.5", 70, 71),
        # Functions of tf.data run on the same threads.
        instruction("fusion.3", 71, 90, "a_inference_shift_hue_5__.1"),
    )
    trace = attributed(space)
    assert milliseconds(trace.phases) == {
        WAIT: 0,
        FORWARD: 0,
        BACKWARD: 40,
        UPDATE: 10,
        UNNAMED: 1,
        BETWEEN: 49,
        OUTSIDE: 0,
    }
    assert trace.multiplying_seconds == pytest.approx(0.04)
    assert trace.prefetch_seconds == pytest.approx(0.019)


def test_incomplete_traces_are_errors(tmp_path):
    with pytest.raises(TraceError, match=str(tmp_path)):
        traces.read_trace(tmp_path)
    space = xplane_pb2.XSpace()
    host = Plane(space, traces.HOST)
    with pytest.raises(TraceError, match=f"0 events {MEASURED}"):
        attributed(space)
    host.line("python", (MEASURED, 0, 100)).line("tf_data_private_threadpool/5", ("x/DecodePng:DecodePng", 1, 9))
    with pytest.raises(TraceError, match="CUPTI"):
        attributed(space)


def test_wall_time_against_a_loop_over_instants():
    random = np.random.default_rng(0)
    for _ in range(20):
        spans = [
            Span(start, start + int(random.integers(0, 12)), int(random.integers(3)), "abcd"[random.integers(4)])
            for start in random.integers(0, 50, 12).tolist()
        ] + [Span(0, 60, 9, "rest")]
        expected = Counter()
        for instant in range(5, 55):
            active = [span for span in spans if span.start <= instant < span.end]
            first = min(span.priority for span in active)
            keys = [span.key for span in active if span.priority == first]
            for key in keys:
                expected[key] += 1 / len(keys)
        wall = traces.wall_time_by_key(spans, (5, 55))
        assert sum(wall.values()) == pytest.approx(50)
        assert {key: pytest.approx(value) for key, value in expected.items()} == dict(wall)


def test_nested_events_are_cut_out():
    events = [(0, 10, "a"), (2, 5, "b"), (3, 4, "c"), (5, 7, "d"), (20, 30, "e"), (20, 25, "f"), (28, 30, "g")]
    assert list(traces.innermost(events)) == [
        (0, 2, "a"),
        (2, 3, "b"),
        (3, 4, "c"),
        (4, 5, "b"),
        (5, 7, "d"),
        (7, 10, "a"),
        (20, 25, "f"),
        (25, 28, "e"),
        (28, 30, "g"),
    ]
    assert list(traces.innermost([])) == []
