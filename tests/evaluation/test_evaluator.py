"""Evaluating a split: every image at its original size against a slow count, the written files, and the samples."""

import csv
import errno
import json
from dataclasses import replace

import cv2
import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from kseg import config as configs
from kseg import models
from kseg.config import Config
from kseg.config.sections import Data, Evaluate, Model
from kseg.datasets import registry
from kseg.errors import DataError, WorkdirError
from kseg.evaluation import evaluator, results
from kseg.evaluation.counter import Counts
from kseg.training import working_directory
from tests.helpers.exhaustive import all_of
from tests.helpers.splits import val_split

SIZES = ((40, 56), (33, 47), (64, 30))


@pytest.fixture
def folder(tmp_path):
    """Three images of different sizes; no label has the class "never", and raw value 9 is ignored."""
    directory = tmp_path / "my images"
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
    # The classifier is initialized near zero; larger weights make the classes differ from pixel to pixel.
    layer = model.get_layer("decode_head.conv_seg")
    layer.set_weights([weight + np.random.default_rng(1).normal(size=weight.shape) for weight in layer.get_weights()])
    return model


def config_of(folder, **changes):
    return replace(
        Config(
            data=Data(name="folder", directory=str(folder)),
            model=Model(backbone="resnet18", width=4, channels=8, auxiliary_channels=0),
        ),
        **changes,
    )


