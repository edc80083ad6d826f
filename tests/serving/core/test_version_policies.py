"""Model configs: policies, labels, reloads, and the exact texts of errors."""

import threading
import time

import grpc
import pytest
from tensorflow_serving.config import model_server_config_pb2

from serving.core import manager
from serving.core.manager import ModelManager
from serving.core.versions import AVAILABLE, END
from serving.errors import ServingError
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


def test_the_latest_version_that_is_an_int64_is_served(disk, serve):
    for name in ("1", "00000007", "007b", "12 34", ".9.tmp", str(2**63), "temp-99"):
        disk.publish(name)
    (disk.base / "8").write_text("a file")
    models = serve()
    assert states(models) == {7: AVAILABLE} and models.names() == ["m"]
    with models.use(spec()) as handle:
        assert handle.name == "m" and handle.version == 7 and handle.model.directory == disk.base / "00000007"
    ((name, version, error, seconds),) = disk.hooks
    assert (name, version, error) == ("m", 7, None) and seconds >= 0


@pytest.mark.parametrize(
    "policy, served",
    [
        ("latest { num_versions: 2 }", {3, 4}),
        ("latest { num_versions: 9 }", {1, 2, 3, 4}),
        ("latest {}", {4}),
        ("all {}", {1, 2, 3, 4}),
        ("specific { versions: 1 versions: 3 }", {1, 3}),
        ("specific { versions: 2 versions: 99 }", {2}),
    ],
)
def test_a_policy_selects_versions(disk, serve, policy, served):
    for version in (1, 2, 3, 4):
        disk.publish(version)
    models = serve(text=entry(disk.base, more=f"model_version_policy {{ {policy} }}"))
    eventually(lambda: states(models) == dict.fromkeys(served, AVAILABLE))
    assert serving_version(models) == max(served)


@pytest.mark.parametrize(
    "text, message",
    [
        (entry("/a") + entry("/b"), "Illegal to list model m multiple times in config list"),
        (entry("models/m"), "Expected model m to have an absolute path or URI; got base_path()=models/m"),
        (
            entry("gs://bucket/m"),
            "Expected model m to have an absolute path, because this server does not read URIs; "
            "got base_path()=gs://bucket/m",
        ),
        (entry("/a\\0b"), "Expected model m to have an absolute path or URI; got one with a null character"),
        (
            'config { name: "m" base_path: "/a" }',
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform, model name is m",
        ),
        (
            'config { name: "m" base_path: "/a" model_platform: "caffe" }',
            "Model m requests unsupported platform caffe; the only platform is tensorflow",
        ),
    ],
)
def test_an_invalid_config_is_refused_and_changes_nothing(disk, serve, text, message):
    disk.publish(1)
    models = serve()
    for call in (models.reload, ModelManager(QUICK, disk.load).start):
        with pytest.raises(ServingError) as caught:
            call(config(text))
        assert (caught.value.code, caught.value.message) == (grpc.StatusCode.INVALID_ARGUMENT, message)
    assert models.names() == ["m"] and serving_version(models) == 1


def test_the_deprecated_model_type_sets_the_platform(disk, serve):
    disk.publish(1)
    models = serve(text=f'config {{ name: "m" base_path: "{disk.base}" model_type: TENSORFLOW }}')
    assert serving_version(models) == 1


