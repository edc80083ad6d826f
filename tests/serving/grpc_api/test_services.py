"""The gRPC services as unchanged clients see them: the version that is meant, answers, metadata, states, reloading."""

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
from tests.helpers.grpc_requests import (FLOATS, SECONDS, is_well, picture, predict_request, refusal, states,
                                         status_request, until)


def test_the_newest_version_a_version_and_a_label(stubs):
    answer = stubs.predictions.Predict(predict_request("half", x=FLOATS), timeout=SECONDS)
    np.testing.assert_array_equal(answer.outputs["y"].float_val, [3.5, 4, 5.5])
    assert answer.model_spec == model_pb2.ModelSpec(
        name="half", version=wrappers_pb2.Int64Value(value=3), signature_name="serving_default")
    answer = stubs.predictions.Predict(predict_request("half", version=2, x=FLOATS), timeout=SECONDS)
    np.testing.assert_array_equal(answer.outputs["y"].float_val, [2.5, 3, 4.5])
    answer = stubs.predictions.Predict(predict_request("half", label="stable", x=FLOATS), timeout=SECONDS)
    assert answer.outputs["y"].float_val[0] == 2.5
    assert answer.model_spec.version.value == 2 and not answer.model_spec.version_label


def test_models_and_versions_that_are_not_there(stubs):
    call = stubs.predictions.Predict
    no_spec = predict_pb2.PredictRequest()
    assert refusal(call, no_spec) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    assert refusal(call, predict_request("", x=FLOATS)) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")
    assert refusal(call, predict_request("none", x=FLOATS)) == (
        "NOT_FOUND", "Servable not found for request: Latest(none)")
    assert refusal(call, predict_request("half", version=9, x=FLOATS)) == (
        "NOT_FOUND", "Servable not found for request: Specific(half, 9)")
    # Version 0 is version 0, and not the latest.
    assert refusal(call, predict_request("half", version=0, x=FLOATS)) == (
        "NOT_FOUND", "Servable not found for request: Specific(half, 0)")
    assert refusal(call, predict_request("half", label="canary", x=FLOATS)) == (
        "INVALID_ARGUMENT", "Unrecognized servable version label: canary")
    assert refusal(call, predict_request("none", label="stable", x=FLOATS)) == (
        "INVALID_ARGUMENT", "Unrecognized servable version label: stable")
    is_well(stubs)


def test_a_picture_becomes_its_classes(stubs):
    pixels, png = picture()
    answer = stubs.predictions.Predict(predict_request(
        "seg", "serving_default", image_bytes=np.array([png, picture(1, (5, 6, 3))[1]], object)), timeout=SECONDS)
    ids = cv2.imdecode(np.frombuffer(answer.outputs["png_bytes"].string_val[0], np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(ids, small_servables.ids_of(pixels))
    np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["size"]), [[9, 14], [5, 6]])
    tensor = stubs.predictions.Predict(predict_request("seg", "predict_tensor", image=pixels[None]), timeout=SECONDS)
    np.testing.assert_array_equal(tf.make_ndarray(tensor.outputs["class_map"])[0], small_servables.ids_of(pixels))
    assert tensor.outputs["class_map"].int_val and not tensor.outputs["class_map"].tensor_content


def test_the_signatures_of_a_model(stubs):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    assert refusal(stubs.predictions.GetModelMetadata, request) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    request.model_spec.name = "seg"
    answer = stubs.predictions.GetModelMetadata(request, timeout=SECONDS)
    assert answer.model_spec == model_pb2.ModelSpec(name="seg", version=wrappers_pb2.Int64Value(value=1))
    signatures = get_model_metadata_pb2.SignatureDefMap()
    answer.metadata["signature_def"].Unpack(signatures)
    assert {"serving_default", "predict_map", "predict_tensor", "predict_scores", "serve_tf_examples"} <= set(
        signatures.signature_def)
    assert set(signatures.signature_def["predict_scores"].outputs) == {"class_map", "confidence"}
    request.metadata_field[:] = ["other"]
    assert refusal(stubs.predictions.GetModelMetadata, request) == (
        "INVALID_ARGUMENT", "Metadata field other is not supported")
    request.metadata_field[:] = []
    assert refusal(stubs.predictions.GetModelMetadata, request) == (
        "INVALID_ARGUMENT", "GetModelMetadataRequest must specify at least one metadata_field")
    request.metadata_field[:] = ["signature_def"]
    request.model_spec.name = "none"
    assert refusal(stubs.predictions.GetModelMetadata, request) == (
        "NOT_FOUND", "Servable not found for request: Latest(none)")


