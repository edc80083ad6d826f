"""Validate how a model is served with the component Validator: serve it, and send its warm-up requests over gRPC.

The responses must equal those of the same SavedModel in this process, and arrive in time.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ExecutionParameter
from tfx.utils import path_utils

import serving
from kseg.errors import UserError
from kseg.exporting.warmup import WARMUP_FILE
from pipeline import artifacts
from pipeline.metadata import code_digest

NAME, SERVER = "candidate", "serving.server"
# Seconds that a server may take to load a model, and to answer one request.
LOAD_TIMEOUT, REQUEST_TIMEOUT = 300.0, 60.0
# Number of measured repetitions of each request, after a first one that does not count.
REPEATS = 3
# Maximum fraction of values that may differ, since another process may round sums differently.
MAX_DIFFERENCE = 1e-3
# File names of TFX's InfraValidator.
BLESSED, NOT_BLESSED = "INFRA_BLESSED", "INFRA_NOT_BLESSED"


class NotServed(UserError):
    """A model that cannot be served, or whose responses are wrong or late."""


# This program makes the kernel stop its process when the parent, its first argument, is killed (Linux: prctl,
# PR_SET_PDEATHSIG), and then becomes the server. The kernel does not report a parent that was killed before this call,
# so the program compares process ids. A `preexec_fn` would run gRPC's fork handlers, which can abort the child.
STOP_WITH_PARENT = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)


@contextmanager
def serving_candidate(model: Path, log: Path) -> Iterator[grpc.Channel]:
    """Serve a SavedModel as version 1 of `candidate`, and yield a channel to it; raises NotServed.

    The server's output is written to `log`.
    """
    # A UNIX socket needs no free port, but a short path.
    with tempfile.TemporaryDirectory() as directory, log.open("wb") as output:
        base, address = Path(directory, "models"), Path(directory, "socket")
        shutil.copytree(model, base / "1")
        server = subprocess.Popen(
            [
                sys.executable,
                "-c",
                STOP_WITH_PARENT,
                str(os.getpid()),
                "-m",
                SERVER,
                f"--model_name={NAME}",
                f"--model_base_path={base}",
                "--port=0",
                f"--grpc_socket_path={address}",
                "--drain_seconds=0",
                "--grace_seconds=1",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=Path(serving.__file__).resolve().parents[1],
        )
        try:
            with grpc.insecure_channel(
                f"unix:{address}", options=[(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
            ) as channel:
                wait_until_available(server, channel, log)
                yield channel
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_until_available(server: subprocess.Popen, channel: grpc.Channel, log: Path) -> None:
    """Wait until the candidate is available; raises NotServed if its server exits or takes too long."""
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = NAME
    deadline = time.monotonic() + LOAD_TIMEOUT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
            raise NotServed("\n".join([f"its server exited with status {server.returncode}:", *last]))
        try:
            states = [status.state for status in stub.GetModelStatus(request, timeout=5).model_version_status]
            if get_model_status_pb2.ModelVersionStatus.AVAILABLE in states:
                return
        except grpc.RpcError:
            pass
        time.sleep(0.2)
    raise NotServed(f"its server did not load it within {LOAD_TIMEOUT:.0f} s")


def warmup_requests(model: Path) -> list[predict_pb2.PredictRequest]:
    """Return a SavedModel's warm-up requests; raises NotServed if it has none."""
    path = model / WARMUP_FILE
    if not path.is_file():
        raise NotServed("it has no warm-up requests; kseg.export writes them if tensorflow-serving-api is installed")
    return [
        prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        for record in tf.data.TFRecordDataset(str(path))
    ]