def test_a_reload_replaces_the_list_and_waits_for_new_models(disk, serve, tmp_path):
    disk.publish(1)
    models, other = serve(), Disk(tmp_path / "other")
    other.publish(8)
    models.reload(config(entry(disk.base) + entry(other.base, "n")))
    # The reload has waited for the new model.
    assert serving_version(models, spec("n")) == 8 and serving_version(models) == 1 and models.names() == ["m", "n"]
    models.reload(config(entry(other.base, "n")))
    eventually(lambda: states(models) == {1: END})
    assert models.names() == ["n"] and ("closed", 1) in disk.events
    assert_refused(models, spec(), grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(m)")
    with pytest.raises(ServingError) as caught:
        models.reload(model_server_config_pb2.ModelServerConfig())
    assert caught.value.message == (
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
    )


def test_a_listing_that_began_before_a_reload_does_not_restore_removed_models(disk, serve, tmp_path, monkeypatch):
    disk.publish(1)
    models, other = serve(), Disk(tmp_path / "other")
    other.publish(8)
    list_versions, listed, hanging = manager.list_versions, threading.Event(), threading.Event()

    def slow(path):
        directories = list_versions(path)
        listed.set()
        assert hanging.wait(PATIENCE)
        return directories

    monkeypatch.setattr(manager, "list_versions", slow)
    assert listed.wait(PATIENCE)
    thread = threading.Thread(target=models.reload, args=(config(entry(other.base, "n")),))
    thread.start()
    eventually(lambda: models.names() == ["n"])
    hanging.set()
    thread.join()
    eventually(lambda: states(models) == {1: END})


def test_a_reload_applies_a_new_policy_and_keeps_loaded_versions(disk, serve):
    for version in (1, 2, 3):
        disk.publish(version)
    models = serve()
    models.reload(config(entry(disk.base, more="model_version_policy { specific { versions: 1 versions: 3 } }")))
    eventually(lambda: states(models) == {3: AVAILABLE, 1: AVAILABLE})
    assert disk.events == [("loaded", 3), ("loaded", 1)]


def test_a_reload_reports_a_new_model_that_fails_and_keeps_the_others(disk, serve, tmp_path):
    disk.publish(1)
    models, other = serve(), Disk(tmp_path / "other")
    other.publish(8)
    disk.broken.add(8)
    with pytest.raises(ServingError, match="1 servable.*{name: n version: 8} due to error: NOT_FOUND") as caught:
        models.reload(config(entry(disk.base) + entry(other.base, "n")))
    assert caught.value.code == grpc.StatusCode.UNKNOWN
    assert serving_version(models) == 1 and states(models, "n") == {8: END}
    with pytest.raises(ServingError, match="still waiting for a version of empty") as caught:
        models.reload(config(entry(disk.base) + entry(tmp_path, "empty")), time.monotonic() + 0.1)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED


def label(name, version):
    return f'model_version_policy {{ all {{}} }} version_labels {{ key: "{name}" value: {version} }}'


def test_labels_may_name_only_available_versions(disk, serve):
    disk.publish(1)
    disk.publish(2)
    with pytest.raises(ServingError) as caught:
        serve(text=entry(disk.base, more=label("stable", 1)))
    assert (caught.value.code, caught.value.message) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "Request to assign label to version 1 of model m, which is not currently available for inference",
    )
    models = serve(text=entry(disk.base, more="model_version_policy { all {} }"))
    eventually(lambda: states(models) == {1: AVAILABLE, 2: AVAILABLE})
    models.reload(config(entry(disk.base, more=label("stable", 1))))
    assert serving_version(models, spec(label="stable")) == 1
    models.reload(config(entry(disk.base, more=label("stable", 2))))
    assert serving_version(models, spec(label="stable")) == 2
    with pytest.raises(ServingError):
        models.reload(config(entry(disk.base, more=label("stable", 3))))
    assert serving_version(models, spec(label="stable")) == 2
    models.reload(config(entry(disk.base, more="model_version_policy { all {} }")))
    assert serving_version(models, spec(label="stable")) is None


def test_with_the_option_a_new_label_may_wait_for_its_version(disk, serve):
    disk.publish(1)
    models = serve(QUICK._replace(allow_unavailable_labels=True), entry(disk.base, more=label("canary", 2)))
    assert serving_version(models, spec(label="canary")) is None
    disk.publish(2)
    eventually(lambda: serving_version(models, spec(label="canary")) == 2)
    # An existing label may not move to a version that is not available.
    with pytest.raises(ServingError, match="version 3 of model m, which is not currently available"):
        models.reload(config(entry(disk.base, more=label("canary", 3))))
    assert serving_version(models, spec(label="canary")) == 2
