"""The component Validator: the candidate is served by serving.server, asked its warm-up requests over gRPC, and judged.

The answers have to be those of the same SavedModel in this process, and in time.
"""

import ctypes
import io
import json
import shutil
import signal
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
from kseg.exporting.warmup import PLACE
from pipeline import artifacts
from pipeline.metadata import code_digest

NAME, SERVER = "candidate", "serving.server"
# Seconds a server may take to load a model, and to answer one request.
LOADING, ANSWERING = 300.0, 60.0
# Of the second and later answers to each request the median counts.
REPEATS = 3
# Pixels whose class may differ: sums of another process may be rounded otherwise.
LARGEST_DIFFERENCE = 1e-3
# As in TFX's InfraValidator.
BLESSED, NOT_BLESSED = "INFRA_BLESSED", "INFRA_NOT_BLESSED"


class NotServed(UserError):
    """The candidate cannot be served, or answers otherwise than it should."""


@contextmanager
def served(model: Path, log: Path) -> Iterator[grpc.Channel]:
    """Serve a SavedModel as version 1 of `candidate` and give a channel to it; raises NotServed where it fails."""
    # A UNIX socket, whose path is short, needs no free port.
    with tempfile.TemporaryDirectory() as directory, log.open("wb") as output:
        base, address = Path(directory, "models"), Path(directory, "socket")
        shutil.copytree(model, base / "1")
        server = subprocess.Popen(
            [sys.executable, "-m", SERVER, f"--model_name={NAME}", f"--model_base_path={base}", "--port=0",
             f"--grpc_socket_path={address}", "--drain_seconds=0", "--grace_seconds=1"],
            stdout=output, stderr=subprocess.STDOUT, cwd=Path(serving.__file__).resolve().parents[1],
            preexec_fn=end_with_parent)
        try:
            with grpc.insecure_channel(f"unix:{address}", options=[
                    (f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]) as channel:
                wait(server, channel, log)
                yield channel
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def end_with_parent() -> None:
    """Let this process, just started, be ended where its parent is killed (Linux: prctl, PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def wait(server: subprocess.Popen, channel: grpc.Channel, log: Path) -> None:
    """Wait until the candidate is available; raises NotServed where its server ends, or takes too long."""
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = NAME
    until = time.monotonic() + LOADING
    while time.monotonic() < until:
        if server.poll() is not None:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
            raise NotServed("\n".join([f"its server ended with status {server.returncode}:", *last]))
        try:
            states = [each.state for each in stub.GetModelStatus(request, timeout=5).model_version_status]
            if get_model_status_pb2.ModelVersionStatus.AVAILABLE in states:
                return
        except grpc.RpcError:
            pass
        time.sleep(0.2)
    raise NotServed(f"its server did not load it within {LOADING:.0f} s")


def requests_of(model: Path) -> list[predict_pb2.PredictRequest]:
    """Return a SavedModel's warm-up requests; raises NotServed where it has none."""
    path = model / PLACE
    if not path.is_file():
        raise NotServed("it has no warm-up requests; kseg.export writes them where tensorflow-serving-api is installed")
    return [prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
            for record in tf.data.TFRecordDataset(str(path))]


def ask(channel: grpc.Channel, request: predict_pb2.PredictRequest) -> tuple[dict[str, np.ndarray], float]:
    """Return a server's outputs and the median seconds of its answers but the first."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request.model_spec.name = NAME
    seconds = []
    for _ in range(1 + REPEATS):
        started = time.monotonic()
        try:
            answer = stub.Predict(request, timeout=ANSWERING)
        except grpc.RpcError as error:
            raise NotServed(f"{request.model_spec.signature_name}: {error.code().name}: {error.details()}") from None
        seconds.append(time.monotonic() - started)
    return {key: tf.make_ndarray(value) for key, value in answer.outputs.items()}, float(np.median(seconds[1:]))


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the share of values that differ, 1.0 where the shapes do; PNG files are compared by their pixels."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return 1.0
    if expected.dtype == object:
        pairs = [(_pixels(a), _pixels(b)) for a, b in zip(expected.ravel(), found.ravel())]
        return max(difference(a, b) for a, b in pairs)
    return float(np.mean(expected != found))


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def check(model: Path, channel: grpc.Channel, budget: float) -> list[dict]:
    """Return {"signature", "pictures", "milliseconds", "difference"} of each warm-up request.

    Raises NotServed where an answer is not this process's, or one picture takes more than `budget` milliseconds.
    """
    signatures = tf.saved_model.load(str(model)).signatures
    rows, against = [], []
    for request in requests_of(model):
        name = request.model_spec.signature_name
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        expected = signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
        found, seconds = ask(channel, request)
        if found.keys() != expected.keys():
            raise NotServed(f"{name}: the server gives {sorted(found)}, the model {sorted(expected)}")
        pictures = len(next(iter(inputs.values())))
        largest = max(difference(value.numpy(), found[key]) for key, value in expected.items())
        milliseconds = 1000 * seconds / pictures
        rows.append({"signature": name, "pictures": pictures, "milliseconds": milliseconds, "difference": largest})
        if largest > LARGEST_DIFFERENCE:
            against.append(f"{name}, {pictures} pictures: {largest:.2%} of the answer differ")
        if milliseconds > budget:
            against.append(f"{name}, {pictures} pictures: {milliseconds:.1f} ms a picture, more than {budget:g}")
    if against:
        raise NotServed("\n".join(against))
    return rows


class Executor(base_executor.BaseExecutor):
    """Writes an InfraBlessing as TFX's InfraValidator does, with its reasons."""

    def Do(self, input_dict: dict, output_dict: dict, exec_properties: dict) -> None:
        candidate = artifact_utils.get_single_instance(input_dict["model"])
        judged = artifact_utils.get_single_instance(input_dict["model_blessing"])
        decided = artifact_utils.get_single_instance(output_dict["blessing"])
        model, out = (Path(artifacts.mounted(uri)) for uri in (
            path_utils.serving_model_path(candidate.uri), decided.uri))
        rows: list[dict] = []
        blessed, message = 0, "not served: the evaluation has refused it"
        if judged.get_int_custom_property("blessed") == 1:
            try:
                with served(model, out / "server.log") as channel:
                    rows = check(model, channel, exec_properties["budget"])
                slowest = max(row["milliseconds"] for row in rows)
                blessed, message = 1, f"answered {len(rows)} requests, at most {slowest:.1f} ms a picture"
            except NotServed as error:
                message = f"not fit to be served: {error}"
        print(message)
        (out / "requests.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        (out / (BLESSED if blessed else NOT_BLESSED)).write_text(message + "\n", encoding="utf-8")
        decided.set_int_custom_property("blessed", blessed)
        decided.set_string_custom_property("blessing_message", message)


class ValidatorSpec(types.ComponentSpec):
    PARAMETERS = {"budget": ExecutionParameter(type=float), "program": ExecutionParameter(type=str)}
    INPUTS = {"model": ChannelParameter(type=standard_artifacts.Model),
              "model_blessing": ChannelParameter(type=standard_artifacts.ModelBlessing)}
    OUTPUTS = {"blessing": ChannelParameter(type=standard_artifacts.InfraBlessing)}


class Validator(base_component.BaseComponent):
    """Gives `blessing` of how a blessed model is served; `budget` is milliseconds for one picture."""

    SPEC_CLASS = ValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, model: types.BaseChannel, model_blessing: types.BaseChannel, budget: float):
        super().__init__(ValidatorSpec(model=model, model_blessing=model_blessing, budget=budget,
                                       program=code_digest.digest(__name__, SERVER),
                                       blessing=types.Channel(type=standard_artifacts.InfraBlessing)))
