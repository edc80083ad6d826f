"""Evaluation: every image, at its own size, against a slow count; the files it writes."""

import json
from dataclasses import replace

import cv2
import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from kseg import config as configs
from kseg import datasets, evaluate, models, workdirs
from kseg.config import Config, Data, Evaluate, Model
from kseg.errors import DataError, WorkdirError

SIZES = ((40, 56), (33, 47), (64, 30))


@pytest.fixture
def folder(tmp_path):
    """Three pictures of different sizes; class "never" occurs in no label, and raw 9 is ignored."""
    directory = tmp_path / "my pictures"
    generator = np.random.default_rng(3)
    for part in ("images", "labels"):
        (directory / "val" / part).mkdir(parents=True)
    for index, (height, width) in enumerate(SIZES):
        image = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
        label = generator.choice([0, 1, 9, 255], (height, width)).astype(np.uint8)
        PIL.Image.fromarray(image).save(directory / "val" / "images" / f"{index}.png")
        PIL.Image.fromarray(label).save(directory / "val" / "labels" / f"{index}.png")
    (directory / "classes.txt").write_text("ground\nthing #ff0000\n2 never\n9 ignore\n")
    return directory


@pytest.fixture
def tiny_model():
    keras.utils.set_random_seed(5)
    model = models.build(Model(backbone="resnet18", width=4, channels=8, auxiliary_channels=0), 3)
    # The classifier starts almost at zero; larger weights make the classes differ from pixel to pixel.
    layer = model.get_layer("decode_head.conv_seg")
    layer.set_weights([weight + np.random.default_rng(1).normal(size=weight.shape) for weight in layer.get_weights()])
    return model


def config_of(folder, **changes):
    return replace(Config(data=Data(name="folder", directory=str(folder)),
                          model=Model(backbone="resnet18", width=4, channels=8, auxiliary_channels=0)), **changes)


def slow_ids(model, image, config, size):
    """Class ids as the test protocol words it, with TensorFlow's own resize."""
    if config.evaluate.resize:
        long, short = max(config.evaluate.resize), min(config.evaluate.resize)
        factor = min(long / max(image.shape[:2]), short / min(image.shape[:2]))
        height, width = (int(side * factor + 0.5) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    inputs = (tf.cast(image, tf.float32)[None] - config.data.mean) / config.data.std
    logits = tf.image.resize(model(inputs)["main"], inputs.shape[1:3])
    return np.argmax(tf.image.resize(logits, size)[0].numpy(), axis=-1)


@pytest.mark.parametrize("resize", [(), (48, 80)])
def test_the_matrix_is_a_slow_count_over_every_image(folder, tiny_model, tmp_path, resize):
    config = config_of(folder, evaluate=Evaluate(resize=resize))
    lines = []
    results = evaluate.evaluate(tiny_model, config, datasets.find(config.data), "val", tmp_path / "out", lines.append)
    expected = np.zeros((3, 3), np.int64)
    for index, size in enumerate(SIZES):
        image = np.array(PIL.Image.open(folder / "val" / "images" / f"{index}.png"))
        label = np.array(PIL.Image.open(folder / "val" / "labels" / f"{index}.png"))
        ids = slow_ids(tiny_model, image, config, size)
        for truth, prediction in zip(label.ravel(), ids.ravel()):
            if truth < 3:
                expected[truth, prediction] += 1
    matrix = np.load(tmp_path / "out" / "confusion.npy")
    assert matrix.dtype == np.int64
    # Two programs may round a tie between classes differently.
    assert np.abs(matrix - expected).sum() <= 4
    assert matrix.sum() == expected.sum()
    assert results["images"] == 3
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["classes"]["never"]["accuracy"] is None and written["classes"]["never"]["pixels"] == 0
    assert written["mIoU"] == results["mIoU"]
    assert configs.from_dict(written["config"]) == config
    assert any("never" in line and " -" in line for line in lines)
    assert any("3 of 3 images" in line for line in lines)
    assert PIL.Image.open(tmp_path / "out" / "predictions.png").size[0] > 3 * 47


def test_a_bad_file_is_named_and_nothing_is_counted(folder, tiny_model):
    broken = folder / "val" / "images" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    config = config_of(folder)
    with pytest.raises(DataError, match="1.png"):
        evaluate.evaluate(tiny_model, config, datasets.find(config.data), "val", report=lambda line: None)


def test_other_classes_than_the_model_learned_are_refused(folder, tiny_model, tmp_path):
    config = config_of(folder)
    trained = datasets.find(config.data)
    workdirs.open_run(tmp_path / "run", config, trained).close()
    (folder / "classes.txt").write_text("ground\nfrog\n2 never\n9 ignore\n")
    with pytest.raises(WorkdirError, match="class 1: thing there, frog now"):
        evaluate.evaluate(tiny_model, config, trained, "val", report=lambda line: None)
    # Before the first checkpoint nothing has been learned of the old classes.
    workdirs.open_run(tmp_path / "run", config, trained).close()
    (tmp_path / "run" / "checkpoints" / "step-00000001.index").touch()
    with pytest.raises(WorkdirError, match="frog now"):
        workdirs.open_run(tmp_path / "run", config, datasets.find(config.data))


def test_an_unwritable_output_is_named(folder, tiny_model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    config = config_of(folder)
    with pytest.raises(WorkdirError, match="cannot write to"):
        evaluate.evaluate(tiny_model, config, datasets.find(config.data), "val", tmp_path / "file", lambda line: None)


def test_an_interrupted_count_gives_nothing(folder, tiny_model):
    config = config_of(folder)
    count = evaluate.counter(tiny_model, config, 3)
    assert count("val", interrupted=lambda: True) is None
    assert count("val").sum() > 0
