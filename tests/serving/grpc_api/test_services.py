"""The gRPC services: chosen versions, responses, metadata, statuses and reloads."""

import cv2
import numpy as np
import tensorflow as tf
from google.protobuf import wrappers_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from tests.helpers import running_servers, small_servables
from tests.helpers.grpc_requests import (
    FLOATS,
    SECONDS,
    assert_healthy,
    predict_request,
    random_image,
    refusal,
    states,
    status_request,
    until,
)


def test_requests_choose_the_newest_version_a_version_or_a_label(stubs):
    response = stubs.predictions.Predict(predict_request("half", x=FLOATS), timeout=SECONDS)
    np.testing.assert_array_equal(response.outputs["y"].float_val, [3.5, 4, 5.5])
    assert response.model_spec == model_pb2.ModelSpec(
        name="half", version=wrappers_pb2.Int64Value(value=3), signature_name="serving_default"
    )
    response = stubs.predictions.Predict(predict_request("half", version=2, x=FLOATS), timeout=SECONDS)
    np.testing.assert_array_equal(response.outputs["y"].float_val, [2.5, 3, 4.5])
    response = stubs.predictions.Predict(predict_request("half", label="stable", x=FLOATS), timeout=SECONDS)
    assert response.outputs["y"].float_val[0] == 2.5
    assert response.model_spec.version.value == 2 and not response.model_spec.version_label


def test_unknown_models_and_versions_are_refused(stubs):
    call = stubs.predictions.Predict
    no_spec = predict_pb2.PredictRequest()
    assert refusal(call, no_spec) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    assert refusal(call, predict_request("", x=FLOATS)) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")
    assert refusal(call, predict_request("none", x=FLOATS)) == (
        "NOT_FOUND",
        "Servable not found for request: Latest(none)",
    )
    assert refusal(call, predict_request("half", version=9, x=FLOATS)) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(half, 9)",
    )
    # Version 0 does not mean the latest version.
    assert refusal(call, predict_request("half", version=0, x=FLOATS)) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(half, 0)",
    )
    assert refusal(call, predict_request("half", label="canary", x=FLOATS)) == (
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: canary",
    )
    assert refusal(call, predict_request("none", label="stable", x=FLOATS)) == (
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: stable",
    )
    assert_healthy(stubs)


def test_images_are_segmented(stubs):
    pixels, png = random_image()
    response = stubs.predictions.Predict(
        predict_request("seg", "serving_default", image_bytes=np.array([png, random_image(1, (5, 6, 3))[1]], object)),
        timeout=SECONDS,
    )
    ids = cv2.imdecode(np.frombuffer(response.outputs["png_bytes"].string_val[0], np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(ids, small_servables.ids_of(pixels))
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["size"]), [[9, 14], [5, 6]])
    tensor = stubs.predictions.Predict(predict_request("seg", "predict_tensor", image=pixels[None]), timeout=SECONDS)
    np.testing.assert_array_equal(tf.make_ndarray(tensor.outputs["class_map"])[0], small_servables.ids_of(pixels))
    assert tensor.outputs["class_map"].int_val and not tensor.outputs["class_map"].tensor_content


