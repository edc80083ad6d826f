"""kseg.load: load a Segmenter from a working directory."""

import argparse
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import kseg
from kseg import cli, models, predict
from kseg.config import Config, checks
from kseg.config.sections import Data, Evaluate
from kseg.datasets import registry
from kseg.errors import ConfigError, DataError, WorkdirError
from kseg.images import image_files
from kseg.inference import prediction, segmenter, trained_model
from kseg.training import working_directory
from kseg.weights import keras_files
from tests.helpers.small_models import tiny


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return a working directory without data, whose model predicts several classes."""
    directory = tmp_path_factory.mktemp("my run")
    config = checks.check_config(
        Config(name="small", data=Data(name="camvid"), model=tiny(head="fcn", output_stride=16))
    )
    dataset = registry.find_dataset(config.data)
    working_directory.open_workdir(directory, config, dataset).close()
    tf.keras.utils.set_random_seed(3)
    model = models.build(config.model, len(dataset.classes))
    # The initial weights predict the same class everywhere.
    for weight in model.trainable_weights:
        if weight.path.startswith("decode_head.conv_seg"):
            weight.assign(np.random.default_rng(0).normal(0, 1, weight.shape))
    keras_files.save_weights(model, directory / "best.weights.h5")
    return directory


@pytest.fixture(scope="module")
def loaded(workdir):
    return kseg.load(workdir)


@pytest.fixture(scope="module")
def trained(workdir):
    return trained_model.load_trained(workdir)


@pytest.fixture(scope="module")
def image():
    """Return an image without symmetry, so that a rotation, flip or exchange of channels changes the result."""
    rows, columns = np.mgrid[0:45, 0:70]
    return np.stack([rows * 5, columns * 3, (rows * columns) % 256], axis=2).astype(np.uint8)


def test_results_equal_those_of_kseg_predict(loaded, workdir, image, tmp_path):
    ids = loaded(image)
    assert ids.dtype == np.uint8 and ids.shape == (45, 70)
    assert len(np.unique(ids)) > 1
    Image.fromarray(image).save(tmp_path / "street.png")
    predict.main(
        [
            str(tmp_path / "street.png"),
            "--workdir",
            str(workdir),
            "--out",
            str(tmp_path / "out"),
            "--save",
            "ids,overlay,scores",
        ]
    )
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "out/ids/street.png")[..., 0], ids)
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "out/overlay/street.png"), loaded.overlay(image))
    scores = np.load(tmp_path / "out/scores/street.npy")
    np.testing.assert_allclose(scores, loaded.scores(image), atol=1e-3)


def test_scores_are_probabilities_that_match_the_ids(loaded, image):
    scores = loaded.scores(image)
    assert scores.dtype == np.float32 and scores.shape == (45, 70, 11)
    np.testing.assert_allclose(scores.sum(axis=2), 1, rtol=1e-5)
    np.testing.assert_array_equal(scores.argmax(axis=2), loaded(image))
    assert scores.min() >= 0 and scores.max() < 1


def test_class_names_and_colors(loaded):
    camvid = registry.DATASETS["camvid"]
    assert (loaded.classes, loaded.palette) == (camvid.classes, camvid.palette)
    assert loaded.config.name == "small" and not loaded.config.evaluate.scales


def test_all_types_of_images(loaded, image, tmp_path):
    ids = loaded(image)
    Image.fromarray(image).save(tmp_path / "a b.png")
    rotated = Image.fromarray(np.rot90(image).copy())
    exif = rotated.getexif()
    # Orientation 6 rotates the displayed image clockwise by 90 degrees.
    exif[0x0112] = 6
    rotated.save(tmp_path / "rotated.png", exif=exif)
    with Image.open(tmp_path / "rotated.png") as lazy:
        for value in (
            tmp_path / "a b.png",
            str(tmp_path / "a b.png"),
            Image.fromarray(image),
            image[::1, ::1],
            np.asfortranarray(image),
            tmp_path / "rotated.png",
            lazy,
        ):
            np.testing.assert_array_equal(loaded(value), ids)
    # BGR arrays of OpenCV become views with a negative stride when their channels are reversed.
    np.testing.assert_array_equal(loaded(image[..., ::-1].copy()[..., ::-1]), ids)
    assert not np.array_equal(loaded(image[..., ::-1]), ids)
    gray = Image.fromarray(image[..., 0])
    np.testing.assert_array_equal(loaded(gray), loaded(np.repeat(image[..., :1], 3, axis=2)))


@pytest.mark.parametrize(
    "change, hint",
    [
        (lambda image: image / 255, "255"),
        (lambda image: image[..., 0], "gray image"),
        (lambda image: image[..., :1], "gray image"),
        (lambda image: np.repeat(image[..., :1], 4, axis=2), "fourth channel"),
        (lambda image: image[None], "one image at a time"),
        (lambda image: image.astype(np.int32), "int32"),
        (lambda image: image[:0], r"\(0, 70, 3\)"),
        (lambda image: image.tolist(), "got list"),
        (lambda image: tf.constant(image), "got EagerTensor"),
    ],
)
def test_invalid_arrays_are_rejected(loaded, image, change, hint):
    for method in (loaded, loaded.scores, loaded.overlay):
        with pytest.raises(DataError, match=f"an image must be .*{hint}"):
            method(change(image))


def test_invalid_files_are_rejected(loaded, tmp_path):
    (tmp_path / "a.png").write_text("text")
    for name in ("a.png", "gone.png"):
        with pytest.raises(DataError, match=name):
            loaded(tmp_path / name)


def test_test_time_augmentation(workdir, loaded, image, tmp_path):
    augmented = kseg.load(str(workdir), tta=True)
    assert augmented.config.evaluate.scales == trained_model.TEST_SCALES and augmented.config.evaluate.flip
    scores = augmented.scores(image)
    # Test-time augmentation averages probabilities; a second softmax would break the sum or the maximum.
    np.testing.assert_allclose(scores.sum(axis=2), 1, rtol=1e-5)
    np.testing.assert_array_equal(scores.argmax(axis=2), augmented(image))
    assert np.abs(scores - loaded.scores(image)).max() > 1e-3
    assert scores.max() > 0.5


@pytest.mark.parametrize(
    "average, flip", [("probabilities", True), ("logits", True), ("before resizing", True), ("before resizing", False)]
)
def test_scores_are_probabilities_for_every_average(trained, image, average, flip):
    model, config, _ = trained
    config = replace(config, evaluate=Evaluate(flip=flip, average=average))
    ids, scores = segmenter.probability_predictor(model, prediction.protocol_of(config))(image)
    np.testing.assert_allclose(scores.sum(axis=2), 1, rtol=1e-5)
    assert scores.min() >= 0
    np.testing.assert_array_equal(ids, scores.argmax(axis=2))


def test_non_finite_scores_are_an_error(workdir, image):
    model, config, _ = trained_model.load_trained(workdir)
    model.get_layer("decode_head.conv_seg").bias.assign(np.full(11, np.nan))
    with pytest.raises(DataError, match=r"3,150 of 3,150 pixels"):
        segmenter.probability_predictor(model, prediction.protocol_of(config))(image)


def test_too_large_images_are_an_error(trained, image, monkeypatch):
    monkeypatch.setattr(prediction, "MAX_WHOLE_PIXELS", 1000)
    with pytest.raises(DataError, match="70 x 45 pixels"):
        segmenter.probability_predictor(trained[0], prediction.protocol_of(trained[1]))(image)


def test_weights_from_another_file(workdir, image, tmp_path):
    model, _, _ = trained_model.load_trained(workdir)
    layer = model.get_layer("decode_head.conv_seg")
    layer.kernel.assign(layer.kernel * 0)
    layer.bias.assign(np.eye(11)[7])
    keras_files.save_weights(model, tmp_path / "other.weights.h5")
    assert (kseg.load(workdir, weights=str(tmp_path / "other.weights.h5"))(image) == 7).all()


def test_directories_without_a_model_are_rejected(tmp_path, workdir):
    with pytest.raises(WorkdirError, match="not a working directory"):
        kseg.load(tmp_path)
    for name in ("config.json", "dataset.json"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    with pytest.raises(WorkdirError, match="best.weights.h5"):
        kseg.load(tmp_path)
    with pytest.raises(ConfigError, match="name a model"):
        cli.load_model(argparse.Namespace(workdir=None, weights=None))


def test_home_directory_is_expanded(workdir, loaded, monkeypatch):
    monkeypatch.setenv("HOME", str(workdir.parent))
    assert kseg.load(f"~/{workdir.name}").classes == loaded.classes


def test_importing_kseg_loads_no_heavy_package():
    code = (
        "import sys, kseg; assert callable(kseg.load); "
        "print(*sorted({'tensorflow', 'keras', 'numpy', 'PIL', 'cv2'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
