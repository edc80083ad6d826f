"""Plain HTTP clients, and models that do what a test tells them, for the tests of the REST API."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
from starlette.applications import Starlette
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.config.flags import Options
from serving.core.admission import AdmissionControl
from serving.core.manager import Handle
from serving.listeners import Rest
from serving.rest_api import app
from serving.telemetry.monitoring import Monitor


class Client:
    """One connection, kept open from request to request."""

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body=None, headers: dict | None = None) -> tuple[int, bytes]:
        """Return the answer's status and body; a body that is no bytes is sent as JSON, an iterator in chunks."""
        sent = body if body is None or isinstance(body, bytes) or hasattr(body, "__next__") else json.dumps(body)
        self.connection.request(method, path, sent, headers or {})
        response = self.connection.getresponse()
        self.headers = response.headers
        return response.status, response.read()

    def post(self, path: str, body) -> tuple[int, dict]:
        """Return the status and the JSON of an answer to JSON."""
        status, answer = self.ask("POST", path, body)
        assert self.headers["Content-Type"] == "application/json"
        return status, json.loads(answer)


class Slow:
    """A model of y = 2 x whose runs begin, and then wait until `go` is set."""

    def __init__(self):
        self.signatures = {"serving_default": meta_graph_pb2.SignatureDef()}
        self.signatures["serving_default"].inputs["x"].dtype = types_pb2.DT_FLOAT
        self.signatures["serving_default"].outputs["y"].dtype = types_pb2.DT_FLOAT
        self.go, self.begun, self.runs, self.deadlines = threading.Event(), threading.Semaphore(0), 0, []

    def run(self, signature, inputs, outputs, deadline) -> dict[str, np.ndarray]:
        self.runs += 1
        self.deadlines.append(deadline)
        self.begun.release()
        assert self.go.wait(60)
        return {"y": 2 * inputs["x"]}


class OneModel:
    """Models with version 7 of `slow`."""

    def __init__(self, model: Slow):
        self.model = model

    def use(self, spec):
        return contextlib.nullcontext(Handle(spec.name, 7, self.model))

    def statuses(self, spec):
        return []


@contextlib.contextmanager
def slow_server(running: int, **options) -> Iterator[SimpleNamespace]:
    """Serve a Slow model, of which so many run at once: .port, .model, .monitor; .held: what is taken of requests."""
    options = Options(rest_api_port=-1, log_requests=False, grace_seconds=1, **options)
    model, monitor = Slow(), Monitor()
    admission = AdmissionControl(running, options.max_waiting_requests, options.max_waiting_bytes, monitor.queue)
    made: Starlette = app.application(OneModel(model), monitor, admission, options)
    server = Rest(options, made)
    server.start()
    try:
        yield SimpleNamespace(port=server.port, model=model, monitor=monitor, held=made.routes[-1].endpoint.intake)
    finally:
        model.go.set()
        server.stop()
