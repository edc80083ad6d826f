"""Read an image file of any kind with Pillow: the reference for the pixels that every command sees.

`kseg.images.decoding` decodes common files faster with TensorFlow, to the same pixels, and hands all others to this
reader.
"""

import contextlib
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from kseg.errors import DataError
from kseg.images import png

MAX_PIXELS = 200_000_000
# Pillow warns above 89 megapixels and refuses above 179, but aerial and microscope images are larger. This reader
# refuses images above MAX_PIXELS before decoding, so decompression bombs are still caught.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

EXIF_ORIENTATION = 0x0112
# Reading with the opposite byte order, which Pillow reduces to the high byte of each value, gives the low bytes.
OPPOSITE_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
LARGEST_16_BIT = 65535
# Images whose values span less than this use a corner of the 16-bit range.
CORNER = 1 << 14


class Picture(NamedTuple):
    """The content of an image file.

    Attributes:
        pixels: The upright image, uint8 RGB of shape (H, W, 3).
        pages: Number of pages or frames in the file, of which `pixels` is the first.
        orientation: The EXIF orientation that was applied, 1 to 8.
        values: The upright values before their reduction to 8 bits, of shape (H, W) or (H, W, 3); None if the file has
            at most 8 bits for each channel.
    """

    pixels: np.ndarray
    pages: int
    orientation: int
    values: np.ndarray | None


def read_picture(source: Path | str | bytes | BinaryIO, name: Path | str, value_range: Sequence[float] = ()) -> Picture:
    """Read an image as 8-bit RGB, upright according to its EXIF orientation.

    Transparency is dropped, not composited: the colors stored under it remain.

    Args:
        source: A path, the encoded bytes, or a file of any format that Pillow reads.
        name: The name in error messages.
        value_range: (low, high): the values of images with more than 8 bits that become 0 and 255. If empty, 0 and
            65535.

    Raises:
        DataError: the file is missing, damaged or truncated, has more than 200 megapixels, is a PNG with two headers,
            or has values of unknown scale (floating point, or integers outside 0..65535) and no `value_range` is
            given.
    """
    with _data_errors(name), _opened(source, name) as image:
        return _picture(image, name, value_range, _color_values(image, source))


def read_indices(source: bytes, name: Path | str) -> np.ndarray:
    """Return the gray values or palette indices of a PNG, upright, uint8 (H, W); raises DataError as `read_picture`."""
    with _data_errors(name), _opened(source, name) as image:
        image.load()
        if image.mode not in ("L", "P"):
            raise DataError(f"{name}: a label must be an 8-bit gray or a palette PNG")
        return np.ascontiguousarray(upright(np.asarray(image), _orientation(image)))


def read_size(source: Path | bytes, name: Path | str) -> tuple[int, int]:
    """Return the (height, width) of the upright image, without decoding it; raises DataError as `read_picture`."""
    with _data_errors(name), _opened(source, name) as image:
        return image.size if _orientation(image) >= 5 else image.size[::-1]


def read_orientation(source: Path | bytes) -> int:
    """Return the EXIF orientation of an image, 1 if there is none or its EXIF data is damaged."""
    try:
        with _stream(source) as file, Image.open(file) as image:
            return _orientation(image)
    # A damaged image is reported by its decoder.
    except Exception:
        return 1


def as_rgb(image: Image.Image, name: Path | str, value_range: Sequence[float] = ()) -> np.ndarray:
    """Convert a PIL image to upright RGB, uint8 (H, W, 3); raises DataError that begins with `name`."""
    return _picture(image, name, value_range, None).pixels


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return an array (H, W, ...) turned upright from an EXIF orientation."""
    turned = array.swapaxes(0, 1) if orientation >= 5 else array
    # The axes to mirror after the exchange of rows and columns.
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return turned[:: -1 if rows else 1, :: -1 if columns else 1]


def reduce_values(values: np.ndarray, name: Path | str, value_range: Sequence[float] = ()) -> np.ndarray:
    """Reduce values of more than 8 bits to uint8; raises DataError that begins with `name`.

    Args:
        values: Gray values (H, W) or colors (H, W, 3).
        name: The name in error messages.
        value_range: (low, high): the values that become 0 and 255. If empty, 0 and 65535.
    """
    if value_range:
        low, high = value_range
        if not np.isfinite(values).all():
            raise DataError(f"{name}: some pixels are nan or infinite")
        scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    if values.dtype.kind == "f":
        raise DataError(
            f"{name}: floating-point pixels have an unknown scale; name the values that are black and "
            "white in the config, data.value_range=LOW,HIGH, or save it with 8 or 16 bits per channel"
        )
    lowest, highest = values.min(), values.max()
    if lowest < 0 or highest > LARGEST_16_BIT:
        raise DataError(
            f"{name}: gray values {lowest}..{highest} exceed the 16-bit range 0..65535; name the values "
            "that are black and white in the config, data.value_range=LOW,HIGH"
        )
    # Colors keep their high byte, as all decoders do. Adding 128 rounds to the nearest value; 257 is 65535 / 255.
    reduced = values >> 8 if values.ndim == 3 else (values.astype(np.int32) + 128) // 257
    return reduced.astype(np.uint8)


def range_note(extents: Sequence[tuple[float, float]]) -> str:
    """Return a note if images of more than 8 bits use only a corner of 0..65535, or "".

    `extents` are the lowest and highest value of each image.
    """
    if not extents:
        return ""
    lowest, highest = min(low for low, _ in extents), max(high for _, high in extents)
    # 14 bits are the most that the sensors of common cameras have.
    if highest - lowest >= CORNER:
        return ""
    count = f"{len(extents)} image{'s' * (len(extents) > 1)} with more than 8 bits"
    return (
        f"{count} use{'s' * (len(extents) == 1)} only the values {lowest:g}..{highest:g} of 0..65535, so that "
        "little contrast is left in 8 bits; set the values that are black and white in the config, such as "
        "data.value_range=0,4095 for 12 bits"
    )


@contextlib.contextmanager
def _data_errors(name: Path | str) -> Iterator[None]:
    """Turn every error of Pillow into a DataError that begins with `name`."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image that Pillow can read, or damaged at its start") from None
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from None
    # Pillow's decoders raise many types of errors for damaged files: SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        raise DataError(f"{name}: cannot be read: {type(error).__name__}: {error}") from None


