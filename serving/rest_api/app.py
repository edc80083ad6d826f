"""Serve the REST API as an ASGI application.

Nothing slow runs on the event loop. Models run, and JSON is parsed and written, in --rest_api_num_threads threads.
Status, metadata and metrics have threads of their own, so that probes are answered however many requests are waiting.
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
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
# Value of the `runtime` label in tensorflow_model_server's metrics for models run in a session.
RUNTIME = "TF1"
QUERY_THREADS = 2


def application(
    models: "ModelManager",
    monitor: Monitor,
    admission: AdmissionControl,
    options: Options,
    extra_routes: Iterable[BaseRoute] = (),
) -> Starlette:
    """Return the application: extra_routes first, then the REST API and the metrics.

    Raises UserError if options.monitoring_config_file cannot be read.
    """
    api = Api(models, monitor, admission, options)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        api.close()

    return Starlette(routes=[*extra_routes, Route("/{path:path}", api)], lifespan=lifespan)


def metrics_path(options: Options) -> str:
    """Return the URL path of the metrics, empty if they are disabled; raises UserError."""
    if not options.monitoring_config_file:
        return ""
    config = protos.parse_text_proto(
        Path(options.monitoring_config_file), protos.MonitoringConfig, "tensorflow.serving.MonitoringConfig"
    ).prometheus_config
    return (config.path or METRICS_PATH) if config.enable else ""


class Exchange:
    """State of one request under /v1/, collected for its response, the log and the metrics.

    Attributes:
        started: Arrival of the request, in seconds of time.monotonic().
        timer: Seconds in the model.
        size: Size of the body in bytes, 0 before it was read.
        call: The parsed call, None if the path is malformed.
        disconnected: Set when the client disconnects.
    """

    def __init__(self, request: Request, receive: Receive):
        self.request, self.receive = request, receive
        self.started, self.timer, self.size = time.monotonic(), Timer(), 0
        self.call: Call | None = None
        self.disconnected = threading.Event()


class Api:
    """ASGI application for all paths under /v1/ and for the metrics; any other path is 404."""

    def __init__(self, models: "ModelManager", monitor: Monitor, admission: AdmissionControl, options: Options):
        self._models, self._monitor, self._admission, self._options = models, monitor, admission, options
        self._metrics_path = metrics_path(options)
        self._timeout = options.rest_api_timeout_in_ms / 1000
        self.intake = Intake(
            options.rest_api_num_threads + options.max_waiting_requests,
            options.rest_api_num_threads * options.max_request_bytes + options.max_waiting_bytes,
        )
        self._run_pool = ThreadPoolExecutor(options.rest_api_num_threads, "rest")
        self._query_pool = ThreadPoolExecutor(QUERY_THREADS, "rest-queries")

    def close(self) -> None:
        """Stop the threads, and cancel the requests that wait for one."""
        for pool in (self._run_pool, self._query_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        path = scope["raw_path"].decode("latin-1")
        if path == self._metrics_path and request.method == "GET":
            text = await asyncio.get_running_loop().run_in_executor(self._query_pool, self._monitor.text)
            response = Response(text, headers={"Content-Type": monitoring.CONTENT_TYPE})
        elif not path.lower().startswith("/v1/"):
            response = Response(status_code=404)
        elif request.method == "OPTIONS" and self._options.rest_api_enable_cors_support:
            response = Response(headers=CORS)
        else:
            response = await self._response(Exchange(request, receive), path)
        await response(scope, receive, send)

    async def _response(self, exchange: Exchange, path: str) -> Response:
        """Return the response to a request, with an error where it fails, and record the request."""
        failure = None
        try:
            exchange.call = calls.parse_call(exchange.request.method, path)
            runs_model = exchange.call.kind in calls.RUN_HANDLERS
            body = await (self._answer_run(exchange) if runs_model else self._answer_query(exchange))
        # An unexpected exception fails only its own request.
        except Exception as error:
            failure, body = self._failure(error), b""
        self._record(exchange, failure)
        if failure is not None:
            body = json.dumps({"error": failure.message}).encode()
        return Response(
            body,
            failure.http if failure else 200,
            media_type="application/json",
            headers=CORS if self._options.rest_api_enable_cors_support else {},
        )

    async def _answer_query(self, exchange: Exchange) -> bytes:
        handler = calls.QUERY_HANDLERS[exchange.call.kind]
        return await asyncio.get_running_loop().run_in_executor(
            self._query_pool, handler, self._models, exchange.call.spec
        )

    async def _answer_run(self, exchange: Exchange) -> bytes:
        """Read a request's body and run the call in a thread, unless the client disconnects first."""
        with self.intake.reserve() as reservation:
            chunks = await bodies.read(
                exchange.receive,
                exchange.request.headers.get("content-length"),
                reservation,
                self._options.max_request_bytes,
                self._timeout,
            )
            exchange.size = reservation.bytes
            job = asyncio.get_running_loop().run_in_executor(
                self._run_pool, self._run_call, exchange, chunks, time.monotonic() + self._timeout
            )
            # The only message after the body is that of a disconnect.
            disconnect = asyncio.ensure_future(exchange.receive())
            try:
                await asyncio.wait((job, disconnect), return_when=asyncio.FIRST_COMPLETED)
                if job.done():
                    return job.result()
                exchange.disconnected.set()
                raise bodies.disconnected()
            finally:
                job.cancel()
                disconnect.cancel()

    def _run_call(self, exchange: Exchange, chunks: list[bytes], deadline: float) -> bytes:
        call = exchange.call
        with self._admission.admit(exchange.size, deadline):
            if exchange.disconnected.is_set():
                raise bodies.disconnected()
            body = b"".join(chunks)
            chunks.clear()
            if "gzip" in exchange.request.headers.get("content-encoding", ""):
                body = calls.inflate(body, self._options.max_request_bytes)
            return calls.RUN_HANDLERS[call.kind](self._models, call.spec, body, deadline, exchange.timer)

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
        if call and call.kind in calls.RUN_HANDLERS:
            self._monitor.count_request(call.spec.name, code)
            if not failure:
                self._monitor.time_request(call.spec.name, call.kind, "REST", seconds)
                self._monitor.time_run(call.spec.name, call.kind, RUNTIME, exchange.timer.seconds)
        if not self._options.log_requests:
            return
        spec = call.spec if call else model_pb2.ModelSpec()
        fields = {
            "method": exchange.request.method,
            "path": exchange.request.scope["path"],
            "model": spec.name,
            "version": spec.version.value if spec.HasField("version") else None,
            "signature": spec.signature_name,
            "status": code,
            "milliseconds": round(1000 * seconds, 2),
            "bytes": exchange.size,
            "peer": ":".join(map(str, exchange.request.client or ())),
            "message": failure.message if failure else "",
        }
        logs.log_event(
            logging.INFO, "request", {key: value for key, value in fields.items() if value not in (None, "")}
        )
