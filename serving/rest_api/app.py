"""The REST API as an ASGI application: bodies in, JSON out, nothing that takes time on the event loop.

Reading JSON, running models and writing JSON go on in --rest_api_num_threads threads, status, metadata and metrics in
others, so that probes are answered however many requests wait.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send
from tensorflow_serving.apis import model_pb2

from serving.config import protos
from serving.config.flags import Options
from serving.core.admission import AdmissionControl
from serving.errors import from_exception, invalid
from serving.rest_api import bodies, calls
from serving.rest_api.bodies import Intake, RestFailure
from serving.rest_api.calls import Call, Timer, TooLarge
from serving.telemetry import logs, monitoring
from serving.telemetry.monitoring import Monitor

if TYPE_CHECKING:
    from serving.core.manager import ModelManager

METRICS_PATH = "/monitoring/prometheus/metrics"
CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "POST, GET",
        "Access-Control-Allow-Headers": "Content-Type"}
# What runs the models, as tensorflow_model_server's metrics call a session.
RUNTIME = "TF1"
QUESTION_THREADS = 2


def application(models: "ModelManager", monitor: Monitor, admission: AdmissionControl, options: Options,
                extra_routes: Iterable[BaseRoute] = ()) -> Starlette:
    """Return the application: extra_routes first, then the REST API and the metrics.

    Raises UserError where options.monitoring_config_file cannot be read.
    """
    api = Api(models, monitor, admission, options)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        api.close()

    return Starlette(routes=[*extra_routes, Route("/{path:path}", api)], lifespan=lifespan)


def metrics_path(options: Options) -> str:
    """Return the path of the metrics, empty where there are none; raises UserError."""
    if not options.monitoring_config_file:
        return ""
    config = protos.parse_text_proto(Path(options.monitoring_config_file), protos.MonitoringConfig,
                                     "tensorflow.serving.MonitoringConfig").prometheus_config
    return (config.path or METRICS_PATH) if config.enable else ""


class Exchange:
    """One request under /v1/, and what becomes known of it for its answer, the log and the metrics."""

    def __init__(self, request: Request, receive: Receive):
        self.request, self.receive = request, receive
        self.started, self.timer, self.size = time.monotonic(), Timer(), 0
        self.call: Call | None = None
        self.gone = threading.Event()


class Api:
    """The ASGI application of every path under /v1/ and of the metrics; all others are not found."""

    def __init__(self, models: "ModelManager", monitor: Monitor, admission: AdmissionControl, options: Options):
        self._models, self._monitor, self._admission, self._options = models, monitor, admission, options
        self._metrics_path = metrics_path(options)
        self._seconds = options.rest_api_timeout_in_ms / 1000
        self.intake = Intake(options.rest_api_num_threads + options.max_waiting_requests,
                             options.rest_api_num_threads * options.max_request_bytes + options.max_waiting_bytes)
        self._runners = ThreadPoolExecutor(options.rest_api_num_threads, "rest")
        self._answerers = ThreadPoolExecutor(QUESTION_THREADS, "rest-questions")

    def close(self) -> None:
        """End the threads; what waits for one is given up."""
        for pool in (self._runners, self._answerers):
            pool.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        path = scope["raw_path"].decode("latin-1")
        if path == self._metrics_path and request.method == "GET":
            page = await asyncio.get_running_loop().run_in_executor(self._answerers, self._monitor.text)
            response = Response(page, headers={"Content-Type": monitoring.CONTENT_TYPE})
        elif not path.lower().startswith("/v1/"):
            response = Response(status_code=404)
        elif request.method == "OPTIONS" and self._options.rest_api_enable_cors_support:
            response = Response(headers=CORS)
        else:
            response = await self._response(Exchange(request, receive), path)
        await response(scope, receive, send)

    async def _response(self, exchange: Exchange, path: str) -> Response:
        """Answer a request, whatever becomes of it, and record it."""
        failure = None
        try:
            exchange.call = calls.parse_call(exchange.request.method, path)
            body = await (self._run(exchange) if exchange.call.kind in calls.RUNS else self._question(exchange))
        # One request's failure shall be that request's alone.
        except Exception as error:
            failure, body = self._failure(error), b""
        self._record(exchange, failure)
        if failure is not None:
            body = json.dumps({"error": failure.message}).encode()
        return Response(body, failure.http if failure else 200, media_type="application/json",
                        headers=CORS if self._options.rest_api_enable_cors_support else {})

    async def _question(self, exchange: Exchange) -> bytes:
        answer = calls.QUESTIONS[exchange.call.kind]
        return await asyncio.get_running_loop().run_in_executor(
            self._answerers, answer, self._models, exchange.call.spec)

    async def _run(self, exchange: Exchange) -> bytes:
        """Take a request's body and answer it in a thread, unless its client hangs up while it waits for one."""
        with self.intake.place() as place:
            parts = await bodies.read(exchange.receive, exchange.request.headers.get("content-length"), place,
                                      self._options.max_request_bytes, self._seconds)
            exchange.size = place.bytes
            job = asyncio.get_running_loop().run_in_executor(
                self._runners, self._work, exchange, parts, time.monotonic() + self._seconds)
            # After the body nothing else comes.
            end = asyncio.ensure_future(exchange.receive())
            try:
                await asyncio.wait((job, end), return_when=asyncio.FIRST_COMPLETED)
                if job.done():
                    return job.result()
                exchange.gone.set()
                raise bodies.hung_up()
            finally:
                job.cancel()
                end.cancel()

    def _work(self, exchange: Exchange, parts: list[bytes], deadline: float) -> bytes:
        call = exchange.call
        with self._admission.admit(exchange.size, deadline):
            if exchange.gone.is_set():
                raise bodies.hung_up()
            body = b"".join(parts)
            parts.clear()
            if "gzip" in exchange.request.headers.get("content-encoding", ""):
                body = calls.inflate(body, self._options.max_request_bytes)
            return calls.RUNS[call.kind](self._models, call.spec, body, deadline, exchange.timer)

    def _failure(self, error: Exception) -> RestFailure:
        """Return the failure that answers an exception, and log the traceback of a bug."""
        match error:
            case RestFailure():
                return error
            case TooLarge():
                return bodies.too_large(self._options.max_request_bytes)
            # JSON can write half a surrogate pair, and UTF-8 cannot.
            case UnicodeEncodeError():
                failure = invalid("JSON Parse error: The surrogate pair in string is invalid.")
            case _:
                failure = from_exception(error)
        if failure.bug:
            logs.log_event(logging.ERROR, "request failed", {}, failure.bug)
        return RestFailure(failure.http, failure.code.name, failure.message)

    def _record(self, exchange: Exchange, failure: RestFailure | None) -> None:
        """Count, time and log a request."""
        seconds = time.monotonic() - exchange.started
        code, call = failure.code if failure else "OK", exchange.call
        if call and call.kind in calls.RUNS:
            self._monitor.count_request(call.spec.name, code)
            if not failure:
                self._monitor.time_request(call.spec.name, call.kind, "REST", seconds)
                self._monitor.time_run(call.spec.name, call.kind, RUNTIME, exchange.timer.seconds)
        if not self._options.log_requests:
            return
        spec = call.spec if call else model_pb2.ModelSpec()
        fields = {"method": exchange.request.method, "path": exchange.request.scope["path"], "model": spec.name,
                  "version": spec.version.value if spec.HasField("version") else None,
                  "signature": spec.signature_name, "status": code, "milliseconds": round(1000 * seconds, 2),
                  "bytes": exchange.size,
                  "peer": ":".join(map(str, exchange.request.client or ())),
                  "message": failure.message if failure else ""}
        logs.log_event(logging.INFO, "request", {key: value for key,
                       value in fields.items() if value not in (None, "")})
