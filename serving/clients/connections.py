"""Two ways to ask a server of TensorFlow Serving's protocol, gRPC and REST, with the same calls.

`signatures()` tells a model's inputs and outputs, `versions()` those of its versions that are available, `names()` the
models where the server says so, `predict()` asks. All raise RequestError. REST needs no TensorFlow.
"""

import base64
import http.client
import json
import ssl
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kseg.errors import UserError

# What REST answers for a status; 413 is a server's or a proxy's own.
STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
            409: "ABORTED", 413: "RESOURCE_EXHAUSTED", 429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 500: "INTERNAL",
            501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
PASSING = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
# In gRPC's message for one above a size limit, which has the same status as a full queue.
TOO_LARGE = "larger than max"


class RequestError(UserError):
    """A request failed: `code` is the name of its gRPC status; `passing` says that it may succeed a little later."""

    def __init__(self, code: str, message: str, passing: bool):
        super().__init__(message)
        self.code, self.passing = code, passing


class Wanted(NamedTuple):
    """The model that is asked; its newest version where neither version nor label is given."""

    name: str
    version: int | None = None
    label: str | None = None

    def __str__(self) -> str:
        return f"model {self.name!r}" + (f", version {self.version}" if self.version is not None else
                                         f", label {self.label!r}" if self.label else "")


class Signature(NamedTuple):
    """The types of a signature's inputs by name, such as DT_STRING, and its outputs' names."""

    inputs: dict[str, str]
    outputs: tuple[str, ...]


class Answer(NamedTuple):
    """One output for a batch, bytes each or uint8 (N, H, W), and the bytes of the request and of the whole answer."""

    values: Sequence[bytes] | np.ndarray
    sent: int
    received: int


