"""Read image files as RGB and write PNG files atomically."""

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
# Pillow warns above 89 megapixels and refuses above 179, but aerial and microscope images are larger. `read_image`
# refuses images above MAX_PIXELS before decoding, so decompression bombs are still caught.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

EXIF_ORIENTATION = 0x0112
TRANSPOSE = Image.Transpose
# The operation that turns an image of each EXIF orientation upright. Orientation 1 is upright already.
UPRIGHT = {2: TRANSPOSE.FLIP_LEFT_RIGHT, 3: TRANSPOSE.ROTATE_180, 4: TRANSPOSE.FLIP_TOP_BOTTOM,
           5: TRANSPOSE.TRANSPOSE, 6: TRANSPOSE.ROTATE_270, 7: TRANSPOSE.TRANSVERSE, 8: TRANSPOSE.ROTATE_90}


def read_image(path: Path | str) -> np.ndarray:
    """Read an image file as RGB.

    Transparency is dropped, not composited: the colors stored under it remain. 16-bit gray values are divided by 257.
    Only the first page or frame is read.

    Args:
        path: A file of any format that Pillow reads.

    Returns:
        The image, uint8 of shape (H, W, 3), upright according to its EXIF orientation.

    Raises:
        DataError: the file is missing, damaged or truncated, has more than 200 megapixels, or has values of unknown
            scale (floating point, or integers outside 0..65535).
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width} x {image.height} is {image.width * image.height} pixels, more "
                                f"than the limit of {MAX_PIXELS}")
            return as_rgb(image, path)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image that Pillow can read, or damaged at its start") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    # Pillow's decoders raise many types of errors for damaged files: SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        raise DataError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None


def is_image(path: Path | str) -> bool:
    """Return whether a file starts like an image that Pillow can read; the rest may still be damaged."""
    try:
        with Image.open(path):
            return True
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError):
        return False


def as_rgb(image: Image.Image, path: Path | str) -> np.ndarray:
    """Convert a PIL image to upright RGB, uint8 (H, W, 3); raises DataError that begins with `path`."""
    image.load()
    upright = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION))
    if upright is not None:
        image = image.transpose(upright)
    if image.mode == "F":
        raise DataError(f"{path}: floating-point pixels have an unknown scale; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: gray values {values.min()}..{values.max()} exceed the 16-bit range 0..65535")
        # Adding 128 rounds to the nearest value; 257 is 65535 / 255.
        gray = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    # Pillow cannot convert some of these modes to RGB directly, and warns about the dropped transparency of others.
    if image.mode in ("P", "PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    return np.array(image.convert("RGB"))


def save_image(image: Image.Image | np.ndarray, path: Path | str) -> None:
    """Write a PNG file atomically, and create missing directories.

    Args:
        image: A PIL image, or a uint8 array of shape (H, W) or (H, W, 3).
        path: The file to write.

    Raises:
        UserError: the file cannot be written.
        ValueError: the array has another type or shape.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 2 and image.shape[2:] != (3,):
            raise ValueError(f"an image must be uint8 (H, W) or (H, W, 3), got {image.dtype} {image.shape}")
        image = Image.fromarray(image)
    with replacing_file(path) as temporary:
        image.save(temporary, format="PNG")


@contextlib.contextmanager
def replacing_file(path: Path | str, suffix: str = ".tmp") -> Iterator[Path]:
    """Yield a hidden temporary path that replaces `path` when the block ends without an error.

    Readers see either the old file or the complete new one. Missing directories are created.

    Raises:
        UserError: `path` cannot be written.
    """
    path = Path(path)
    # The final name may already be as long as the file system allows, so the temporary name is not derived from it.
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
