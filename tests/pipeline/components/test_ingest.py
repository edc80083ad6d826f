"""Test ingesting: every example is stored once and unchanged, and unreadable examples are listed."""

import json
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kseg.config import Config
from kseg.config.sections import Data
from kseg.datasets import diagnosis, registry
from kseg.errors import ConfigError, DataError
from pipeline import artifacts
from pipeline.components import ingest
from tests.helpers import small_sets
from tests.helpers.stored_artifacts import ingested

SKY, GROUND, HOUSE = 0, 1, 2
CLASSES = "0 sky #0000ff\n7 ground\n9 house\n4 ignore\n"


@pytest.fixture(autouse=True)
def no_process_arguments(monkeypatch):
    # TFX parses the arguments of the process.
    monkeypatch.setattr(sys, "argv", ["test"])


@pytest.fixture
def source(tmp_path):
    """Write five training examples of growing size and a validation example; void is 4 and 255."""
    labels = [np.array([[0, 7, 9], [4, 255, 7]]).repeat(index + 1, 1) for index in range(5)]
    return small_sets.folder(tmp_path / "source", {"train": labels, "val": labels[:1]}, CLASSES)


def stored(examples_artifact, split):
    config = artifacts.artifact_config(Config(data=Data(name="folder")), examples_artifact.uri)
    opened = registry.open_split(config.data, split)
    return opened.dataset, [diagnosis.decode_example(opened, index) for index in range(len(opened.names))]


