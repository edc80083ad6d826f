"""What PredictionService does with a servable, on its own: Predict's checks, its run and its answer, and the metadata.

gRPC, REST and warm-up share it. The order of the checks and their words are TensorFlow Serving's (predict_util.cc,
get_model_metadata_impl.cc) and TensorFlow's (cc/saved_model/util.cc).
"""

from collections.abc import Iterable

import grpc
import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2

from serving.core import tensors
from serving.errors import ServingError, invalid

DEFAULT_SIGNATURE = "serving_default"
SIGNATURES = "signature_def"


def spec_of(request) -> model_pb2.ModelSpec:
    """Return a request's model_spec; raises ServingError where it has none."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec


def signature_name(spec: model_pb2.ModelSpec) -> str:
    """Return the name of the signature that a model_spec means."""
    return spec.signature_name or DEFAULT_SIGNATURE


def predict(model, request: predict_pb2.PredictRequest, deadline: float | None) -> dict[str, np.ndarray]:
    """Return the outputs of a request on a loaded model; `deadline` in seconds of time.monotonic().

    Raises ServingError: whatever is wrong with the request, and what the graph answers.
    """
    return predict_arrays(model, signature_name(request.model_spec), input_arrays(model, request),
                          request.output_filter, deadline)


def input_arrays(model, request: predict_pb2.PredictRequest) -> dict[str, np.ndarray]:
    """Return a request's inputs as arrays, completed by the signature's defaults; raises ServingError."""
    name = signature_name(request.model_spec)
    if name not in model.signatures:
        raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    signature = model.signatures[name]
    given, expected = set(request.inputs), set(signature.inputs)
    if len(given) > len(expected) or (len(given) < len(expected) and not signature.defaults):
        raise invalid(f"input size does not match signature: {len(given)}!={len(expected)} len({_set(given)}) != "
                      f"len({_set(expected)}). Sent extra: {_set(given - expected)}. Missing but required: "
                      f"{_set(expected - given)}.")
    arrays = {}
    for alias in sorted(expected):
        if alias not in given and alias not in signature.defaults:
            raise invalid(f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in "
                          f"request and no default value provided. Inputs expected to be in the request {_set(given)}, "
                          f"or default input alias set: {','.join(sorted(signature.defaults))}")
        try:
            arrays[alias] = tensors.array((request.inputs if alias in given else signature.defaults)[alias])
        except ValueError:
            raise invalid(f"tensor parsing error: {alias}") from None
    if given - expected:
        raise invalid(f"Inputs contains invalid name. Used request inputs: {','.join(sorted(given & expected))}, "
                      f"request input: {','.join(sorted(given))}")
    return arrays


def predict_arrays(model, signature: str, inputs: dict[str, np.ndarray], output_filter: Iterable[str],
                   deadline: float | None) -> dict[str, np.ndarray]:
    """Return a signature's outputs, all of them where `output_filter` is empty; raises ServingError."""
    outputs = model.signatures[signature].outputs
    chosen = []
    for alias in output_filter:
        if alias not in outputs:
            raise invalid(f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                          f"{_set(outputs)}.")
        if alias in chosen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        chosen.append(alias)
    return model.run(signature, inputs, tuple(chosen) or tuple(sorted(outputs)), deadline)


def response_bytes(name: str, signature: str, version: int, outputs: dict[str, np.ndarray], as_content: bool) -> bytes:
    """Return the wire bytes of the PredictResponse with these outputs.

    Numbers are in their field's list of values, as TensorFlow Serving writes them, or with `as_content` in
    tensor_content. By hand, as a class map's values one by one through Python take longer than its prediction.
    """
    spec = model_pb2.ModelSpec(name=name, signature_name=signature)
    spec.version.value = version
    parts = []
    for alias, values in outputs.items():
        tensor = tensors.delimited(2, tensors.wire_parts(values, as_content))
        parts += tensors.delimited(1, [*tensors.delimited(1, [alias.encode()]), *tensor])
    return b"".join([*parts, *tensors.delimited(2, [spec.SerializeToString()])])


def check_metadata_request(request: get_model_metadata_pb2.GetModelMetadataRequest) -> None:
    """Raise ServingError unless the request asks for signatures, and for nothing else."""
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != SIGNATURES:
            raise invalid(f"Metadata field {field} is not supported")


def metadata(handle, request: get_model_metadata_pb2.GetModelMetadataRequest
             ) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Return all signatures of a model, without the values of their defaults; raises ServingError."""
    check_metadata_request(request)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = handle.name
    response.model_spec.version.value = handle.version
    response.metadata[SIGNATURES].Pack(signature_map(handle.model))
    return response


def signature_map(model) -> get_model_metadata_pb2.SignatureDefMap:
    """Return all signatures of a loaded model as GetModelMetadata and REST answer them."""
    answered = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in model.signatures.items():
        stripped = meta_graph_pb2.SignatureDef()
        stripped.CopyFrom(signature)
        stripped.ClearField("defaults")
        answered.signature_def[name].CopyFrom(stripped)
    return answered


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
