"""Pictures in and out: any file as RGB, class ids as colours, legends, contact sheets, atomic PNG files."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

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
