"""Explanation of the step time: purposes of operations, a real run, the table and the advice."""

import re

import pytest
import tensorflow as tf

from kseg import config as configs
from kseg.errors import DataError
from kseg.profiling import step_time
from kseg.profiling.operation_purpose import (
    BACKWARD,
    EXCHANGE,
    FORWARD,
    LOSS,
    OPTIMIZER,
    SUMS,
    UNNAMED,
    UPDATE,
    Purpose,
    operation_purpose,
)
from kseg.profiling.step_time import StepTime
from kseg.profiling.time_attribution import BETWEEN, OUTSIDE, WAIT, PartTime, PhaseTime, Trace
from kseg.profiling.traces import Operation
from kseg.training import trainer
from tests.helpers.running import TINY
from tests.helpers.splits import unread_split

MODEL = "encnet_resnet18_os8_1/"


@pytest.mark.parametrize(
    "types, multiplies",
    [
        (
            "Conv2D _MklNativeConv2D _FusedConv2D _MklNativeFusedConv2D _MklConv2D Conv2DBackpropInput "
            "_MklNativeConv2DBackpropFilter DepthwiseConv2dNative _MklNativeDepthwiseConv2dNative MatMul BatchMatMulV2 "
            "_FusedMatMul _MklMatMul Einsum",
            True,
        ),
        ("FusedBatchNormV3 ResizeBilinear MaxPool Relu AddV2 Mul BiasAddGrad Transpose SpaceToBatchND Softmax", False),
    ],
)
def test_types_whose_multiply_adds_are_counted(types, multiplies):
    for name in types.split():
        operation = Operation(f"{MODEL}decode_head.conv_seg_1/x", name, 0, 1)
        assert operation_purpose(operation, "adamw").multiplies == multiplies, name


@pytest.mark.parametrize(
    "name, type_, expected",
    [
        (f"while/body/_1/while/{MODEL}backbone.maxpool_1/MaxPool2d", "MaxPool", (FORWARD, "backbone.stem")),
        (f"{MODEL}backbone.layer3.1.bn2_1/mul", "Mul", (FORWARD, "backbone.layer3")),
        (f"gradient_tape/{MODEL}auxiliary_head.conv_seg_1/BiasAddGrad", "BiasAddGrad", (BACKWARD, "auxiliary_head")),
        (f"{MODEL}decode_head.bottleneck.bn_1/CollectiveReduceV2_3", "CollectiveReduceV2", (EXCHANGE, "decode_head")),
        ("replica_1/adamw/CollectiveReduceV2", "CollectiveReduceV2", (EXCHANGE, OPTIMIZER)),
        ("replica_1/adamw/split_4", "SplitV", (EXCHANGE, OPTIMIZER)),
        ("while/adamw/Sqrt_3", "Sqrt", (UPDATE, OPTIMIZER)),
        ("replica_1/AddN_7", "AddN", (BACKWARD, SUMS)),
        ("AssignAddVariableOp_3", "AssignAddVariableOp", (UPDATE, OPTIMIZER)),
        ("gradient_tape/ResizeBilinearGrad", "ResizeBilinearGrad", (BACKWARD, LOSS)),
        ("SparseSoftmaxCrossEntropyWithLogits/x", "SparseSoftmaxCrossEntropyWithLogits", (FORWARD, LOSS)),
        ("MatMul_7", "_MklMatMul", (UNNAMED, UNNAMED, True)),
        ("MemcpyD2H", "", (UNNAMED, UNNAMED)),
    ],
)
def test_purposes(name, type_, expected):
    assert operation_purpose(Operation(name, type_, 0, 1), "adamw") == Purpose(*expected)


@pytest.fixture(scope="module")
def explained(shapes_directory):
    """Return the config, the results and the reported lines of a real run."""
    config = configs.load(
        "encnet_shapes",
        [f"data.directory={shapes_directory}", *TINY, "train.deterministic=false", "train.steps_per_call=2"],
    )
    lines = []
    strategy = trainer.prepare_strategy(config.train)
    return config, step_time.explain_step_time(config, strategy, lines.append, steps=3), lines


