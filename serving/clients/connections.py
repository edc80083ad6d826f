"""Connect to a TensorFlow Serving API over gRPC or REST, with the same methods.

`signatures()` returns a model's signatures, `available_versions()` its versions that can answer, `model_names()` the
names of all models where the server lists them, and `predict()` sends a batch. All of them raise RequestError. The
REST connection does not import TensorFlow.
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

# gRPC status for each HTTP status; 413 comes from this project's server or from a proxy.
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
RETRYABLE = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
# gRPC reports an oversized message with the status of a full queue; only this part of its text tells them apart.
TOO_LARGE = "larger than max"


class RequestError(UserError):
    """A failed request.

    `code` is the name of its gRPC status. `retryable` is True where the same request may succeed a little later.
    """

    def __init__(self, code: str, message: str, retryable: bool):
        super().__init__(message)
        self.code, self.retryable = code, retryable


class ModelSpec(NamedTuple):
    """A model by name, and one of its versions by number or label (default: the newest)."""

    name: str
    version: int | None = None
    label: str | None = None

    def __str__(self) -> str:
        return f"model {self.name!r}" + (
            f", version {self.version}" if self.version is not None else f", label {self.label!r}" if self.label else ""
        )


class Signature(NamedTuple):
    """Dtypes of a signature's inputs by name, such as DT_STRING, and the names of its outputs."""

    inputs: dict[str, str]
    outputs: tuple[str, ...]


class Prediction(NamedTuple):
    """One output of a batch, and the sizes of the request and its response in bytes.

    `values` are N bytes objects or an array uint8 (N, H, W).
    """

    values: Sequence[bytes] | np.ndarray
    sent: int
    received: int


