"""Parse the paths of the REST API, and answer its calls without any HTTP.

    POST /v1/models/NAME[/versions/N|/labels/L]:predict|classify|regress
    GET  /v1/models/NAME[/versions/N|/labels/L][/metadata]

Paths and error texts match TensorFlow Serving word for word (http_rest_api_util.cc, http_rest_api_handler.cc).
"""

import json
import re
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    regression_pb2,
    status_pb2,
)

from serving.core import classification, prediction
from serving.errors import invalid
from serving.rest_api import json_examples, json_tensors, json_writing

if TYPE_CHECKING:
    from serving.core.manager import Handle, ModelManager

PREDICT, CLASSIFY, REGRESS, STATUS, METADATA = "predict", "classify", "regress", "status", "metadata"
_CHOICE = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
PATHS = {
    "POST": re.compile(rf"/v1/models/(?P<name>[^/:]+){_CHOICE}:(?P<call>{PREDICT}|{CLASSIFY}|{REGRESS})", re.I),
    "GET": re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_CHOICE}(?:/(?P<call>{METADATA}))?", re.I),
}
MAX_VERSION = (1 << 63) - 1
GZIP = 16 + zlib.MAX_WBITS
Result = TypeVar("Result")


class Call(NamedTuple):
    """A call of the REST API (PREDICT, ...), and the model that it names."""

    kind: str
    spec: model_pb2.ModelSpec


class TooLarge(Exception):
    """An inflated body above the size limit."""


class Timer:
    """Seconds that a request spent in the model; None if it never ran."""

    def __init__(self):
        self.seconds: float | None = None

    def run(self, function: Callable[..., Result], *arguments) -> Result:
        """Call a function, and record its run time."""
        started = time.monotonic()
        result = function(*arguments)
        self.seconds = time.monotonic() - started
        return result


def parse_call(method: str, path: str) -> Call:
    """Return the call of an HTTP method and a URL-encoded path; raises ServingError."""
    match = PATHS[method].fullmatch(path) if method in PATHS else None
    if match is None:
        raise invalid(f"Malformed request: {method} {path}")
    if not match["name"]:
        raise invalid("Missing model name in request.")
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(match["name"]))
    if match["version"]:
        # Leading zeros are allowed. The length is checked first, since Python refuses to convert thousands of digits.
        digits = match["version"].lstrip("0") or "0"
        if len(digits) > len(str(MAX_VERSION)) or int(digits) > MAX_VERSION:
            raise invalid(f"Failed to convert version: {match['version']} to numeric.")
        # Assigning 0 also makes the field present, which selects version 0.
        spec.version.value = int(digits)
    if match["label"]:
        spec.version_label = urllib.parse.unquote(match["label"])
    return Call((match["call"] or STATUS).lower(), spec)


def inflate(body: bytes, limit: int) -> bytes:
    """Return the contents of a gzip body.

    Raises TooLarge above `limit` bytes, and ServingError if the body is not gzip or is cut off.
    """
    chunks, size = [], 0
    try:
        while body:
            decompressor = zlib.decompressobj(GZIP)
            # One byte above the limit is enough to notice an oversized body.
            chunks.append(decompressor.decompress(body, limit + 1 - size))
            size += len(chunks[-1])
            if size > limit:
                raise TooLarge
            if not decompressor.eof:
                raise invalid("The gzip body ends too early")
            body = decompressor.unused_data
    except zlib.error as error:
        raise invalid(f"The body is not gzip, contrary to its Content-Encoding: {error}") from None
    return b"".join(chunks)


@contextmanager
def _use_version(models: "ModelManager", spec: model_pb2.ModelSpec) -> Iterator["Handle"]:
    """Hold the version that a spec selects, and write its number into the spec."""
    with models.use(spec) as handle:
        spec.version.value = handle.version
        yield handle


def handle_predict(
    models: "ModelManager", spec: model_pb2.ModelSpec, body: bytes, deadline: float | None, timer: Timer
) -> bytes:
    """Return the JSON response of a predict request.

    `deadline` is a time of time.monotonic(). Raises ServingError.
    """
    with ExitStack() as stack:
        model = None

        def find_inputs(signature_name: str) -> Mapping:
            # The parser calls this after it has read the JSON, so that, as in TensorFlow Serving, malformed JSON is
            # reported before a missing model.
            nonlocal model
            model = stack.enter_context(_use_version(models, spec)).model
            signature_name = signature_name or prediction.DEFAULT_SIGNATURE
            if signature_name not in model.signatures:
                raise invalid(f'Serving signature name: "{signature_name}" not found in signature def')
            return model.signatures[signature_name].inputs

        request = json_tensors.parse_predict(body, find_inputs)
        spec.signature_name = request.signature_name or prediction.DEFAULT_SIGNATURE
        outputs = timer.run(prediction.predict_arrays, model, spec.signature_name, request.inputs, (), deadline)
    return json_writing.predict_json(outputs, request.rows)


def handle_classify(
    models: "ModelManager", spec: model_pb2.ModelSpec, body: bytes, deadline: float | None, timer: Timer
) -> bytes:
    """Return the JSON response of a classify request.

    `deadline` is a time of time.monotonic(). Raises ServingError.
    """
    spec.signature_name, examples = json_examples.parse_examples(body)
    request = classification_pb2.ClassificationRequest(model_spec=spec, input=examples)
    with _use_version(models, spec) as handle:
        result = timer.run(classification.classify_response, handle.model, request, deadline)
        return json_examples.classifications(result)


def handle_regress(
    models: "ModelManager", spec: model_pb2.ModelSpec, body: bytes, deadline: float | None, timer: Timer
) -> bytes:
    """Return the JSON response of a regress request.

    `deadline` is a time of time.monotonic(). Raises ServingError.
    """
    spec.signature_name, examples = json_examples.parse_examples(body)
    request = regression_pb2.RegressionRequest(model_spec=spec, input=examples)
    with _use_version(models, spec) as handle:
        result = timer.run(classification.regress_response, handle.model, request, deadline)
        return json_examples.regressions(result)


def handle_status(models: "ModelManager", spec: model_pb2.ModelSpec) -> bytes:
    """Return the JSON of a model's versions in any state; raises ServingError."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for status in models.statuses(spec):
        response.model_version_status.add(
            version=status.version,
            state=status.state,
            status=status_pb2.StatusProto(error_code=status.code.value[0], error_message=status.message),
        )
    return json.dumps(_message_fields(response), indent=1).encode()


def handle_metadata(models: "ModelManager", spec: model_pb2.ModelSpec) -> bytes:
    """Return the JSON of a version's signatures; raises ServingError NOT_FOUND unless it is available."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=[prediction.SIGNATURES])
    with models.use(spec) as handle:
        response = prediction.metadata_response(handle, request)
        signatures = prediction.signature_map(handle.model)
    return json.dumps(
        {
            "model_spec": _message_fields(response.model_spec),
            "metadata": {prediction.SIGNATURES: _message_fields(signatures)},
        },
        indent=1,
    ).encode()


def _message_fields(message) -> dict:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


# Handlers of calls that run a model, and of calls that only query the server.
RUN_HANDLERS = {PREDICT: handle_predict, CLASSIFY: handle_classify, REGRESS: handle_regress}
QUERY_HANDLERS = {STATUS: handle_status, METADATA: handle_metadata}
