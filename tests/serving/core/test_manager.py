"""The serving version while versions change on disk, and the order of loads and closes."""

import os
import threading
import time

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import model_pb2

from serving.core import session_model
from serving.core.manager import ModelManager
from serving.core.versions import AVAILABLE, END, LOADING, UNLOADING, VersionSettings
from serving.errors import ServingError
from tests.helpers.small_servables import corrupt, half_plus_two
from tests.helpers.swapped_versions import (
    PATIENCE,
    QUICK,
    Disk,
    assert_refused,
    config,
    entry,
    eventually,
    serving_version,
    spec,
    states,
)


def test_versions_and_labels_choose_a_version(disk, serve):
    for version in (0, 5):
        disk.publish(version)
    models = serve(
        VersionSettings(poll_seconds=0, allow_unavailable_labels=True),
        entry(
            disk.base,
            more='model_version_policy { all {} } version_labels { key: "old" value: 0 }'
            'version_labels { key: "lost" value: 77 }',
        ),
    )
    eventually(lambda: states(models) == {0: AVAILABLE, 5: AVAILABLE})
    # Version 0 is a valid choice, different from an unset version.
    assert serving_version(models, spec(version=0)) == 0 and serving_version(models, spec(label="old")) == 0
    assert serving_version(models) == 5
    assert_refused(models, model_pb2.ModelSpec(), grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified.")
    assert_refused(models, spec("x"), grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(x)")
    assert_refused(models, spec(version=4), grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(m, 4)")
    assert_refused(
        models, spec(label="lost"), grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(m, 77)"
    )
    for wanted in (spec(label="new"), spec("x", label="new")):
        assert_refused(models, wanted, grpc.StatusCode.INVALID_ARGUMENT, "Unrecognized servable version label: new")


def test_statuses_are_listed_highest_first_and_unknown_versions_are_not_found(disk, serve):
    for version in (2, 10, 9):
        disk.publish(version)
    models = serve(text=entry(disk.base, more="model_version_policy { all {} }"))
    eventually(lambda: list(states(models).items()) == [(10, AVAILABLE), (9, AVAILABLE), (2, AVAILABLE)])
    # A label is ignored here.
    assert len(models.statuses(spec(label="x"))) == 3
    (status,) = models.statuses(spec(version=9))
    assert (status.version, status.code, status.message) == (9, grpc.StatusCode.OK, "")
    for wanted, message in (
        (spec(version=3), "Could not find version 3 of model m"),
        (spec("x"), "Could not find any versions of model x"),
    ):
        with pytest.raises(ServingError) as caught:
            models.statuses(wanted)
        assert (caught.value.code, caught.value.message) == (grpc.StatusCode.NOT_FOUND, message)


def test_the_old_version_answers_until_the_new_one_does(disk, serve):
    disk.publish(1)
    models = serve()
    disk.blocked[2] = threading.Event()
    disk.publish(2)
    eventually(lambda: states(models) == {2: LOADING, 1: AVAILABLE})
    assert serving_version(models) == 1
    disk.blocked[2].set()
    eventually(lambda: states(models) == {2: AVAILABLE, 1: END})
    assert serving_version(models) == 2 and disk.events == [("loaded", 1), ("loaded", 2), ("closed", 1)]
    assert [hook[:3] for hook in disk.hooks] == [("m", 1, None), ("m", 2, None), ("m", 1)]


def test_a_request_keeps_its_version_until_it_ends(disk, serve):
    disk.publish(1)
    models = serve()
    with models.use(spec()) as first, models.use(spec()):
        disk.publish(2)
        eventually(lambda: states(models) == {2: AVAILABLE, 1: UNLOADING})
        assert first.model.version == 1 and serving_version(models) == 2
        # A new request cannot use a version that is being unloaded.
        assert_refused(
            models, spec(version=1), grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(m, 1)"
        )
        disk.publish(3)
        eventually(lambda: serving_version(models) == 3)
        assert ("closed", 1) not in disk.events
    eventually(lambda: states(models) == {3: AVAILABLE, 2: END, 1: END})
    assert ("closed", 1) in disk.events


def test_no_request_fails_or_uses_a_closed_model_while_versions_are_swapped(disk, serve):
    disk.publish(1)
    models, ended, problems, seen = serve(), threading.Event(), [], set()

    def predict():
        while not ended.is_set():
            try:
                with models.use(spec()) as handle:
                    if ("closed", handle.version) in disk.events:
                        problems.append(handle.version)
                    seen.add(handle.version)
            except ServingError as error:
                problems.append(error)

    threads = [threading.Thread(target=predict) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in range(2, 12):
        disk.publish(version)
        eventually(lambda: version in seen)
        disk.remove(version - 1)
    ended.set()
    for thread in threads:
        thread.join()
    assert not problems and seen == set(range(1, 12))
    eventually(lambda: disk.events.count(("closed", 10)) == 1)


def test_a_deleted_newest_version_is_a_rollback(disk, serve):
    disk.publish(1)
    disk.publish(2)
    models = serve()
    assert serving_version(models) == 2
    disk.remove(2)
    eventually(lambda: states(models) == {2: END, 1: AVAILABLE})
    assert disk.events == [("loaded", 2), ("loaded", 1), ("closed", 2)]
    # The same version can be loaded again.
    disk.publish(2)
    eventually(lambda: states(models) == {2: AVAILABLE, 1: END})


def test_a_missing_base_path_changes_nothing_and_an_empty_one_unloads_all_versions(disk, serve):
    disk.publish(1)
    models = serve()
    away = disk.base.with_name("away")
    os.replace(disk.base, away)
    time.sleep(5 * QUICK.poll_seconds)
    assert serving_version(models) == 1
    os.replace(away, disk.base)
    disk.remove(1)
    eventually(lambda: states(models) == {1: END})
    assert_refused(models, spec(), grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(m)")
    disk.publish(1)
    eventually(lambda: serving_version(models) == 1)


def test_the_start_fails_if_a_model_fails_to_load(disk, serve, tmp_path):
    other = Disk(tmp_path / "other")
    other.publish(1)
    disk.publish(4)
    disk.broken.add(4)
    with pytest.raises(ServingError) as caught:
        serve(text=entry(disk.base) + entry(other.base, "n"))
    assert (caught.value.code, caught.value.message) == (
        grpc.StatusCode.UNKNOWN,
        "1 servable(s) did not become available: {{{name: m version: 4} due to error: NOT_FOUND: no model in 4}, }",
    )


def test_the_start_waits_for_a_base_path_and_its_first_version(disk):
    disk.base.rmdir()
    models = ModelManager(QUICK, disk.load)
    thread = threading.Thread(target=models.start, args=(config(entry(disk.base)),))
    thread.start()
    try:
        time.sleep(5 * QUICK.poll_seconds)
        disk.base.mkdir()
        time.sleep(5 * QUICK.poll_seconds)
        assert thread.is_alive()
        disk.publish(1)
        thread.join(PATIENCE)
        assert not thread.is_alive() and serving_version(models) == 1
    finally:
        models.stop(PATIENCE)


def test_stop_cancels_a_waiting_start(disk):
    models, caught = ModelManager(QUICK, disk.load), []

    def start():
        try:
            models.start(config(entry(disk.base)))
        except ServingError as error:
            caught.append(error.code)

    thread = threading.Thread(target=start)
    thread.start()
    eventually(lambda: models.names() == ["m"])
    models.stop(PATIENCE)
    thread.join(PATIENCE)
    assert caught == [grpc.StatusCode.CANCELLED]


def test_stop_closes_everything_after_its_last_request(disk, serve):
    disk.publish(1)
    models, used, free = serve(), threading.Event(), threading.Event()

    def work():
        with models.use(spec()):
            used.set()
            assert free.wait(PATIENCE)
            disk.events.append(("used", 1))

    thread = threading.Thread(target=work)
    thread.start()
    assert used.wait(PATIENCE)
    models.stop(0.05)
    assert disk.events == [("loaded", 1)]
    assert_refused(models, spec(), grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(m)")
    free.set()
    thread.join()
    models.stop(PATIENCE)
    assert disk.events == [("loaded", 1), ("used", 1), ("closed", 1)]


def test_saved_models_are_swapped_and_a_corrupt_one_is_skipped(disk, serve):
    half_plus_two(disk.base, 1)
    models = serve(
        load=lambda name, version, directory: session_model.load_session_model(
            directory, ("serve",), session_model.Threads()
        )
    )

    def predict():
        with models.use(spec()) as handle:
            values = handle.model.run("serving_default", {"x": np.array([4.0], np.float32)}, ("y",), None)
            return handle.version, values["y"].tolist()

    assert predict() == (1, [4.0])
    corrupt(disk.base, 2)
    eventually(lambda: states(models) == {2: END, 1: AVAILABLE})
    assert models.statuses(spec(version=2))[0].code == grpc.StatusCode.DATA_LOSS
    assert predict() == (1, [4.0])
    half_plus_two(disk.base, 3, add=5.0)
    eventually(lambda: states(models) == {3: AVAILABLE, 2: END, 1: END})
    assert predict() == (3, [7.0])
