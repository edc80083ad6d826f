"""A tf.data service in separate processes returns the batches that training would read itself; errors are reported."""

import dataclasses
import hashlib
import json
import re
import signal
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kseg import config as configs
from kseg.config import Config
from kseg.config.checks import check_config
from kseg.config.sections import Augment, Data
from kseg.errors import ConfigError, DataError
from kseg.input_pipeline import data_service
from kseg.input_pipeline.batch_reader import BatchReader
from kseg.training import trainer
from tests.helpers.running import TINY, start
from tests.helpers.small_sets import config, example, folder
from tests.helpers.small_training import SMALL, build_small_networks
from tests.helpers.splits import step_indices, train_batches, train_split

STEPS, BATCH, IMAGES = 12, 4, 20


def listening(process, words):
    """Return the address in the first line with these words of a server's output."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return re.search(r"(grpc://)?localhost:\d+", line)[0]
    pytest.fail("".join(lines))


@pytest.fixture(scope="module")
def service():
    """Return the address of a dispatcher with two workers, each a separate process."""
    dispatcher = start("kseg.data", "serve")
    address = listening(dispatcher, "tf.data service at")
    workers = [start("kseg.data", "serve", "--dispatcher", address) for _ in range(2)]
    addresses = {listening(worker, "worker at") for worker in workers}
    assert len(addresses) == 2 and address.startswith("grpc://")
    yield address
    for process, number in zip([*workers, dispatcher], (signal.SIGTERM, signal.SIGINT, signal.SIGTERM), strict=True):
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == 0


@pytest.fixture
def settings(tmp_path):
    random = np.random.default_rng(8)
    source = folder(tmp_path / "data", {"train": [], "val": []})
    for split, count in (("train", IMAGES), ("val", 1)):
        for index in range(count):
            label = random.integers(0, 3, (50 + index, 61)).astype(np.uint8)
            example(
                tmp_path / "data",
                split,
                f"e{index:02d}",
                label,
                random.integers(0, 256, (*label.shape, 3)).astype(np.uint8),
            )
    return dataclasses.replace(config(source, steps=STEPS, batch=BATCH), augment=Augment(crop=(32, 48)))


def served(settings, service, **values):
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, service=service, **values))


def digests(batches):
    return [
        hashlib.sha256(b"".join(batch[key].numpy().tobytes() for key in ("image", "label", "index"))).hexdigest()
        for batch in batches
    ]


def test_batches_equal_those_read_locally(service, settings):
    for start_step, worker, skipped in ((0, None, ()), (7, tf.distribute.InputContext(2, 1, 2), {3, 4})):
        local = digests(train_batches(settings, start_step, worker, skipped))
        remote = digests(train_batches(served(settings, service), start_step, worker, skipped))
        assert len(local) == STEPS - start_step and remote == local


def test_bad_file_is_named_and_can_be_skipped(service, settings, tmp_path):
    # Each of the readings below traces the augmentation; the test above compares all of it.
    settings = dataclasses.replace(settings, augment=dataclasses.replace(settings.augment, photometric=False, flip=0.0))
    # The example occurs once in the first epoch, which has 5 steps.
    index = step_indices(settings, 4)[0]
    bad = Path(settings.data.directory, "train", "images", f"e{index:02d}.png")
    bad.write_bytes(bad.read_bytes()[:60])
    strategy = tf.distribute.get_strategy()
    reader = BatchReader(served(settings, service), train_split(settings), None, strategy, print)
    assert [reader.read(step)["index"].numpy().tolist() for step in range(4)] == [
        step_indices(settings, step) for step in range(4)
    ]
    with pytest.raises(DataError, match=f"{bad}: not a readable JPEG, PNG, BMP"):
        reader.read(4)
    both = []
    for address in (service, ""):
        reader = BatchReader(served(settings, address, unreadable="skip"), train_split(settings), None, strategy, print)
        both.append(digests(reader.read(step) for step in range(STEPS)))
        assert [(example.index, example.step) for example in reader.skipped] == [(index, 4)]
    assert both[0] == both[1]


def test_training_with_a_service_has_the_same_losses(service, settings, tmp_path, monkeypatch):
    build_small_networks(monkeypatch)
    losses = []
    for name, address in (("local", ""), ("remote", service)):
        small = configs.load(
            "encnet_shapes",
            [
                *TINY,
                *SMALL,
                "train.steps=4",
                "train.validate_every=4",
                "data.name=folder",
                f"data.directory={settings.data.directory}",
                f"data.service={address}",
            ],
        )
        trainer.train(small, tmp_path / name, trainer.prepare_strategy(small.train), print)
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) == 4 and losses[0] == losses[1]


def parts(*numbers, made=True):
    return [(number, made, {"step": number}) for number in numbers]


def ordered(answers, most_waiting=3, steps=8):
    """Return the steps of the ordered batches, the steps of the requests, and the error message."""
    requests, answers = [], iter(answers)

    def received(step):
        requests.append(step)
        return next(answers)

    found = []
    try:
        for batch in data_service._ordered(received, 2, steps, most_waiting):
            found.append(batch["step"])
    except data_service.ServiceError as error:
        return found, requests, str(error)
    return found, requests, ""


def test_batches_are_sorted():
    assert ordered([parts(4, 3, 2, 6, 5, 7)]) == ([2, 3, 4, 5, 6, 7], [2], "")


@pytest.mark.parametrize(
    "answers",
    [
        # Too many batches wait for step 4; the end comes without it; nothing follows step 3.
        [parts(2, 3, 5, 6, 7), parts(5, 4, 6, 7)],
        [parts(3, 2, 6, 7), parts(5, 7, 4, 6)],
        [parts(2, 3), parts(4, 5, 6, 7)],
    ],
)
def test_lost_batches_are_requested_again(answers):
    assert ordered(answers) == ([2, 3, 4, 5, 6, 7], [2, 4], "")


def test_batch_lost_twice_is_an_error():
    found, requests, error = ordered([parts(2, 3, 5, 6, 7), parts(5, 6, 7)])
    assert found == [2, 3] and requests == [2, 4]
    assert error.startswith("the batch of step 5 ") and "data.memory" in error


def test_batch_that_a_worker_cannot_make_fails_at_its_step():
    found, _, error = ordered([parts(3, made=False) + parts(5, 2)])
    assert found == [2] and "the batch of step 4" in error


def test_silent_service_is_an_error(monkeypatch):
    """Training would wait forever for a dispatcher without workers."""
    monkeypatch.setattr(data_service, "BATCH_TIMEOUT", 0.1)
    end = threading.Event()
    with pytest.raises(data_service.ServiceError, match="0.1 s: .*workers"):
        list(data_service._received(iter(end.wait, True)))
    end.set()


def test_service_error_is_reported_if_no_file_is_faulty(settings, monkeypatch):
    monkeypatch.setattr(data_service, "_job", lambda *arguments: parts(0, made=False))
    with socket.create_server(("localhost", 0)) as listener:
        address = f"grpc://localhost:{listener.getsockname()[1]}"
        strategy = tf.distribute.get_strategy()
        reader = BatchReader(served(settings, address), train_split(settings), None, strategy, print)
        with pytest.raises(DataError, match=f"reading train failed: .*tf.data service at {address}: .* step 1"):
            reader.read(0)


@pytest.mark.parametrize(
    "address",
    ["localhost:5050", "grpc://localhost", "http://localhost:5050", "grpc://localhost:99999", "grpc://local host:5050"],
)
def test_malformed_addresses(address):
    with pytest.raises(ConfigError, match="grpc://host:5050, got"):
        check_config(Config(data=Data(service=address)))
    with pytest.raises(ConfigError, match="grpc://host:5050, got"):
        data_service.serve_data(0, "localhost", address)


def test_unreachable_service_and_occupied_port(settings):
    with socket.socket() as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        address = f"grpc://localhost:{port}"
        for call in (
            lambda: train_batches(served(settings, address)),
            lambda: data_service.serve_data(0, "localhost", address),
        ):
            with pytest.raises(data_service.ServiceError, match=f"no tf.data service answers at {address}: .*refused"):
                call()
        taken.listen()
        with pytest.raises(data_service.ServiceError, match=f"port {port} .*: Address already in use"):
            data_service.serve_data(port, "localhost", "")
    with pytest.raises(data_service.ServiceError, match="port 70000 "):
        data_service.serve_data(70000, "localhost", "")
