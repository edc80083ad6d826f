"""MACs agree with counts by hand and with mmengine's counts of the original models."""

import json
import math

import keras
import pytest
import tensorflow as tf

from kseg import models
from kseg.config.sections import Model
from kseg.models.macs import count_layer_macs, count_macs
from tests.helpers.exhaustive import all_of
from tests.helpers.shared_files import SHARED
from tests.helpers.small_models import without_values

REFERENCE = SHARED / "reference" / "flops_512x1024.json"


def traced(call, *shapes):
    return tf.function(call, autograph=False).get_concrete_function(*(tf.TensorSpec(shape) for shape in shapes))


def layer_count(layer, shape):
    return count_layer_macs(traced(lambda inputs: layer(inputs), shape))


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        # The outputs (2, 6, 8, 5) are sums over 3 x 2 positions of 4 channels.
        (keras.layers.Conv2D(5, (3, 2)), (2, 8, 9, 4), 2 * 6 * 8 * 5 * 3 * 2 * 4),
        (keras.layers.Conv2D(5, 3, strides=2), (1, 9, 9, 4), 4 * 4 * 5 * 9 * 4),
        # TensorFlow pads 7 rows to 9 and 11 columns to 12, which must not count.
        (keras.layers.Conv2D(5, 3, dilation_rate=3, padding="same"), (1, 7, 11, 4), 7 * 11 * 5 * 9 * 4),
        (keras.layers.DepthwiseConv2D(3, padding="same"), (1, 5, 7, 4), 5 * 7 * 4 * 9),
        (keras.layers.DepthwiseConv2D(3, padding="same", dilation_rate=2), (1, 5, 7, 4), 5 * 7 * 4 * 9),
        (keras.layers.Dense(3), (2, 7), 2 * 7 * 3),
        (keras.layers.BatchNormalization(), (1, 5, 5, 4), 0),
    ],
)
def test_layers_counted_by_hand(layer, shape, expected):
    assert layer_count(layer, shape) == expected


@pytest.mark.parametrize(
    "first, second, transposed, expected",
    [
        ((2, 3, 4), (2, 4, 5), False, 2 * 3 * 4 * 5),
        ((2, 4, 3), (2, 4, 5), True, 2 * 3 * 4 * 5),
        ((3, 4), (4, 5), False, 3 * 4 * 5),
        ((4, 3), (4, 5), True, 3 * 4 * 5),
    ],
)
def test_products_counted_by_hand(first, second, transposed, expected):
    assert count_layer_macs(traced(lambda a, b: tf.matmul(a, b, transpose_a=transposed), first, second)) == expected


def test_uncountable_operations_are_refused():
    with pytest.raises(NotImplementedError, match="Einsum"):
        count_layer_macs(traced(lambda a, b: tf.einsum("ab,bc->ac", a, b), (2, 3), (3, 4)))
    with pytest.raises(NotImplementedError, match="Call"):
        count_layer_macs(traced(tf.function(lambda a: tf.matmul(a, a)), (3, 3)))


def extra_count_of_mmengine(layer):
    """Return mmengine's count of a layer that does not multiply matrices there."""
    outputs = math.prod(layer.output.shape[1:])
    # mmengine counts two per normalized value, four per interpolated value and one per averaged value.
    return {
        "BatchNormalization": 2 * outputs,
        "ResizeLike": 4 * outputs,
        "AdaptiveAveragePooling": math.prod(layer.input.shape[1:]) if not isinstance(layer.input, list) else 0,
    }.get(type(layer).__name__, outputs if layer.name.endswith("global_add") else 0)


def extra_count_of_kseg(layer):
    """Return kseg's count of a layer that multiplies matrices in kseg but not in mmengine."""
    if type(layer).__name__ == "AdaptiveAveragePooling":
        return layer.bins**2 * math.prod(layer.input.shape[1:])
    return 2 * layer.number * math.prod(layer.input.shape[1:]) if type(layer).__name__ == "Encoding" else 0


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference counts (../shared/reference) are missing")
@pytest.mark.parametrize("head", all_of(["encnet", "apcnet"], "deeplabv3plus", "fcn"))
def test_macs_of_a_512x1024_image_match_mmengine(head):
    with without_values():
        main = models.main_only(models.build(Model(head=head, auxiliary_channels=0), 19, size=(512, 1024)))
    macs = count_macs(main, (1, 512, 1024, 3))
    # mmengine's count includes EncNet's presence layer, which is absent from `main`.
    mmengine_only = sum(map(extra_count_of_mmengine, main.layers)) + (512 * 19 if head == "encnet" else 0)
    kseg_only = sum(map(extra_count_of_kseg, main.layers))
    reference = json.loads(REFERENCE.read_text())[f"{head} R-50-D8"]["flops"]
    assert macs - kseg_only + mmengine_only == reference
    # The operations that they count differently are below 0.5%.
    assert macs == pytest.approx(reference, rel=0.005)
