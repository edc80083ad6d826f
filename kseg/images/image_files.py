"""Pictures in and out: any file as RGB, class ids as colours, legends, contact sheets, atomic PNG files."""

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from kseg.config import IGNORED
from kseg.errors import DataError, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
MAX_PIXELS = 200_000_000
# Pillow warns from 89 megapixels on and refuses from 179; aerial and microscope pictures are larger. `read_image`
# refuses what is above MAX_PIXELS before decoding it, so a decompression bomb is still met.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

EXIF_ORIENTATION = 0x0112
TRANSPOSE = Image.Transpose
# What brings a picture stored in that EXIF orientation upright; 1 is upright already.
UPRIGHT = {2: TRANSPOSE.FLIP_LEFT_RIGHT, 3: TRANSPOSE.ROTATE_180, 4: TRANSPOSE.FLIP_TOP_BOTTOM,
           5: TRANSPOSE.TRANSPOSE, 6: TRANSPOSE.ROTATE_270, 7: TRANSPOSE.TRANSVERSE, 8: TRANSPOSE.ROTATE_90}

GAP = 4
MARGIN = 12
FONT_SIZE = 14
LEGEND_ROWS = 25


def read_image(path: Path | str) -> np.ndarray:
    """Return a picture file as RGB: uint8 (H, W, 3), upright as its EXIF orientation says.

    Transparency is dropped, not composited: the colours stored under it stay. 16-bit grey is divided by 257. Of several
    pages or frames the first is taken. Raises DataError naming the file for what is missing, damaged, cut off, above
    200 megapixels, or has values of unknown scale (floating point, or integers outside 0..65535).
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width} x {image.height} is {image.width * image.height} pixels; "
                                f"at most {MAX_PIXELS} are read")
            return as_rgb(image, path)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a picture of a kind that Pillow reads, or damaged at its start") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    # Pillow's decoders raise whatever a damaged file makes them stumble over: SyntaxError, ValueError, struct.error...
    except Exception as error:
        raise DataError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None


def is_picture(path: Path | str) -> bool:
    """Return whether a file begins as a picture of a kind that Pillow reads; what follows may still be damaged."""
    try:
        with Image.open(path):
            return True
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError):
        return False


def as_rgb(image: Image.Image, path: Path | str) -> np.ndarray:
    """Return a PIL image as `read_image` does a file; `path` is what DataError calls it."""
    image.load()
    upright = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION))
    if upright is not None:
        image = image.transpose(upright)
    if image.mode == "F":
        raise DataError(f"{path}: floating-point pixels, whose scale is unknown; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: grey values {values.min()}..{values.max()}; 16 bits hold 0..65535")
        # To the nearest: 257 is 65535 / 255.
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    # Pillow takes these two ways in two steps only, or warns about the transparency that is dropped here on purpose.
    if image.mode in ("P", "PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    return np.array(image.convert("RGB"))


def colour(ids: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Return uint8 (H, W, 3) colours for uint8 (H, W) class ids; 255 and ids beyond the palette are black.

    Raises ValueError for ids of another type or shape.
    """
    if ids.dtype != np.uint8 or ids.ndim != 2:
        raise ValueError(f"ids must be uint8 (H, W), got {ids.dtype} {ids.shape}")
    table = np.zeros((256, 3), np.uint8)
    table[:min(len(palette), IGNORED)] = np.reshape(palette[:IGNORED], (-1, 3))
    return table[ids]


def overlay(image: np.ndarray, ids: np.ndarray, palette: Sequence[tuple[int, int, int]],
            opacity: float = 0.5) -> np.ndarray:
    """Return uint8 (H, W, 3): the picture mixed with the colours of its uint8 (H, W) ids, rounded to the nearest.

    `opacity` is the share of the colour, 0..1. Where an id has no colour (255, or beyond the palette) the plain picture
    shows. Raises ValueError where types, sizes or the opacity do not fit.
    """
    if image.dtype != np.uint8 or image.shape != (*ids.shape, 3):
        raise ValueError(f"the picture must be uint8 {(*ids.shape, 3)} as its ids, got {image.dtype} {image.shape}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be between 0 and 1, got {opacity}")
    mixed = colour(ids, palette).astype(np.float32)
    mixed -= image
    mixed *= np.float32(opacity)
    mixed[ids >= min(len(palette), IGNORED)] = 0
    mixed += image
    return np.rint(mixed, out=mixed).astype(np.uint8)


