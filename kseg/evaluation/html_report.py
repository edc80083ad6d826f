"""The evaluation report: one HTML page that needs no other file and no network."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from kseg.config import IGNORED
from kseg.errors import UserError
from kseg.evaluation import report_graphics
from kseg.system import atomic_files

TEMPLATES = Path(__file__).parent / "templates"

# More classes than these give a heat map that nobody can read; it then shows the second number of them.
MOST_CLASSES, CONFUSED_CLASSES = 40, 25
LARGEST_CONFUSIONS = 10

METRICS = {
    "mIoU": "mean over the classes of intersection over union",
    "aAcc": "share of pixels that are right",
    "mAcc": "mean over the classes of the share of their pixels that is found",
    "fwIoU": "IoU weighted by the classes' share of pixels",
    "boundary_mIoU": "mIoU near the edges of the label",
    "mDice": "mean over the classes of twice the intersection over the sum",
}
GROUPS = {"worst": "Worst images", "typical": "Typical images, around the median mIoU"}


class Sample(NamedTuple):
    """One image of the report: uint8 (H, W, 3), its truth and prediction uint8 (H, W), and its mIoU, 0..1 or nan.

    `group` is "worst" or "typical".
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    miou: float
    group: str


def write(path: Path | str, results: dict, matrix: np.ndarray, samples: Sequence[Sample], classes: Sequence[str],
          palette: Sequence[tuple[int, int, int]]) -> None:
    """Write the report, so that a reader sees the old page or the whole new one.

    `results` is what metrics.json holds, with None or nan for what is missing; `matrix` is the int64 (C, C) confusion
    matrix, rows truth. Raises UserError naming the file where it cannot be written, ValueError where sizes do not fit
    or a group is unknown.
    """
    path, matrix = Path(path), np.asarray(matrix)
    if not matrix.shape == (len(classes),) * 2 or len(palette) != len(classes) or not classes:
        raise ValueError(f"{len(classes)} classes and {len(palette)} colours for a matrix {matrix.shape}")
    for sample in samples:
        if sample.group not in GROUPS or not sample.image.shape[:2] == sample.truth.shape == sample.prediction.shape:
            raise ValueError(f"{sample.name}: group {sample.group!r}, sizes {sample.image.shape[:2]}, "
                             f"{sample.truth.shape} and {sample.prediction.shape}")
    text = _environment().get_template("report.html.jinja").render(
        results=results, metrics=METRICS, comparison=_comparison(results), rows=_class_rows(results, classes, palette),
        bars=report_graphics.bars([printable(name) for name in classes],
                                [results["classes"][name]["iou"] for name in classes], _number(results["mIoU"])),
        confusion=_confusion(matrix, classes), groups=_groups(samples, palette),
        void=_hex(report_graphics.void_colour(palette)), error_colour=_hex(report_graphics.ERROR),
        void_grey=_hex((report_graphics.VOID_GREY,) * 3), boundary=_boundary(results, samples),
        settings=list(_settings(results["config"])))
    try:
        atomic_files.write_text(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def printable(text: str) -> str:
    """Return text that any page can hold: characters that do not print, lone surrogates too, become escapes.

    File names hold such surrogates for bytes that are not UTF-8 (PEP 383).
    """
    # Nearly all is printable, and data URIs are long.
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
                   for letter in text)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        finalize=_finalize, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "points": _points, "fixed": _fixed, "minutes": _minutes}
    return environment


