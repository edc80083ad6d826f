"""Where a step's time goes: traces written by hand, whose times are known, and one of a real run."""

import dataclasses
import itertools
import json
import re
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from running import TINY
from tensorflow.compiler.xla.service import hlo_pb2
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from kseg import config as configs
from kseg import explanations, models, operation_kinds, runtime, traces
from kseg.errors import DataError
from kseg.explanations import Explanation
from kseg.operation_kinds import BACKWARD, EXCHANGE, FORWARD, LOSS, OPTIMISER, SUMS, UNNAMED, UPDATE, Purpose
from kseg.trace_shares import BETWEEN, MEASURED, OUTSIDE, WAIT, Part, Row, Trace, shared_out
from kseg.traces import Operation, Span, TraceError

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


@pytest.mark.parametrize("types, kind", [
    ("Conv2D _MklNativeConv2D _FusedConv2D _MklNativeFusedConv2D _MklConv2D", "convolution, forward"),
    ("Conv2DBackpropInput _MklNativeConv2DBackpropInput", "convolution, gradient by input"),
    ("Conv2DBackpropFilter _MklNativeConv2DBackpropFilter", "convolution, gradient by kernel"),
    ("DepthwiseConv2dNative DepthwiseConv2dNativeBackpropFilter _MklNativeDepthwiseConv2dNative",
     "depthwise convolution"),
    ("FusedBatchNormV3 _MklNativeFusedBatchNormGradV3 _FusedBatchNormEx FusedBatchNormGradV3", "batch normalisation"),
    ("MatMul BatchMatMulV2 _FusedMatMul _MklMatMul Einsum", "matrix product"),
    ("ResizeBilinear ResizeBilinearGrad ResizeNearestNeighbor", "resize"),
    ("MaxPool _MklNativeMaxPoolGrad AvgPool", "pooling"),
    ("SparseSoftmaxCrossEntropyWithLogits Softmax _MklSoftmax", "softmax, cross-entropy"),
    ("Relu ReluGrad _MklNativeRelu AddV2 AddN Mul _MklMul SquaredDifference Rsqrt Maximum SelectV2 BiasAddGrad",
     "arithmetic on each number"),
    ("Sum Mean Max ArgMax UnsortedSegmentMax", "sum or maximum over axes"),
    ("Transpose ConcatV2 Pad StridedSlice Cast _Send _Recv MemcpyD2H SpaceToBatchND BatchToSpaceND ZerosLike",
     "copy or rearrangement"),
    ("SomethingNew", "other")])
def test_kinds(types, kind):
    assert {name: operation_kinds.kind_of(name) for name in types.split()} == dict.fromkeys(types.split(), kind)


@pytest.mark.parametrize("name, kind, expected", [
    (f"while/body/_1/while/{MODEL}backbone.maxpool_1/MaxPool2d", "MaxPool", (FORWARD, "pooling", "backbone.stem")),
    (f"{MODEL}backbone.layer3.1.bn2_1/mul", "Mul", (FORWARD, "batch normalisation", "backbone.layer3")),
    (f"gradient_tape/{MODEL}auxiliary_head.conv_seg_1/BiasAddGrad", "BiasAddGrad",
     (BACKWARD, "arithmetic on each number", "auxiliary_head")),
    (f"{MODEL}decode_head.bottleneck.bn_1/CollectiveReduceV2_3", "CollectiveReduceV2",
     (EXCHANGE, EXCHANGE, "decode_head")),
    ("replica_1/adamw/CollectiveReduceV2", "CollectiveReduceV2", (EXCHANGE, EXCHANGE, OPTIMISER)),
    ("replica_1/adamw/split_4", "SplitV", (EXCHANGE, "copy or rearrangement", OPTIMISER)),
    ("while/adamw/Sqrt_3", "Sqrt", (UPDATE, UPDATE, OPTIMISER)),
    ("replica_1/AddN_7", "AddN", (BACKWARD, "arithmetic on each number", SUMS)),
    ("AssignAddVariableOp_3", "AssignAddVariableOp", (UPDATE, UPDATE, OPTIMISER)),
    ("gradient_tape/ResizeBilinearGrad", "ResizeBilinearGrad", (BACKWARD, "resize", LOSS)),
    ("SparseSoftmaxCrossEntropyWithLogits/x", "SparseSoftmaxCrossEntropyWithLogits",
     (FORWARD, "softmax, cross-entropy", LOSS)),
    ("MatMul_7", "_MklMatMul", (UNNAMED, "matrix product", UNNAMED)),
    ("MemcpyD2H", "", (UNNAMED, UNNAMED, UNNAMED))])
def test_purposes(name, kind, expected):
    found = operation_kinds.purpose(Operation(name, kind, 0, 1), "adamw", {"backbone.layer3.1.bn2"})
    assert found == Purpose(*expected)


@pytest.fixture(scope="module")
def explained(shapes_directory):
    config = configs.load("encnet_shapes", [
        f"data.directory={shapes_directory}", *TINY, "train.deterministic=false", "train.steps_per_call=2"])
    told = []
    return config, explanations.explain(config, runtime.prepare(config.train), told.append, steps=3), told


