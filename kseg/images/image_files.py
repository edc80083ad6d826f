"""Read image files as RGB and write PNG files atomically."""

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from kseg.errors import UserError
from kseg.images import picture_reader

# Image files in directories. Files that are named explicitly may have any suffix.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".jp2")


def read_image(path: Path | str | BinaryIO, value_range: Sequence[float] = ()) -> np.ndarray:
    """Read an image file as upright RGB, uint8 of shape (H, W, 3), see `kseg.images.picture_reader.read_picture`.

    Only the first page or frame is read.

    Args:
        path: A file of any format that Pillow reads.
        value_range: (low, high): the values of images with more than 8 bits that become 0 and 255.

    Raises:
        DataError: the file is missing, damaged or truncated, has more than 200 megapixels, or has values of unknown
            scale.
    """
    return picture_reader.read_picture(path, path, value_range).pixels


def is_image(path: Path | str) -> bool:
    """Return whether a file starts like an image that Pillow can read; the rest may still be damaged."""
    try:
        with Image.open(path):
            return True
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError):
        return False


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
