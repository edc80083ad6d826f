"""Where a step's time goes: what operations are for, a real run, and what is said of it."""

import dataclasses
import json
import re

import keras
import pytest
import tensorflow as tf

from kseg import config as configs
from kseg import models
from kseg.errors import DataError
from kseg.profiling import operation_kinds, step_time
from kseg.profiling.operation_kinds import BACKWARD, EXCHANGE, FORWARD, LOSS, OPTIMISER, SUMS, UNNAMED, UPDATE, Purpose
from kseg.profiling.step_time import Explanation
from kseg.profiling.trace_shares import BETWEEN, OUTSIDE, WAIT, KindTime, PartTime, Trace
from kseg.profiling.traces import Operation
from kseg.training import trainer
from tests.helpers.running import TINY
from tests.helpers.splits import unread_split

MODEL = "encnet_resnet18_os8_1/"


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
    return config, step_time.explain_step_time(config, trainer.prepare_strategy(config.train), told.append, steps=3), told


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
    assert kinds.get("other", KindTime("", 0, 0, 0, 0)).share < 0.05
    assert found.images_per_second == pytest.approx(2 / found.seconds)
    assert found.rate == pytest.approx(6e-9 * found.multiply_adds / found.seconds)
    assert 0 < found.cores_used <= found.cores and found.plain_rate > 0


def test_the_figures_as_text_and_json(explained):
    _, found, _ = explained
    assert json.loads(json.dumps(dataclasses.asdict(found)))["trace"]["phases"][0]["name"] == WAIT
    lines = step_time.step_time_table(found).splitlines()
    assert lines[0].startswith("encnet_shapes, 2 x 64x64, float32, 1 x CPU: ")
    sums = [line.split() for line in lines if line.startswith("sum  ")]
    assert [words[-1] for words in sums] == ["100.0%"] * 3
    assert lines[-len(found.advice):] == list(found.advice) and 1 <= len(found.advice) <= 2


def made_up(device="1 x CPU", cores_used=8.0, multiplying_rate=90.0, **shares):
    """An explanation of a step of a second whose phases have these shares."""
    names = {"wait": WAIT, "update": UPDATE, "exchange": EXCHANGE, "between": BETWEEN, "outside": OUTSIDE}
    phases = {name: 0.0 for name in (WAIT, BETWEEN, OUTSIDE)} | {names[key]: value for key, value in shares.items()}
    rows = tuple(KindTime(name, share, share, share, 0) for name, share in phases.items())
    kinds = (KindTime("convolution, forward", 0.75, 0.75, 0.75, 9),)
    return Explanation("encnet_camvid", device, "float32", 8, 1, (64, 64), 1.0, 8.0, cores_used, 8, 10**9, 6.0,
                       multiplying_rate, 100.0, Trace(1.0, rows, kinds, (PartTime("loss", 0.5, 0.5, 0.0, 1.0),), 0.0), ())


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
    lines = step_time.step_advice(found, configs.load("encnet_camvid"), unread_split("camvid"))
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected):
        assert re.search(words, line)


def test_a_picture_that_cannot_be_read_is_named(shapes_directory, tmp_path):
    (tmp_path / "train").mkdir()
    config = configs.load("encnet_shapes", [*TINY, f"data.directory={tmp_path}", "data.name=folder"])
    with pytest.raises(DataError):
        step_time.explain_step_time(config, tf.distribute.get_strategy(), lambda line: None)