def test_stored_examples_equal_the_source(source, tmp_path):
    artifact = ingested(source, tmp_path / "examples")
    assert (artifact.split_names, artifact.span) == ('["train", "val"]', 3)
    assert len(list((tmp_path / "examples" / "Split-train").iterdir())) == 3
    opened = registry.open_split(source, "train")
    source_dataset = opened.dataset
    dataset, examples = stored(artifact, "train")
    for field in ("classes", "palette", "label_table"):
        assert getattr(dataset, field) == getattr(source_dataset, field)
    assert len(examples) == 5
    for index, pair in enumerate(examples):
        for actual, expected in zip(pair, diagnosis.decode_example(opened, index), strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_scalars_equal_hand_counted_values(source, tmp_path):
    artifact = ingested(source, tmp_path / "examples")
    rows = list(artifacts.read_scalars(artifact.uri, "train"))
    assert [row["name"] for row in rows] == [f"train/images/e{index:02d}.png" for index in range(5)]
    assert [(row["height"], row["width"]) for row in rows] == [(2, 3 * (index + 1)) for index in range(5)]
    # Of six pixels, one is sky, two are ground, one is house, and two are void.
    assert [row["class_pixels"] for row in rows] == [[k, 2 * k, k] for k in range(1, 6)]
    assert all(row["void_share"] == pytest.approx(1 / 3) for row in rows)
    np.testing.assert_allclose(artifacts.class_fractions(artifact.uri, "train"), [0.25, 0.5, 0.25])


def test_records_are_tf_examples(source, tmp_path):
    artifact = ingested(source, tmp_path / "examples", per_shard=100)
    (path,) = (tmp_path / "examples" / "Split-train").iterdir()
    first = tf.train.Example.FromString(next(iter(tf.data.TFRecordDataset(str(path)))).numpy()).features.feature
    assert first["image"].bytes_list.value[0] == (tmp_path / "source" / "train" / "images" / "e00.png").read_bytes()
    assert list(first["class_pixels"].int64_list.value) == [1, 2, 1]
    assert (first["height"].int64_list.value[0], first["width"].int64_list.value[0]) == (2, 3)
    assert artifact.get_int_custom_property("images") == 6


def test_palette_labels_become_grayscale(source, tmp_path):
    path = tmp_path / "source" / "train" / "labels" / "e01.png"
    label = np.asarray(Image.open(path))
    image = Image.fromarray(label, "P")
    image.putpalette(sum(([i, 255 - i, i // 2] for i in range(256)), []))
    image.save(path)
    artifact = ingested(source, tmp_path / "examples")
    np.testing.assert_array_equal(stored(artifact, "train")[1][1][1], label)
    (shard,) = (tmp_path / "examples" / "Split-train").glob("data-00000-*")
    second = tf.train.Example.FromString(list(tf.data.TFRecordDataset(str(shard)))[-1].numpy()).features.feature
    assert tf.io.decode_png(second["segmentation_mask"].bytes_list.value[0]).shape[-1] == 1


def test_unreadable_images_are_skipped_and_listed(source, tmp_path):
    broken = tmp_path / "source" / "train" / "images" / "e02.png"
    broken.write_bytes(broken.read_bytes()[:40])
    artifact = ingested(source, tmp_path / "examples", max_unreadable_fraction=0.2)
    assert artifact.get_int_custom_property("unreadable") == 1
    assert [pair[0][0, 0, 0] for pair in stored(artifact, "train")[1]] == [0, 1, 3, 4]
    (fault,) = json.loads((tmp_path / "examples" / "unreadable.json").read_text())
    assert (fault["split"], fault["name"]) == ("train", "train/images/e02.png")
    assert str(broken) in fault["fault"] and "not a readable" in fault["fault"]


def test_too_many_unreadable_images_are_an_error(source, tmp_path):
    label = tmp_path / "source" / "train" / "labels" / "e04.png"
    Image.fromarray(np.full((2, 15), 3, np.uint8)).save(label)
    with pytest.raises(DataError, match=r"1 of 5 examples of folder train .* more than 19.00%") as raised:
        ingested(source, tmp_path / "examples", max_unreadable_fraction=0.19)
    assert f"{label}: value 3 (30 pixels) " in str(raised.value)


def test_fingerprint_changes_with_the_source(source, tmp_path):
    before = ingest.source_fingerprint(source, ("train", "val"))
    assert ingest.source_fingerprint(source, ("train", "val")) == before
    (tmp_path / "source" / "notes.txt").write_text("not read")
    assert ingest.source_fingerprint(source, ("train", "val")) == before
    path = tmp_path / "source" / "train" / "labels" / "e00.png"
    path.write_bytes(path.read_bytes() + b" ")
    changed = ingest.source_fingerprint(source, ("train", "val"))
    assert changed != before
    (tmp_path / "source" / "classes.txt").write_text(CLASSES.replace("house", "home"))
    assert ingest.source_fingerprint(source, ("train", "val")) not in (before, changed)


def test_part_of_a_split(source, tmp_path):
    artifact = ingested(source, tmp_path / "examples")
    config = artifacts.artifact_config(Config(data=source), artifact.uri)
    data = artifacts.part_config(config.data, "train", 1, 4, tmp_path / "part")
    opened = registry.open_split(data, "train")
    first_pixels = [diagnosis.decode_example(opened, index)[0][0, 0, 0] for index in range(len(opened.names))]
    assert first_pixels == [1, 2, 3]


@pytest.mark.parametrize("pattern", ["span-{SPAN}", "span-{SPAN}-of-day/data", "{SPAN}"])
def test_span_is_the_highest_number_by_default(pattern, tmp_path):
    for number in ("1", "02", "10", "x"):
        (tmp_path / pattern.replace(ingest.SPAN, number)).mkdir(parents=True)
    config = Config(data=Data(name="folder", directory=str(tmp_path / pattern)))
    for given, number, span in ((None, "10", 10), (2, "02", 2), (1, "1", 1)):
        located, located_span = ingest.locate_span(config, given)
        assert located.data.directory == str(tmp_path / pattern.replace(ingest.SPAN, number))
        assert located_span == span
    with pytest.raises(DataError, match="no span 3; .*: 1, 2, 10"):
        ingest.locate_span(config, 3)


def test_without_spans(tmp_path):
    config = Config(data=Data(name="folder", directory=str(tmp_path)))
    assert ingest.locate_span(config) == (config, 0)
    with pytest.raises(ConfigError, match="--span 3 .*{SPAN}"):
        ingest.locate_span(config, 3)
