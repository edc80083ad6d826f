"""Draw overlays, legends and grids of images."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kseg.config import IGNORED

GAP = 4
MARGIN = 12
FONT_SIZE = 14
LEGEND_ROWS = 25


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
