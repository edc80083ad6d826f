"""Requests to a servable without a server: checks with TensorFlow Serving's error texts, and responses."""

import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.core import classification, prediction, session_model
from serving.errors import ServingError
from tests.helpers import small_servables


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    directory = small_servables.half_plus_two(tmp_path_factory.mktemp("half"), 3)
    model = session_model.load_session_model(directory, ("serve",), session_model.Threads())
    yield model
    model.close()


def predict_request(signature="", **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def failure(run, *arguments):
    with pytest.raises(ServingError) as caught:
        run(*arguments)
    return caught.value.code.name, caught.value.message


def test_a_prediction_and_its_response(half):
    request = predict_request(x=np.array([1, 2, 5], np.float32))
    outputs = prediction.predict_response(half, request, time.monotonic() + 10)
    np.testing.assert_array_equal(outputs["y"], [2.5, 3, 4.5])
    response = predict_pb2.PredictResponse.FromString(
        prediction.response_bytes("half", "serving_default", 3, outputs, as_content=False)
    )
    assert response.model_spec.name == "half" and response.model_spec.signature_name == "serving_default"
    assert response.model_spec.version.value == 3 and not response.model_spec.version_label
    assert list(response.outputs) == ["y"] and list(response.outputs["y"].float_val) == [2.5, 3, 4.5]
    content = predict_pb2.PredictResponse.FromString(
        prediction.response_bytes("half", "serving_default", 0, outputs, as_content=True)
    )
    assert content.outputs["y"].tensor_content == np.array([2.5, 3, 4.5], "<f4").tobytes()
    # Version 0 is set like any other version.
    assert content.model_spec.HasField("version")


def test_wrong_predict_requests_get_tensorflow_servings_errors(half):
    x = np.array([1], np.float32)
    assert failure(prediction.predict_response, half, predict_request("other", x=x), None) == (
        "FAILED_PRECONDITION",
        'Serving signature key "other" not found.',
    )
    assert failure(prediction.predict_response, half, predict_request(x=x, b=x, a=x), None) == (
        "INVALID_ARGUMENT",
        "input size does not match signature: 3!=1 len({a,b,x}) != len({x}). "
        "Sent extra: {a,b}. Missing but required: {}.",
    )
    assert failure(prediction.predict_response, half, predict_request(), None) == (
        "INVALID_ARGUMENT",
        "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}.",
    )
    assert failure(prediction.predict_response, half, predict_request(z=x), None) == (
        "INVALID_ARGUMENT",
        "Signature input alias: x(feed name: x:0) not found in request and no default value "
        "provided. Inputs expected to be in the request {z}, or default input alias set: ",
    )
    broken = predict_request(x=x)
    broken.inputs["x"].tensor_content = b"123"
    assert failure(prediction.predict_response, half, broken, None) == ("INVALID_ARGUMENT", "tensor parsing error: x")


def test_the_output_filter_selects_outputs(half):
    request = predict_request(x=np.array([1], np.float32))
    request.output_filter.append("y")
    assert list(prediction.predict_response(half, request, None)) == ["y"]
    request.output_filter.append("y")
    assert failure(prediction.predict_response, half, request, None) == (
        "INVALID_ARGUMENT",
        "duplicate output tensor alias: y",
    )
    request.output_filter[:] = ["z"]
    assert failure(prediction.predict_response, half, request, None) == (
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
    )


def test_dtypes_and_shapes_are_checked(half):
    code, message = failure(prediction.predict_response, half, predict_request(x=np.array([1], np.uint8)), None)
    assert code == "INVALID_ARGUMENT" and "Expects arg[0] to be float but uint8 is provided" in message
    code, message = failure(prediction.predict_response, half, predict_request(x=np.ones((1, 1), np.float32)), None)
    assert code == "INVALID_ARGUMENT" and "[1,1] is not compatible with expected shape [?]" in message


def test_a_passed_deadline_is_an_error(half):
    request = predict_request(x=np.array([1], np.float32))
    assert failure(prediction.predict_response, half, request, time.monotonic() - 1) == (
        "DEADLINE_EXCEEDED",
        "Timed out waiting for notification",
    )


class Identity:
    """A Servable that returns its inputs."""

    directory = Path()

    def __init__(self, signature):
        self.signatures = {"serving_default": signature}

    def run(self, signature, inputs, outputs, deadline):
        return inputs


def test_defaults_of_a_signature_replace_missing_inputs():
    signature = meta_graph_pb2.SignatureDef()
    signature.inputs["x"].name, signature.inputs["scale"].name = "x:0", "scale:0"
    signature.outputs["y"].name = "y:0"
    signature.defaults["scale"].CopyFrom(tf.make_tensor_proto(np.float32(3)))
    model = Identity(signature)
    fed = prediction.predict_response(model, predict_request(x=np.float32(1)), None)
    assert fed == {"x": 1, "scale": 3}
    assert prediction.predict_response(model, predict_request(x=np.float32(1), scale=np.float32(4)), None)["scale"] == 4
    assert failure(prediction.predict_response, model, predict_request(scale=np.float32(1)), None) == (
        "INVALID_ARGUMENT",
        "Signature input alias: x(feed name: x:0) not found in request and no default value "
        "provided. Inputs expected to be in the request {scale}, or default input alias set: scale",
    )
    assert failure(prediction.predict_response, model, predict_request(x=np.float32(1), other=np.float32(1)), None) == (
        "INVALID_ARGUMENT",
        "Inputs contains invalid name. Used request inputs: x, request input: other,x",
    )
    # The metadata does not contain the defaults.
    assert not prediction.signature_map(model).signature_def["serving_default"].defaults
    assert signature.defaults


def test_the_metadata_contains_the_signatures(half):
    handle = type("Handle", (), {"name": "half", "version": 3, "model": half})
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    assert failure(prediction.metadata_response, handle, request) == (
        "INVALID_ARGUMENT",
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    request.metadata_field[:] = ["signature_def", "other"]
    assert failure(prediction.metadata_response, handle, request) == (
        "INVALID_ARGUMENT",
        "Metadata field other is not supported",
    )
    request.metadata_field[:] = ["signature_def"]
    response = prediction.metadata_response(handle, request)
    assert response.model_spec.name == "half" and response.model_spec.version.value == 3
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert {"serving_default", "regress_x_to_y", "classify_x_to_y"} <= set(signatures.signature_def)
    assert signatures.signature_def["serving_default"].inputs["x"].dtype == types_pb2.DT_FLOAT


def example(x=None):
    made = tf.train.Example()
    if x is not None:
        made.features.feature["x"].float_list.value.append(x)
    return made


def test_classify_and_regress(half):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.signature_name = "classify_x_to_y"
    request.input.example_list.examples.extend([example(2), example(6)])
    result = classification.classify_response(half, request, None)
    assert [[entry.score for entry in row.classes] for row in result.classifications] == [[3], [5]]
    assert not result.classifications[0].classes[0].label
    regression = regression_pb2.RegressionRequest()
    regression.model_spec.signature_name = "regress_x_to_y"
    # The context is added to all examples.
    regression.input.example_list_with_context.context.CopyFrom(example(4))
    regression.input.example_list_with_context.examples.extend([example(), example(), example(6)])
    result = classification.regress_response(half, regression, None)
    assert [entry.value for entry in result.regressions] == [4, 4, 5]


def test_wrong_classify_and_regress_requests_get_tensorflow_servings_errors(half):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.signature_name = "classify_x_to_y"
    assert failure(classification.classify_response, half, request, None) == ("INVALID_ARGUMENT", "Input is empty.")
    request.input.example_list.SetInParent()
    assert failure(classification.classify_response, half, request, None) == ("INVALID_ARGUMENT", "Input is empty.")
    request.input.example_list.examples.append(example(2))
    request.model_spec.signature_name = "other"
    assert failure(classification.classify_response, half, request, None) == (
        "INVALID_ARGUMENT",
        "No signature was found with the name: other",
    )
    request.model_spec.signature_name = ""
    code, message = failure(classification.classify_response, half, request, None)
    assert code == "INVALID_ARGUMENT" and message.startswith("No classification inputs found in SignatureDef: ")
    regression = regression_pb2.RegressionRequest(input=request.input)
    regression.model_spec.signature_name = "classify_x_to_y"
    code, message = failure(classification.regress_response, half, regression, None)
    assert code == "INVALID_ARGUMENT" and message.startswith("No regression outputs found in SignatureDef: ")


def multi_request(*tasks):
    request = inference_pb2.MultiInferenceRequest()
    for name, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = name, signature
    request.input.example_list.examples.append(example(2))
    return request


def test_multi_inference_runs_several_signatures(half):
    regress = ("half", "regress_x_to_y", "tensorflow/serving/regress")
    classify = ("half", "classify_x_to_y", "tensorflow/serving/classify")
    results = classification.multi_inference_response(half, multi_request(regress, classify), None)
    assert results[0].regression_result.regressions[0].value == 3
    assert results[1].classification_result.classifications[0].classes[0].score == 3
    ask = classification.multi_inference_response
    assert failure(ask, half, multi_request(regress, regress), None) == (
        "INVALID_ARGUMENT",
        "Duplicate evaluation of signature: regress_x_to_y",
    )
    assert failure(ask, half, multi_request(regress, ("other", *classify[1:])), None) == (
        "INVALID_ARGUMENT",
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
    )
    assert failure(ask, half, multi_request(("", *classify[1:])), None) == (
        "INVALID_ARGUMENT",
        "Found ModelSpec with an empty model name.",
    )
    assert failure(ask, half, multi_request(("half", "none", regress[2])), None) == (
        "INVALID_ARGUMENT",
        "Requested signature not found in model graph: none",
    )
    assert failure(ask, half, multi_request((*regress[:2], "tensorflow/serving/predict")), None) == (
        "UNIMPLEMENTED",
        "Unsupported signature method_name: tensorflow/serving/predict",
    )


def test_long_messages_are_truncated_to_1024_bytes(half):
    code, message = failure(prediction.predict_response, half, predict_request("s" * 2000, x=np.float32(1)), None)
    assert code == grpc.StatusCode.FAILED_PRECONDITION.name
    assert len(message) == 1024 and message.endswith("...TRUNCATED") and message.startswith("Serving signature key")