def _finalize(value: Any) -> Any:
    """Return what stands in the page for a value of the template: an en dash for None and nan."""
    if value is None or value != value:
        return "–"
    # What is marked as HTML already was made printable in its parts.
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _percent(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else _fixed(100 * value, digits)


def _fixed(value: float | None, digits: int) -> str | None:
    return None if value is None or value != value else f"{value:.{digits}f}"


def _points(value: float | None) -> str | None:
    """Return a difference of fractions in percentage points, with its sign."""
    # A true minus sign is as wide as a plus; what rounds to zero has none.
    return None if value is None or value != value else f"{round(100 * value, 2) + 0:+.2f}".replace("-", "−")


def _minutes(date: str | None) -> str | None:
    """Return an ISO date of UTC to the minute, as one reads it."""
    return None if date is None else date[:16].replace("T", " ") + " UTC"


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{int(value):02x}" for value in colour)


def _comparison(results: dict) -> dict | None:
    """Return the published mIoU of the protocol that was run, our difference from it, and words for the protocol."""
    published, protocol = results["published"], results["config"]["evaluate"]
    scales = ", ".join(f"{scale:g}" for scale in protocol["scales"])
    parts = [f"mean over scales {scales}"] if scales else []
    parts += ["mirrored pictures"] if protocol["flip"] else []
    words = " and ".join(parts) or "single scale"
    if published is None:
        return {"words": words, "miou": None, "difference": None}
    miou = published["mIoU_tta" if parts else "mIoU"]
    return {"words": words, "miou": miou,
            "difference": None if miou is None else _number(results["mIoU"]) - miou}


def _class_rows(results: dict, classes: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> list[dict]:
    edges = results["boundary"]["classes"]
    return [{"name": name, "colour": _hex(colour), "boundary": edges.get(name),
             "share": results["classes"][name]["pixels"] / results["pixels"] if results["pixels"] else None,
             **results["classes"][name]} for name, colour in zip(classes, palette)]


def _confusion(matrix: np.ndarray, classes: Sequence[str]) -> dict:
    """Return the heat map, which classes it shows, and the largest confusions, as shares of the true class."""
    truth = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, truth, out=np.full(matrix.shape, np.nan), where=truth > 0)
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, matrix)
    shown = np.arange(len(classes))
    if len(classes) > MOST_CLASSES:
        # By pixels, not by shares: classes that are rare and missed altogether would fill the map with empty columns.
        shown = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:CONFUSED_CLASSES])
    errors = np.where(wrong > 0, shares, 0)
    largest = [np.unravel_index(place, errors.shape)
               for place in np.argsort(-errors, axis=None, kind="stable")[:LARGEST_CONFUSIONS]]
    return {"map": report_graphics.heat_map(shares[np.ix_(shown, shown)], [printable(classes[index]) for index in shown]),
            "shown": len(shown), "all": len(classes),
            "largest": [{"truth": classes[row], "taken": classes[column], "share": float(errors[row, column]),
                         "pixels": int(matrix[row, column])}
                        for row, column in largest if errors[row, column] > 0]}


def _groups(samples: Sequence[Sample], palette: Sequence[tuple[int, int, int]]) -> list[dict]:
    return [{"title": title, "cards": [_card(sample, palette) for sample in samples if sample.group == group]}
            for group, title in GROUPS.items() if any(sample.group == group for sample in samples)]


def _card(sample: Sample, palette: Sequence[tuple[int, int, int]]) -> dict:
    counted = sample.truth != IGNORED
    pixels = np.count_nonzero(counted)
    wrong = np.count_nonzero((sample.prediction != sample.truth) & counted)
    height, width = sample.truth.shape
    return {"name": sample.name, "miou": sample.miou, "width": width, "height": height,
            "wrong": wrong / pixels if pixels else None,
            "pictures": {
                "picture": report_graphics.photograph(sample.image),
                "truth": report_graphics.label_map(sample.truth, palette),
                "prediction": report_graphics.label_map(sample.prediction, palette),
                "errors": report_graphics.photograph(
                    report_graphics.errors(sample.image, sample.truth, sample.prediction))}}


def _boundary(results: dict, samples: Sequence[Sample]) -> dict:
    """Return the curve and its rows; widths in pixels are those of the picture whose diagonal is the median."""
    boundary = results["boundary"]
    sizes = sorted((sample.truth.shape for sample in samples), key=lambda size: np.hypot(*size))
    size = sizes[len(sizes) // 2] if sizes else None
    pixels = [size and max(1, round(width * float(np.hypot(*size)))) for width in boundary["widths"]]
    labels = [f"{100 * width:g} %" + (f"\n{count} px" if count else "")
              for width, count in zip(boundary["widths"], pixels)]
    rows = [{"width": f"{100 * width:g}", "reach": reach, "miou": miou, "chosen": width == boundary["width"],
             "share": count / results["pixels"] if count is not None and results["pixels"] else None}
            for width, reach, miou, count in zip(boundary["widths"], pixels, boundary["mIoU"], boundary["pixels"])]
    return {"rows": rows, "size": size and f"{size[1]} x {size[0]}",
            "curve": report_graphics.curve(boundary["widths"], boundary["mIoU"], labels, boundary["width"],
                                         _number(results["mIoU"]))}


def _settings(config: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every value of the config with its dotted key, as `--set` names it."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield prefix + key, ", ".join(str(item) for item in value)
        else:
            yield prefix + key, str(value)