def test_a_real_step_is_explained(explained):
    config, found, told = explained
    trace, phases = found.trace, {row.name: row for row in found.trace.phases}
    assert "global batch 2 = 1 replica x 2" in told and told[-1].endswith("measuring 8 steps")
    for rows in (trace.phases, trace.kinds):
        assert sum(row.seconds for row in rows) == pytest.approx(trace.seconds)
    assert sum(part.forward + part.backward + part.other for part in trace.parts) == pytest.approx(trace.seconds)
    assert phases[FORWARD].seconds > 0 and phases[BACKWARD].seconds > phases[UPDATE].seconds > 0
    # All but the first call's beginning lies inside the compiled function, in which TensorFlow takes its time, too.
    assert phases[BETWEEN].seconds > 0 and phases[OUTSIDE].seconds > 0
    assert {"backbone.stem", "backbone.layer1", "backbone.layer4", "decode_head", "auxiliary_head", LOSS,
            OPTIMISER} <= {part.name for part in trace.parts}
    assert UNNAMED not in phases and trace.ahead_seconds > 0
    model = models.build(config.model, 6)
    convolutions = sum(isinstance(layer, keras.layers.Conv2D) for layer in model.layers)
    kinds = {row.name: row for row in trace.kinds}
    assert kinds["convolution, forward"].operations == convolutions
    assert kinds["convolution, gradient by kernel"].operations == convolutions
    # The pictures have no gradient.
    assert kinds["convolution, gradient by input"].operations == convolutions - 1
    assert kinds.get("other", Row("", 0, 0, 0, 0)).share < 0.05
    assert found.images_per_second == pytest.approx(2 / found.seconds)
    assert found.rate == pytest.approx(6e-9 * found.multiply_adds / found.seconds)
    assert 0 < found.cores_used <= found.cores and found.plain_rate > 0


def test_the_figures_as_text_and_json(explained):
    _, found, _ = explained
    assert json.loads(json.dumps(dataclasses.asdict(found)))["trace"]["phases"][0]["name"] == WAIT
    lines = explanations.table(found).splitlines()
    assert lines[0].startswith("encnet_shapes, 2 x 64x64, float32, 1 x CPU: ")
    sums = [line.split() for line in lines if line.startswith("sum  ")]
    assert [words[-1] for words in sums] == ["100.0%"] * 3
    assert lines[-len(found.advice):] == list(found.advice) and 1 <= len(found.advice) <= 2


def made_up(device="1 x CPU", cores_used=8.0, multiplying_rate=90.0, **shares):
    """An explanation of a step of a second whose phases have these shares."""
    names = {"wait": WAIT, "update": UPDATE, "exchange": EXCHANGE, "between": BETWEEN, "outside": OUTSIDE}
    phases = {name: 0.0 for name in (WAIT, BETWEEN, OUTSIDE)} | {names[key]: value for key, value in shares.items()}
    rows = tuple(Row(name, share, share, share, 0) for name, share in phases.items())
    kinds = (Row("convolution, forward", 0.75, 0.75, 0.75, 9),)
    return Explanation("encnet_camvid", device, "float32", 8, 1, (64, 64), 1.0, 8.0, cores_used, 8, 10**9, 6.0,
                       multiplying_rate, 100.0, Trace(1.0, rows, kinds, (Part("loss", 0.5, 0.5, 0.0, 1.0),), 0.0), ())


@pytest.mark.parametrize("found, expected", [
    (made_up(wait=0.4), ["input: the step waits 40% .*`python -m kseg.benchmark data --config encnet_camvid`.*"
                         "`python -m kseg.data prepare camvid --fast`"]),
    (made_up(outside=0.1, wait=0.2), ["input: the step waits 20%", "Python: 10% .* raise train.steps_per_call=1"]),
    (made_up(exchange=0.3), ["replicas wait 30% of the time for each other"]),
    (made_up(between=0.5, exchange=0.2, wait=0.1), ["in 50% of the time nothing runs", "replicas wait 20%"]),
    (made_up(cores_used=2.0), ["only 2.0 of 8 cores are at work"]),
    (made_up(cores_used=2.0, wait=0.7), ["input: the step waits 70%"]),
    (made_up(), ["convolutions and products take 75% of the time, at 90% of what .*; more devices"]),
    (made_up(multiplying_rate=30.0), ["at 30% of what a large convolution reaches here; a larger share"]),
    (made_up("1 x GPU", cores_used=0.5), ["at 90% of what .*; train.precision=mixed_bfloat16"]),
    (made_up(multiplying_rate=None), [])])
def test_advice(found, expected):
    lines = explanations.advice(found, configs.load("encnet_camvid"))
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected):
        assert re.search(words, line)


def test_a_picture_that_cannot_be_read_is_named(shapes_directory, tmp_path):
    (tmp_path / "train").mkdir()
    config = configs.load("encnet_shapes", [*TINY, f"data.directory={tmp_path}", "data.name=folder"])
    with pytest.raises(DataError):
        explanations.explain(config, tf.distribute.get_strategy(), lambda line: None)