def slow_ids(model, image, config, size):
    """Predict class ids by the words of the test protocol, with the resize of TensorFlow."""
    if config.evaluate.resize:
        long, short = max(config.evaluate.resize), min(config.evaluate.resize)
        factor = min(long / max(image.shape[:2]), short / min(image.shape[:2]))
        height, width = (int(side * factor + 0.5) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    inputs = (tf.cast(image, tf.float32)[None] - config.data.mean) / config.data.std
    logits = tf.image.resize(model(inputs)["main"], inputs.shape[1:3])
    return np.argmax(tf.image.resize(logits, size)[0].numpy(), axis=-1)


def evaluate(model, config, out=None, report=lambda line: None):
    split = val_split(config)
    return evaluator.evaluate(model, config, split.dataset, split, out, report)


@pytest.mark.parametrize("resize", all_of([(48, 80)], ((),)))
def test_counts_and_files_against_a_slow_count(folder, tiny_model, tmp_path, resize):
    config = config_of(folder, evaluate=Evaluate(resize=resize))
    lines = []
    summary = evaluate(tiny_model, config, tmp_path / "out", lines.append)
    expected = np.zeros((3, 3), np.int64)
    for index, size in enumerate(SIZES):
        image = np.array(PIL.Image.open(folder / "val" / "images" / f"{index}.png"))
        label_map = np.array(PIL.Image.open(folder / "val" / "labels" / f"{index}.png"))
        ids = slow_ids(tiny_model, image, config, size)
        for label, prediction in zip(label_map.ravel(), ids.ravel()):
            if label < 3:
                expected[label, prediction] += 1
    matrix = np.load(tmp_path / "out" / "confusion.npy")
    assert matrix.dtype == np.int64
    # The two implementations may break a tie between classes differently.
    assert np.abs(matrix - expected).sum() <= 4
    assert matrix.sum() == expected.sum()
    assert summary["images"] == 3
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["classes"]["never"]["accuracy"] is None and written["classes"]["never"]["pixels"] == 0
    assert written["mIoU"] == summary["mIoU"]
    assert configs.from_dict(written["config"]) == config
    assert any("never" in line and " -" in line for line in lines)
    assert any("3 of 3 images" in line for line in lines)
    assert PIL.Image.open(tmp_path / "out" / "predictions.png").size[0] > 3 * 47
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{100 * summary['mIoU']:.2f}" in page and "never" in page
    assert written["boundary_mIoU"] == summary["boundary_mIoU"] and any("boundary mIoU" in line for line in lines)
    assert written["provenance"]["dataset"] == "folder" and written["timing"]["images_per_second"] > 0
    bands = np.load(tmp_path / "out" / "bands.npy")
    assert (bands.sum(0) == matrix).all() and bands.dtype == np.int64
    rows = list(csv.DictReader((tmp_path / "out" / "per_image.csv").open(encoding="utf-8")))
    assert [float(row["miou"]) for row in rows] == sorted(float(row["miou"]) for row in rows)
    assert sum(int(row["pixels"]) for row in rows) == matrix.sum()
    assert all(row["never"] in ("", "0.000000") for row in rows)


def test_results_are_written_before_anything_can_fail_to_print(folder, tiny_model, tmp_path):
    (folder / "classes.txt").write_text("дорога\nStraße\n2 道路\n9 ignore\n", encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        evaluate(tiny_model, config_of(folder), tmp_path / "out", lambda line: line.encode("ascii"))
    written = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert list(written["classes"]) == ["дорога", "Straße", "道路"]
    for name in ("report.html", "predictions.png", "per_image.csv", "per_image.npz", "confusion.npy"):
        assert (tmp_path / "out" / name).stat().st_size


def test_scores_are_printed_if_they_cannot_be_written(folder, tiny_model, tmp_path, monkeypatch):
    def fill_disk(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "write_results", fill_disk)
    lines = []
    with pytest.raises(WorkdirError, match="No space left on device"):
        evaluate(tiny_model, config_of(folder), tmp_path / "out", lines.append)
    assert any("mIoU" in line for line in lines) and not any("wrote" in line for line in lines)


def test_an_unreadable_image_is_named(folder, tiny_model):
    broken = folder / "val" / "images" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match="1.png"):
        evaluate(tiny_model, config_of(folder))


def test_a_split_without_labeled_pixels_is_refused(folder, tiny_model, tmp_path):
    for path in (folder / "val" / "labels").iterdir():
        label = np.where(np.array(PIL.Image.open(path)) > 8, 255, 9).astype(np.uint8)
        PIL.Image.fromarray(label).save(path)
    with pytest.raises(DataError, match="split 'val' .*no labeled pixel.* 9, 255.*--split"):
        evaluate(tiny_model, config_of(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unusual_files_are_reported(folder, tiny_model):
    exif = PIL.Image.Exif()
    exif[0x0112] = 3
    image = PIL.Image.open(folder / "val" / "images" / "1.png")
    image.save(folder / "val" / "images" / "1.png", exif=exif.tobytes())
    (folder / "val" / "images" / "notes.txt").touch()
    lines = []
    evaluate(tiny_model, config_of(folder), report=lines.append)
    assert ".txt (1)" in lines[0] and "1 image has an EXIF orientation" in lines[1]


def test_classes_other_than_those_of_the_training_are_refused(folder, tiny_model, tmp_path):
    config = config_of(folder)
    trained = registry.find_dataset(config.data)
    working_directory.open_workdir(tmp_path / "run", config, trained).close()
    (folder / "classes.txt").write_text("ground\nfrog\n2 never\n9 ignore\n")
    with pytest.raises(WorkdirError, match="class 1.*thing.*frog"):
        evaluator.evaluate(tiny_model, config, trained, val_split(config), report=lambda line: None)
    # Before the first checkpoint a run may change its classes.
    working_directory.open_workdir(tmp_path / "run", config, trained).close()
    (tmp_path / "run" / "checkpoints" / "step-00000001.index").touch()
    with pytest.raises(WorkdirError, match="frog"):
        working_directory.open_workdir(tmp_path / "run", config, registry.find_dataset(config.data))


def test_an_unwritable_output_is_named(folder, tiny_model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkdirError, match=f"cannot write to {tmp_path}/file"):
        evaluate(tiny_model, config_of(folder), tmp_path / "file")


def test_samples_are_the_worst_and_the_typical_images():
    count = 40
    hits = np.arange(count)[:, None] * [1, 0, 0]
    counts = Counts(
        np.zeros((6, 3, 3), np.int64),
        tuple(map(str, range(count))),
        hits,
        np.full((count, 3), 50) * [1, 0, 0],
        np.full((count, 3), 50) * [1, 0, 0],
    )
    assert results.worst_first(counts) == list(range(count))
    shuffled = np.random.default_rng(0).permutation(count)
    order = results.worst_first(counts._replace(hits=hits[shuffled]))
    assert [int(hits[shuffled][index, 0]) for index in order] == list(range(count))

    chosen = evaluator.choose_samples(counts)
    assert [index for group, index in chosen if group == "worst"] == list(range(12))
    assert [index for group, index in chosen if group == "typical"] == list(range(14, 26))
    few = counts._replace(
        names=counts.names[:15], hits=hits[:15], truth=counts.truth[:15], predicted=counts.predicted[:15]
    )
    assert [index for _, index in evaluator.choose_samples(few)] == list(range(15))
    unlabeled = few._replace(truth=few.truth * 0, predicted=few.predicted * 0, hits=few.hits * 0)
    assert evaluator.choose_samples(unlabeled) == []


@pytest.mark.parametrize(
    "published, flip, expected",
    [
        (None, False, None),
        ({"mIoU": 0.5, "mIoU_tta": 0.75}, False, "50.00, difference +10.00"),
        ({"mIoU": 0.5, "mIoU_tta": 0.75}, True, "75.00, difference -15.00"),
        ({"mIoU": 0.5, "mIoU_tta": None}, True, None),
    ],
)
def test_the_published_score_of_the_protocol_is_printed(published, flip, expected):
    summary = {
        "boundary_mIoU": 0.4,
        "boundary": {"width": 0.005},
        "mIoU": 0.6,
        "published": published and published | {"config": "a:b", "source": "paper"},
        "config": {"evaluate": {"scales": [], "flip": flip}},
    }
    lines = evaluator._headline(summary).splitlines()
    assert "40.00 within 0.5%" in lines[0]
    assert lines[1:] == [] if expected is None else "a:b (paper" in lines[1] and lines[1].endswith(expected)
