"""The REST API's calls, apart from HTTP: which one a path means, and what it answers.

    POST /v1/models/NAME[/versions/N|/labels/L]:predict|classify|regress
    GET  /v1/models/NAME[/versions/N|/labels/L][/metadata]

Paths and words are TensorFlow Serving's (http_rest_api_util.cc, http_rest_api_handler.cc).
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
    "GET": re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_CHOICE}(?:/(?P<call>{METADATA}))?", re.I)}
LARGEST_VERSION = (1 << 63) - 1
GZIP = 16 + zlib.MAX_WBITS
Answer = TypeVar("Answer")


class Call(NamedTuple):
    """One of the calls above, of a model."""

    kind: str
    spec: model_pb2.ModelSpec


class TooLarge(Exception):
    """A body of more bytes than are taken."""


class Timer:
    """Seconds that a request was in the model, None where it never was."""

    def __init__(self):
        self.seconds: float | None = None

    def run(self, function: Callable[..., Answer], *arguments) -> Answer:
        """Call a function, and keep how long it took."""
        started = time.monotonic()
        answer = function(*arguments)
        self.seconds = time.monotonic() - started
        return answer


def parse_call(method: str, path: str) -> Call:
    """Return the call that a request means; its path is still URL-encoded. Raises ServingError."""
    found = PATHS[method].fullmatch(path) if method in PATHS else None
    if found is None:
        raise invalid(f"Malformed request: {method} {path}")
    if not found["name"]:
        raise invalid("Missing model name in request.")
    spec = model_pb2.ModelSpec(name=_decoded(found["name"]))
    if found["version"]:
        # Zeros may lead; numbers of thousands of digits are more than Python converts.
        digits = found["version"].lstrip("0") or "0"
        if len(digits) > len(str(LARGEST_VERSION)) or int(digits) > LARGEST_VERSION:
            raise invalid(f"Failed to convert version: {found['version']} to numeric.")
        # Set, even where it is 0.
        spec.version.value = int(digits)
    if found["label"]:
        spec.version_label = _decoded(found["label"])
    return Call((found["call"] or STATUS).lower(), spec)


def _decoded(text: str) -> str:
    return urllib.parse.unquote(text)


def inflate(body: bytes, limit: int) -> bytes:
    """Return what gzip holds; raises TooLarge above `limit` bytes, ServingError where it is none."""
    parts, size = [], 0
    try:
        while body:
            reader = zlib.decompressobj(GZIP)
            # One byte more shows that there are too many.
            parts.append(reader.decompress(body, limit + 1 - size))
            size += len(parts[-1])
            if size > limit:
                raise TooLarge
            if not reader.eof:
                raise invalid("The gzip body ends too early")
            body = reader.unused_data
    except zlib.error as error:
        raise invalid(f"The body is not gzip, as its Content-Encoding says: {error}") from None
    return b"".join(parts)


@contextmanager
def _used(models: "ModelManager", spec: model_pb2.ModelSpec) -> Iterator["Handle"]:
    """Hold the version that a spec means, which it then says."""
    with models.use(spec) as handle:
        spec.version.value = handle.version
        yield handle


def handle_predict(models: "ModelManager", spec: model_pb2.ModelSpec, body: bytes, deadline: float | None, timer: Timer) -> bytes:
    """Return the JSON that answers a predict request; `deadline` of time.monotonic(). Raises ServingError."""
    with ExitStack() as stack:
        model = None

        def infos_of(name: str) -> Mapping:
            # Only after the body was read as JSON, as TensorFlow Serving does: a body in disorder is told first.
            nonlocal model
            model = stack.enter_context(_used(models, spec)).model
            name = name or prediction.DEFAULT_SIGNATURE
            if name not in model.signatures:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            return model.signatures[name].inputs

        asked = json_tensors.parse_predict(body, infos_of)
        spec.signature_name = asked.signature_name or prediction.DEFAULT_SIGNATURE
        outputs = timer.run(prediction.predict_arrays, model, spec.signature_name, asked.inputs, (), deadline)
    return json_writing.predict_json(outputs, asked.rows)


def handle_classify(models: "ModelManager", spec: model_pb2.ModelSpec, body: bytes, deadline: float | None, timer: Timer) -> bytes:
    """Return the JSON that answers a classify request; `deadline` of time.monotonic(). Raises ServingError."""
    spec.signature_name, given = json_examples.parse_examples(body)
    request = classification_pb2.ClassificationRequest(model_spec=spec, input=given)
    with _used(models, spec) as handle:
        return json_examples.classifications(timer.run(classification.classify_response, handle.model, request, deadline))


def handle_regress(models: "ModelManager", spec: model_pb2.ModelSpec, body: bytes, deadline: float | None, timer: Timer) -> bytes:
    """Return the JSON that answers a regress request; `deadline` of time.monotonic(). Raises ServingError."""
    spec.signature_name, given = json_examples.parse_examples(body)
    request = regression_pb2.RegressionRequest(model_spec=spec, input=given)
    with _used(models, spec) as handle:
        return json_examples.regressions(timer.run(classification.regress_response, handle.model, request, deadline))


def handle_status(models: "ModelManager", spec: model_pb2.ModelSpec) -> bytes:
    """Return the JSON of a model's versions, whatever their state; raises ServingError."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for each in models.statuses(spec):
        response.model_version_status.add(
            version=each.version, state=each.state,
            status=status_pb2.StatusProto(error_code=each.code.value[0], error_message=each.message))
    return json.dumps(_fields(response), indent=1).encode()


def handle_metadata(models: "ModelManager", spec: model_pb2.ModelSpec) -> bytes:
    """Return the JSON of a version's signatures; raises ServingError, NOT_FOUND until it can answer requests."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=[prediction.SIGNATURES])
    with models.use(spec) as handle:
        response = prediction.metadata_response(handle, request)
        signatures = prediction.signature_map(handle.model)
    return json.dumps({"model_spec": _fields(response.model_spec),
                       "metadata": {prediction.SIGNATURES: _fields(signatures)}}, indent=1).encode()


def _fields(message) -> dict:
    return json_format.MessageToDict(message, preserving_proto_field_name=True,
                                     always_print_fields_with_no_presence=True)


# What answers a body, and what a mere question.
RUNS = {PREDICT: handle_predict, CLASSIFY: handle_classify, REGRESS: handle_regress}
QUESTIONS = {STATUS: handle_status, METADATA: handle_metadata}