def _stream(source: Path | str | bytes | BinaryIO) -> contextlib.AbstractContextManager[BinaryIO]:
    """Return the content as a file at its start, to be used in a with statement."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    # Pillow maps a file that it opens by its path into memory, and then reads a TIFF on its side with its sides
    # exchanged.
    if isinstance(source, (str, Path)):
        return open(source, "rb")
    source.seek(0)
    return contextlib.nullcontext(source)


@contextlib.contextmanager
def _opened(source: Path | str | bytes | BinaryIO, name: Path | str) -> Iterator[Image.Image]:
    """Open an image and check its header."""
    with _stream(source) as file, Image.open(file) as image:
        if math.prod(image.size) > MAX_PIXELS:
            raise DataError(
                f"{name}: {image.width} x {image.height} is {math.prod(image.size)} pixels, more than the "
                f"limit of {MAX_PIXELS}"
            )
        if image.format == "PNG" and image.fp is not None:
            position = image.fp.tell()
            headers = png.count_headers(image.fp)
            image.fp.seek(position)
            if headers > 1:
                raise DataError(
                    f"{name}: a PNG with {headers} headers (IHDR chunks), which programs read differently; "
                    "save it again"
                )
        yield image


def _picture(image: Image.Image, name: Path | str, value_range: Sequence[float], colors: np.ndarray | None) -> Picture:
    """Return the first page of an opened image; `colors` are its 16-bit colors, None if it has none."""
    image.load()
    orientation = _orientation(image)
    values = colors
    if colors is None and (image.mode == "F" or image.mode.startswith("I")):
        values = np.asarray(image)
    if values is None:
        # Pillow cannot convert some of these modes to RGB directly, and warns about the dropped transparency of others.
        if image.mode in ("P", "PA", "RGBa"):
            image_rgb = image.convert("RGBA").convert("RGB")
        elif image.mode == "La":
            image_rgb = image.convert("LA").convert("RGB")
        else:
            image_rgb = image.convert("RGB")
        pixels = np.asarray(image_rgb)
    else:
        values = upright(values, orientation)
        pixels = reduce_values(values, name, value_range)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        return Picture(np.array(pixels), _pages(image), orientation, values)
    return Picture(np.array(upright(pixels, orientation)), _pages(image), orientation, None)


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(EXIF_ORIENTATION)
    return value if value in range(1, 9) else 1


def _pages(image: Image.Image) -> int:
    # The other images of an MPO are previews or further views of a photo.
    if image.format == "MPO":
        return 1
    try:
        return getattr(image, "n_frames", 1)
    # A later page may be damaged; the first one was read.
    except Exception:
        return 1


def _color_values(image: Image.Image, source: Path | str | bytes | BinaryIO) -> np.ndarray | None:
    """Return the 16-bit values of a PNG or TIFF that Pillow reduces to 8 bits, uint16 (H, W, 3), or None.

    The two bytes of each value are decoded one after the other.
    """
    if image.format not in ("PNG", "TIFF") or not image.tile:
        return None
    raw_mode = _raw_mode(image.tile[0].args)
    if raw_mode == "LA;16B":
        # Four bytes for each pixel: the gray value, then alpha.
        array = _decode_as(source, lambda mode: "RGBA").astype(np.uint16)
        return np.repeat((array[..., 0] << 8 | array[..., 1])[..., None], 3, axis=2)
    if not raw_mode.startswith("RGB") or raw_mode[-4:-1] != ";16":
        return None
    high = _decode_as(source, lambda mode: mode)
    low = _decode_as(source, lambda mode: mode[:-1] + OPPOSITE_ORDER[mode[-1]])
    return high[..., :3].astype(np.uint16) << 8 | low[..., :3]


def _raw_mode(arguments: str | tuple) -> str:
    return arguments if isinstance(arguments, str) else str(arguments[0])


def _decode_as(source: Path | str | bytes | BinaryIO, change_raw_mode: Callable[[str], str]) -> np.ndarray:
    """Decode an image as stored, uint8 (H, W, channels), with another layout of its bytes."""
    with _stream(source) as file, Image.open(file) as image:
        image.tile = [
            tile._replace(
                args=change_raw_mode(tile.args)
                if isinstance(tile.args, str)
                else (change_raw_mode(tile.args[0]), *tile.args[1:])
            )
            for tile in image.tile
        ]
        image.load()
        return np.asarray(image)
