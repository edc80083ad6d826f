"""Counting splits: what a plain loop over pixels counts, on any number of replicas and hosts; faults are named."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import counted_pictures
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kseg import counts as counting
from kseg import inference
from kseg.config import Evaluate
from kseg.counts import Counter
from kseg.errors import DataError, WeightsError

IMAGES = 7
SCRIPT = Path(__file__).with_name("replica_counts.py")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("a set")
    counted_pictures.write(path, IMAGES)
    return path


@pytest.fixture(scope="module")
def plain(directory):
    """For each setting what a plain loop over pixels counts."""
    images, labels = ([np.array(Image.open(path)) for path in sorted((directory / "val" / part).iterdir())]
                      for part in ("images", "labels"))
    return {name: counted_pictures.slow_tables(counted_pictures.config(directory, evaluate), images, labels)
            for name, evaluate in counted_pictures.SETTINGS.items()}


def require_equal(found, expected):
    matrix, hits, truth, predicted = expected
    assert found["bands"].dtype == np.int64
    assert (found["bands"].sum(0) == matrix).all()
    for name, table in (("hits", hits), ("truth", truth), ("predicted", predicted)):
        assert (found[name] == table).all()
    assert (found["truth"][2] == 0).all()
    assert len(set(np.diag(matrix))) > 1 and found["bands"][:-1].sum() > 0


def counted(directory, name):
    settings = counted_pictures.config(directory, counted_pictures.SETTINGS[name])
    strategy = tf.distribute.get_strategy()
    return Counter(counted_pictures.model(settings), settings, counted_pictures.CLASSES, strategy).count("val")


@pytest.mark.parametrize("name", counted_pictures.SETTINGS)
def test_one_device_counts_what_a_plain_loop_does(directory, plain, name):
    require_equal(counted(directory, name)._asdict(), plain[name])


def environment(**more):
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), str(SCRIPT.parent)])} | more


def test_replicas_count_the_same_bits(directory, plain, tmp_path):
    # Three do not divide the seven images: two of them have none in the last round.
    subprocess.run([sys.executable, SCRIPT, directory, "3", "windows", tmp_path / "found.npz"], check=True,
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
        [sys.executable, SCRIPT, directory, "1", "several scales", tmp_path / "found.npz"], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=environment(TF_CONFIG=task)) for task in tasks]
    for host in hosts:
        output, _ = host.communicate(timeout=300)
        assert host.returncode == 0, output
    require_same(np.load(tmp_path / "found.npz"), 2, directory, "several scales", plain)


def test_scores_that_are_not_finite_are_counted_and_named(directory):
    settings = counted_pictures.config(directory, Evaluate())
    model = counted_pictures.model(settings)
    layer = model.get_layer("decode_head.conv_seg")
    kernel, *bias = layer.get_weights()
    layer.set_weights([np.full_like(kernel, np.nan), *bias])
    with pytest.raises(WeightsError, match=r"(?s)nan or infinite in 7 of 7 images, [\d,]+ pixels.*e00.png: [\d,]+ "
                                           r"pixels.*and 2 more images"):
        Counter(model, settings, counted_pictures.CLASSES, tf.distribute.get_strategy()).count("val")
    with pytest.raises(WeightsError, match=r"(?s)in 1 of 3 images, 12 pixels.*  b: 12 pixels$"):
        counting.require_finite(("a", "b", "c"), np.array([0, 12, 0]))


def test_a_bad_file_in_the_middle_is_named(directory, tmp_path):
    counted_pictures.write(tmp_path, 5)
    (tmp_path / "val" / "labels" / "e03.png").write_bytes(b"no picture")
    settings = counted_pictures.config(tmp_path, Evaluate())
    with pytest.raises(DataError, match="labels/e03.png"):
        Counter(counted_pictures.model(settings), settings, 3, tf.distribute.get_strategy()).count("val")


def test_predictions_outside_of_the_classes_are_an_error(directory, monkeypatch):
    settings = counted_pictures.config(directory, Evaluate())
    monkeypatch.setattr(counting, "predict_checked", lambda model, images, size, config: (
        tf.fill((1, *size), 3), tf.zeros(1, tf.int32)))
    with pytest.raises(DataError, match="outside of the 3 classes"):
        Counter(counted_pictures.model(settings), settings, 3, tf.distribute.get_strategy()).count("val")


def test_a_picture_too_large_for_the_network_is_named(directory, monkeypatch):
    settings = counted_pictures.config(directory, Evaluate())
    monkeypatch.setattr(inference, "LARGEST", 1500)
    with pytest.raises(DataError, match=r"e0\d.png: a picture of \d+ x \d+ pixels .* evaluate.window=769,769"):
        Counter(counted_pictures.model(settings), settings, 3, tf.distribute.get_strategy()).count("val")


def test_an_empty_split_is_an_error(tmp_path):
    counted_pictures.write(tmp_path, 1)
    settings = replace(counted_pictures.config(tmp_path, Evaluate()))
    for part in ("images", "labels"):
        (tmp_path / "val" / part / "e00.png").unlink()
    with pytest.raises(DataError, match="val"):
        Counter(counted_pictures.model(settings), settings, 3, tf.distribute.get_strategy()).count("val")
