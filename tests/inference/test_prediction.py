"""Predictions must equal the stored logits and probabilities of MMSegmentation and SSSegmentation.

test_large_images.py tests windows and stripes without fixtures.
"""

import functools
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kseg import models
from kseg.config import Config
from kseg.config.sections import Deeplab, Evaluate, Model
from kseg.images import resizing
from kseg.inference import prediction
from kseg.models.layers import resize
from kseg.weights import loading
from tests.helpers.exhaustive import all_of
from tests.helpers.shared_files import FIXTURES, needs_fixtures

MMSEG, SSS = FIXTURES / "mmseg" / "inference", FIXTURES / "sss" / "inference"
MODEL = Model(
    backbone="resnet50",
    width=2,
    head="deeplabv3plus",
    channels=16,
    dropout=0.0,
    deeplab=Deeplab(dilations=(1, 2, 3, 5), shortcut_channels=2),
)
# Each case has a name, a protocol and the file of the reference logits.
MMSEG_CASES = {
    "whole": (Evaluate(), "whole_logits"),
    "square windows": (Evaluate(window=(64, 64), stride=(43, 43)), "slide_logits"),
    "upright windows": (Evaluate(window=(112, 64), stride=(103, 35)), "slide_rect_logits"),
    "keep-ratio resize": (Evaluate(resize=(80, 256)), "keepratio_logits"),
}


def load_model(directory, auxiliary):
    """Return our model of a fixture with its weights."""
    settings = json.loads((directory / "settings.json").read_text())
    # The models of both systems differ only in the auxiliary head.
    head = settings.get("head") or settings["cfg"]["decode_head"]
    assert settings["args"]["model"] == MODEL.head and tuple(head["dilations"]) == MODEL.deeplab.dilations
    assert head.get("channels", head.get("feats_channels")) == MODEL.channels
    config = replace(MODEL, auxiliary_channels=auxiliary)
    model = models.build(config, settings["args"]["classes"])
    loading.load_checkpoint(model, directory / "model.pth", MODEL.head)
    return model


@pytest.fixture(scope="module")
def mmseg_model():
    return load_model(MMSEG, auxiliary=8)


@pytest.fixture(scope="module")
def sss_model():
    return load_model(SSS, auxiliary=16)


# Tests with the same settings share a graph: tracing the network takes most of their time.
@functools.cache
def compiled(model, settings):
    """Return `predict_scores` for normalized and fitted inputs, compiled once for all sizes."""
    protocol = prediction.protocol_of(settings)._replace(
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), evaluate=replace(settings.evaluate, resize=())
    )

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((2,), tf.int32)], autograph=False)
    def logits(inputs, size):
        return prediction.predict_scores(model, inputs, (size[0], size[1]), protocol)

    return lambda inputs, size: logits(inputs, size).numpy()


def classes_agree(ids, expected, tolerance):
    """Return whether ids equal the expected classes wherever the two best logits differ by more than a tolerance."""
    best = np.sort(expected, axis=-1)
    certain = best[..., -1] - best[..., -2] > tolerance
    assert certain.mean() > 0.9
    return np.array_equal(ids[certain], np.argmax(expected, axis=-1)[certain])


@needs_fixtures
@pytest.mark.parametrize("case", all_of(["whole", "upright windows", "keep-ratio resize"], "square windows"))
def test_logits_and_classes_of_mmseg(mmseg_model, case):
    evaluation, file = MMSEG_CASES[case]
    settings = Config(model=MODEL, evaluate=evaluation)
    protocol = prediction.protocol_of(settings)
    image = np.array(Image.open(MMSEG / "image.png").convert("RGB"))
    expected = np.load(MMSEG / f"{file}.npy")
    inputs = prediction.preprocess(image[None], protocol)
    if evaluation.resize:
        assert np.abs(inputs - np.load(MMSEG / "keepratio_input.npy")).max() < 1e-5
    found = compiled(mmseg_model, settings)(inputs, image.shape[:2])
    assert found.shape == expected.shape == (1, 97, 141, 2)
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    ids = prediction.predict_ids(mmseg_model, image[None], image.shape[:2], protocol).numpy()
    assert classes_agree(ids, expected, 1e-4)


