"""Layers agree with slow NumPy references, in their fast and their portable forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.models import blocks, layers
from kseg.models.heads.apcnet import RegionMixture
from kseg.models.layers import AdaptiveAveragePooling, ChannelDropout, ResizeLike
from kseg.models.norms import BatchNormalization


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


def test_only_inputs_of_a_known_small_size_count_as_small():
    shapes = {(2, 32, 32, 64): True, (2, 32, 32, 65): False, (None, 4, 4, 4): False}
    assert {shape: layers.is_small(keras.KerasTensor(shape)) for shape in shapes} == shapes


def resized(images, size, align_corners):
    """Resize by PyTorch's rule in float64, pixel by pixel."""
    height, width = images.shape[1:3]
    outputs = np.zeros((len(images), *size, images.shape[-1]))

    def position(index, length, target):
        if align_corners:
            return index * (length - 1) / (target - 1) if target > 1 else 0.0
        return max((index + 0.5) * length / target - 0.5, 0.0)

    for row in range(size[0]):
        for column in range(size[1]):
            y, x = position(row, height, size[0]), position(column, width, size[1])
            top, left = min(int(y), height - 1), min(int(x), width - 1)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = images[:, top, left] * (1 - (x - left)) + images[:, top, right] * (x - left)
            lower = images[:, bottom, left] * (1 - (x - left)) + images[:, bottom, right] * (x - left)
            outputs[:, row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return outputs


SIZES = [
    ((4, 6), (8, 12)),
    ((4, 6), (7, 5)),
    ((9, 13), (3, 4)),
    ((5, 5), (5, 5)),
    ((1, 1), (4, 3)),
    ((4, 5), (1, 1)),
    ((1, 7), (3, 2)),
    ((13, 25), (97, 193)),
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("source, target", SIZES)
@pytest.mark.parametrize("resize", [layers.resize, layers.resize_by_gather])
def test_resizing_matches_a_loop(resize, source, target, align_corners):
    images = random(2, *source, 3)
    actual = resize(tf.constant(images), target, align_corners)
    assert actual.dtype == tf.float32
    np.testing.assert_allclose(actual, resized(images, target, align_corners), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("resize", [layers.resize, layers.resize_by_gather])
def test_resizing_to_sizes_known_at_run_time(resize, align_corners):
    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((2,), tf.int32)])
    def dynamic(images, size):
        return resize(images, (size[0], size[1]), align_corners)

    for source, target in SIZES[:6]:
        images = random(2, *source, 3)
        actual = dynamic(images, target)
        np.testing.assert_allclose(actual, resized(images, target, align_corners), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("align_corners", [False, True])
def test_resize_like(align_corners):
    images, target = random(2, 3, 4, 5), random(2, 7, 6, 1)
    layer = ResizeLike(align_corners)
    np.testing.assert_allclose(layer([images, target]), resized(images, (7, 6), align_corners), rtol=1e-4, atol=1e-4)
    assert layer.compute_output_shape([(None, 3, 4, 5), (None, 7, None, 1)]) == (None, 7, None, 5)


def test_dropout_drops_whole_channels_and_scales_the_rest():
    keras.utils.set_random_seed(0)
    outputs = ChannelDropout(0.3)(np.full((40, 3, 2, 100), 7, np.float32), training=True).numpy()
    dropped = (outputs == 0).all(axis=(1, 2))
    kept = np.isclose(outputs, 7 / 0.7).all(axis=(1, 2))
    assert (dropped ^ kept).all()
    # The tolerance is five standard deviations of 4000 draws.
    assert dropped.mean() == pytest.approx(0.3, abs=0.036)
    assert len({row.tobytes() for row in dropped}) == 40


def test_dropout_is_the_identity_in_inference_and_at_rate_zero():
    inputs = random(2, 3, 3, 8)
    assert (np.asarray(ChannelDropout(0.9)(inputs, training=False)) == inputs).all()
    assert (np.asarray(ChannelDropout(0.0)(inputs, training=True)) == inputs).all()


def test_dropout_repeats_with_its_seed_state():
    keras.utils.set_random_seed(0)
    layer = ChannelDropout(0.5)
    inputs = np.ones((2, 1, 1, 64), np.float32)
    state = layer.seed_generator.state.numpy()
    first, second = (layer(inputs, training=True).numpy() for _ in range(2))
    assert (first != second).any()
    layer.seed_generator.state.assign(state)
    assert (layer(inputs, training=True).numpy() == first).all()
    assert (layer(inputs, training=True).numpy() == second).all()


def convolved(images, kernel, stride, dilation):
    """Convolve tap by tap, padded symmetrically by dilation * (size // 2)."""
    size = kernel.shape[0]
    margin = dilation * (size // 2)
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0))).astype(np.float64)
    height, width = ((length + 2 * margin - dilation * (size - 1) - 1) // stride + 1 for length in images.shape[1:3])
    outputs = np.zeros((len(images), height, width, kernel.shape[3]))
    for row in range(size):
        for column in range(size):
            top, left = row * dilation, column * dilation
            taps = padded[
                :, top : top + (height - 1) * stride + 1 : stride, left : left + (width - 1) * stride + 1 : stride
            ]
            outputs += taps @ kernel[row, column]
    return outputs


@pytest.mark.parametrize("size", [(8, 10), (9, 11), (9, 10)])
@pytest.mark.parametrize("kernel, stride, dilation", [(3, 2, 1), (7, 2, 1), (1, 2, 1), (3, 1, 1), (3, 1, 2), (3, 1, 4)])
def test_convolutions_pad_symmetrically(size, kernel, stride, dilation):
    images = keras.Input((*size, 3))
    outputs = blocks.convolution(images, 4, kernel, "c", "kaiming", stride=stride, dilation=dilation)
    model = keras.Model(images, outputs)
    inputs = random(2, *size, 3)
    expected = convolved(inputs, model.get_layer("c").kernel.numpy(), stride, dilation)
    assert expected.shape[1:3] == tuple(-(-length // stride) for length in size)
    np.testing.assert_allclose(model(inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [BatchNormalization(0.8, 1e-3, "zeros", name="n"), ChannelDropout(0.2, name="d"), ResizeLike(True, name="r")],
)
def test_layers_survive_their_config(layer):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer) and again.get_config() == layer.get_config()


def slow_pooling(images, bins):
    """Average bin by bin, over [floor(i L / bins), ceil((i + 1) L / bins))."""
    samples, height, width, channels = images.shape
    outputs = np.zeros((samples, bins, bins, channels), np.float64)
    for row in range(bins):
        for column in range(bins):
            top, bottom = row * height // bins, int(np.ceil((row + 1) * height / bins))
            left, right = column * width // bins, int(np.ceil((column + 1) * width / bins))
            outputs[:, row, column] = images[:, top:bottom, left:right].astype(np.float64).mean(axis=(1, 2))
    return outputs


def test_bins_of_a_side_of_13():
    edges = [(0, 3), (2, 5), (4, 7), (6, 9), (8, 11), (10, 13)]
    expected = [[float(start <= position < end) for position in range(13)] for start, end in edges]
    np.testing.assert_array_equal(layers.bin_members(13, 6), expected)


@pytest.mark.parametrize("bins", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("height, width", [(13, 8), (4, 4), (1, 5), (64, 33)])
def test_adaptive_pooling(bins, height, width):
    images = random(2, height, width, 3)
    layer = AdaptiveAveragePooling(bins)
    expected = slow_pooling(images, bins)
    np.testing.assert_allclose(layer(images), expected, rtol=1e-4, atol=1e-5)
    open_sizes = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
    np.testing.assert_allclose(open_sizes(images), expected, rtol=1e-4, atol=1e-5)
    assert layer.compute_output_shape((None, None, None, 3)) == (None, bins, bins, 3)


def test_gradient_of_adaptive_pooling():
    images, upstream = tf.constant(random(1, 5, 4, 2)), random(1, 3, 3, 2, seed=1)
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(AdaptiveAveragePooling(3)(images) * upstream)
    actual = tape.gradient(loss, images).numpy()
    # Pooling is linear, so a pixel's gradient is its pooled unit image times the upstream gradient.
    for position in np.ndindex(*images.shape):
        unit = np.zeros(images.shape, np.float32)
        unit[position] = 1
        assert actual[position] == pytest.approx((slow_pooling(unit, 3) * upstream).sum(), rel=1e-4, abs=1e-5)


def test_mean_of_a_large_image_in_half_precision():
    # The sum of these 90,000 ones exceeds 65,504, the largest float16.
    pooled = AdaptiveAveragePooling(1, dtype="mixed_float16")(np.ones((1, 300, 300, 1), np.float32))
    assert pooled.dtype == tf.float16 and float(pooled[0, 0, 0, 0]) == pytest.approx(1, abs=1e-3)


def test_region_mixture():
    affinities, regions = random(2, 3, 4, 5), random(2, 5, 6, seed=1)
    expected = np.einsum("nhws,nsc->nhwc", affinities, regions)
    np.testing.assert_allclose(RegionMixture()([affinities, regions]), expected, rtol=1e-4, atol=1e-4)
