"""Draw the charts of the evaluation report as inline SVG, and embed its images as data URIs.

The charts use the colors of the page, in its light and its dark theme.
"""

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
from matplotlib.ticker import MaxNLocator
from PIL import Image

from kseg.config.sections import IGNORED

# Placeholder colors, which occur nowhere else in a chart; `_svg` replaces them by the CSS variables of the page.
INK, MUTED, GRID, ACCENT = "#010203", "#010204", "#010205", "#010206"
PAGE_COLORS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", ACCENT: "var(--accent)"}

# Colors of the heat map. They are drawn with opacity over a white or a black page.
CORRECT, WRONG = (0x3B, 0x82, 0xF6), (0xE5, 0x4B, 0x2E)

# A unit of a chart is 1/72 inch for matplotlib, and one CSS pixel at the original size.
UNIT = 1 / 72
FONT_SIZE = 11
LONGEST_NAME = 21
# Width of a letter at FONT_SIZE in the widest common font.
LETTER = 6.9
BAR_WIDTH, BAR_ROW, BAR_RIGHT, BAR_TOP = 360, 19, 44, 22
CURVE_SIZE = 420, 270
STEPS_SIZE = 360, 220
# Curves of up to this many points have marks.
MARKED = 40

# Maximum (width, height) of an embedded image, in pixels.
BOX = 480, 480
JPEG_QUALITY = 80
ERROR_COLOR = 224, 16, 32
IGNORED_GRAY = 72
# Lowest gray level of correct pixels in an error map, above that of ignored pixels.
DARKEST = 120