def legend(classes: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Return an RGB picture of every class: a swatch of its colour, its id and its name, in columns of 25.

    Raises ValueError where there is no class, or not one colour for each.
    """
    if not classes or len(classes) != len(palette):
        raise ValueError(f"{len(classes)} classes and {len(palette)} colours; each class needs one")
    font = ImageFont.load_default(FONT_SIZE)
    swatch, line = (32, 18), 24
    columns = -(-len(classes) // LEGEND_ROWS)
    # Columns of equal length look tidier than full ones and a short last one.
    rows = -(-len(classes) // columns)
    number_width = _text_width(str(len(classes) - 1), font)
    text_left = swatch[0] + GAP * 2 + number_width + GAP * 2
    column_width = text_left + max(_text_width(name, font) for name in classes) + MARGIN * 2
    sheet = Image.new("RGB", (MARGIN + columns * column_width, MARGIN * 2 + rows * line), "white")
    draw = ImageDraw.Draw(sheet)
    for index, name in enumerate(classes):
        left = MARGIN + index // rows * column_width
        top = MARGIN + index % rows * line
        # The frame keeps a white class visible on the white sheet.
        draw.rectangle((left, top + 3, left + swatch[0] - 1, top + 2 + swatch[1]), tuple(palette[index]), "gray")
        middle = top + line // 2
        draw.text((left + text_left - GAP * 2, middle), str(index), "dimgray", font, anchor="rm")
        draw.text((left + text_left, middle), name, "black", font, anchor="lm")
    return sheet


def _text_width(text: str, font: ImageFont.FreeTypeFont) -> int:
    return int(np.ceil(font.getlength(text)))


def grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] = ()) -> Image.Image:
    """Return an RGB contact sheet of uint8 (H, W, 3) cells, with titles above the columns.

    Rows may differ in length and cells in size: a column is as wide as its widest cell or title, a row as high as its
    highest cell, the rest is white. Raises ValueError without cells, for cells of another type, or where titles are
    given and their number is not the number of columns.
    """
    cells = [cell for row in rows for cell in row]
    for cell in cells:
        if cell.dtype != np.uint8 or cell.ndim != 3 or cell.shape[2] != 3:
            raise ValueError(f"a cell must be uint8 (H, W, 3), got {cell.dtype} {cell.shape}")
    if not cells:
        raise ValueError("a contact sheet needs at least one cell")
    columns = max(len(row) for row in rows)
    if titles and len(titles) != columns:
        raise ValueError(f"{len(titles)} titles for {columns} columns")
    font = ImageFont.load_default(FONT_SIZE)
    widths = [_text_width(title, font) for title in titles] or [0] * columns
    for row in rows:
        widths = [max(width, row[column].shape[1] if column < len(row) else 0) for column, width in enumerate(widths)]
    heights = [max((cell.shape[0] for cell in row), default=0) for row in rows]
    header = FONT_SIZE + GAP * 2 if titles else 0
    size = sum(widths) + GAP * (columns + 1), header + sum(heights) + GAP * (len(rows) + 1)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [GAP + sum(widths[:column]) + GAP * column for column in range(columns)]
    for left, title in zip(lefts, titles):
        draw.text((left, GAP + header // 2), title, "black", font, anchor="lm")
    top = header + GAP
    for row, height in zip(rows, heights):
        for left, cell in zip(lefts, row):
            sheet.paste(Image.fromarray(cell), (left, top))
        top += height + GAP
    return sheet


def save(picture: Image.Image | np.ndarray, path: Path | str) -> None:
    """Write a PIL image or a uint8 array, (H, W) or (H, W, 3), as PNG, making missing directories.

    A reader sees the old file or the whole new one, never a part. Raises UserError naming the file where it cannot be
    written, ValueError for an array of another type or shape.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 2 and picture.shape[2:] != (3,):
            raise ValueError(f"a picture must be uint8 (H, W) or (H, W, 3), got {picture.dtype} {picture.shape}")
        picture = Image.fromarray(picture)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


@contextlib.contextmanager
def replacing(path: Path | str, suffix: str = ".tmp") -> Iterator[Path]:
    """Give a hidden path beside `path` to write to, which takes its place where the block ends without an error.

    A reader sees the old file or the whole new one, never a part. Missing directories are made. Raises UserError naming
    `path` where it cannot be written.
    """
    path = Path(path)
    # Not built from the name, which may already be as long as the file system allows.
    temporary = path.parent / f".{uuid.uuid4().hex}{suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
