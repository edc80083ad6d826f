"""The server's page, on which anybody can try a model: a client of the REST API that runs in a browser.

    GET /                    the page
    GET /page/FILE           its style, scripts and icon
    GET /page/models         JSON: the models and available versions with their classes and colours, the samples' names
                             and the largest request
    GET /page/samples/NAME   a sample picture

Nothing is read but the files beside this one, the samples' directory and each version's assets/classes.json.
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
from serving.class_list import IDS, read_class_list
from serving.errors import ServingError

if TYPE_CHECKING:
    from serving.config.flags import Options
    from serving.core.manager import Handle, ModelManager

FILES = Path(serving.__file__).parent / "page"
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
SAMPLES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
# A browser then runs and fetches nothing from elsewhere, whatever a class or a model is called.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
SIGNATURE, OUTPUT = "serving_default", "png_bytes"
AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE


def routes(models: "ModelManager", options: "Options") -> list[Route]:
    """Return the page's routes, none where options.page is False.

    Raises UserError for samples that are not there.
    """
    if not options.page:
        return []
    directory = Path(options.page_samples) if options.page_samples else FILES / "samples"
    if not samples(directory):
        raise UserError(f"--page_samples: no pictures in {directory}; suffixes looked for: {' '.join(SAMPLES)}")

    def show_page(request: Request) -> Response:
        return _file(FILES / "page.html", "text/html")

    def show_file(request: Request) -> Response:
        files = {path.name: path for path in FILES.iterdir() if path.suffix in TYPES}
        return _listed(files, request.path_params["name"], TYPES)

    def show_models(request: Request) -> Response:
        return JSONResponse({"models": [describe_model(models, name) for name in models.names()],
                             "samples": list(samples(directory)),
                             "max_request_bytes": options.max_request_bytes}, headers=HEADERS)

    def show_sample(request: Request) -> Response:
        return _listed(samples(directory), request.path_params["name"], SAMPLES)

    return [Route("/", show_page), Route("/page/models", show_models),
            Route("/page/samples/{name}", show_sample), Route("/page/{name}", show_file)]


def samples(directory: Path) -> dict[str, Path]:
    """Return the pictures of a directory by name, sorted; those that links put outside of it are left out."""
    place = directory.resolve()
    return {path.name: path for path in (sorted(directory.iterdir()) if directory.is_dir() else ())
            if path.suffix.lower() in SAMPLES and path.is_file() and path.resolve().is_relative_to(place)}


def _listed(files: dict[str, Path], name: str, types: dict[str, str]) -> Response:
    """Answer with the file of that name; what is not listed is not there, so that no name leads elsewhere."""
    if name not in files:
        return PlainTextResponse("not found\n", 404, headers=HEADERS)
    return _file(files[name], types[files[name].suffix.lower()])


def _file(path: Path, media_type: str) -> Response:
    return FileResponse(path, media_type=media_type, headers=HEADERS)


def describe_model(models: "ModelManager", name: str) -> dict:
    """Return what the page shows of a model: its name, its available versions, newest first, as `version` does, and
    the numbers of those that labels stand for."""
    try:
        numbers = [status.version for status in models.statuses(model_pb2.ModelSpec(name=name))
                   if status.state == AVAILABLE]
    # Nothing was found of it so far.
    except ServingError:
        numbers = []
    specs = [model_pb2.ModelSpec(name=name, version=wrappers_pb2.Int64Value(value=number)) for number in numbers]
    return {"name": name,
            "versions": [found for found in (_used(models, spec) for spec in specs) if found],
            "labels": {label: str(number) for label, number in sorted(models.labels(name).items())
                       if number in numbers}}


def _used(models: "ModelManager", spec: model_pb2.ModelSpec) -> dict | None:
    """Return `version` of what is meant; None where that is not available, such as one unloaded this moment."""
    try:
        with models.use(spec) as handle:
            return served_version(handle)
    except ServingError:
        return None


def served_version(handle: "Handle") -> dict:
    """Return a version's number, class names and colours.

    Where it has no assets/classes.json, `classes` is empty and 256 colours are made up. `problem` says why the page
    cannot ask it, `note` what is wrong with its classes; both else None.
    """
    classes, palette, note = [], [class_names.class_palette(number + 1) for number in range(IDS)], None
    path = Path(handle.model.directory) / "assets" / "classes.json"
    if path.is_file():
        try:
            classes, palette = read_class_list(path)
        except UserError as error:
            note = str(error)
    # As text: JavaScript's numbers end before an int64's.
    return {"version": str(handle.version), "classes": classes, "palette": palette, "note": note,
            "problem": problem_response(handle.model.signatures)}


def problem_response(signatures: dict) -> str | None:
    """Return why a model's signatures are not those of pictures in and class ids out; None where they are."""
    if SIGNATURE not in signatures:
        return f"it has no signature {SIGNATURE}, but {', '.join(sorted(signatures))}"
    inputs, outputs = signatures[SIGNATURE].inputs, signatures[SIGNATURE].outputs
    if [tensor.dtype for tensor in inputs.values()] == [types_pb2.DT_STRING] and OUTPUT in outputs:
        return None
    return (f"its {SIGNATURE} takes {', '.join(sorted(inputs))} and gives {', '.join(sorted(outputs))}, not encoded "
            f"pictures and {OUTPUT}")
