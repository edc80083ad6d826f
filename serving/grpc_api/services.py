"""The gRPC services: PredictionService, ModelService, health and reflection.

Predict responses are assembled as wire bytes in serving.core.prediction; all other messages use the official classes.
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

# tensorflow_model_server uses these names without the package.
HEALTH_NAMES = ("", "ModelService", "PredictionService")
# gRPC reports a remaining time of centuries for a request without a deadline.
MAX_REMAINING_SECONDS = 1e9
# The name of a TensorFlow session in tensorflow_model_server's metrics.
RUNTIME = "TF1"
PREDICTION_SERVICE, MODEL_SERVICE = (
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in ((prediction_service_pb2, "PredictionService"), (model_service_pb2, "ModelService"))
)
Result = TypeVar("Result")


class Backend(NamedTuple):
    """The objects that answer requests, shared with REST."""

    models: ModelManager
    monitor: Monitor
    admission: AdmissionControl


class Request:
    """One gRPC request, with the facts for its log line and metrics.

    Attributes:
        spec: The ModelSpec that chooses the model.
        version: The version that answers, None until it is known.
        run_seconds: The time in the model, None if it was not run.
    """

    def __init__(self, message: Message, size: int, context: grpc.ServicerContext):
        self.message, self.size, self.context = message, size, context
        remaining = context.time_remaining()
        self.deadline = time.monotonic() + remaining if remaining < MAX_REMAINING_SECONDS else None
        self.started = time.monotonic()
        self.spec = model_pb2.ModelSpec()
        self.version: int | None = None
        self.run_seconds: float | None = None


class Method(NamedTuple):
    """A gRPC method.

    Attributes:
        message: The class of its requests.
        respond: Returns the response as wire bytes.
        api: Its name in the metrics; empty if it is not counted.
    """

    message: type[Message]
    respond: Callable[[Backend, Request], bytes]
    api: str


def handlers(backend: Backend, as_content: bool, log_requests: bool) -> list[grpc.GenericRpcHandler]:
    """Return the handlers of PredictionService and ModelService.

    `as_content`: Predict returns numbers as tensor_content.
    """
    methods = {
        PREDICTION_SERVICE: {
            "Predict": Method(predict_pb2.PredictRequest, _make_predict(as_content), "Predict"),
            "Classify": Method(classification_pb2.ClassificationRequest, _classify, "Classify"),
            "Regress": Method(regression_pb2.RegressionRequest, _regress, "Regress"),
            "MultiInference": Method(inference_pb2.MultiInferenceRequest, _multi_inference, "MultiInference"),
            "GetModelMetadata": Method(get_model_metadata_pb2.GetModelMetadataRequest, _metadata, ""),
        },
        MODEL_SERVICE: {
            "GetModelStatus": Method(get_model_status_pb2.GetModelStatusRequest, _status, ""),
            "HandleReloadConfigRequest": Method(model_management_pb2.ReloadConfigRequest, _reload, ""),
        },
    }
    return [
        grpc.method_handlers_generic_handler(
            service, {name: _handler(name, method, backend, log_requests) for name, method in by_name.items()}
        )
        for service, by_name in methods.items()
    ]


def add_health(server: grpc.Server) -> health.HealthServicer:
    """Add grpc.health.v1 with the status SERVING for HEALTH_NAMES and return it."""
    servicer = health.HealthServicer()
    for name in HEALTH_NAMES:
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


def add_reflection(server: grpc.Server, with_health: bool) -> None:
    """Add reflection, which gives the protos to clients that lack them."""
    names = [PREDICTION_SERVICE, MODEL_SERVICE, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names + [health.SERVICE_NAME] * with_health, server)


def _handler(name: str, method: Method, backend: Backend, log_requests: bool) -> grpc.RpcMethodHandler:
    def read(data: bytes) -> tuple[Message, int]:
        return method.message.FromString(data), len(data)

    def respond(message_and_size: tuple[Message, int], context: grpc.ServicerContext) -> bytes:
        request = Request(*message_and_size, context)
        failure = None
        try:
            return method.respond(backend, request)
        # One request's failure must not affect another request.
        except Exception as error:
            failure = from_exception(error)
        finally:
            _record(name, method, backend, request, failure, log_requests)
        context.abort(failure.code, failure.message)

    return grpc.unary_unary_rpc_method_handler(respond, request_deserializer=read)


def _record(
    name: str, method: Method, backend: Backend, request: Request, failure: ServingError | None, log_requests: bool
) -> None:
    """Count, time and log a finished request."""
    seconds = time.monotonic() - request.started
    status = failure.code.name if failure else "OK"
    model = request.spec.name
    if method.api:
        backend.monitor.count_request(model, status)
        if not failure:
            backend.monitor.time_request(model, method.api, "GRPC", seconds)
            if request.run_seconds is not None:
                backend.monitor.time_run(model, method.api, RUNTIME, request.run_seconds)
    bug = failure.bug if failure else None
    if not (log_requests or bug):
        return
    # Methods without an API name do not use a signature.
    signature = prediction.signature_name(request.spec) if method.api else ""
    fields = {
        "method": name,
        "model": model,
        "version": request.version,
        "signature": signature,
        "status": status,
        "milliseconds": round(1000 * seconds, 2),
        "bytes": request.size,
        "peer": request.context.peer(),
    }
    if failure:
        fields["message"] = failure.message
    logs.log_event(
        logging.ERROR if bug else logging.INFO,
        "request",
        {key: value for key, value in fields.items() if value not in (None, "")},
        bug,
    )


@contextmanager
def _servable(backend: Backend, request: Request) -> Iterator[Handle]:
    """Hold a slot to run, then the version that the request chooses."""
    with backend.admission.admit(request.size, request.deadline):
        if not request.context.is_active():
            raise ServingError(grpc.StatusCode.CANCELLED, "The client disconnected before its request ran")
        with backend.models.use(request.spec) as handle:
            request.version = handle.version
            yield handle


def _make_predict(as_content: bool) -> Callable[[Backend, Request], bytes]:
    def predict(backend: Backend, request: Request) -> bytes:
        message = request.message
        request.spec = prediction.servable_spec(message)
        with _servable(backend, request) as handle:
            signature = prediction.signature_name(request.spec)
            inputs = prediction.input_arrays(handle.model, message)
            outputs = _timed(
                request,
                lambda: prediction.predict_arrays(
                    handle.model, signature, inputs, message.output_filter, request.deadline
                ),
            )
            return prediction.response_bytes(handle.name, signature, handle.version, outputs, as_content)

    return predict


def _classify(backend: Backend, request: Request) -> bytes:
    request.spec = prediction.servable_spec(request.message)
    with _servable(backend, request) as handle:
        result = _timed(
            request, lambda: classification.classify_response(handle.model, request.message, request.deadline)
        )
        return classification_pb2.ClassificationResponse(
            result=result, model_spec=_resolved(request.spec, handle.version)
        ).SerializeToString()


def _regress(backend: Backend, request: Request) -> bytes:
    request.spec = prediction.servable_spec(request.message)
    with _servable(backend, request) as handle:
        result = _timed(
            request, lambda: classification.regress_response(handle.model, request.message, request.deadline)
        )
        return regression_pb2.RegressionResponse(
            result=result, model_spec=_resolved(request.spec, handle.version)
        ).SerializeToString()


def _multi_inference(backend: Backend, request: Request) -> bytes:
    tasks = request.message.tasks
    # Without tasks the model has no name, and choosing its version raises the error.
    request.spec = tasks[0].model_spec if tasks else model_pb2.ModelSpec()
    with _servable(backend, request) as handle:
        results = _timed(
            request, lambda: classification.multi_inference_response(handle.model, request.message, request.deadline)
        )
        for result, task in zip(results, tasks, strict=True):
            result.model_spec.CopyFrom(_resolved(task.model_spec, handle.version))
        return inference_pb2.MultiInferenceResponse(results=results).SerializeToString()


def _metadata(backend: Backend, request: Request) -> bytes:
    request.spec = prediction.servable_spec(request.message)
    prediction.check_metadata_request(request.message)
    with backend.models.use(request.spec) as handle:
        request.version = handle.version
        return prediction.metadata_response(handle, request.message).SerializeToString()


def _status(backend: Backend, request: Request) -> bytes:
    request.spec = prediction.servable_spec(request.message)
    response = get_model_status_pb2.GetModelStatusResponse()
    for status in backend.models.statuses(request.spec):
        response.model_version_status.add(
            version=status.version,
            state=status.state,
            status=status_pb2.StatusProto(error_code=status.code.value[0], error_message=status.message),
        )
    return response.SerializeToString()


def _reload(backend: Backend, request: Request) -> bytes:
    config = request.message.config
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is "
            "currently supported"
        )
    names = request.message.metric_names
    before = {name: backend.monitor.count_metric(name) for name in names}
    backend.models.reload(config, request.deadline)
    response = model_management_pb2.ReloadConfigResponse(status=status_pb2.StatusProto())
    for name in names:
        response.metric.add(name=name, int64_value_increase=backend.monitor.count_metric(name) - before[name])
    return response.SerializeToString()


def _timed(request: Request, run: Callable[[], Result]) -> Result:
    """Call `run`, note its duration in the request and return its result."""
    started = time.monotonic()
    result = run()
    request.run_seconds = time.monotonic() - started
    return result


def _resolved(spec: model_pb2.ModelSpec, version: int) -> model_pb2.ModelSpec:
    """Return the ModelSpec of a response: the chosen signature and version, without a label."""
    resolved = model_pb2.ModelSpec(name=spec.name, signature_name=prediction.signature_name(spec))
    resolved.version.value = version
    return resolved
