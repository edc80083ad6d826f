"""A tf.data service of own processes gives training the batches it would read itself; what is said where it cannot."""

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
from tests.helpers.splits import step_indices, train_batches, train_split

STEPS, BATCH, PICTURES = 12, 4, 20


def listening(process, words):
    """Return the address that a server says it listens at."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return re.search(r"(grpc://)?localhost:\d+", line)[0]
    pytest.fail("".join(seen))


@pytest.fixture(scope="module")
def service():
    """The address of a dispatcher with two workers, all processes of their own."""
    dispatcher = start("kseg.data", "serve")
    address = listening(dispatcher, "tf.data service at")
    workers = [start("kseg.data", "serve", "--dispatcher", address) for _ in range(2)]
    places = {listening(worker, "worker at") for worker in workers}
    assert len(places) == 2 and address.startswith("grpc://")
    yield address
    for process, number in zip([*workers, dispatcher], (signal.SIGTERM, signal.SIGINT, signal.SIGTERM), strict=True):
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and output.splitlines()[-1] == "ended"


@pytest.fixture
def settings(tmp_path):
    random = np.random.default_rng(8)
    source = folder(tmp_path / "data", {"train": [], "val": []})
    for split, count in (("train", PICTURES), ("val", 1)):
        for index in range(count):
            label = random.integers(0, 3, (50 + index, 61)).astype(np.uint8)
            example(tmp_path / "data", split, f"e{index:02d}", label,
                    random.integers(0, 256, (*label.shape, 3)).astype(np.uint8))
    return dataclasses.replace(config(source, steps=STEPS, batch=BATCH), augment=Augment(crop=(32, 48)))


def served(settings, service, **values):
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, service=service, **values))


def digests(batches):
    return [hashlib.sha256(b"".join(batch[key].numpy().tobytes() for key in ("image", "label", "index"))).hexdigest()
            for batch in batches]


def test_the_batches_are_those_read_here(service, settings):
    for start_step, worker, left_out in ((0, None, ()), (7, tf.distribute.InputContext(2, 1, 2), {3, 4})):
        here = digests(train_batches(settings, start_step, worker, left_out))
        there = digests(train_batches(served(settings, service), start_step, worker, left_out))
        assert len(here) == STEPS - start_step and there == here


def test_a_bad_file_ends_in_its_name_and_can_be_left_out(service, settings, tmp_path):
    # In the first epoch, which is 5 steps long, it stands once.
    place = step_indices(settings, 4)[0]
    bad = Path(settings.data.directory, "train", "images", f"e{place:02d}.png")
    bad.write_bytes(bad.read_bytes()[:60])
    strategy = tf.distribute.get_strategy()
    reader = BatchReader(served(settings, service), train_split(settings), None, strategy, print)
    assert [reader.read(step)["index"].numpy().tolist() for step in range(4)] == [
        step_indices(settings, step) for step in range(4)]
    with pytest.raises(DataError, match=f"{bad}: not a readable JPEG, PNG or BMP"):
        reader.read(4)
    both = []
    for address in (service, ""):
        reader = BatchReader(served(settings, address, unreadable="skip"), train_split(settings), None, strategy, print)
        both.append(digests(reader.read(step) for step in range(STEPS)))
        assert [(found.index, found.step) for found in reader.left_out] == [(place, 4)]
    assert both[0] == both[1]


def test_training_has_the_same_losses(service, settings, tmp_path):
    losses = []
    for name, address in (("here", ""), ("there", service)):
        small = configs.load("encnet_shapes", [
            *TINY, "train.steps=4", "train.validate_every=4", "data.name=folder",
            f"data.directory={settings.data.directory}", f"data.service={address}"])
        trainer.train(small, tmp_path / name, trainer.prepare_strategy(small.train), print)
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) == 4 and losses[0] == losses[1]


def parts(*numbers, made=True):
    return [(number, made, {"step": number}) for number in numbers]


def ordered(answers, most_waiting=3, steps=8):
    """Return the steps of the batches that come, and from which steps on they were asked for."""
    asked, answers = [], iter(answers)

    def received(step):
        asked.append(step)
        return next(answers)

    came = []
    try:
        for batch in data_service._ordered(received, 2, steps, most_waiting):
            came.append(batch["step"])
    except data_service.ServiceError as error:
        return came, asked, str(error)
    return came, asked, ""


def test_batches_are_put_in_order():
    assert ordered([parts(4, 3, 2, 6, 5, 7)]) == ([2, 3, 4, 5, 6, 7], [2], "")


@pytest.mark.parametrize("answers", [
    # Too many wait for 4, the end comes without it, and nothing more comes at all.
    [parts(2, 3, 5, 6, 7), parts(5, 4, 6, 7)], [parts(3, 2, 6, 7), parts(5, 7, 4, 6)],
    [parts(2, 3), parts(4, 5, 6, 7)]])
def test_lost_batches_are_asked_for_again(answers):
    assert ordered(answers) == ([2, 3, 4, 5, 6, 7], [2, 4], "")


def test_a_batch_that_is_lost_twice_is_an_error():
    came, asked, error = ordered([parts(2, 3, 5, 6, 7), parts(5, 6, 7)])
    assert came == [2, 3] and asked == [2, 4]
    assert error.startswith("the batch of step 5 did not come, but 3 later ones, twice")


def test_a_batch_that_could_not_be_made_fails_at_its_turn():
    came, _, error = ordered([parts(3, made=False) + parts(5, 2)])
    assert came == [2] and error.startswith("a worker could not make the batch of step 4;")


def test_a_silent_service_is_an_error(monkeypatch):
    """A dispatcher without workers would be waited for without an end."""
    monkeypatch.setattr(data_service, "PATIENCE", 0.1)
    end = threading.Event()
    with pytest.raises(data_service.ServiceError, match="nothing came for 0.1 s: has it workers"):
        list(data_service._received(iter(end.wait, True)))
    end.set()


def test_what_is_wrong_with_the_service_is_told_where_no_file_is(settings, monkeypatch):
    monkeypatch.setattr(data_service, "_job", lambda *arguments: parts(0, made=False))
    with socket.create_server(("localhost", 0)) as listener:
        address = f"grpc://localhost:{listener.getsockname()[1]}"
        reader = BatchReader(served(settings, address), train_split(settings), None, tf.distribute.get_strategy(), print)
        with pytest.raises(DataError, match=f"reading train failed: .*tf.data service at {address}: a worker could not "
                                            "make the batch of step 1; its output says why. Do all workers see"):
            reader.read(0)


@pytest.mark.parametrize("address", ["localhost:5050", "grpc://localhost", "http://localhost:5050",
                                     "grpc://localhost:99999", "grpc://local host:5050"])
def test_malformed_addresses(address):
    with pytest.raises(ConfigError, match="like grpc://host:5050, got"):
        check_config(Config(data=Data(service=address)))
    with pytest.raises(ConfigError, match="like grpc://host:5050, got"):
        data_service.serve_data(0, "localhost", address)


def test_nobody_there_and_a_port_that_is_taken(settings):
    with socket.socket() as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        address = f"grpc://localhost:{port}"
        for call in (lambda: train_batches(served(settings, address)),
                     lambda: data_service.serve_data(0, "localhost", address)):
            with pytest.raises(data_service.ServiceError, match=f"no tf.data service answers at {address}: .*refused"):
                call()
        taken.listen()
        with pytest.raises(data_service.ServiceError, match=f"port {port} cannot be taken: Address already in use"):
            data_service.serve_data(port, "localhost", "")
    with pytest.raises(data_service.ServiceError, match="port 70000 cannot be taken"):
        data_service.serve_data(70000, "localhost", "")
