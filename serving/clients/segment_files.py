"""Segment image files on a server, and write their class ids and overlays."""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from kseg.errors import DataError, UserError
from kseg.images import drawing, image_files, picture_reader
from kseg.inference.input_files import InputFile
from kseg.system.progress import CLEAR_LINE, Progress
from serving.class_list import read_class_list
from serving.clients.connections import RequestError, RestConnection

if TYPE_CHECKING:
    from serving.clients.client import Client, Cost

# Pillow modes of the files that a server decodes to the same pixels as kseg.predict.
STORED_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
# Status codes that would fail for every image, so the client stops.
FATAL = ("UNAVAILABLE", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED")
TABLE_ROW = "{:<14}{:>10}{:>10}{:>10}{:>12}"


def encode_image(path: Path) -> bytes:
    """Return an encoded image that the server decodes to the pixels kseg.predict sees.

    That is the file itself where it is a JPEG or PNG stored upright, and otherwise a PNG of the decoded image. Raises
    DataError naming the file if it cannot be read. Damage behind a file's header is left for the server to report.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if _is_sent_unchanged(data):
        return data
    file = io.BytesIO()
    Image.fromarray(image_files.read_image(path)).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _is_sent_unchanged(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            is_stored = image.format in ("JPEG", "PNG") and image.mode in STORED_MODES
            return is_stored and picture_reader.read_orientation(data) == 1
    # Pillow's decoders raise any exception on a damaged file; read_image then reports it by name.
    except Exception:
        return False


class Colors(NamedTuple):
    """Class names (empty where the model has none) and the RGB color of each class id."""

    classes: list[str]
    palette: list[list[int]]


def find_colors(client: "Client", path: Path | None) -> Colors:
    """Return the colors in a classes.json, or without one those that the server's page lists.

    Raises UserError if the file cannot be read, or the server lists no colors for the requested version.
    """
    if path:
        return Colors(*read_class_list(path))
    hint = "--overlay needs --classes FILE, such as assets/classes.json of the exported model"
    if not isinstance(client.connection, RestConnection):
        raise UserError(f"{hint}: gRPC does not transmit colors")
    spec = client.spec
    for model in client.connection.listed_models():
        if model["name"] == spec.name:
            number = model["labels"].get(spec.label) if spec.label else spec.version
            for version in model["versions"]:
                # Versions are listed newest first.
                if number is None and not spec.label or version["version"] == str(number):
                    return Colors(version["classes"], version["palette"])
    raise UserError(f"{hint}: {client.connection.server} lists no colors for {spec}")


def segment_files(
    client: "Client",
    files: Sequence[InputFile],
    out: Path,
    batch: int,
    colors: Colors | None,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Write the class ids of each image, and with `colors` its overlay; return the files that failed.

    Failed files are named on stderr. Raises RequestError if the server or its model is gone.
    """
    failed = []

    def skip(file: InputFile, message: str) -> None:
        failed.append(file.path)
        # The further lines of a server's message name nodes of its graph.
        print(f"{CLEAR_LINE if sys.stderr.isatty() else ''}skipped: {message.splitlines()[0]}", file=sys.stderr)

    if colors and colors.classes:
        image_files.save_image(drawing.legend(colors.classes, colors.palette), out / "legend.png")
    progress = Progress(len(files), "images", report)
    for start in range(0, len(files), batch):
        encoded = []
        for file in files[start : start + batch]:
            try:
                if file.is_video:
                    raise DataError(f"{file.path}: a video, or not an image; python -m kseg.predict takes videos")
                encoded.append((file, encode_image(file.path)))
            except DataError as error:
                skip(file, str(error))
        for file, ids in _segment_batch(client, encoded, skip):
            image_files.save_image(ids, out / file.result_path("ids"))
            if colors:
                _save_overlay(file, ids, out, colors)
        progress.update(min(start + batch, len(files)))
    return failed


def _segment_batch(
    client: "Client", encoded: list[tuple[InputFile, bytes]], skip: Callable[[InputFile, str], None]
) -> list[tuple[InputFile, np.ndarray]]:
    if not encoded:
        return []
    try:
        return list(zip([file for file, _ in encoded], client.segment([data for _, data in encoded])))
    except (RequestError, DataError) as error:
        if isinstance(error, RequestError) and error.code in FATAL:
            raise
        if len(encoded) == 1:
            skip(encoded[0][0], f"{encoded[0][0].path}: {error}")
            return []
    # One damaged image fails the whole batch, so the images are sent one by one.
    return [result for item in encoded for result in _segment_batch(client, [item], skip)]


def _save_overlay(file: InputFile, ids: np.ndarray, out: Path, colors: Colors) -> None:
    image = image_files.read_image(file.path)
    if ids.shape != image.shape[:2]:
        raise UserError(
            f"--overlay needs class ids of the image's size: {file.path} has {image.shape[1]} x "
            f"{image.shape[0]} pixels, its ids {ids.shape[1]} x {ids.shape[0]}"
        )
    image_files.save_image(drawing.overlay(image, ids, colors.palette), out / file.result_path("overlay"))


def cost_table(costs: Sequence["Cost"]) -> str:
    """Return a table of the answered requests' costs: median, 95th percentile, largest and sum."""
    lines = [TABLE_ROW.format(f"{len(costs)} requests", "median", "95 %", "largest", "sum")]
    for title, scale, values in (
        ("latency, ms", 1e3, [cost.seconds for cost in costs]),
        ("sent, kB", 1e-3, [cost.sent for cost in costs]),
        ("received, kB", 1e-3, [cost.received for cost in costs]),
    ):
        scaled = scale * np.array(values)
        statistics = (np.median(scaled), np.percentile(scaled, 95), scaled.max(), scaled.sum())
        lines.append(TABLE_ROW.format(title, *(f"{value:.1f}" for value in statistics)))
    return "\n".join(lines)
