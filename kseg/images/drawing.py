"""Draw class colors, overlays, legends and grids of images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kseg.config.sections import IGNORED

GAP = 4
MARGIN = 12
FONT_SIZE = 14
LEGEND_ROWS = 25


def colorize(ids: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Return the color of each class id.

    Args:
        ids: Class ids, uint8 of shape (H, W).
        palette: RGB colors 0..255 of the classes.

    Returns:
        The colors, uint8 of shape (H, W, 3). Id 255 and ids beyond the palette are black.

    Raises:
        ValueError: the ids have another type or shape.
    """
    if ids.dtype != np.uint8 or ids.ndim != 2:
        raise ValueError(f"ids must be uint8 (H, W), got {ids.dtype} {ids.shape}")
    table = np.zeros((256, 3), np.uint8)
    table[: min(len(palette), IGNORED)] = np.reshape(palette[:IGNORED], (-1, 3))
    return table[ids]


def overlay(
    image: np.ndarray, ids: np.ndarray, palette: Sequence[tuple[int, int, int]], opacity: float = 0.5
) -> np.ndarray:
    """Blend an image with the colors of its classes.

    Args:
        image: RGB image, uint8 of shape (H, W, 3).
        ids: Class ids, uint8 of shape (H, W). Pixels of id 255 and of ids beyond the palette keep the image's color.
        palette: RGB colors 0..255 of the classes.
        opacity: Weight of the class color, 0..1.

    Returns:
        The blended image, uint8 of shape (H, W, 3), rounded to the nearest value.

    Raises:
        ValueError: the types or sizes do not match, or the opacity is out of range.
    """
    if image.dtype != np.uint8 or image.shape != (*ids.shape, 3):
        raise ValueError(f"the image must be uint8 {(*ids.shape, 3)} to match its ids, got {image.dtype} {image.shape}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be between 0 and 1, got {opacity}")
    blended = colorize(ids, palette).astype(np.float32)
    blended -= image
    blended *= np.float32(opacity)
    blended[ids >= min(len(palette), IGNORED)] = 0
    blended += image
    return np.rint(blended, out=blended).astype(np.uint8)


def legend(classes: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Draw a legend with the color, id and name of every class, in columns of at most 25 classes.

    Args:
        classes: Names of the classes.
        palette: RGB colors 0..255, one for each class.

    Returns:
        An RGB image.

    Raises:
        ValueError: there are no classes, or the number of colors differs from the number of classes.
    """
    if not classes or len(classes) != len(palette):
        raise ValueError(f"{len(classes)} classes and {len(palette)} colors; each class needs one")
    font = font_for("".join(classes))
    swatch, line = (32, 18), 24
    columns = -(-len(classes) // LEGEND_ROWS)
    # Columns of equal length look better than full columns and a short last one.
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


def font_for(text: str) -> ImageFont.FreeTypeFont:
    """Return a font that has the characters of a text, as far as the installed packages have one."""
    # Pillow's own font has little more than ASCII.
    return ImageFont.load_default(FONT_SIZE) if text.isascii() else ImageFont.truetype(_wide_font(), FONT_SIZE)


def missing_characters(texts: Sequence[str]) -> str:
    """Return the first ten characters, sorted, that `font_for` has no font for."""
    others = sorted({character for text in texts for character in text if not character.isascii()})
    if not others:
        return ""
    from matplotlib.ft2font import FT2Font

    known = FT2Font(_wide_font()).get_charmap()
    return "".join([character for character in others if ord(character) not in known][:10])


def _wide_font() -> str:
    """Return the path of the font of matplotlib: Latin, Greek, Cyrillic, Arabic, but no Chinese or Japanese."""
    # Importing matplotlib takes half a second, which few class names need.
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def _text_width(text: str, font: ImageFont.FreeTypeFont) -> int:
    return int(np.ceil(font.getlength(text)))


def grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] = ()) -> Image.Image:
    """Arrange images in a grid on a white sheet.

    Rows may differ in length and cells in size. A column is as wide as its widest cell or title, and a row as high as
    its highest cell.

    Args:
        rows: The cells of each row, uint8 of shape (H, W, 3).
        titles: Texts above the columns; empty for none.

    Returns:
        An RGB image.

    Raises:
        ValueError: there are no cells, a cell has another type or shape, or the number of titles differs from the
            number of columns.
    """
    cells = [cell for row in rows for cell in row]
    for cell in cells:
        if cell.dtype != np.uint8 or cell.ndim != 3 or cell.shape[2] != 3:
            raise ValueError(f"a cell must be uint8 (H, W, 3), got {cell.dtype} {cell.shape}")
    if not cells:
        raise ValueError("a grid needs at least one cell")
    columns = max(len(row) for row in rows)
    if titles and len(titles) != columns:
        raise ValueError(f"{len(titles)} titles for {columns} columns")
    font = font_for("".join(titles))
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
