"""Provide plain HTTP clients and a controllable model for tests of the REST API."""

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
    """A persistent HTTP connection."""

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def request(self, method: str, path: str, body=None, headers: dict | None = None) -> tuple[int, bytes]:
        """Return the status and body of the response; an iterator is sent in chunks, any other value as JSON."""
        raw = body is None or isinstance(body, bytes) or hasattr(body, "__next__")
        self.connection.request(method, path, body if raw else json.dumps(body), headers or {})
        response = self.connection.getresponse()
        self.headers = response.headers
        return response.status, response.read()

    def post(self, path: str, body) -> tuple[int, dict]:
        """Post JSON, and return the status and the JSON of the response."""
        status, text = self.request("POST", path, body)
        assert self.headers["Content-Type"] == "application/json"
        return status, json.loads(text)


class BlockingModel:
    """A model of y = 2 x whose runs release `begun`, and then wait until `go` is set."""

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
    """Model manager with a single version 7, whatever the model's name."""

    def __init__(self, model: BlockingModel):
        self.model = model

    def use(self, spec):
        return contextlib.nullcontext(Handle(spec.name, 7, self.model))

    def statuses(self, spec):
        return []


@contextlib.contextmanager
def blocking_server(running: int, **options) -> Iterator[SimpleNamespace]:
    """Serve a BlockingModel with at most `running` runs at once; yield its port, model, monitor and intake."""
    options = Options(rest_api_port=-1, log_requests=False, grace_seconds=1, **options)
    model, monitor = BlockingModel(), Monitor()
    admission = AdmissionControl(running, options.max_waiting_requests, options.max_waiting_bytes, monitor.queue)
    application: Starlette = app.application(OneModel(model), monitor, admission, options)
    server = Rest(options, application)
    server.start()
    try:
        yield SimpleNamespace(
            port=server.port, model=model, monitor=monitor, intake=application.routes[-1].endpoint.intake
        )
    finally:
        model.go.set()
        server.stop()
