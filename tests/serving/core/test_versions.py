"""Versions that fail or hang: retries, statuses, and the independence of other versions."""

import threading
import time

import grpc

from serving.core import manager
from serving.core.manager import ModelManager
from serving.core.versions import AVAILABLE, END, LOADING, UNLOADING, VersionSettings
from tests.helpers.swapped_versions import (
    PATIENCE,
    QUICK,
    Model,
    config,
    entry,
    eventually,
    serving_version,
    spec,
    states,
)


def test_a_broken_version_is_retried_and_then_listed_with_its_error(disk, serve):
    disk.publish(1)
    models = serve(VersionSettings(poll_seconds=0.02, load_retries=2, retry_seconds=0.02))
    disk.broken.add(2)
    disk.publish(2)
    eventually(lambda: states(models) == {2: END, 1: AVAILABLE})
    status = models.statuses(spec())[0]
    assert (status.code, status.message) == (grpc.StatusCode.NOT_FOUND, "no model in 2")
    assert disk.events == [("loaded", 1)] + [("failed", 2)] * 3 and serving_version(models) == 1
    assert [hook[2].message for hook in disk.hooks[1:]] == ["no model in 2"] * 3
    # It is not retried any more, and the next version takes over.
    time.sleep(5 * QUICK.poll_seconds)
    disk.publish(3)
    eventually(lambda: states(models) == {3: AVAILABLE, 2: END, 1: END})
    assert disk.events.count(("failed", 2)) == 3
    assert models.statuses(spec(version=2))[0].message == "no model in 2"


def test_a_version_that_is_copied_slowly_is_loaded_once_it_is_complete(disk, serve):
    disk.publish(1)
    models = serve(VersionSettings(poll_seconds=0.02, load_retries=1000, retry_seconds=0.02))
    (disk.base / "2").mkdir()
    eventually(lambda: disk.events.count(("failed", 2)) >= 2)
    assert states(models) == {2: LOADING, 1: AVAILABLE}
    (disk.base / "2" / "content").write_text("good")
    eventually(lambda: states(models) == {2: AVAILABLE, 1: END})
    assert models.statuses(spec())[0].message == ""


def test_waiting_for_a_retry_delays_no_other_version(disk, serve):
    disk.publish(1)
    models = serve(VersionSettings(poll_seconds=0.02, load_retries=5, retry_seconds=3600))
    disk.broken.add(2)
    disk.publish(2)
    eventually(lambda: ("failed", 2) in disk.events)
    disk.publish(3)
    eventually(lambda: states(models) == {3: AVAILABLE, 2: END, 1: END})
    assert models.statuses(spec(version=2))[0].message == "no model in 2"


def test_a_second_directory_of_a_version_is_logged_once(disk, serve, caplog):
    # Another test may have changed the level of the log.
    caplog.set_level("WARNING", "serving")
    disk.publish("01")
    models = serve(VersionSettings(poll_seconds=0))
    # This directory has the same number and precedes the other one.
    disk.publish("1")
    for _ in range(3):
        models.reload(config(entry(disk.base)))
    assert [record.getMessage() for record in caplog.records].count("ignoring a second directory of a version") == 1
    assert states(models) == {1: AVAILABLE}


def test_an_unexpected_error_affects_only_its_version(disk, serve):
    def load(name, version, directory):
        if version == 2:
            raise ZeroDivisionError("unexpected")
        return disk.load(name, version, directory)

    disk.publish(1)
    models = serve(load=load)
    disk.publish(2)
    eventually(lambda: states(models) == {2: END, 1: AVAILABLE})
    status = models.statuses(spec(version=2))[0]
    assert (status.code, status.message) == (grpc.StatusCode.INTERNAL, "ZeroDivisionError: unexpected")


def test_a_failing_hook_does_not_affect_versions(disk):
    def failing(*arguments):
        raise ZeroDivisionError

    disk.publish(1)
    models = ModelManager(QUICK, disk.load, failing, failing)
    models.start(config(entry(disk.base)))
    disk.publish(2)
    eventually(lambda: states(models) == {2: AVAILABLE, 1: END})
    models.stop(PATIENCE)
    assert disk.events[-1] == ("closed", 2)


def test_versions_are_swapped_even_if_no_thread_can_be_started(disk, serve, monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    disk.publish(1)
    models = serve()
    monkeypatch.setattr(threading.Thread, "start", start)
    disk.publish(2)
    eventually(lambda: states(models) == {2: AVAILABLE, 1: END})


def test_requests_continue_while_a_load_a_listing_and_a_close_hang(disk, serve, monkeypatch):
    disk.publish(1)
    models, hanging, closing, list_versions = serve(), threading.Event(), threading.Event(), manager.list_versions
    disk.blocked[2] = hanging
    disk.publish(2)
    eventually(lambda: states(models).get(2) == LOADING)
    monkeypatch.setattr(manager, "list_versions", lambda path: hanging.wait(PATIENCE) and list_versions(path))
    monkeypatch.setattr(Model, "close", lambda self: closing.wait(PATIENCE))
    time.sleep(3 * QUICK.poll_seconds)
    assert serving_version(models) == 1 and states(models) == {2: LOADING, 1: AVAILABLE}
    hanging.set()
    eventually(lambda: states(models) == {2: AVAILABLE, 1: UNLOADING})
    disk.publish(3)
    eventually(lambda: serving_version(models) == 3)
    closing.set()
    eventually(lambda: states(models) == {3: AVAILABLE, 2: END, 1: END})
