"""Requests to servers of small models, and checks of their responses and errors."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

from serving.model_server import Server
from tests.helpers import running_servers, small_servables
from tests.helpers.running_servers import QUICK

SECONDS = 30
FLOATS = np.array([1, 2, 5], np.float32)


@contextlib.contextmanager
def two_models(base: Path) -> Iterator[Server]:
    """Run a server of half_plus_two, versions 2 (adds 2, label stable) and 3 (adds 3), and of the segmentation."""
    small_servables.half_plus_two(base / "half", 2)
    small_servables.half_plus_two(base / "half", 3, add=3.0)
    small_servables.segmentation(base / "seg", 1)
    config = base / "models.config"
    config.write_text(f"""model_config_list {{
      config {{ name: "half" base_path: "{base}/half" model_platform: "tensorflow"
               model_version_policy {{ all {{}} }} version_labels {{ key: "stable" value: 2 }} }}
      config {{ name: "seg" base_path: "{base}/seg" model_platform: "tensorflow" }} }}""")
    with running_servers.running(
        replace(
            QUICK,
            model_config_file=str(config),
            allow_version_labels_for_unavailable_models=True,
            enable_grpc_healthcheck_service=True,
            max_request_bytes=8 << 20,
        )
    ) as started:
        yield started


def predict_request(name, signature="", version=None, label=None, **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = name, signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


def refusal(call, request, timeout=SECONDS):
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=timeout)
    return caught.value.code().name, caught.value.details()


def assert_healthy(stubs):
    """Check that the server answers a valid request correctly."""
    answer = stubs.predictions.Predict(predict_request("half", version=2, x=FLOATS), timeout=SECONDS)
    np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["y"]), [2.5, 3, 4.5])


def random_image(seed=0, shape=(9, 14, 3)):
    """Return random pixels and their PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return pixels, cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def status_request(name, version=None):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    return request


def states(stubs, name):
    """Return the states of a model's versions, {} for an unknown model."""
    try:
        answer = stubs.models.GetModelStatus(status_request(name), timeout=SECONDS)
    except grpc.RpcError:
        return {}
    return {
        status.version: get_model_status_pb2.ModelVersionStatus.State.Name(status.state)
        for status in answer.model_version_status
    }


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