def test_the_metadata_contains_the_signatures(stubs):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    assert refusal(stubs.predictions.GetModelMetadata, request) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    request.model_spec.name = "seg"
    response = stubs.predictions.GetModelMetadata(request, timeout=SECONDS)
    assert response.model_spec == model_pb2.ModelSpec(name="seg", version=wrappers_pb2.Int64Value(value=1))
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    assert {"serving_default", "predict_map", "predict_tensor", "predict_scores", "serve_tf_examples"} <= set(
        signatures.signature_def
    )
    assert set(signatures.signature_def["predict_scores"].outputs) == {"class_map", "confidence"}
    request.metadata_field[:] = ["other"]
    assert refusal(stubs.predictions.GetModelMetadata, request) == (
        "INVALID_ARGUMENT",
        "Metadata field other is not supported",
    )
    request.metadata_field[:] = []
    assert refusal(stubs.predictions.GetModelMetadata, request) == (
        "INVALID_ARGUMENT",
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    request.metadata_field[:] = ["signature_def"]
    request.model_spec.name = "none"
    assert refusal(stubs.predictions.GetModelMetadata, request) == (
        "NOT_FOUND",
        "Servable not found for request: Latest(none)",
    )


def example(x):
    made = tf.train.Example()
    made.features.feature["x"].float_list.value.append(x)
    return made


def test_classify_regress_and_multi_inference(stubs):
    spec = model_pb2.ModelSpec(name="half", version=wrappers_pb2.Int64Value(value=2), signature_name="classify_x_to_y")
    request = classification_pb2.ClassificationRequest(model_spec=spec)
    request.input.example_list.examples.append(example(2))
    response = stubs.predictions.Classify(request, timeout=SECONDS)
    assert response.result.classifications[0].classes[0].score == 3 and response.model_spec == spec
    regression = regression_pb2.RegressionRequest(model_spec=spec, input=request.input)
    regression.model_spec.signature_name = "regress_x_to_y"
    response = stubs.predictions.Regress(regression, timeout=SECONDS)
    assert response.result.regressions[0].value == 3 and response.model_spec.signature_name == "regress_x_to_y"
    both = inference_pb2.MultiInferenceRequest(input=request.input)
    both.tasks.add(model_spec=spec, method_name="tensorflow/serving/classify")
    both.tasks.add(model_spec=regression.model_spec, method_name="tensorflow/serving/regress")
    results = stubs.predictions.MultiInference(both, timeout=SECONDS).results
    assert results[0].classification_result.classifications[0].classes[0].score == 3
    assert results[1].regression_result.regressions[0].value == 3
    assert [result.model_spec for result in results] == [spec, regression.model_spec]
    # The segmentation has no such signatures.
    request.model_spec.CopyFrom(model_pb2.ModelSpec(name="seg"))
    assert refusal(stubs.predictions.Classify, request)[0] == "INVALID_ARGUMENT"
    assert refusal(
        stubs.predictions.Regress, regression_pb2.RegressionRequest(model_spec=request.model_spec, input=request.input)
    ) == ("INVALID_ARGUMENT", "Expected one output Tensor.")
    assert refusal(stubs.predictions.MultiInference, inference_pb2.MultiInferenceRequest()) == (
        "INVALID_ARGUMENT",
        "ModelSpec has no name specified.",
    )


def test_the_status_of_versions(stubs):
    response = stubs.models.GetModelStatus(status_request("half"), timeout=SECONDS)
    assert [(status.version, status.state, status.status.error_code) for status in response.model_version_status] == [
        (3, 30, 0),
        (2, 30, 0),
    ]
    response = stubs.models.GetModelStatus(status_request("half", 2), timeout=SECONDS)
    assert [status.version for status in response.model_version_status] == [2]
    assert refusal(stubs.models.GetModelStatus, status_request("half", 7)) == (
        "NOT_FOUND",
        "Could not find version 7 of model half",
    )
    assert refusal(stubs.models.GetModelStatus, status_request("none")) == (
        "NOT_FOUND",
        "Could not find any versions of model none",
    )
    assert refusal(stubs.models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest()) == (
        "INVALID_ARGUMENT",
        "Missing ModelSpec",
    )


def reload_request(base, *entries):
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.SetInParent()
    for name, path in entries:
        request.config.model_config_list.config.add(name=name, base_path=str(path), model_platform="tensorflow")
    return request


def test_a_reload_replaces_the_list_of_models(base):
    small_servables.half_plus_two(base / "one", 1)
    small_servables.half_plus_two(base / "two", 1, add=7.0)
    with running_servers.running(base / "one", "one") as server, running_servers.connected(server) as stubs:
        counter = "/tensorflow/serving/request_count"
        request = reload_request(base, ("two", base / "two"))
        request.metric_names.append(counter)
        response = stubs.models.HandleReloadConfigRequest(request, timeout=SECONDS)
        assert response.status.error_code == 0
        assert [(metric.name, metric.int64_value_increase) for metric in response.metric] == [(counter, 0)]
        assert stubs.predictions.Predict(predict_request("two", x=FLOATS)).outputs["y"].float_val[0] == 7.5
        until(lambda: states(stubs, "one").get(1) != "AVAILABLE")
        assert refusal(stubs.predictions.Predict, predict_request("one", x=FLOATS)) == (
            "NOT_FOUND",
            "Servable not found for request: Latest(one)",
        )
        assert refusal(stubs.models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest()) == (
            "INVALID_ARGUMENT",
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported",
        )
        assert refusal(
            stubs.models.HandleReloadConfigRequest, reload_request(base, ("two", base / "two"), ("two", base / "one"))
        ) == ("INVALID_ARGUMENT", "Illegal to list model two multiple times in config list")
        assert stubs.predictions.Predict(predict_request("two", x=FLOATS)).outputs["y"].float_val[0] == 7.5
