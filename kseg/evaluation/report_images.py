"""The pictures of the evaluation report: photographs, maps and errors, reduced and as data URIs."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from kseg.config import IGNORED

# Pictures are fitted into this (width, height), in pixels.
BOX = 480, 480
JPEG_QUALITY = 80

ERROR = 224, 16, 32
VOID_GREY = 72
# The grey of a picture under its errors begins here, so that it is lighter than what is not counted.
DARKEST = 120


def errors(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W, 3): red where the prediction is wrong, the pale grey picture where it is right.

    The image is uint8 (H, W, 3), truth and prediction are uint8 (H, W); where the truth is 255 a flat dark grey says
    that nothing is counted there.
    """
    # The pale greys are DARKEST to 255; below them there is room for the two other colours.
    table = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    table[0] = ERROR
    levels = np.rint(DARKEST + np.arange(256) * (255 - DARKEST) / 255).astype(np.uint8)
    values = levels[np.asarray(Image.fromarray(image).convert("L"))]
    values[prediction != truth] = 0
    values[truth == IGNORED] = VOID_GREY
    return table[values]


def void_colour(palette: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Return the colour of label 255 on maps: black, or where a class is black, white or else a grey."""
    taken = {tuple(colour) for colour in palette}
    greys = [(0, 0, 0), (255, 255, 255), *((level,) * 3 for level in range(128, 255))]
    return next((grey for grey in greys if grey not in taken), greys[0])


def photograph(image: np.ndarray) -> dict:
    """Return uint8 (H, W, 3) as {"uri", "width", "height"}: a JPEG that fits the box, pixels averaged over areas."""
    small = Image.fromarray(image)
    small = small.resize(_fitted(small.size), Image.Resampling.BOX)
    # Colours at full resolution: thin red errors would otherwise run out into the grey.
    return _embedded(small, "jpeg", {"quality": JPEG_QUALITY, "subsampling": 0})


def label_map(ids: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> dict:
    """Return uint8 (H, W) class ids as {"uri", "width", "height"}: a PNG with a palette that fits the box."""
    table = np.zeros((256, 3), np.uint8)
    table[:min(len(palette), IGNORED)] = np.reshape(palette[:IGNORED], (-1, 3))
    table[IGNORED] = void_colour(palette)
    small = Image.fromarray(ids)
    small = small.resize(_fitted(small.size), Image.Resampling.NEAREST)
    # The same pixels, which now name colours.
    small.putpalette(table.tobytes())
    return _embedded(small, "png", {})


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    factor = min(1, BOX[0] / size[0], BOX[1] / size[1])
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _embedded(picture: Image.Image, kind: str, options: dict) -> dict:
    data = io.BytesIO()
    picture.save(data, format=kind, **options)
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return {"uri": f"data:image/{kind};base64,{encoded}", "width": picture.width, "height": picture.height}
