"""The gRPC services over the models: PredictionService, ModelService, health, reflection.

Predict is answered in wire bytes made by hand; the other messages are the official stubs'.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2,
    predict_pb2,
    prediction_service_pb2,
    regression_pb2,
    status_pb2,
)

from serving.core import classification, prediction
from serving.core.admission import AdmissionControl
from serving.core.manager import Handle, ModelManager
from serving.errors import ServingError, from_exception, invalid
from serving.telemetry import logs
from serving.telemetry.monitoring import Monitor

# tensorflow_model_server's own names of them, without the package.
HEALTH_NAMES = ("", "ModelService", "PredictionService")
# gRPC tells of a request without a deadline that it has centuries left.
LONGEST = 1e9
# What runs the models, as tensorflow_model_server's metrics call a session.
RUNTIME = "TF1"
PREDICTION_SERVICE, MODEL_SERVICE = (
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in ((prediction_service_pb2, "PredictionService"), (model_service_pb2, "ModelService")))
Answer = TypeVar("Answer")


class Backend(NamedTuple):
    """What answers requests, shared with REST."""

    models: ModelManager
    monitor: Monitor
    admission: AdmissionControl


class Request:
    """One request: its message and bytes, and what becomes known of it for the log and the metrics."""

    def __init__(self, message: Message, size: int, context: grpc.ServicerContext):
        self.message, self.size, self.context = message, size, context
        remaining = context.time_remaining()
        self.deadline = time.monotonic() + remaining if remaining < LONGEST else None
        self.started = time.monotonic()
        self.spec = model_pb2.ModelSpec()
        self.version: int | None = None
        # Seconds in the model, where it was run.
        self.ran: float | None = None


class Method(NamedTuple):
    """A method: its message class, what answers it in bytes, and the name in the metrics (none: not counted)."""

    message: type[Message]
    answer: Callable[[Backend, Request], bytes]
    api: str


def handlers(parts: Backend, as_content: bool, log_requests: bool) -> list[grpc.GenericRpcHandler]:
    """Return PredictionService and ModelService; `as_content`: Predict answers in tensor_content."""
    methods = {
        PREDICTION_SERVICE: {
            "Predict": Method(predict_pb2.PredictRequest, _predict_as(as_content), "Predict"),
            "Classify": Method(classification_pb2.ClassificationRequest, _classify, "Classify"),
            "Regress": Method(regression_pb2.RegressionRequest, _regress, "Regress"),
            "MultiInference": Method(inference_pb2.MultiInferenceRequest, _multi_inference, "MultiInference"),
            "GetModelMetadata": Method(get_model_metadata_pb2.GetModelMetadataRequest, _metadata, "")},
        MODEL_SERVICE: {
            "GetModelStatus": Method(get_model_status_pb2.GetModelStatusRequest, _status, ""),
            "HandleReloadConfigRequest": Method(model_management_pb2.ReloadConfigRequest, _reload, "")}}
    return [grpc.method_handlers_generic_handler(service, {
        name: _handler(name, method, parts, log_requests) for name, method in named.items()})
        for service, named in methods.items()]


def add_health(server: grpc.Server) -> health.HealthServicer:
    """Add grpc.health.v1, SERVING under HEALTH_NAMES, and return it for the end of that."""
    servicer = health.HealthServicer()
    for name in HEALTH_NAMES:
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


def add_reflection(server: grpc.Server, with_health: bool) -> None:
    """Let clients without the protos ask for them."""
    names = [PREDICTION_SERVICE, MODEL_SERVICE, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names + [health.SERVICE_NAME] * with_health, server)


def _handler(name: str, method: Method, parts: Backend, log_requests: bool) -> grpc.RpcMethodHandler:
    def read(data: bytes) -> tuple[Message, int]:
        return method.message.FromString(data), len(data)

    def answer(message_and_size: tuple[Message, int], context: grpc.ServicerContext) -> bytes:
        request = Request(*message_and_size, context)
        failure = None
        try:
            return method.answer(parts, request)
        # One request's failure must not affect another request.
        except Exception as error:
            failure = from_exception(error)
        finally:
            _record(name, method, parts, request, failure, log_requests)
        context.abort(failure.code, failure.message)

    return grpc.unary_unary_rpc_method_handler(answer, request_deserializer=read)


def _record(name: str, method: Method, parts: Backend, request: Request, failure: ServingError | None,
            log_requests: bool) -> None:
    """Count, time and log a request."""
    seconds = time.monotonic() - request.started
    status = failure.code.name if failure else "OK"
    model = request.spec.name
    if method.api:
        parts.monitor.count_request(model, status)
        if not failure:
            parts.monitor.time_request(model, method.api, "GRPC", seconds)
            if request.ran is not None:
                parts.monitor.time_run(model, method.api, RUNTIME, request.ran)
    bug = failure.bug if failure else None
    if not (log_requests or bug):
        return
    # Those of no api ask for no signature.
    signature = prediction.signature_name(request.spec) if method.api else ""
    fields = {"method": name, "model": model, "version": request.version, "signature": signature,
              "status": status, "milliseconds": round(1000 * seconds, 2), "bytes": request.size,
              "peer": request.context.peer()}
    if failure:
        fields["message"] = failure.message
    logs.log_event(logging.ERROR if bug else logging.INFO, "request",
                   {key: value for key, value in fields.items() if value not in (None, "")}, bug)


@contextmanager
def _servable(parts: Backend, request: Request) -> Iterator[Handle]:
    """Hold a place to run, then the version that the request means."""
    with parts.admission.admit(request.size, request.deadline):
        if not request.context.is_active():
            raise ServingError(grpc.StatusCode.CANCELLED, "The client hung up before its turn")
        with parts.models.use(request.spec) as handle:
            request.version = handle.version
            yield handle


def _predict_as(as_content: bool) -> Callable[[Backend, Request], bytes]:
    def predict(parts: Backend, request: Request) -> bytes:
        message = request.message
        request.spec = prediction.servable_spec(message)
        with _servable(parts, request) as handle:
            signature = prediction.signature_name(request.spec)
            inputs = prediction.input_arrays(handle.model, message)
            outputs = _timed(request, lambda: prediction.predict_arrays(
                handle.model, signature, inputs, message.output_filter, request.deadline))
            return prediction.response_bytes(handle.name, signature, handle.version, outputs, as_content)

    return predict


def _classify(parts: Backend, request: Request) -> bytes:
    request.spec = prediction.servable_spec(request.message)
    with _servable(parts, request) as handle:
        result = _timed(request, lambda: classification.classify_response(
            handle.model, request.message, request.deadline))
        return classification_pb2.ClassificationResponse(
            result=result, model_spec=_resolved(request.spec, handle.version)).SerializeToString()


def _regress(parts: Backend, request: Request) -> bytes:
    request.spec = prediction.servable_spec(request.message)
    with _servable(parts, request) as handle:
        result = _timed(request, lambda: classification.regress_response(
            handle.model, request.message, request.deadline))
        return regression_pb2.RegressionResponse(
            result=result, model_spec=_resolved(request.spec, handle.version)).SerializeToString()


def _multi_inference(parts: Backend, request: Request) -> bytes:
    tasks = request.message.tasks
    # Without tasks there is no name, which choosing the version complains of.
    request.spec = tasks[0].model_spec if tasks else model_pb2.ModelSpec()
    with _servable(parts, request) as handle:
        results = _timed(request, lambda: classification.multi_inference_response(
            handle.model, request.message, request.deadline))
        for result, task in zip(results, tasks, strict=True):
            result.model_spec.CopyFrom(_resolved(task.model_spec, handle.version))
        return inference_pb2.MultiInferenceResponse(results=results).SerializeToString()


def _metadata(parts: Backend, request: Request) -> bytes:
    request.spec = prediction.servable_spec(request.message)
    prediction.check_metadata_request(request.message)
    with parts.models.use(request.spec) as handle:
        request.version = handle.version
        return prediction.metadata_response(handle, request.message).SerializeToString()


def _status(parts: Backend, request: Request) -> bytes:
    request.spec = prediction.servable_spec(request.message)
    response = get_model_status_pb2.GetModelStatusResponse()
    for status in parts.models.statuses(request.spec):
        response.model_version_status.add(
            version=status.version, state=status.state,
            status=status_pb2.StatusProto(error_code=status.code.value[0], error_message=status.message))
    return response.SerializeToString()


def _reload(parts: Backend, request: Request) -> bytes:
    config = request.message.config
    if config.WhichOneof("config") != "model_config_list":
        raise invalid("ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is "
                      "currently supported")
    names = request.message.metric_names
    before = {name: parts.monitor.count_metric(name) for name in names}
    parts.models.reload(config, request.deadline)
    response = model_management_pb2.ReloadConfigResponse(status=status_pb2.StatusProto())
    for name in names:
        response.metric.add(name=name, int64_value_increase=parts.monitor.count_metric(name) - before[name])
    return response.SerializeToString()


def _timed(request: Request, run: Callable[[], Answer]) -> Answer:
    started = time.monotonic()
    answer = run()
    request.ran = time.monotonic() - started
    return answer


def _resolved(spec: model_pb2.ModelSpec, version: int) -> model_pb2.ModelSpec:
    """Return what an answer says of its model: the signature and version that were meant, and no label."""
    resolved = model_pb2.ModelSpec(name=spec.name, signature_name=prediction.signature_name(spec))
    resolved.version.value = version
    return resolved