def test_times_of_a_real_step_add_up(explained):
    config, result, lines = explained
    trace, phases = result.trace, {phase.name: phase for phase in result.trace.phases}
    # Three steps in calls of two are rounded up to two calls, which are timed once and recorded once.
    assert "8 steps" in lines[-1]
    assert sum(phase.seconds for phase in trace.phases) == pytest.approx(trace.seconds)
    assert sum(part.forward + part.backward + part.other for part in trace.parts) == pytest.approx(trace.seconds)
    assert phases[FORWARD].seconds > 0 and phases[BACKWARD].seconds > phases[UPDATE].seconds > 0
    # TensorFlow needs time between operations inside the compiled function and before its first call.
    assert phases[BETWEEN].seconds > 0 and phases[OUTSIDE].seconds > 0
    assert {
        "backbone.stem",
        "backbone.layer1",
        "backbone.layer4",
        "decode_head",
        "auxiliary_head",
        LOSS,
        OPTIMIZER,
    } <= {part.name for part in trace.parts}
    assert UNNAMED not in phases and trace.prefetch_seconds > 0
    assert 0 < trace.multiplying_seconds < phases[FORWARD].seconds + phases[BACKWARD].seconds
    assert result.images_per_second == pytest.approx(2 / result.seconds)
    assert result.rate == pytest.approx(6e-9 * result.multiply_adds / result.seconds)
    assert 0 < result.cores_used <= result.cores and result.reference_rate > 0


def test_table_has_both_sums_and_the_advice(explained):
    _, result, _ = explained
    lines = step_time.step_time_table(result).splitlines()
    assert lines[0].startswith("encnet_shapes, 2 x 64x64, float32, 1 x CPU: ")
    sums = [line.split() for line in lines if line.startswith("sum  ")]
    assert [words[-1] for words in sums] == ["100.0%"] * 2
    assert lines[-len(result.advice) :] == list(result.advice) and 1 <= len(result.advice) <= 2


def step_of_a_second(device="1 x CPU", cores_used=8.0, multiplying_rate=90.0, **fractions):
    """Return the results of a step of one second with these fractions of its phases."""
    names = {"wait": WAIT, "update": UPDATE, "exchange": EXCHANGE, "between": BETWEEN, "outside": OUTSIDE}
    phases = dict.fromkeys((WAIT, BETWEEN, OUTSIDE), 0.0)
    phases |= {names[key]: fraction for key, fraction in fractions.items()}
    trace = Trace(
        1.0,
        tuple(PhaseTime(name, fraction, fraction, fraction, 0) for name, fraction in phases.items()),
        (PartTime("loss", 0.5, 0.5, 0.0, 1.0),),
        0.75,
        0.0,
    )
    return StepTime(
        "encnet_camvid",
        device,
        "float32",
        8,
        1,
        (64, 64),
        1.0,
        8.0,
        cores_used,
        8,
        10**9,
        6.0,
        multiplying_rate,
        100.0,
        trace,
        (),
    )


@pytest.mark.parametrize(
    "result, expected",
    [
        (
            step_of_a_second(wait=0.4),
            [
                "40% .*`python -m kseg.benchmark data --config encnet_camvid`.*"
                "`python -m kseg.data prepare camvid --fast`"
            ],
        ),
        (step_of_a_second(outside=0.1, wait=0.2), ["input.* 20%", "10% .*train.steps_per_call=1"]),
        (step_of_a_second(exchange=0.3), ["30% .*train.accumulate"]),
        (
            step_of_a_second(between=0.5, exchange=0.2, wait=0.1),
            ["50% .*train.jit_compile=true", "20% .*train.accumulate"],
        ),
        (step_of_a_second(cores_used=2.0), ["2.0 of 8 cores"]),
        (step_of_a_second(cores_used=2.0, wait=0.7), ["input.* 70%"]),
        (step_of_a_second(), ["75% .* 90% .*model.output_stride=16"]),
        (step_of_a_second(multiplying_rate=30.0), ["30% .*larger augment.crop"]),
        (step_of_a_second("1 x GPU", cores_used=0.5), ["90% .*train.precision=mixed_bfloat16"]),
        (step_of_a_second(multiplying_rate=None), []),
    ],
)
def test_advice(result, expected):
    lines = step_time.step_advice(result, configs.load("encnet_camvid"), unread_split("camvid"))
    assert len(lines) == len(expected)
    for line, fragments in zip(lines, expected):
        assert re.search(fragments, line)


def test_unreadable_data_is_an_error(shapes_directory, tmp_path):
    (tmp_path / "train").mkdir()
    config = configs.load("encnet_shapes", [*TINY, f"data.directory={tmp_path}", "data.name=folder"])
    with pytest.raises(DataError):
        step_time.explain_step_time(config, tf.distribute.get_strategy(), lambda line: None)
