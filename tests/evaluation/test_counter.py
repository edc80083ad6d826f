"""Counting a split: against a plain loop over pixels, on several replicas and hosts, and errors that name the image."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kseg.config.sections import Evaluate
from kseg.errors import DataError, WeightsError
from kseg.evaluation import counter
from kseg.evaluation.counter import Counter
from kseg.inference import prediction
from kseg.inference.prediction import protocol_of
from tests.helpers import counted_images
from tests.helpers.running import run
from tests.helpers.several_hosts import Hosts
from tests.helpers.splits import val_split

IMAGES = 7
SCRIPT = "tests.helpers.replica_counts"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("a set")
    counted_images.write(path, IMAGES)
    return path


@pytest.fixture(scope="module")
def model(directory):
    """The model of all settings, which only differ in how it predicts."""
    return counted_images.model(counted_images.config(directory, Evaluate()))


@pytest.fixture(scope="module")
def counters(directory, model):
    """A counter on one device for each setting; its graph serves all tests, and images of any size."""
    return {
        name: counter_of(counted_images.config(directory, evaluate), model)
        for name, evaluate in counted_images.SETTINGS.items()
    }


@pytest.fixture(scope="module")
def slow_counts(directory, model):
    """The counts of a plain loop over pixels for each setting."""
    images, labels = (
        [np.array(Image.open(path)) for path in sorted((directory / "val" / part).iterdir())]
        for part in ("images", "labels")
    )
    return {
        name: counted_images.slow_counts(model, counted_images.config(directory, evaluate), images, labels)
        for name, evaluate in counted_images.SETTINGS.items()
    }


@pytest.fixture(scope="module")
def counts(directory, counters):
    """The counts of one device for each setting."""
    return {name: single.count(split_of(directory)) for name, single in counters.items()}


def require_equal(counts, expected):
    matrix, hits, labels, predictions = expected
    assert counts["bands"].dtype == np.int64
    assert (counts["bands"].sum(0) == matrix).all()
    for name, table in (("hits", hits), ("truth", labels), ("predicted", predictions)):
        assert (counts[name] == table).all()
    assert (counts["truth"][2] == 0).all()
    assert len(set(np.diag(matrix))) > 1 and counts["bands"][:-1].sum() > 0


def counter_of(settings, model):
    """Return a counter on one device."""
    return Counter(model, protocol_of(settings), counted_images.CLASSES, tf.distribute.get_strategy())


def split_of(directory):
    return val_split(counted_images.config(directory, Evaluate()))


@pytest.mark.parametrize("name", counted_images.SETTINGS)
def test_one_device_counts_like_a_plain_loop(counts, slow_counts, name):
    require_equal(counts[name]._asdict(), slow_counts[name])


def require_same_as_one_device(path, replicas, name, counts, slow_counts):
    found, expected = np.load(path), counts[name]
    assert found["replicas"] == replicas
    assert (found["bands"] == expected.bands).all() and (found["hits"] == expected.hits).all()
    require_equal(found, slow_counts[name])


def test_replicas_count_the_same_bits(directory, counts, slow_counts, tmp_path):
    # Three replicas do not divide the seven images: two of them have no image in the last round.
    run(SCRIPT, directory, "3", "windows", tmp_path / "counts.npz")
    require_same_as_one_device(tmp_path / "counts.npz", 3, "windows", counts, slow_counts)


def test_hosts_count_the_same_bits(directory, counts, slow_counts, tmp_path):
    hosts = Hosts(SCRIPT, [[directory, "1", "several scales", tmp_path / "counts.npz"]] * 2, tmp_path / "output")
    statuses, outputs, _ = hosts.wait()
    assert statuses == [0, 0], outputs
    require_same_as_one_device(tmp_path / "counts.npz", 2, "several scales", counts, slow_counts)


def test_nonfinite_scores_abort_with_the_names_of_the_images(directory, counters, model):
    layer = model.get_layer("last")
    kernel, *bias = layer.get_weights()
    layer.set_weights([np.full_like(kernel, np.nan), *bias])
    try:
        with pytest.raises(
            WeightsError, match=r"(?s)7 of 7 images, [\d,]+ pixels.*e00.png: [\d,]+ pixels.* 2 more images"
        ):
            counters["whole"].count(split_of(directory))
    finally:
        layer.set_weights([kernel, *bias])
    with pytest.raises(WeightsError, match=r"(?s)1 of 3 images, 12 pixels.*  b: 12 pixels$"):
        counter.require_finite_scores(("a", "b", "c"), np.array([0, 12, 0]))


def test_an_unreadable_label_is_named(counters, tmp_path):
    counted_images.write(tmp_path, 5)
    (tmp_path / "val" / "labels" / "e03.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match="labels/e03.png"):
        counters["whole"].count(split_of(tmp_path))


def test_predictions_outside_the_classes_are_an_error(directory, model, monkeypatch):
    monkeypatch.setattr(
        counter,
        "predict_checked",
        lambda model, images, size, protocol: (tf.fill((1, *size), 3), tf.zeros(1, tf.int32)),
    )
    with pytest.raises(DataError, match="e00.png: .* 3 classes"):
        counter_of(counted_images.config(directory, Evaluate()), model).count(split_of(directory))


def test_an_image_too_large_for_the_network_is_named(directory, counters, monkeypatch):
    monkeypatch.setattr(prediction, "MAX_WHOLE_PIXELS", 1500)
    with pytest.raises(DataError, match=r"e0\d.png: .*\d+ x \d+ pixels .* evaluate.window=769,769"):
        counters["whole"].count(split_of(directory))


def test_an_empty_split_is_an_error(counters, tmp_path):
    counted_images.write(tmp_path, 1)
    for part in ("images", "labels"):
        (tmp_path / "val" / part / "e00.png").unlink()
    with pytest.raises(DataError, match="val"):
        counters["whole"].count(split_of(tmp_path))