def address(server: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, such as [::1]:8500; raises UserError for anything else."""
    host, _, port = server.rpartition(":")
    if not host or not port.isdecimal() or "/" in host or ":" in host and not host.startswith("["):
        raise UserError(f"--server {server!r} is not HOST:PORT, such as localhost:8500 for gRPC or localhost:8501 for "
                        "REST")
    return host.strip("[]"), int(port)


def read_certificates(path: Path | None) -> bytes | None:
    """Return a file of certificates; raises UserError where it cannot be read."""
    try:
        return path and path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


class Rest:
    """Asks by REST, on one connection that is kept; for one thread at a time."""

    def __init__(self, server: str, wanted: Wanted, timeout: float, tls_ca: Path | None):
        self.server, self.wanted = server, wanted
        host, port = address(server)
        try:
            context = tls_ca and ssl.create_default_context(cadata=read_certificates(tls_ca).decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise UserError(f"{tls_ca} holds no certificate in PEM: {error}") from None
        # A server's REST is clear text; this is for a proxy in front of it.
        self.connection = (http.client.HTTPSConnection(host, port, timeout=timeout, context=context) if context
                           else http.client.HTTPConnection(host, port, timeout=timeout))
        self.path = "/v1/models/" + urllib.parse.quote(wanted.name, safe="")

    def close(self) -> None:
        self.connection.close()

    def names(self) -> list[str]:
        """Return the models' names; none where the server has no page that lists them."""
        return [model["name"] for model in self.listed()]

    def listed(self) -> list[dict]:
        """Return what the server's page lists of its models; nothing where it has no page."""
        try:
            return self._json("GET", "/page/models")["models"]
        except RequestError as error:
            if error.code == "NOT_FOUND":
                return []
            raise

    def versions(self) -> list[int]:
        found = self._json("GET", self.path)["model_version_status"]
        return [int(status["version"]) for status in found if status["state"] == "AVAILABLE"]

    def signatures(self) -> dict[str, Signature]:
        found = self._json("GET", f"{self._chosen()}/metadata")["metadata"]["signature_def"]["signature_def"]
        return {name: Signature({key: tensor["dtype"] for key, tensor in each["inputs"].items()},
                                tuple(each["outputs"])) for name, each in found.items()}

    def predict(self, signature: str, name: str, values: Sequence[bytes] | np.ndarray, output: str) -> Answer:
        rows = values.tolist() if isinstance(values, np.ndarray) else [
            {"b64": base64.b64encode(value).decode("ascii")} for value in values]
        body = json.dumps({"signature_name": signature, "inputs": {name: rows}}).encode("ascii")
        text = self._call("POST", f"{self._chosen()}:predict", body)
        outputs = _parsed(text, self.server)["outputs"]
        # A signature's only output has no name.
        found = outputs[output] if isinstance(outputs, dict) else outputs
        if found and isinstance(found[0], dict):
            return Answer([base64.b64decode(each["b64"]) for each in found], len(body), len(text))
        return Answer(np.array(found, np.uint8), len(body), len(text))

    def _chosen(self) -> str:
        if self.wanted.version is not None:
            return f"{self.path}/versions/{self.wanted.version}"
        return self.path + (f"/labels/{urllib.parse.quote(self.wanted.label, safe='')}" if self.wanted.label else "")

    def _json(self, method: str, path: str) -> dict:
        return _parsed(self._call(method, path, None), self.server)

    def _call(self, method: str, path: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            self.connection.request(method, path, body, headers)
            response = self.connection.getresponse()
            text = response.read()
        except TimeoutError:
            self.connection.close()
            raise RequestError("DEADLINE_EXCEEDED", f"{self.server} did not answer within "
                               f"{self.connection.timeout:g} s (--timeout)", False) from None
        # Such as no server, one that ends, or one that closed a connection which was idle for long.
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
                raise RequestError("UNKNOWN", f"{self.server} answered no HTTP; is it the port of REST?",
                                   False) from None
            raise RequestError("UNAVAILABLE", f"cannot reach {self.server} by REST: "
                               f"{getattr(error, 'strerror', None) or error or type(error).__name__}", True) from None
        if response.status == 200:
            return text
        code = STATUSES.get(response.status, "UNKNOWN")
        try:
            message = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):
            message = text[:300].decode(errors="replace").strip() or response.reason
        raise RequestError(code, f"HTTP {response.status}: {message}", code in PASSING and response.status != 413)


def _parsed(text: bytes, server: str) -> dict:
    try:
        return json.loads(text)
    except ValueError:
        raise RequestError("UNKNOWN", f"{server} answered no JSON: {text[:100]!r}; is it the port of REST?",
                           False) from None


class Grpc:
    """Asks by gRPC, with answers of any size; may be shared by threads."""

    def __init__(self, server: str, wanted: Wanted, timeout: float, tls_ca: Path | None):
        # These bring TensorFlow.
        import grpc
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        address(server)
        self.server, self.wanted, self.timeout, self.grpc = server, wanted, timeout, grpc
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        certificates = read_certificates(tls_ca)
        self.channel = (grpc.secure_channel(server, grpc.ssl_channel_credentials(certificates), unlimited)
                        if certificates else grpc.insecure_channel(server, unlimited))
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def names(self) -> list[str]:
        """Return nothing: gRPC has no call that lists models."""
        return []

    def versions(self) -> list[int]:
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.wanted.name
        found = self._call(self.models.GetModelStatus, request).model_version_status
        return [status.version for status in found
                if status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE]

    def signatures(self) -> dict[str, Signature]:
        from tensorflow.core.framework import types_pb2
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._choose(request.model_spec)
        found = get_model_metadata_pb2.SignatureDefMap()
        self._call(self.predictions.GetModelMetadata, request).metadata["signature_def"].Unpack(found)
        return {name: Signature({key: types_pb2.DataType.Name(tensor.dtype) for key, tensor in each.inputs.items()},
                                tuple(each.outputs)) for name, each in found.signature_def.items()}

    def predict(self, signature: str, name: str, values: Sequence[bytes] | np.ndarray, output: str) -> Answer:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(output_filter=[output])
        self._choose(request.model_spec)
        request.model_spec.signature_name = signature
        kind = tf.uint8 if isinstance(values, np.ndarray) else tf.string
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values, kind))
        answer = self._call(self.predictions.Predict, request)
        found = answer.outputs[output]
        values = tf.make_ndarray(found)
        return Answer(values if values.dtype == np.uint8 else list(found.string_val), request.ByteSize(),
                      answer.ByteSize())

    def _choose(self, spec) -> None:
        spec.name = self.wanted.name
        if self.wanted.version is not None:
            spec.version.value = self.wanted.version
        elif self.wanted.label:
            spec.version_label = self.wanted.label

    def _call(self, method, request):
        try:
            return method(request, timeout=self.timeout)
        except self.grpc.RpcError as error:
            code, details = error.code().name, error.details()
        # A server that is full or ends says UNAVAILABLE, too.
        if code == "UNAVAILABLE" and "connect" in details.lower():
            details = f"cannot reach {self.server} by gRPC: {details}"
        elif code == "DEADLINE_EXCEEDED":
            details = f"{self.server} did not answer within {self.timeout:g} s (--timeout): {details}"
        raise RequestError(code, f"{code}: {details}", code in PASSING and TOO_LARGE not in details)
