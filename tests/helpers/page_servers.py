"""Serve the page with a fake REST API, whose responses a test chooses."""

import base64
import contextlib
import io
import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.config.flags import Options
from serving.errors import not_found
from serving.rest_api import page

NAMES = ["sky", "road", "<img src=x onerror=alert(1)>", "never"]
COLORS = [[70, 130, 180], [128, 64, 128], [250, 240, 20], [1, 2, 3]]
# Of the 60 pixels, 30 are sky, 25 road, and 5 of the third class.
IDS = np.repeat(np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 2]], np.uint8), 5, axis=0)


def signature(inputs=("image_bytes",), outputs=("png_bytes", "size"), kind=types_pb2.DT_STRING):
    definition = meta_graph_pb2.SignatureDef()
    for name in inputs:
        definition.inputs[name].dtype = kind
    for name in outputs:
        definition.outputs[name].dtype = types_pb2.DT_STRING
    return definition


class FakeModels:
    """Fake of ModelManager for the page's routes.

    Args:
        versions: {model: {version: directory}}.
        signatures: {model: signatures}; other models take encoded pictures.
        version_labels: {label: version} of every model.
    """

    def __init__(self, versions, signatures=None, version_labels=None):
        self.versions, self.signatures, self.version_labels = versions, signatures or {}, version_labels or {}

    def names(self):
        return sorted(self.versions)

    def labels(self, name):
        return self.version_labels

    def statuses(self, spec):
        if not self.versions[spec.name]:
            raise not_found("Could not find any versions of model")
        return [
            SimpleNamespace(version=number, state=page.AVAILABLE)
            for number in sorted(self.versions[spec.name], reverse=True)
        ]

    @contextlib.contextmanager
    def use(self, spec):
        number = self.version_labels[spec.version_label] if spec.version_label else spec.version.value
        if number not in self.versions[spec.name]:
            raise not_found("Servable not found")
        signatures = self.signatures.get(spec.name, {"serving_default": signature()})
        yield SimpleNamespace(
            name=spec.name,
            version=number,
            model=SimpleNamespace(directory=self.versions[spec.name][number], signatures=signatures),
        )


def write_classes(directory: Path, classes, palette) -> Path:
    (directory / "assets").mkdir(parents=True, exist_ok=True)
    (directory / "assets/classes.json").write_text(json.dumps({"classes": classes, "palette": palette}))
    return directory


def street_models(base: Path) -> FakeModels:
    """Return `street` with two versions, `unnamed` without class names, and `words`, which takes no pictures."""
    return FakeModels(
        {
            "street": {
                1: write_classes(base / "1", ["first"], [[9, 9, 9]]),
                2: write_classes(base / "2", NAMES, COLORS),
            },
            "unnamed": {5: base / "5"},
            "words": {1: base / "words"},
        },
        {"words": {"other": signature()}},
    )


def options(**values):
    return replace(Options(), **values)


def png_of(ids: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(ids).save(file, format="PNG")
    return file.getvalue()


class Answers:
    """Fake of :predict, which records its requests.

    `choose(model, version, encoded picture)` returns the PNG of the response, or (status, message) of an error.
    """

    def __init__(self, choose):
        self.choose, self.requests = choose, []

    async def predict(self, request):
        body = await request.json()
        picture = base64.b64decode(body["inputs"][0]["b64"])
        self.requests.append((request.path_params["name"], request.path_params["version"], picture))
        result = self.choose(*self.requests[-1])
        if isinstance(result, tuple):
            return JSONResponse({"error": result[1]}, result[0])
        return JSONResponse({"outputs": {"png_bytes": [{"b64": base64.b64encode(result).decode()}], "size": [[0, 0]]}})


@contextlib.contextmanager
def serving(models, answers, port=0, **values):
    """Serve the page, and yield its port."""
    app = Starlette(
        routes=[
            *page.routes(models, options(**values)),
            Route("/v1/models/{name}/versions/{version}:predict", answers.predict, methods=["POST"]),
        ]
    )
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    started = threading.Event()
    server.startup = _call_after(server.startup, started.set)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)


def _call_after(startup, callback):
    async def wrapper(*arguments, **values):
        await startup(*arguments, **values)
        callback()

    return wrapper