def bar_charts(names: Sequence[str], values: Sequence[float], mean: float) -> list[str]:
    """Draw scores of the classes as horizontal bars.

    Args:
        names: Names of the classes.
        values: Fractions 0..1, nan or None where undefined.
        mean: Fraction marked by a line, unless it is nan.

    Returns:
        One to three SVG texts, a column of the page each: lowest value first, undefined values last.
    """
    values = np.array([np.nan if value is None else value for value in values], float)
    order = np.argsort(values, kind="stable")
    columns = 1 if len(order) <= 12 else 2 if len(order) <= 40 else 3
    length = -(-len(order) // columns)
    parts = [order[start : start + length] for start in range(0, len(order), length)]
    labels = [_shortened(name) for name in names]
    return [
        _bar_chart([labels[index] for index in part], values[part], mean, _label_width(labels), f"bars{number}")
        for number, part in enumerate(parts)
    ]


def _bar_chart(labels: Sequence[str], values: np.ndarray, mean: float, left: float, name: str) -> str:
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
        axes.annotate(
            f"{100 * value:.1f}" if value == value else "–",
            (100, row),
            (BAR_RIGHT - 6, 0),
            ha="right",
            va="center",
            textcoords="offset points",
            color=INK,
            fontsize=FONT_SIZE,
        )
    if mean == mean:
        axes.axvline(100 * mean, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    return _svg(figure, name, f"IoU in percent, from {labels[0]} to {labels[-1]}; the table lists all values")


def heat_map(fractions: np.ndarray, names: Sequence[str]) -> str:
    """Draw a confusion matrix as SVG, the diagonal in blue and confusions in red.

    The opacity of a confusion is the square root of its fraction, so that a few percent are visible. Numbers are whole
    percent and shown from 1% on.

    Args:
        fractions: (C, C) fractions 0..1 of the ground truth of each row; nan leaves a cell blank.
        names: Names of the C classes.
    """
    count = len(names)
    cell = float(np.clip(640 / count, 17, 48))
    side = cell * count
    labels = [_shortened(name) for name in names]
    margin = _label_width(labels)
    figure, axes = _axes((margin + side + 6, margin + side + 6), (margin, 6, side, side))
    filled = np.nan_to_num(fractions)
    diagonal = np.eye(count, dtype=bool)
    pixels = np.zeros((count, count, 4), np.uint8)
    pixels[..., :3] = np.where(diagonal[..., None], CORRECT, WRONG)
    pixels[..., 3] = np.rint(np.where(diagonal, 0.75 * filled, 0.9 * np.sqrt(filled)) * 255)
    axes.imshow(pixels, interpolation="none", aspect="auto")
    axes.set_yticks(np.arange(count), labels, parse_math=False, color=INK)
    axes.set_xticks(np.arange(count), labels, parse_math=False, color=INK, rotation=90)
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.6)
    for row, column in zip(*np.nonzero(np.rint(100 * filled))):
        axes.text(
            column,
            row,
            f"{100 * filled[row, column]:.0f}",
            ha="center",
            va="center",
            color=INK,
            fontsize=min(FONT_SIZE, cell * 0.42),
        )
    return _svg(
        figure,
        "heat",
        "Confusion matrix in percent of the ground truth, one row per class; the largest "
        "confusions are listed beside it",
    )


def boundary_curve(
    widths: Sequence[float], values: Sequence[float], labels: Sequence[str], marked: float, overall: float
) -> str:
    """Draw the mIoU against the width of the boundary band as SVG.

    Args:
        widths: Widths of the bands, as fractions of the image diagonal.
        values: mIoU within each band, as a fraction; nan and None leave a gap.
        labels: Tick labels of the widths.
        marked: The width whose value is printed in bold.
        overall: mIoU of all pixels, drawn as a line unless it is nan.
    """
    figure, axes = _axes(CURVE_SIZE, (46, 56, CURVE_SIZE[0] - 62, CURVE_SIZE[1] - 84))
    # Each width is twice the previous one; by index they are evenly spaced.
    positions = np.arange(len(widths))
    heights = 100 * np.array([np.nan if value is None else value for value in values], float)
    axes.plot(positions, heights, color=ACCENT, linewidth=2, marker="o", markersize=5)
    for position, height in zip(positions, heights):
        if height == height:
            axes.annotate(
                f"{height:.1f}",
                (position, height),
                (0, 8),
                textcoords="offset points",
                ha="center",
                color=INK,
                fontsize=FONT_SIZE,
                weight="bold" if widths[position] == marked else "normal",
            )
    shown = [*heights[np.isfinite(heights)]]
    if overall == overall:
        shown.append(100 * overall)
        axes.axhline(100 * overall, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"all pixels {100 * overall:.1f}",
            (0, 100 * overall),
            (0, 5),
            textcoords="offset points",
            color=MUTED,
            fontsize=FONT_SIZE,
        )
    low, high = (min(shown), max(shown)) if shown else (0, 100)
    margin = max(2, 0.15 * (high - low))
    axes.set(xlim=(-0.35, len(widths) - 0.65), ylim=(max(0, low - margin), min(104, high + 1.6 * margin)))
    axes.set_xticks(positions, labels, color=INK)
    axes.spines["bottom"].set(visible=True, color=GRID)
    axes.set_xlabel("width of the band", color=MUTED, fontsize=FONT_SIZE)
    axes.set_title("mIoU in percent", loc="left", color=MUTED, fontsize=FONT_SIZE)
    return _svg(figure, "curve", "mIoU near the label edges against the width of the band; the table lists all values")


def step_curve(steps: Sequence[int], values: Sequence[float], title: str, name: str) -> str:
    """Draw a value against the steps of a training as SVG.

    Args:
        steps: Numbers of steps taken, in increasing order.
        values: The value after each of them.
        title: Text above the chart.
        name: Identifier of the chart, unique on the page.
    """
    width, height = STEPS_SIZE
    figure, axes = _axes(STEPS_SIZE, (52, 42, width - 66, height - 74))
    # A single value, or a few, would be invisible or misread without marks.
    axes.plot(steps, values, color=ACCENT, linewidth=1.6, marker="o" if len(steps) <= MARKED else "", markersize=4)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.03, y=0.1)
    axes.spines["bottom"].set(visible=True, color=GRID)
    axes.set_xlabel("step", color=MUTED, fontsize=FONT_SIZE)
    axes.set_title(title, loc="left", color=MUTED, fontsize=FONT_SIZE)
    return _svg(figure, name, f"{title} from step {steps[0]} to step {steps[-1]}, where it is {values[-1]:.4g}")