def parse_address(server: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, such as [::1]:8500; raises UserError for any other text."""
    host, _, port = server.rpartition(":")
    if not host or not port.isdecimal() or "/" in host or ":" in host and not host.startswith("["):
        raise UserError(
            f"--server {server!r} is not HOST:PORT, such as localhost:8500 for gRPC or localhost:8501 for REST"
        )
    return host.strip("[]"), int(port)


def read_certificates(path: Path | None) -> bytes | None:
    """Return the contents of a certificate file, None without a file; raises UserError if it cannot be read."""
    try:
        return path and path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


class RestConnection:
    """Call a model over REST on one persistent connection; not thread-safe."""

    def __init__(self, server: str, spec: ModelSpec, timeout: float, tls_ca: Path | None):
        self.server, self.spec = server, spec
        host, port = parse_address(server)
        try:
            context = tls_ca and ssl.create_default_context(cadata=read_certificates(tls_ca).decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise UserError(f"{tls_ca} contains no PEM certificate: {error}") from None
        # The server's REST port speaks plain HTTP; TLS is for a proxy in front of it.
        self.connection = (
            http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
            if context
            else http.client.HTTPConnection(host, port, timeout=timeout)
        )
        self.path = "/v1/models/" + urllib.parse.quote(spec.name, safe="")

    def close(self) -> None:
        self.connection.close()

    def model_names(self) -> list[str]:
        """Return the names of all models, empty where the server has no page that lists them."""
        return [model["name"] for model in self.listed_models()]

    def listed_models(self) -> list[dict]:
        """Return the models that the server's page lists, empty where the server has no page."""
        try:
            return self._request_json("GET", "/page/models")["models"]
        except RequestError as error:
            if error.code == "NOT_FOUND":
                return []
            raise

    def available_versions(self) -> list[int]:
        statuses = self._request_json("GET", self.path)["model_version_status"]
        return [int(status["version"]) for status in statuses if status["state"] == "AVAILABLE"]

    def signatures(self) -> dict[str, Signature]:
        metadata = self._request_json("GET", f"{self._version_path()}/metadata")["metadata"]
        return {
            name: Signature(
                {key: tensor["dtype"] for key, tensor in signature["inputs"].items()}, tuple(signature["outputs"])
            )
            for name, signature in metadata["signature_def"]["signature_def"].items()
        }

    def predict(self, signature: str, name: str, values: Sequence[bytes] | np.ndarray, output: str) -> Prediction:
        """Send a batch as the input `name`, and return the output `output`."""
        rows = (
            values.tolist()
            if isinstance(values, np.ndarray)
            else [{"b64": base64.b64encode(value).decode("ascii")} for value in values]
        )
        body = json.dumps({"signature_name": signature, "inputs": {name: rows}}).encode("ascii")
        text = self._request("POST", f"{self._version_path()}:predict", body)
        outputs = _parse_json(text, self.server)["outputs"]
        # The only output of a signature comes without its name.
        results = outputs[output] if isinstance(outputs, dict) else outputs
        if results and isinstance(results[0], dict):
            return Prediction([base64.b64decode(result["b64"]) for result in results], len(body), len(text))
        return Prediction(np.array(results, np.uint8), len(body), len(text))

    def _version_path(self) -> str:
        if self.spec.version is not None:
            return f"{self.path}/versions/{self.spec.version}"
        return self.path + (f"/labels/{urllib.parse.quote(self.spec.label, safe='')}" if self.spec.label else "")

    def _request_json(self, method: str, path: str) -> dict:
        return _parse_json(self._request(method, path, None), self.server)

    def _request(self, method: str, path: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            self.connection.request(method, path, body, headers)
            response = self.connection.getresponse()
            text = response.read()
        except TimeoutError:
            self.connection.close()
            raise RequestError(
                "DEADLINE_EXCEEDED",
                f"{self.server} did not answer within {self.connection.timeout:g} s (--timeout)",
                False,
            ) from None
        # The server is absent, stopping, or has closed a connection that was idle for long.
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
                raise RequestError(
                    "UNKNOWN", f"{self.server} does not speak HTTP; is this its REST port?", False
                ) from None
            raise RequestError(
                "UNAVAILABLE",
                f"cannot reach {self.server} over REST: "
                f"{getattr(error, 'strerror', None) or error or type(error).__name__}",
                True,
            ) from None
        if response.status == 200:
            return text
        code = STATUSES.get(response.status, "UNKNOWN")
        try:
            message = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):
            message = text[:300].decode(errors="replace").strip() or response.reason
        raise RequestError(code, f"HTTP {response.status}: {message}", code in RETRYABLE and response.status != 413)


def _parse_json(text: bytes, server: str) -> dict:
    try:
        return json.loads(text)
    except ValueError:
        raise RequestError(
            "UNKNOWN", f"{server} did not answer with JSON: {text[:100]!r}; is this its REST port?", False
        ) from None


class GrpcConnection:
    """Call a model over gRPC, with responses of any size; thread-safe."""

    def __init__(self, server: str, spec: ModelSpec, timeout: float, tls_ca: Path | None):
        # The stubs import TensorFlow, which a REST client does without.
        import grpc
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        parse_address(server)
        self.server, self.spec, self.timeout, self.grpc = server, spec, timeout, grpc
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        certificates = read_certificates(tls_ca)
        self.channel = (
            grpc.secure_channel(server, grpc.ssl_channel_credentials(certificates), unlimited)
            if certificates
            else grpc.insecure_channel(server, unlimited)
        )
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def model_names(self) -> list[str]:
        """Return an empty list, since gRPC has no call that lists models."""
        return []

    def available_versions(self) -> list[int]:
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.spec.name
        statuses = self._request(self.models.GetModelStatus, request).model_version_status
        return [
            status.version for status in statuses if status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
        ]

    def signatures(self) -> dict[str, Signature]:
        from tensorflow.core.framework import types_pb2
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._fill_model_spec(request.model_spec)
        metadata = self._request(self.predictions.GetModelMetadata, request).metadata
        definitions = get_model_metadata_pb2.SignatureDefMap()
        metadata["signature_def"].Unpack(definitions)
        return {
            name: Signature(
                {key: types_pb2.DataType.Name(tensor.dtype) for key, tensor in entry.inputs.items()},
                tuple(entry.outputs),
            )
            for name, entry in definitions.signature_def.items()
        }

    def predict(self, signature: str, name: str, values: Sequence[bytes] | np.ndarray, output: str) -> Prediction:
        """Send a batch as the input `name`, and return the output `output`."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(output_filter=[output])
        self._fill_model_spec(request.model_spec)
        request.model_spec.signature_name = signature
        dtype = tf.uint8 if isinstance(values, np.ndarray) else tf.string
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values, dtype))
        response = self._request(self.predictions.Predict, request)
        tensor = response.outputs[output]
        results = tf.make_ndarray(tensor)
        return Prediction(
            results if results.dtype == np.uint8 else list(tensor.string_val), request.ByteSize(), response.ByteSize()
        )

    def _fill_model_spec(self, spec) -> None:
        spec.name = self.spec.name
        if self.spec.version is not None:
            spec.version.value = self.spec.version
        elif self.spec.label:
            spec.version_label = self.spec.label

    def _request(self, method, request):
        try:
            return method(request, timeout=self.timeout)
        except self.grpc.RpcError as error:
            code, details = error.code().name, error.details()
        # A server that is busy or stopping answers UNAVAILABLE as well.
        if code == "UNAVAILABLE" and "connect" in details.lower():
            details = f"cannot reach {self.server} over gRPC: {details}"
        elif code == "DEADLINE_EXCEEDED":
            details = f"{self.server} did not answer within {self.timeout:g} s (--timeout): {details}"
        raise RequestError(code, f"{code}: {details}", code in RETRYABLE and TOO_LARGE not in details)
