import json
import math

import keras
import pytest
import tensorflow as tf

from kseg import models
from kseg.config import Model
from kseg.models.macs import multiply_adds, of_forward
from tests.helpers.shared_files import SHARED

REFERENCE = SHARED / "reference" / "flops_512x1024.json"


def traced(call, *shapes):
    return tf.function(call).get_concrete_function(*(tf.TensorSpec(shape) for shape in shapes))


def layer_count(layer, shape):
    return multiply_adds(traced(lambda inputs: layer(inputs), shape))


@pytest.mark.parametrize("layer, shape, expected", [
    # Outputs (2, 6, 8, 5), each a sum over 3 x 2 positions of 4 channels.
    (keras.layers.Conv2D(5, (3, 2)), (2, 8, 9, 4), 2 * 6 * 8 * 5 * 3 * 2 * 4),
    (keras.layers.Conv2D(5, 3, strides=2), (1, 9, 9, 4), 4 * 4 * 5 * 9 * 4),
    # Padded to even parts, 7 rows are 9 and 11 columns 12.
    (keras.layers.Conv2D(5, 3, dilation_rate=3, padding="same"), (1, 7, 11, 4), 7 * 11 * 5 * 9 * 4),
    (keras.layers.DepthwiseConv2D(3, padding="same"), (1, 5, 7, 4), 5 * 7 * 4 * 9),
    (keras.layers.DepthwiseConv2D(3, padding="same", dilation_rate=2), (1, 5, 7, 4), 5 * 7 * 4 * 9),
    (keras.layers.Dense(3), (2, 7), 2 * 7 * 3),
    (keras.layers.BatchNormalization(), (1, 5, 5, 4), 0)])
def test_layers_counted_by_hand(layer, shape, expected):
    assert layer_count(layer, shape) == expected


@pytest.mark.parametrize("first, second, turned, expected", [
    ((2, 3, 4), (2, 4, 5), False, 2 * 3 * 4 * 5), ((2, 4, 3), (2, 4, 5), True, 2 * 3 * 4 * 5),
    ((3, 4), (4, 5), False, 3 * 4 * 5), ((4, 3), (4, 5), True, 3 * 4 * 5)])
def test_products_counted_by_hand(first, second, turned, expected):
    assert multiply_adds(traced(lambda a, b: tf.matmul(a, b, transpose_a=turned), first, second)) == expected


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(NotImplementedError, match="Einsum"):
        multiply_adds(traced(lambda a, b: tf.einsum("ab,bc->ac", a, b), (2, 3), (3, 4)))
    with pytest.raises(NotImplementedError, match="Call"):
        multiply_adds(traced(tf.function(lambda a: tf.matmul(a, a)), (3, 3)))


def count_of(layer, kind):
    """Return what `kind` counts of one layer: "ours" as matrix products, "theirs" by mmengine's rules."""
    outputs = math.prod(layer.output.shape[1:])
    if kind == "theirs":
        # Two for each normalised number, four for one between four neighbours, one for each number averaged.
        return {"BatchNormalization": 2 * outputs, "ResizeLike": 4 * outputs,
                "AdaptiveAveragePooling": math.prod(layer.input.shape[1:]) if not isinstance(layer.input, list) else 0,
                }.get(type(layer).__name__, outputs if layer.name.endswith("global_add") else 0)
    if type(layer).__name__ == "AdaptiveAveragePooling":
        return layer.bins**2 * math.prod(layer.input.shape[1:])
    # Their distances and sums are no products of matrices.
    return 2 * layer.number * math.prod(layer.input.shape[1:]) if type(layer).__name__ == "Encoding" else 0


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference counts are not there (../shared/reference)")
@pytest.mark.parametrize("head", ["encnet", "deeplabv3plus", "apcnet", "fcn"])
def test_a_picture_of_512x1024_takes_what_mmengine_counts(head):
    main = models.main_only(models.build(Model(head=head, auxiliary_channels=0), 19, size=(512, 1024)))
    found = of_forward(main, (1, 512, 1024, 3))
    # EncNet's presence layer, which inference has no use for, is in their count.
    theirs = sum(count_of(layer, "theirs") for layer in main.layers) + (512 * 19 if head == "encnet" else 0)
    ours = sum(count_of(layer, "ours") for layer in main.layers)
    reference = json.loads(REFERENCE.read_text())[f"{head} R-50-D8"]["flops"]
    assert found - ours + theirs == reference
    # What the two count differently is next to nothing.
    assert found == pytest.approx(reference, rel=0.005)
