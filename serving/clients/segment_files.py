"""The client's files: pictures are read, asked for in batches, and their ids and overlays written."""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from kseg.errors import DataError, UserError
from kseg.images import drawing, image_files
from kseg.inference.input_files import Picture
from kseg.system.progress import CLEAR_LINE, Progress
from serving.class_list import read_classes
from serving.clients.connections import RequestError, Rest

if TYPE_CHECKING:
    from serving.clients.client import Client, Cost

# Of which a server's decoder makes the pixels that kseg.predict sees.
STORED_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
# As bad for the next picture as for this one.
FATAL = ("UNAVAILABLE", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED")
TABLE_ROW = "{:<14}{:>10}{:>10}{:>10}{:>12}"


def encoded(path: Path) -> bytes:
    """Return a file's JPEG or PNG as it is where the server sees in it what kseg.predict would, else a PNG of that.

    Raises DataError naming the file where it cannot be read; what is damaged further in is left for the server to say.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if _as_stored(data):
        return data
    file = io.BytesIO()
    Image.fromarray(image_files.read_image(path)).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _as_stored(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(image_files.EXIF_ORIENTATION) in image_files.UPRIGHT
            return image.format in ("JPEG", "PNG") and image.mode in STORED_MODES and not turned
    # Whatever Pillow's decoders stumble over; read_image then says what it is.
    except Exception:
        return False


class Colours(NamedTuple):
    """Names of the classes, none where a model has none, and a colour for each id."""

    classes: list[str]
    palette: list[list[int]]


def colours_of(client: "Client", path: Path | None) -> Colours:
    """Return the colours of a classes.json, or without one those that the server's page tells of the asked version.

    Raises UserError where it cannot be read, or the server says nothing.
    """
    if path:
        return Colours(*read_classes(path))
    hint = "--overlay needs --classes FILE, such as assets/classes.json of the exported model"
    if not isinstance(client.connection, Rest):
        raise UserError(f"{hint}: colours are not told by gRPC")
    wanted = client.wanted
    for model in client.connection.listed():
        if model["name"] == wanted.name:
            number = model["labels"].get(wanted.label) if wanted.label else wanted.version
            for each in model["versions"]:
                # The first is the newest.
                if number is None and not wanted.label or each["version"] == str(number):
                    return Colours(each["classes"], each["palette"])
    raise UserError(f"{hint}: {client.connection.server} does not tell those of {wanted}")


def segment_files(client: "Client", found: Sequence[Picture], out: Path, batch: int, colours: Colours | None,
                  report: Callable[[str], None] = print) -> list[Path]:
    """Write the ids of each picture, and its overlay where there are colours, and return the files that failed.

    Those are named on stderr. Raises RequestError where the server or its model is gone.
    """
    failed = []

    def note(picture: Picture, message: str) -> None:
        failed.append(picture.path)
        # What follows in a server's message are names within its graph.
        print(f"{CLEAR_LINE if sys.stderr.isatty() else ''}skipped: {message.splitlines()[0]}", file=sys.stderr)

    if colours and colours.classes:
        image_files.save(drawing.legend(colours.classes, colours.palette), out / "legend.png")
    progress = Progress(len(found), "pictures", report)
    for start in range(0, len(found), batch):
        read = []
        for picture in found[start:start + batch]:
            try:
                if picture.video:
                    raise DataError(f"{picture.path}: a video, or no picture; python -m kseg.predict takes videos")
                read.append((picture, encoded(picture.path)))
            except DataError as error:
                note(picture, str(error))
        for picture, ids in _answered(client, read, note):
            image_files.save(ids, out / picture.result("ids"))
            if colours:
                _save_overlay(picture, ids, out, colours)
        progress.update(min(start + batch, len(found)))
    return failed


def _answered(client: "Client", read: list[tuple[Picture, bytes]],
              note: Callable[[Picture, str], None]) -> list[tuple[Picture, np.ndarray]]:
    if not read:
        return []
    try:
        return list(zip([picture for picture, _ in read], client.segment([data for _, data in read])))
    except (RequestError, DataError) as error:
        if isinstance(error, RequestError) and error.code in FATAL:
            raise
        if len(read) == 1:
            note(read[0][0], f"{read[0][0].path}: {error}")
            return []
    # One that is damaged fails its whole batch.
    return [pair for one in read for pair in _answered(client, [one], note)]


def _save_overlay(picture: Picture, ids: np.ndarray, out: Path, colours: Colours) -> None:
    image = image_files.read_image(picture.path)
    if ids.shape != image.shape[:2]:
        raise UserError(f"--overlay needs ids of the picture's own size: {picture.path} has {image.shape[1]} x "
                        f"{image.shape[0]} pixels, its ids {ids.shape[1]} x {ids.shape[0]}")
    image_files.save(drawing.overlay(image, ids, colours.palette), out / picture.result("overlay"))


def table(costs: Sequence["Cost"]) -> str:
    """Return what the answered requests took: median, 95th percentile, largest and sum."""
    lines = [TABLE_ROW.format(f"{len(costs)} requests", "median", "95 %", "largest", "sum")]
    for title, scale, values in (("latency, ms", 1e3, [cost.seconds for cost in costs]),
                                 ("sent, kB", 1e-3, [cost.sent for cost in costs]),
                                 ("received, kB", 1e-3, [cost.received for cost in costs])):
        scaled = scale * np.array(values)
        figures = (np.median(scaled), np.percentile(scaled, 95), scaled.max(), scaled.sum())
        lines.append(TABLE_ROW.format(title, *(f"{figure:.1f}" for figure in figures)))
    return "\n".join(lines)
