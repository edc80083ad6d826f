"""Counting splits: what a plain loop over pixels counts, on any number of replicas and hosts; faults are named."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

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
from tests.helpers.running import ROOT
from tests.helpers.splits import val_split

IMAGES = 7
SCRIPT = ("-m", "tests.helpers.replica_counts")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("a set")
    counted_images.write(path, IMAGES)
    return path


@pytest.fixture(scope="module")
def plain(directory):
    """For each setting what a plain loop over pixels counts."""
    images, labels = ([np.array(Image.open(path)) for path in sorted((directory / "val" / part).iterdir())]
                      for part in ("images", "labels"))
    return {name: counted_images.slow_tables(counted_images.config(directory, evaluate), images, labels)
            for name, evaluate in counted_images.SETTINGS.items()}


def require_equal(found, expected):
    matrix, hits, truth, predicted = expected
    assert found["bands"].dtype == np.int64
    assert (found["bands"].sum(0) == matrix).all()
    for name, table in (("hits", hits), ("truth", truth), ("predicted", predicted)):
        assert (found[name] == table).all()
    assert (found["truth"][2] == 0).all()
    assert len(set(np.diag(matrix))) > 1 and found["bands"][:-1].sum() > 0


def count(settings, model=None):
    """Return the counts of the validation split on one device."""
    model = model or counted_images.model(settings)
    counter = Counter(model, protocol_of(settings), counted_images.CLASSES, tf.distribute.get_strategy())
    return counter.count(val_split(settings))


def counted(directory, name):
    return count(counted_images.config(directory, counted_images.SETTINGS[name]))


@pytest.mark.parametrize("name", counted_images.SETTINGS)
def test_one_device_counts_what_a_plain_loop_does(directory, plain, name):
    require_equal(counted(directory, name)._asdict(), plain[name])


def environment(**more):
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def test_replicas_count_the_same_bits(directory, plain, tmp_path):
    # Three do not divide the seven images: two of them have none in the last round.
    subprocess.run([sys.executable, *SCRIPT, directory, "3", "windows", tmp_path / "found.npz"], check=True,
                   env=environment())
    require_same(np.load(tmp_path / "found.npz"), 3, directory, "windows", plain)


def require_same(found, replicas, directory, name, plain):
    one = counted(directory, name)
    assert found["replicas"] == replicas
    assert (found["bands"] == one.bands).all() and (found["hits"] == one.hits).all()
    require_equal(found, plain[name])


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_hosts_count_the_same_bits(directory, plain, tmp_path):
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    tasks = [json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
             for index in range(2)]
    hosts = [subprocess.Popen(
        [sys.executable, *SCRIPT, directory, "1", "several scales", tmp_path / "found.npz"], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=environment(TF_CONFIG=task)) for task in tasks]
    for host in hosts:
        output, _ = host.communicate(timeout=300)
        assert host.returncode == 0, output
    require_same(np.load(tmp_path / "found.npz"), 2, directory, "several scales", plain)


def test_scores_that_are_not_finite_are_counted_and_named(directory):
    settings = counted_images.config(directory, Evaluate())
    model = counted_images.model(settings)
    layer = model.get_layer("decode_head.conv_seg")
    kernel, *bias = layer.get_weights()
    layer.set_weights([np.full_like(kernel, np.nan), *bias])
    with pytest.raises(WeightsError, match=r"(?s)nan or infinite in 7 of 7 images, [\d,]+ pixels.*e00.png: [\d,]+ "
                                           r"pixels.*and 2 more images"):
        count(settings, model)
    with pytest.raises(WeightsError, match=r"(?s)in 1 of 3 images, 12 pixels.*  b: 12 pixels$"):
        counter.require_finite_scores(("a", "b", "c"), np.array([0, 12, 0]))


def test_a_bad_file_in_the_middle_is_named(directory, tmp_path):
    counted_images.write(tmp_path, 5)
    (tmp_path / "val" / "labels" / "e03.png").write_bytes(b"no picture")
    settings = counted_images.config(tmp_path, Evaluate())
    with pytest.raises(DataError, match="labels/e03.png"):
        count(settings)


def test_predictions_outside_of_the_classes_are_an_error(directory, monkeypatch):
    settings = counted_images.config(directory, Evaluate())
    monkeypatch.setattr(counter, "predict_checked", lambda model, images, size, config: (
        tf.fill((1, *size), 3), tf.zeros(1, tf.int32)))
    with pytest.raises(DataError, match="outside of the 3 classes"):
        count(settings)


def test_a_picture_too_large_for_the_network_is_named(directory, monkeypatch):
    settings = counted_images.config(directory, Evaluate())
    monkeypatch.setattr(prediction, "LARGEST", 1500)
    with pytest.raises(DataError, match=r"e0\d.png: a picture of \d+ x \d+ pixels .* evaluate.window=769,769"):
        count(settings)


def test_an_empty_split_is_an_error(tmp_path):
    counted_images.write(tmp_path, 1)
    settings = replace(counted_images.config(tmp_path, Evaluate()))
    for part in ("images", "labels"):
        (tmp_path / "val" / part / "e00.png").unlink()
    with pytest.raises(DataError, match="val"):
        count(settings)
