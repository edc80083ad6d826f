"""The plan of an int8 network covers the backbone, and never overwrites a tensor that is still needed."""

import keras
import pytest
from keras import layers

from kseg import models
from kseg.exporting.int8_plan import Form, plan_integers
from kseg.exporting.precisions import folded_model
from kseg.models.layers import Convolution
from kseg.models.resnet import BACKBONES
from tests.helpers.exhaustive import all_of
from tests.helpers.small_models import tiny

# Convolutions that stay in float32: the image's, the classifier, and those of pooled grids and signed inputs.
FLOAT_CONVOLUTIONS = {
    "encnet": {"backbone.stem.0", "decode_head.conv_seg"},
    "fcn": {"backbone.stem.0", "decode_head.conv_seg"},
    "pspnet": {"backbone.stem.0", "decode_head.conv_seg", *(f"decode_head.psp_modules.{i}.1.conv" for i in range(4))},
    "deeplabv3": {"backbone.stem.0", "decode_head.conv_seg", "decode_head.image_pool.1.conv"},
    "deeplabv3plus": {"backbone.stem.0", "decode_head.conv_seg", "decode_head.image_pool.1.conv"},
    "apcnet": {
        "backbone.stem.0",
        "decode_head.conv_seg",
        *(
            f"decode_head.acm_modules.{i}.{name}"
            for i in range(4)
            for name in ("pooled_redu_conv.conv", "global_info.conv", "gla")
        ),
    },
}


@pytest.fixture(autouse=True, scope="module")
def few_blocks():
    """Leave one block of each kind in the backbones."""
    with pytest.MonkeyPatch.context() as patch:
        for name, (_, bottleneck) in BACKBONES.items():
            patch.setitem(BACKBONES, name, ((2, 1, 1, 1), bottleneck))
        yield


def is_convolution(layer):
    return isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D))


@pytest.mark.parametrize(
    "settings",
    all_of(
        [{"head": "encnet", "backbone": "resnet50"}, {"head": "apcnet"}, {"head": "deeplabv3plus"}],
        {"head": "fcn"},
        {"head": "pspnet"},
        {"head": "deeplabv3", "output_stride": 16},
    ),
)
def test_heads(settings):
    model = folded_model(models.build(tiny(**settings), 3), "cpu")
    plan = plan_integers(model)
    forms = {step.layer.name: step.form for step in plan.steps}
    in_float = {layer.name for layer in model.layers if is_convolution(layer) and forms[layer.name] is Form.FLOAT}
    assert in_float == FLOAT_CONVOLUTIONS[settings["head"]]
    outputs = [step.output for step in plan.steps]
    # Every residual block ends in one step, and the blocks with another shape shift the convolution of their shortcut.
    blocks = [name for name in outputs if name.startswith("backbone.layer") and name.split(".")[3] == "relu"]
    assert {step.output for step in plan.steps if step.form is Form.RECTIFIED_SUM} >= set(blocks)
    assert [name for name in outputs if forms.get(name) is Form.SHIFTED] == [
        layer.name for layer in model.layers if ".downsample." in layer.name and is_convolution(layer)
    ]
    check_order(plan)
    # The pooling behind the stem and the paddings of strided convolutions keep codes.
    assert {"backbone.maxpool.pad", "backbone.maxpool"} <= {
        step.output for step in plan.steps if step.form is Form.MOVED
    }


def check_order(plan):
    """Check that inputs exist before their use, and that no step after an overwriting one uses the summand."""
    position = {step.output: index for index, step in enumerate(plan.steps)}
    position[plan.source] = -1
    used = {}
    for index, step in enumerate(plan.steps):
        for name in step.inputs:
            assert position[name] < index
            used.setdefault(name, []).append(index)
    for index, step in enumerate(plan.steps):
        if step.form is Form.RECTIFIED_SUM:
            assert max(used[step.inputs[1]]) == index and step.inputs[0] != step.inputs[1]
            assert step.inputs[1] in plan.uniform and step.output in plan.uniform


def convolve(inputs, name, relu=True, **options):
    outputs = Convolution(4, 3, padding="same", name=name, **options)(inputs)
    return layers.Activation("relu", name=f"{name}.relu")(outputs) if relu else outputs


def add_relu(summands, name):
    return layers.Activation("relu", name=f"{name}.relu")(layers.Add(name=name)(summands))


def forms_of(outputs, images):
    plan = plan_integers(keras.Model(images, outputs))
    check_order(plan)
    return {step.layer.name: step.form for step in plan.steps if is_convolution(step.layer)}


def test_a_summand_that_is_used_later_is_not_overwritten():
    images = keras.Input((None, None, 3))
    first = convolve(images, "a")
    total = add_relu([convolve(convolve(first, "b"), "c", relu=False), first], "sum")
    # Convolutions before the sum may use it, but not one after the sum.
    assert forms_of(convolve(total, "d"), images) == {
        "a": Form.FLOAT,
        "b": Form.RECTIFIED,
        "c": Form.RECTIFIED_SUM,
        "d": Form.RECTIFIED,
    }
    assert forms_of(convolve(layers.Concatenate(name="join")([total, first]), "e"), images) == {
        "a": Form.FLOAT,
        "b": Form.RECTIFIED,
        "c": Form.FLOAT,
        "e": Form.RECTIFIED,
    }


def test_unsuitable_convolutions_stay_in_float32():
    images = keras.Input((None, None, 3))
    first = convolve(images, "a")
    # A sum with the convolution's own input, a grouped convolution, and one whose input has both signs.
    own = add_relu([convolve(first, "own", relu=False), first], "sum")
    grouped = convolve(own, "grouped", groups=2)
    negative = layers.Activation("tanh", name="tanh")(grouped)
    forms = forms_of(convolve(negative, "signed"), images)
    assert forms == {"a": Form.FLOAT, "own": Form.FLOAT, "grouped": Form.FLOAT, "signed": Form.FLOAT}


def test_concatenated_codes_are_no_summand():
    """They have a scale for each part, but a sum needs one."""
    images = keras.Input((None, None, 3))
    first = convolve(images, "a")
    parts = [layers.Conv2D(2, 1, name=f"part{index}")(first) for index in range(2)]
    parts = [layers.Activation("relu", name=f"part{index}.relu")(part) for index, part in enumerate(parts)]
    joined = layers.Concatenate(name="join")(parts)
    inner = convolve(joined, "inner")
    forms = forms_of(add_relu([convolve(inner, "outer", relu=False), joined], "sum"), images)
    assert forms["inner"] is forms["part0"] is Form.RECTIFIED and forms["outer"] is Form.FLOAT


def test_the_result_is_not_overwritten():
    images = keras.Input((None, None, 3))
    first = convolve(convolve(images, "a"), "b")
    assert forms_of(first, images) == {"a": Form.FLOAT, "b": Form.RECTIFIED}
