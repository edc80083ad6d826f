"""The charts of the evaluation report as inline SVG, in colours that follow the page from light to dark."""

import base64
import html
import io
import re
import warnings
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from kseg.config import IGNORED

# Stand-ins that occur nowhere else in a chart; the page's own colours take their place.
INK, MUTED, GRID, ACCENT = "#010203", "#010204", "#010205", "#010206"
PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", ACCENT: "var(--accent)"}

# Colours of the heat map; they are laid over the page with an opacity, so they must suit white and black.
RIGHT, WRONG = (0x3B, 0x82, 0xF6), (0xE5, 0x4B, 0x2E)

# One unit of a chart is 1/72 inch for matplotlib, and one CSS pixel where it is shown at its own size.
UNIT = 1 / 72
FONT_SIZE = 11
LONGEST_NAME = 21
# What a letter takes at FONT_SIZE in the widest of the usual fonts.
LETTER = 6.9
BAR_WIDTH, BAR_ROW, BAR_RIGHT, BAR_TOP = 360, 19, 44, 22
CURVE_SIZE = 420, 270


def bars(names: Sequence[str], values: Sequence[float], mean: float) -> list[str]:
    """Return horizontal bars of fractions 0..1, lowest first and nan last, as 1 to 3 SVG texts, each a column.

    `mean` is marked by a line through each column unless it is nan.
    """
    values = np.array([np.nan if value is None else value for value in values], float)
    order = np.argsort(values, kind="stable")
    columns = 1 if len(order) <= 12 else 2 if len(order) <= 40 else 3
    length = -(-len(order) // columns)
    parts = [order[start:start + length] for start in range(0, len(order), length)]
    labels = [_shortened(name) for name in names]
    return [_bar_column([labels[index] for index in part], values[part], mean, _room(labels), f"bars{number}")
            for number, part in enumerate(parts)]


def _bar_column(labels: Sequence[str], values: np.ndarray, mean: float, left: float, name: str) -> str:
    height = BAR_TOP + BAR_ROW * len(labels) + 4
    figure, axes = _axes((BAR_WIDTH, height), (left, 4, BAR_WIDTH - left - BAR_RIGHT, height - BAR_TOP - 4))
    rows = np.arange(len(labels))
    axes.barh(rows, np.nan_to_num(values) * 100, height=0.66, color=ACCENT)
    axes.set(xlim=(0, 100), ylim=(len(labels) - 0.5, -0.5))
    axes.set_yticks(rows, labels, parse_math=False, color=INK)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.xaxis.tick_top()
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    for row, value in zip(rows, values):
        axes.annotate(f"{100 * value:.1f}" if value == value else "–", (100, row), (BAR_RIGHT - 6, 0), ha="right",
                      va="center", textcoords="offset points", color=INK, fontsize=FONT_SIZE)
    if mean == mean:
        axes.axvline(100 * mean, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    return _svg(figure, name, f"IoU in percent, from {labels[0]} to {labels[-1]}; the table has all values")


def heat_map(shares: np.ndarray, names: Sequence[str]) -> str:
    """Return (C, C) fractions 0..1, rows truth, as SVG: the diagonal in blue, what is wrong in red; nan stays blank.

    The opacity of red is the root of the share, so that confusions of a few percent show. Numbers are whole percent,
    from 1 on.
    """
    count = len(names)
    cell = float(np.clip(640 / count, 17, 48))
    side = cell * count
    labels = [_shortened(name) for name in names]
    margin = _room(labels)
    figure, axes = _axes((margin + side + 6, margin + side + 6), (margin, 6, side, side))
    filled = np.nan_to_num(shares)
    diagonal = np.eye(count, dtype=bool)
    pixels = np.zeros((count, count, 4), np.uint8)
    pixels[..., :3] = np.where(diagonal[..., None], RIGHT, WRONG)
    pixels[..., 3] = np.rint(np.where(diagonal, 0.75 * filled, 0.9 * np.sqrt(filled)) * 255)
    axes.imshow(pixels, interpolation="none", aspect="auto")
    axes.set_yticks(np.arange(count), labels, parse_math=False, color=INK)
    axes.set_xticks(np.arange(count), labels, parse_math=False, color=INK, rotation=90)
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.6)
    for row, column in zip(*np.nonzero(np.rint(100 * filled))):
        axes.text(column, row, f"{100 * filled[row, column]:.0f}", ha="center", va="center", color=INK,
                  fontsize=min(FONT_SIZE, cell * 0.42))
    return _svg(figure, "heat", "Confusion matrix in percent of the true class, a row for each; the largest confusions "
                                "are listed beside it")


def curve(widths: Sequence[float], values: Sequence[float], labels: Sequence[str], marked: float,
          whole: float) -> str:
    """Return the mIoU over the width of the band as SVG; `whole` is the mIoU of all pixels, `marked` the chosen width.

    Widths and values are fractions; `labels` stand under the widths. nan and None leave a gap.
    """
    figure, axes = _axes(CURVE_SIZE, (46, 56, CURVE_SIZE[0] - 62, CURVE_SIZE[1] - 84))
    # Widths double from one to the next: by their number they stand at equal distances.
    places = np.arange(len(widths))
    heights = 100 * np.array([np.nan if value is None else value for value in values], float)
    axes.plot(places, heights, color=ACCENT, linewidth=2, marker="o", markersize=5)
    for place, height in zip(places, heights):
        if height == height:
            axes.annotate(f"{height:.1f}", (place, height), (0, 8), textcoords="offset points", ha="center",
                          color=INK, fontsize=FONT_SIZE, weight="bold" if widths[place] == marked else "normal")
    shown = [*heights[np.isfinite(heights)]]
    if whole == whole:
        shown.append(100 * whole)
        axes.axhline(100 * whole, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(f"all pixels {100 * whole:.1f}", (0, 100 * whole), (0, 5), textcoords="offset points",
                      color=MUTED, fontsize=FONT_SIZE)
    low, high = (min(shown), max(shown)) if shown else (0, 100)
    room = max(2, 0.15 * (high - low))
    axes.set(xlim=(-0.35, len(widths) - 0.65), ylim=(max(0, low - room), min(104, high + 1.6 * room)))
    axes.set_xticks(places, labels, color=INK)
    axes.spines["bottom"].set(visible=True, color=GRID)
    axes.set_xlabel("width of the band", color=MUTED, fontsize=FONT_SIZE)
    axes.set_title("mIoU in percent", loc="left", color=MUTED, fontsize=FONT_SIZE)
    return _svg(figure, "curve", "mIoU near the edges of the label over the width of the band; the table has all "
                                 "values")


def _axes(size: tuple[float, float], box: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """Return a transparent figure of that size with axes in a box (left, bottom, width, height), in units."""
    width, height = size
    figure = Figure(figsize=(width * UNIT, height * UNIT), dpi=72, facecolor="none")
    axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height), facecolor="none")
    axes.tick_params(which="both", length=0, labelsize=FONT_SIZE, labelcolor=MUTED)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _svg(figure: Figure, name: str, description: str) -> str:
    """Return a figure as SVG for the inside of an HTML page: no prologue, no namespaces, ids of its own."""
    text = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The browser draws the text, in whatever fonts it has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    body = text.getvalue()
    body = body[body.index(">", body.index("<svg")) + 1:]
    for colour, page_colour in PAGE_COLOURS.items():
        body = body.replace(colour, page_colour)
    # Charts share one page, and matplotlib counts from axes_1 in each.
    body = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"{name}-", body)
    width, height = (round(size / UNIT) for size in figure.get_size_inches())
    return (f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'aria-label="{html.escape(description)}">{body}')


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME - 1].rstrip() + "…"


def _room(labels: Sequence[str]) -> float:
    return 12 + LETTER * max(len(label) for label in labels)


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