@needs_fixtures
def test_mmseg_windows_on_resized_and_flipped_images(mmseg_model):
    # The reference stores the mean probabilities at the original size.
    settings = Config(model=MODEL, evaluate=Evaluate(window=(64, 64), stride=(43, 43)))
    stored = np.load(MMSEG / "tta_resized_bgr_uint8.npz")
    original = np.array(Image.open(MMSEG / "image.png").convert("RGB"))
    logits, probabilities = compiled(mmseg_model, settings), []
    for image in (*(stored[name][..., ::-1] for name in ("aug0", "aug2", "aug6")), original):
        inputs = prediction.protocol_of(settings).normalize(image[None])
        height, width = image.shape[:2]
        flipped = logits(inputs[:, :, ::-1], (height, width))[:, :, ::-1]
        for pass_logits in (logits(inputs, (height, width)), flipped):
            probabilities.append(tf.nn.softmax(resize(pass_logits, (97, 141))))
    found, expected = np.mean(probabilities, axis=0), np.load(MMSEG / "tta_slide_probs.npy")
    assert np.abs(found - expected).max() <= 1e-5


def scores(model, images, size, evaluation):
    """Return the result of a compiled `predict_scores`, which evaluation uses."""
    return compiled_scores(model, images.dtype.name, size, evaluation)(images).numpy()


@functools.cache
def compiled_scores(model, dtype, size, evaluation):
    settings = Config(model=MODEL, evaluate=evaluation)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), dtype)], autograph=False)
    def predict(images):
        return prediction.predict_scores(model, images, size, prediction.protocol_of(settings))

    return predict


WINDOWS = {"window": (64, 64), "stride": (43, 43)}


@needs_fixtures
@pytest.mark.parametrize("windows, file", all_of([(WINDOWS, "tta_slide")], ({}, "tta_whole")))
def test_mmseg_multi_scale_test_with_flip(mmseg_model, windows, file):
    image = np.array(Image.open(MMSEG / "image.png").convert("RGB"))
    # The scales apply to the image's original size; evaluate.resize must have no effect.
    evaluation = Evaluate(resize=(80, 256), scales=(0.5, 0.75, 1.0, 1.25), flip=True, **windows)
    found = scores(mmseg_model, image[None], (97, 141), evaluation)
    expected = np.load(MMSEG / f"{file}_probs.npy")
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1e-5
    ids = np.load(MMSEG / f"{file}_pred.npy")
    certain = np.abs(expected[..., 0] - expected[..., 1]) > 1e-4
    assert certain.mean() > 0.9
    assert np.array_equal(found.argmax(-1)[certain].ravel(), ids.reshape(certain.shape)[certain].ravel())


@needs_fixtures
@pytest.mark.parametrize(
    "windows, average, file",
    all_of(
        [({}, "before resizing", "probs")],
        (WINDOWS, "logits", "logits"),
        ({}, "logits", "logits"),
        (WINDOWS, "before resizing", "probs"),
    ),
)
def test_sss_multi_scale_test_with_flip(sss_model, windows, average, file):
    inputs = np.load(SSS / "input.npy")
    images = (inputs * np.array(Config().data.std) + Config().data.mean).astype(np.float32)
    evaluation = Evaluate(
        scales=(0.5, 1.0, 1.25), flip=True, scale_of="input", average=average, resize_logits="once", **windows
    )
    found = scores(sss_model, images, (91, 133), evaluation)
    expected = np.load(SSS / f"tta_{'slide' if windows else 'whole'}_{file}.npy")
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


@needs_fixtures
@pytest.mark.parametrize(
    "changes",
    all_of(
        [{"flip": False}],
        *[
            {"scales": (0.5, 0.75, 1.0)},
            {"scales": (0.5, 0.75, 1.0, 1.2)},
            {"average": "logits"},
            {"average": "before resizing"},
            {"scale_of": "input"},
        ],
    ),
)
def test_changed_multi_scale_settings_change_scores(mmseg_model, changes):
    image = np.array(Image.open(MMSEG / "image.png").convert("RGB"))
    evaluation = replace(Evaluate(scales=(0.5, 0.75, 1.0, 1.25), flip=True), **changes)
    found = scores(mmseg_model, image[None], (97, 141), evaluation)
    # The bound is five times the tolerance for equality.
    assert np.abs(found - np.load(MMSEG / "tta_whole_probs.npy")).max() > 5e-5