def _axes(size: tuple[float, float], box: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """Create a transparent figure with axes in the box (left, bottom, width, height), in units."""
    width, height = size
    figure = Figure(figsize=(width * UNIT, height * UNIT), dpi=72, facecolor="none")
    axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height), facecolor="none")
    axes.tick_params(which="both", length=0, labelsize=FONT_SIZE, labelcolor=MUTED)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _svg(figure: Figure, name: str, description: str) -> str:
    """Render a figure as SVG to be inlined in HTML: no prologue, no namespaces, ids prefixed by `name`."""
    text = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The browser draws the text with its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    body = text.getvalue()
    body = body[body.index(">", body.index("<svg")) + 1 :]
    for placeholder, color in PAGE_COLORS.items():
        body = body.replace(placeholder, color)
    # All charts are on one page, and matplotlib numbers the ids of each from axes_1.
    body = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"{name}-", body)
    width, height = (round(size / UNIT) for size in figure.get_size_inches())
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{html.escape(description)}">{body}'
    )


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1].rstrip() + "…"


def _label_width(labels: Sequence[str]) -> float:
    return 12 + LETTER * max(len(label) for label in labels)


def error_map(image: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Draw wrong pixels in red over the image in light gray.

    Args:
        image: uint8 (H, W, 3).
        label: uint8 (H, W); pixels with 255 are ignored and drawn in dark gray.
        prediction: uint8 (H, W).

    Returns:
        uint8 (H, W, 3).
    """
    # Correct pixels use the levels DARKEST to 255, so the lower entries are free for the other two colors.
    table = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    table[0] = ERROR_COLOR
    levels = np.rint(DARKEST + np.arange(256) * (255 - DARKEST) / 255).astype(np.uint8)
    values = levels[np.asarray(Image.fromarray(image).convert("L"))]
    values[prediction != label] = 0
    values[label == IGNORED] = IGNORED_GRAY
    return table[values]


def ignored_color(palette: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Return a color for label 255 that no class has: black, white or a gray."""
    taken = {tuple(color) for color in palette}
    grays = [(0, 0, 0), (255, 255, 255), *((level,) * 3 for level in range(128, 255))]
    return next((gray for gray in grays if gray not in taken), grays[0])


def jpeg_image(image: np.ndarray) -> dict:
    """Embed an image, reduced to fit BOX, as JPEG.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        {"uri", "width", "height"}.
    """
    reduced = Image.fromarray(image)
    reduced = reduced.resize(_fitted(reduced.size), Image.Resampling.BOX)
    # Chroma is not subsampled: otherwise thin red errors would bleed into the gray.
    return _embedded(reduced, "jpeg", {"quality": JPEG_QUALITY, "subsampling": 0})


def png_label_map(ids: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> dict:
    """Embed class ids, reduced to fit BOX, as a PNG with the palette of the classes.

    Args:
        ids: uint8 (H, W).
        palette: RGB color of each class.

    Returns:
        {"uri", "width", "height"}.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: min(len(palette), IGNORED)] = np.reshape(palette[:IGNORED], (-1, 3))
    table[IGNORED] = ignored_color(palette)
    reduced = Image.fromarray(ids)
    reduced = reduced.resize(_fitted(reduced.size), Image.Resampling.NEAREST)
    # This changes the mode from gray to palette; the ids stay as they are.
    reduced.putpalette(table.tobytes())
    return _embedded(reduced, "png", {})


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    factor = min(1, BOX[0] / size[0], BOX[1] / size[1])
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _embedded(image: Image.Image, kind: str, options: dict) -> dict:
    data = io.BytesIO()
    image.save(data, format=kind, **options)
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return {"uri": f"data:image/{kind};base64,{encoded}", "width": image.width, "height": image.height}
