"""Serve the web page that sends a user's picture to a model over the REST API.

    GET /                    the page
    GET /page/FILE           its style, scripts and icon
    GET /page/models         JSON: models, available versions with class names and colors, names of the samples, and the
                             maximum size of a request
    GET /page/samples/NAME   a sample picture

The routes read only serving/page, the samples directory and the assets/classes.json of each version.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import wrappers_pb2
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_status_pb2, model_pb2

import serving
from kseg.datasets import class_names
from kseg.errors import UserError
from serving.class_list import MAX_CLASSES, read_class_list
from serving.errors import ServingError

if TYPE_CHECKING:
    from serving.config.flags import Options
    from serving.core.manager import Handle, ModelManager

FILES = Path(serving.__file__).parent / "page"
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
SAMPLES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
# With this policy a browser runs and fetches nothing from other hosts, whatever text a class or model name contains.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
SIGNATURE, OUTPUT = "serving_default", "png_bytes"
AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE


def routes(models: "ModelManager", options: "Options") -> list[Route]:
    """Return the page's routes, empty if options.page is False.

    Raises UserError if there are no sample pictures.
    """
    if not options.page:
        return []
    directory = Path(options.page_samples) if options.page_samples else FILES / "samples"
    if not samples(directory):
        raise UserError(f"--page_samples: {directory} has no pictures; supported suffixes: {' '.join(SAMPLES)}")

    def show_page(request: Request) -> Response:
        return _file_response(FILES / "page.html", "text/html")

    def show_file(request: Request) -> Response:
        files = {path.name: path for path in FILES.iterdir() if path.suffix in TYPES}
        return _listed_file_response(files, request.path_params["name"], TYPES)

    def show_models(request: Request) -> Response:
        return JSONResponse(
            {
                "models": [describe_model(models, name) for name in models.names()],
                "samples": list(samples(directory)),
                "max_request_bytes": options.max_request_bytes,
            },
            headers=HEADERS,
        )

    def show_sample(request: Request) -> Response:
        return _listed_file_response(samples(directory), request.path_params["name"], SAMPLES)

    return [
        Route("/", show_page),
        Route("/page/models", show_models),
        Route("/page/samples/{name}", show_sample),
        Route("/page/{name}", show_file),
    ]


def samples(directory: Path) -> dict[str, Path]:
    """Return the pictures in a directory by name, sorted; links that lead out of it are skipped."""
    root = directory.resolve()
    return {
        path.name: path
        for path in (sorted(directory.iterdir()) if directory.is_dir() else ())
        if path.suffix.lower() in SAMPLES and path.is_file() and path.resolve().is_relative_to(root)
    }


def _listed_file_response(files: dict[str, Path], name: str, types: dict[str, str]) -> Response:
    """Return the file of a listed name, or 404; a name is never used as a path."""
    if name not in files:
        return PlainTextResponse("not found\n", 404, headers=HEADERS)
    return _file_response(files[name], types[files[name].suffix.lower()])


def _file_response(path: Path, media_type: str) -> Response:
    return FileResponse(path, media_type=media_type, headers=HEADERS)


def describe_model(models: "ModelManager", name: str) -> dict:
    """Return a model's description for the page: name, versions and labels.

    `versions` are the available versions from `describe_version`, newest first. `labels` are the numbers of available
    versions by label.
    """
    try:
        numbers = [
            status.version for status in models.statuses(model_pb2.ModelSpec(name=name)) if status.state == AVAILABLE
        ]
    # The manager has not found any version yet.
    except ServingError:
        numbers = []
    specs = [model_pb2.ModelSpec(name=name, version=wrappers_pb2.Int64Value(value=number)) for number in numbers]
    versions = [_describe_if_available(models, spec) for spec in specs]
    return {
        "name": name,
        "versions": [version for version in versions if version],
        "labels": {label: str(number) for label, number in sorted(models.labels(name).items()) if number in numbers},
    }


def _describe_if_available(models: "ModelManager", spec: model_pb2.ModelSpec) -> dict | None:
    """Return the description of a version, None if it was unloaded in the meantime."""
    try:
        with models.use(spec) as handle:
            return describe_version(handle)
    except ServingError:
        return None


def describe_version(handle: "Handle") -> dict:
    """Return a version's description for the page: number, class names, colors and problems.

    Without a usable assets/classes.json, `classes` is empty and `palette` has 256 generated colors. `problem` is the
    reason why the page cannot use the version, and `note` an error in its classes.json; both are None otherwise.
    """
    classes, palette, note = [], [class_names.class_palette(number + 1) for number in range(MAX_CLASSES)], None
    path = Path(handle.model.directory) / "assets" / "classes.json"
    if path.is_file():
        try:
            classes, palette = read_class_list(path)
        except UserError as error:
            note = str(error)
    # The number is a string, because JavaScript cannot represent every int64.
    return {
        "version": str(handle.version),
        "classes": classes,
        "palette": palette,
        "note": note,
        "problem": signature_problem(handle.model.signatures),
    }


def signature_problem(signatures: dict) -> str | None:
    """Return why a model does not map encoded pictures to class ids, None if it does."""
    if SIGNATURE not in signatures:
        return f"it has no signature {SIGNATURE}, only {', '.join(sorted(signatures))}"
    inputs, outputs = signatures[SIGNATURE].inputs, signatures[SIGNATURE].outputs
    if [tensor.dtype for tensor in inputs.values()] == [types_pb2.DT_STRING] and OUTPUT in outputs:
        return None
    return (
        f"its {SIGNATURE} takes {', '.join(sorted(inputs))} and returns {', '.join(sorted(outputs))} instead of "
        f"encoded pictures and {OUTPUT}"
    )