def example(x):
    made = tf.train.Example()
    made.features.feature["x"].float_list.value.append(x)
    return made


def test_classify_regress_and_both(stubs):
    spec = model_pb2.ModelSpec(name="half", version=wrappers_pb2.Int64Value(value=2), signature_name="classify_x_to_y")
    request = classification_pb2.ClassificationRequest(model_spec=spec)
    request.input.example_list.examples.append(example(2))
    answer = stubs.predictions.Classify(request, timeout=SECONDS)
    assert answer.result.classifications[0].classes[0].score == 3 and answer.model_spec == spec
    regression = regression_pb2.RegressionRequest(model_spec=spec, input=request.input)
    regression.model_spec.signature_name = "regress_x_to_y"
    answer = stubs.predictions.Regress(regression, timeout=SECONDS)
    assert answer.result.regressions[0].value == 3 and answer.model_spec.signature_name == "regress_x_to_y"
    both = inference_pb2.MultiInferenceRequest(input=request.input)
    both.tasks.add(model_spec=spec, method_name="tensorflow/serving/classify")
    both.tasks.add(model_spec=regression.model_spec, method_name="tensorflow/serving/regress")
    results = stubs.predictions.MultiInference(both, timeout=SECONDS).results
    assert results[0].classification_result.classifications[0].classes[0].score == 3
    assert results[1].regression_result.regressions[0].value == 3
    assert [result.model_spec for result in results] == [spec, regression.model_spec]
    # What a segmentation answers, which has no such signature.
    request.model_spec.CopyFrom(model_pb2.ModelSpec(name="seg"))
    assert refusal(stubs.predictions.Classify, request)[0] == "INVALID_ARGUMENT"
    assert refusal(stubs.predictions.Regress, regression_pb2.RegressionRequest(
        model_spec=request.model_spec, input=request.input)) == ("INVALID_ARGUMENT", "Expected one output Tensor.")
    assert refusal(stubs.predictions.MultiInference, inference_pb2.MultiInferenceRequest()) == (
        "INVALID_ARGUMENT", "ModelSpec has no name specified.")


def test_the_state_of_versions(stubs):
    answer = stubs.models.GetModelStatus(status_request("half"), timeout=SECONDS)
    assert [(each.version, each.state, each.status.error_code) for each in answer.model_version_status] == [
        (3, 30, 0), (2, 30, 0)]
    answer = stubs.models.GetModelStatus(status_request("half", 2), timeout=SECONDS)
    assert [each.version for each in answer.model_version_status] == [2]
    assert refusal(stubs.models.GetModelStatus, status_request("half", 7)) == (
        "NOT_FOUND", "Could not find version 7 of model half")
    assert refusal(stubs.models.GetModelStatus, status_request("none")) == (
        "NOT_FOUND", "Could not find any versions of model none")
    assert refusal(stubs.models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest()) == (
        "INVALID_ARGUMENT", "Missing ModelSpec")


def reload_request(base, *entries):
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.SetInParent()
    for name, path in entries:
        request.config.model_config_list.config.add(name=name, base_path=str(path), model_platform="tensorflow")
    return request


def test_a_new_list_of_models_replaces_the_old(base):
    small_servables.half_plus_two(base / "one", 1)
    small_servables.half_plus_two(base / "two", 1, add=7.0)
    with running_servers.running(base / "one", "one") as server, running_servers.connected(server) as stubs:
        counter = "/tensorflow/serving/request_count"
        request = reload_request(base, ("two", base / "two"))
        request.metric_names.append(counter)
        answer = stubs.models.HandleReloadConfigRequest(request, timeout=SECONDS)
        assert answer.status.error_code == 0
        assert [(metric.name, metric.int64_value_increase) for metric in answer.metric] == [(counter, 0)]
        assert stubs.predictions.Predict(predict_request("two", x=FLOATS)).outputs["y"].float_val[0] == 7.5
        until(lambda: states(stubs, "one").get(1) != "AVAILABLE")
        assert refusal(stubs.predictions.Predict, predict_request("one", x=FLOATS)) == (
            "NOT_FOUND", "Servable not found for request: Latest(one)")
        assert refusal(stubs.models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest()) == (
            "INVALID_ARGUMENT", "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported")
        assert refusal(stubs.models.HandleReloadConfigRequest, reload_request(
            base, ("two", base / "two"), ("two", base / "one"))) == (
            "INVALID_ARGUMENT", "Illegal to list model two multiple times in config list")
        assert stubs.predictions.Predict(predict_request("two", x=FLOATS)).outputs["y"].float_val[0] == 7.5