@needs_fixtures
def test_flipped_image_has_flipped_scores(mmseg_model):
    image = np.array(Image.open(MMSEG / "image.png").convert("RGB"))
    evaluation = Evaluate(flip=True)
    original, flipped = (scores(mmseg_model, pixels[None], (97, 141), evaluation) for pixels in (image, image[:, ::-1]))
    assert np.abs(original - flipped[:, :, ::-1]).max() <= 1e-5
    # Without test-time augmentation the scores are not symmetric.
    original, flipped = (scores(mmseg_model, pixels[None], (97, 141), Evaluate()) for pixels in (image, image[:, ::-1]))
    assert np.abs(original - flipped[:, :, ::-1]).max() > 1e-3


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0, 1.25, 1.75])
@pytest.mark.parametrize("align_corners", [False, True])
def test_scaled_input_equals_pytorch(factor, align_corners):
    images = np.random.default_rng(0).integers(0, 256, (2, 13, 18, 3)).astype(np.float32)
    settings = Config(
        model=replace(MODEL, align_corners=align_corners), evaluate=Evaluate(scales=(factor,), scale_of="input")
    )
    protocol = prediction.protocol_of(settings)
    found = prediction.scaled_input(images, tf.constant(factor, tf.float64), protocol).numpy()
    unscaled = protocol.normalize(images).numpy()
    expected = scaled(unscaled, factor)
    if align_corners:
        expected = resize(unscaled, (int(13 * factor), int(18 * factor)), True).numpy()
    assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-5


@needs_fixtures
def test_sss_resizes_logits_once(sss_model):
    inputs, expected = np.load(SSS / "input.npy"), np.load(SSS / "whole_single.npy")
    once, twice = (
        compiled(sss_model, Config(model=MODEL, evaluate=Evaluate(resize_logits=way)))(inputs, (91, 133))
        for way in ("once", "twice")
    )
    assert np.abs(once - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    assert np.abs(twice - expected).max() > 0.01


def scaled(inputs, factor):
    """Resize as PyTorch's bilinear interpolate(scale_factor=), whose ratio is the factor and not that of the sizes."""
    for axis in (1, 2):
        length = inputs.shape[axis]
        positions = np.maximum((np.arange(int(length * factor)) + 0.5) / factor - 0.5, 0)
        below = np.minimum(positions.astype(int), length - 1)
        fraction = np.expand_dims(positions - below, (1, 2) if axis == 1 else (1,))
        inputs = (
            np.take(inputs, below, axis) * (1 - fraction)
            + np.take(inputs, np.minimum(below + 1, length - 1), axis) * fraction
        )
    return inputs.astype(np.float32)


@needs_fixtures
@pytest.mark.parametrize(
    "evaluation, file",
    all_of(
        [(Evaluate(window=(64, 64), stride=(43, 43), resize_logits="once"), "tta_slide_logits")],
        (Evaluate(resize_logits="once"), "tta_whole_logits"),
    ),
)
def test_sss_on_scaled_and_flipped_inputs(sss_model, evaluation, file):
    logits, passes = compiled(sss_model, Config(model=MODEL, evaluate=evaluation)), []
    for factor in (0.5, 1.0, 1.25):
        inputs = scaled(np.load(SSS / "input.npy"), factor)
        passes += [logits(inputs, (91, 133)), logits(inputs[:, :, ::-1], (91, 133))[:, :, ::-1]]
    expected = np.load(SSS / f"{file}.npy")
    assert np.abs(np.mean(passes, axis=0) - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("seed", range(12))
def test_resize_bytes_equals_opencv(seed):
    generator = np.random.default_rng(seed)
    height, width, target_height, target_width = (int(side) for side in generator.integers(1, 160, 4))
    image = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
    expected = cv2.resize(image, (target_width, target_height), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(resizing.resize_bytes(image[None], (target_height, target_width))[0], expected)
