"""Test TFX's InfraValidator with this project's server instead of a TensorFlow Serving container."""

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
    """Model that maps tf.Examples to the widths of their images, and fails above `max_width`."""

    def __init__(self, max_width):
        super().__init__()
        self.max_width = max_width

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def answer(self, examples):
        parsed = tf.io.parse_example(examples, {"image/encoded": tf.io.FixedLenFeature((), tf.string)})
        widths = tf.map_fn(
            lambda data: tf.shape(tf.io.decode_png(data))[1], parsed["image/encoded"], fn_output_signature=tf.int32
        )
        check = tf.debugging.Assert(tf.reduce_all(widths <= self.max_width), ["too wide", widths])
        with tf.control_dependencies([check]):
            return {"widths": tf.identity(widths)}


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    """Return requests with images of a validation split that are 3, 4, 5 and 6 pixels wide."""
    directory = tmp_path_factory.mktemp("requests")
    labels = [np.zeros((2, width), np.uint8) for width in (3, 4, 5, 6)]
    data = small_sets.folder(directory / "source", {"train": labels[:1], "val": labels})
    sys.argv[1:], process_arguments = [], sys.argv[1:]
    examples = ingested(data, directory / "examples")
    sys.argv[1:] = process_arguments
    result = artifact(standard_artifacts.Examples, directory / "requests")
    infra_validator.RequestsExecutor().Do({"examples": [examples]}, {"requests": [result]}, {"split": "val"})
    return result


def test_requests_hold_the_first_images(requests):
    (path,) = tf.io.gfile.glob(f"{requests.uri}/Split-val/*")
    examples = [
        tf.train.Example.FromString(record.numpy()).features.feature for record in tf.data.TFRecordDataset(path)
    ]
    assert all(list(features) == ["image/encoded"] for features in examples)
    images = [tf.io.decode_png(features["image/encoded"].bytes_list.value[0]) for features in examples]
    assert [image.shape[1] for image in images] == [3, 4, 5]


@pytest.mark.parametrize(
    ("max_width", "blessed", "message"),
    [
        (5, 1, "serve_tf_examples"),
        # The third image is 5 pixels wide, so the message contains the reason of the failed request.
        (4, 0, "INVALID_ARGUMENT: "),
    ],
)
def test_model_is_blessed_if_it_answers(requests, tmp_path, monkeypatch, caplog, max_width, blessed, message):
    monkeypatch.setattr(tfx_executor, "_create_model_server_runner", local_server.LocalServer)
    monkeypatch.setattr(infra_validator, "TRIES", 1)
    model, blessing = (
        artifact(kind, tmp_path / kind.__name__, number)
        for number, kind in enumerate((standard_artifacts.Model, standard_artifacts.InfraBlessing), 1)
    )
    module = Model(max_width)
    tf.saved_model.save(module, str(tmp_path / "Model" / "Format-Serving"), {"serve_tf_examples": module.answer})
    spec = infra_validator.serving_spec("tensorflow/serving:1", infra_validator_pb2.LocalDockerConfig())
    component = infra_validator.InfraValidator(
        types.Channel(type=standard_artifacts.Model), types.Channel(type=standard_artifacts.Examples), spec
    )
    infra_validator.Executor(infra_validator.Executor.Context(tmp_dir=str(tmp_path / "tmp"), unique_id="1")).Do(
        {"model": [model], "examples": [requests]}, {"blessing": [blessing]}, component.exec_properties
    )
    assert blessing.get_int_custom_property("blessed") == blessed
    reason = blessing.get_string_custom_property("blessing_message")
    assert message in reason and ("too wide" in reason) is not bool(blessed)
    # Without the filter TFX would print each request with its image.
    assert "image/encoded" not in caplog.text
    assert (tmp_path / "InfraBlessing" / ("INFRA_BLESSED" if blessed else "INFRA_NOT_BLESSED")).is_file()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("tensorflow/serving:2.19.1", ("tensorflow/serving", ["2.19.1"], [])),
        ("registry:5000/a/b:latest-gpu", ("registry:5000/a/b", ["latest-gpu"], [])),
        ("a@sha256:0123", ("a", [], ["sha256:0123"])),
    ],
)
@pytest.mark.parametrize(
    ("platform", "name"),
    [(infra_validator_pb2.LocalDockerConfig(), "local_docker"), (infra_validator_pb2.KubernetesConfig(), "kubernetes")],
)
def test_serving_spec(image, expected, platform, name):
    spec = infra_validator.serving_spec(image, platform)
    assert spec.WhichOneof("serving_platform") == name
    binary = spec.tensorflow_serving
    assert (binary.image_name, list(binary.tags), list(binary.digests)) == expected


@pytest.mark.parametrize("image", ["tensorflow/serving", "registry:5000/serving", ":1", "a:", "a@"])
def test_image_needs_a_tag(image):
    with pytest.raises(ConfigError, match="IMAGE:TAG"):
        infra_validator.serving_spec(image, infra_validator_pb2.LocalDockerConfig())


def test_nothing_runs_without_docker(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    arguments = ["--config", "encnet_shapes", "--root", tmp_path / "run", "--infra-validator", "a:1"]
    output = run_here(run_local.main, arguments, capsys, status=2)
    assert "--infra-validator" in output and f"unix://{tmp_path}/none.sock" in output and "Traceback" not in output
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    with pytest.raises(UserError):
        run_local.require_docker()