def time_request(channel: grpc.Channel, request: predict_pb2.PredictRequest) -> tuple[dict[str, np.ndarray], float]:
    """Return a server's outputs, and the median seconds of its responses without the first one."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request.model_spec.name = NAME
    seconds = []
    for _ in range(1 + REPEATS):
        started = time.monotonic()
        try:
            response = stub.Predict(request, timeout=REQUEST_TIMEOUT)
        except grpc.RpcError as error:
            raise NotServed(f"{request.model_spec.signature_name}: {error.code().name}: {error.details()}") from None
        seconds.append(time.monotonic() - started)
    return {key: tf.make_ndarray(value) for key, value in response.outputs.items()}, float(np.median(seconds[1:]))


def different_fraction(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the fraction of values that differ, 1.0 for other shapes; PNG files are compared by their pixels."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return 1.0
    if expected.dtype == object:
        pairs = [(_decode_pixels(a), _decode_pixels(b)) for a, b in zip(expected.ravel(), actual.ravel())]
        return max(different_fraction(a, b) for a, b in pairs)
    return float(np.mean(expected != actual))


def _decode_pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def check_responses(model: Path, channel: grpc.Channel, max_latency_ms: float) -> list[dict]:
    """Return {"signature", "pictures", "milliseconds", "difference"} for each warm-up request.

    Raises NotServed if a response differs from this process's result, or one image takes more than `max_latency_ms`.
    """
    signatures = tf.saved_model.load(str(model)).signatures
    rows, faults = [], []
    for request in warmup_requests(model):
        name = request.model_spec.signature_name
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        expected = signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
        outputs, seconds = time_request(channel, request)
        if outputs.keys() != expected.keys():
            raise NotServed(f"{name}: the server returns {sorted(outputs)}, the model {sorted(expected)}")
        images = len(next(iter(inputs.values())))
        difference = max(different_fraction(value.numpy(), outputs[key]) for key, value in expected.items())
        milliseconds = 1000 * seconds / images
        rows.append({"signature": name, "pictures": images, "milliseconds": milliseconds, "difference": difference})
        if difference > MAX_DIFFERENCE:
            faults.append(f"{name}, {images} images: {difference:.2%} of the response differ")
        if milliseconds > max_latency_ms:
            faults.append(f"{name}, {images} images: {milliseconds:.1f} ms per image, more than {max_latency_ms:g}")
    if faults:
        raise NotServed("\n".join(faults))
    return rows


class Executor(base_executor.BaseExecutor):
    """Write an InfraBlessing like TFX's InfraValidator, and its reasons."""

    def Do(self, input_dict: dict, output_dict: dict, exec_properties: dict) -> None:
        candidate = artifact_utils.get_single_instance(input_dict["model"])
        model_blessing = artifact_utils.get_single_instance(input_dict["model_blessing"])
        infra_blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        model, out = (
            Path(artifacts.mounted_path(uri))
            for uri in (path_utils.serving_model_path(candidate.uri), infra_blessing.uri)
        )
        rows: list[dict] = []
        blessed, message = 0, "not served, because the evaluation refused the model"
        if model_blessing.get_int_custom_property("blessed") == 1:
            try:
                with serving_candidate(model, out / "server.log") as channel:
                    rows = check_responses(model, channel, exec_properties["budget"])
                slowest = max(row["milliseconds"] for row in rows)
                blessed, message = 1, f"answered {len(rows)} requests, at most {slowest:.1f} ms per image"
            except NotServed as error:
                message = f"the model cannot be served: {error}"
        print(message)
        (out / "requests.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        (out / (BLESSED if blessed else NOT_BLESSED)).write_text(message + "\n", encoding="utf-8")
        infra_blessing.set_int_custom_property("blessed", blessed)
        infra_blessing.set_string_custom_property("blessing_message", message)


class ValidatorSpec(types.ComponentSpec):
    PARAMETERS = {"budget": ExecutionParameter(type=float), "program": ExecutionParameter(type=str)}
    INPUTS = {
        "model": ChannelParameter(type=standard_artifacts.Model),
        "model_blessing": ChannelParameter(type=standard_artifacts.ModelBlessing),
    }
    OUTPUTS = {"blessing": ChannelParameter(type=standard_artifacts.InfraBlessing)}


class Validator(base_component.BaseComponent):
    """TFX component that outputs the `blessing` of a served model; `max_latency_ms` is the limit for one image."""

    SPEC_CLASS = ValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, model: types.BaseChannel, model_blessing: types.BaseChannel, max_latency_ms: float):
        super().__init__(
            ValidatorSpec(
                model=model,
                model_blessing=model_blessing,
                budget=max_latency_ms,
                program=code_digest.code_digest(__name__, SERVER),
                blessing=types.Channel(type=standard_artifacts.InfraBlessing),
            )
        )
