"""TFX's InfraValidator, with this project's server in place of a container of TensorFlow Serving."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from tfx import types
from tfx.components.infra_validator import executor as tfx_executor
from tfx.proto import infra_validator_pb2
from tfx.types import standard_artifacts

from kseg.errors import ConfigError, UserError
from pipeline import run_local
from pipeline.components import infra_validator
from tests.helpers import local_server, small_sets
from tests.helpers.running import run_here
from tests.helpers.stored_artifacts import artifact, ingested


class Model(tf.Module):
    """Answers tf.Examples with the sizes of their pictures, none of which may be wider than `widest`."""

    def __init__(self, widest):
        super().__init__()
        self.widest = widest

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def answer(self, examples):
        parsed = tf.io.parse_example(examples, {"image/encoded": tf.io.FixedLenFeature((), tf.string)})
        widths = tf.map_fn(lambda data: tf.shape(tf.io.decode_png(data))[1], parsed["image/encoded"],
                           fn_output_signature=tf.int32)
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(widths <= self.widest), ["too wide", widths])]):
            return {"widths": tf.identity(widths)}


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    """Requests of a set whose pictures for validation are 3, 4, 5 and 6 pixels wide."""
    place = tmp_path_factory.mktemp("requests")
    labels = [np.zeros((2, width), np.uint8) for width in (3, 4, 5, 6)]
    data = small_sets.folder(place / "source", {"train": labels[:1], "val": labels})
    sys.argv[1:], kept = [], sys.argv[1:]
    examples = ingested(data, place / "examples")
    sys.argv[1:] = kept
    found = artifact(standard_artifacts.Examples, place / "requests")
    infra_validator.RequestsExecutor().Do({"examples": [examples]}, {"requests": [found]}, {"split": "val"})
    return found


def test_requests_are_the_first_pictures(requests):
    (path,) = tf.io.gfile.glob(f"{requests.uri}/Split-val/*")
    found = [tf.train.Example.FromString(record.numpy()).features.feature for record in tf.data.TFRecordDataset(path)]
    assert all(list(each) == ["image/encoded"] for each in found)
    assert [tf.io.decode_png(each["image/encoded"].bytes_list.value[0]).shape[1] for each in found] == [3, 4, 5]


@pytest.mark.parametrize(("widest", "blessed", "message"), [
    (5, 1, "TensorFlow Serving answered serve_tf_examples"),
    # The third picture is 5 pixels wide: what a request fails of is told.
    (4, 0, "TensorFlow Serving did not answer: INVALID_ARGUMENT: ")])
def test_a_model_is_asked(requests, tmp_path, monkeypatch, caplog, widest, blessed, message):
    monkeypatch.setattr(tfx_executor, "_create_model_server_runner", local_server.LocalServer)
    monkeypatch.setattr(infra_validator, "TRIES", 1)
    model, decided = (artifact(kind, tmp_path / kind.__name__, number) for number, kind in enumerate(
        (standard_artifacts.Model, standard_artifacts.InfraBlessing), 1))
    made = Model(widest)
    tf.saved_model.save(made, str(tmp_path / "Model" / "Format-Serving"), {"serve_tf_examples": made.answer})
    spec = infra_validator.serving_spec("tensorflow/serving:1", infra_validator_pb2.LocalDockerConfig())
    component = infra_validator.InfraValidator(
        types.Channel(type=standard_artifacts.Model), types.Channel(type=standard_artifacts.Examples), spec)
    infra_validator.Executor(infra_validator.Executor.Context(tmp_dir=str(tmp_path / "tmp"), unique_id="1")).Do(
        {"model": [model], "examples": [requests]}, {"blessing": [decided]}, component.exec_properties)
    assert decided.get_int_custom_property("blessed") == blessed
    told = decided.get_string_custom_property("blessing_message")
    assert told.startswith(message) and ("too wide" in told) is not bool(blessed)
    # TFX would print each request with its picture.
    assert "image/encoded" not in caplog.text
    assert (tmp_path / "InfraBlessing" / ("INFRA_BLESSED" if blessed else "INFRA_NOT_BLESSED")).is_file()


@pytest.mark.parametrize(("image", "expected"), [
    ("tensorflow/serving:2.19.1", ("tensorflow/serving", ["2.19.1"], [])),
    ("registry:5000/a/b:latest-gpu", ("registry:5000/a/b", ["latest-gpu"], [])),
    ("a@sha256:0123", ("a", [], ["sha256:0123"]))])
@pytest.mark.parametrize(("platform", "name"), [
    (infra_validator_pb2.LocalDockerConfig(), "local_docker"), (infra_validator_pb2.KubernetesConfig(), "kubernetes")])
def test_what_is_started_where(image, expected, platform, name):
    spec = infra_validator.serving_spec(image, platform)
    assert spec.WhichOneof("serving_platform") == name
    found = spec.tensorflow_serving
    assert (found.image_name, list(found.tags), list(found.digests)) == expected


@pytest.mark.parametrize("image", ["tensorflow/serving", "registry:5000/serving", ":1", "a:", "a@"])
def test_an_image_needs_its_tag(image):
    with pytest.raises(ConfigError, match="with its tag is needed"):
        infra_validator.serving_spec(image, infra_validator_pb2.LocalDockerConfig())


def test_without_docker_nothing_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    arguments = ["--config", "encnet_shapes", "--root", tmp_path / "run", "--infra-validator", "a:1"]
    told = run_here(run_local.main, arguments, capsys, status=2)
    assert f"docker does not answer at unix://{tmp_path}/none.sock" in told and "Traceback" not in told
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    with pytest.raises(UserError):
        run_local.require_docker()
