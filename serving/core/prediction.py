"""Predict and GetModelMetadata on a servable, shared by gRPC, REST and warm-up.

The order of the checks and the texts of their errors are those of TensorFlow Serving (predict_util.cc,
get_model_metadata_impl.cc) and TensorFlow (cc/saved_model/util.cc).
"""

from collections.abc import Iterable

import grpc
import numpy as np
from google.protobuf.message import Message
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2

from serving.core import tensors
from serving.core.manager import Handle
from serving.core.servable import Servable
from serving.errors import ServingError, invalid

DEFAULT_SIGNATURE = "serving_default"
SIGNATURES = "signature_def"


def servable_spec(request: Message) -> model_pb2.ModelSpec:
    """Return a request's model_spec; raises ServingError if it has none."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec


def signature_name(spec: model_pb2.ModelSpec) -> str:
    """Return the name of the signature that a ModelSpec chooses."""
    return spec.signature_name or DEFAULT_SIGNATURE


def predict_response(
    model: Servable, request: predict_pb2.PredictRequest, deadline: float | None
) -> dict[str, np.ndarray]:
    """Run a Predict request and return its outputs by alias.

    `deadline` is a value of time.monotonic(). Raises ServingError for a wrong request and for errors of the graph.
    """
    return predict_arrays(
        model, signature_name(request.model_spec), input_arrays(model, request), request.output_filter, deadline
    )


def input_arrays(model: Servable, request: predict_pb2.PredictRequest) -> dict[str, np.ndarray]:
    """Return a request's inputs as arrays by alias, completed by the signature's defaults.

    Raises ServingError for an unknown signature, for missing or extra inputs, and for malformed tensors.
    """
    name = signature_name(request.model_spec)
    if name not in model.signatures:
        raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    signature = model.signatures[name]
    given, expected = set(request.inputs), set(signature.inputs)
    if len(given) > len(expected) or (len(given) < len(expected) and not signature.defaults):
        raise invalid(
            f"input size does not match signature: {len(given)}!={len(expected)} len({_set(given)}) != "
            f"len({_set(expected)}). Sent extra: {_set(given - expected)}. Missing but required: "
            f"{_set(expected - given)}."
        )
    arrays = {}
    for alias in sorted(expected):
        if alias not in given and alias not in signature.defaults:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in "
                f"request and no default value provided. Inputs expected to be in the request {_set(given)}, "
                f"or default input alias set: {','.join(sorted(signature.defaults))}"
            )
        try:
            arrays[alias] = tensors.to_array((request.inputs if alias in given else signature.defaults)[alias])
        except ValueError:
            raise invalid(f"tensor parsing error: {alias}") from None
    if given - expected:
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {','.join(sorted(given & expected))}, "
            f"request input: {','.join(sorted(given))}"
        )
    return arrays


def predict_arrays(
    model: Servable, signature: str, inputs: dict[str, np.ndarray], output_filter: Iterable[str], deadline: float | None
) -> dict[str, np.ndarray]:
    """Run a signature and return its outputs by alias.

    Args:
        model: The loaded model.
        signature: The name of a signature that the model has.
        inputs: The arrays of all its inputs by alias, with the dtypes of the signature.
        output_filter: The aliases of the outputs to compute; empty for all of them.
        deadline: A value of time.monotonic(), or None.

    Raises:
        ServingError: for an unknown or repeated alias in `output_filter`, and for errors of the graph.
    """
    outputs = model.signatures[signature].outputs
    chosen = []
    for alias in output_filter:
        if alias not in outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{_set(outputs)}."
            )
        if alias in chosen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        chosen.append(alias)
    return model.run(signature, inputs, tuple(chosen) or tuple(sorted(outputs)), deadline)


def response_bytes(name: str, signature: str, version: int, outputs: dict[str, np.ndarray], as_content: bool) -> bytes:
    """Return a PredictResponse as wire bytes.

    Numbers are written to the list of values of their dtype, like in TensorFlow Serving, or with `as_content` to
    tensor_content. The bytes are assembled here because protobuf's Python API, which takes the values one by one, needs
    longer for a class map than its prediction.
    """
    spec = model_pb2.ModelSpec(name=name, signature_name=signature)
    spec.version.value = version
    parts = []
    for alias, values in outputs.items():
        tensor = tensors.delimited(2, tensors.wire_parts(values, as_content))
        parts += tensors.delimited(1, [*tensors.delimited(1, [alias.encode()]), *tensor])
    return b"".join([*parts, *tensors.delimited(2, [spec.SerializeToString()])])


def check_metadata_request(request: get_model_metadata_pb2.GetModelMetadataRequest) -> None:
    """Raise ServingError unless the request asks for the signatures alone."""
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != SIGNATURES:
            raise invalid(f"Metadata field {field} is not supported")


def metadata_response(
    handle: Handle, request: get_model_metadata_pb2.GetModelMetadataRequest
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Return the GetModelMetadata response of a version; raises ServingError."""
    check_metadata_request(request)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = handle.name
    response.model_spec.version.value = handle.version
    response.metadata[SIGNATURES].Pack(signature_map(handle.model))
    return response


def signature_map(model: Servable) -> get_model_metadata_pb2.SignatureDefMap:
    """Return all signatures of a model without the values of their defaults."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in model.signatures.items():
        stripped = meta_graph_pb2.SignatureDef()
        stripped.CopyFrom(signature)
        stripped.ClearField("defaults")
        signatures.signature_def[name].CopyFrom(stripped)
    return signatures


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
