"""Write the evaluation report: one HTML page that needs no other file and no network."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import numpy as np

from kseg.config import dataset_title
from kseg.config.sections import IGNORED
from kseg.errors import UserError
from kseg.evaluation import report_graphics
from kseg.evaluation.training_log import Curve
from kseg.system import atomic_files

TEMPLATES = Path(__file__).parent / "templates"

# A heat map of more than MOST_CLASSES is unreadable; it then shows the CONFUSED_CLASSES with the most wrong pixels.
MOST_CLASSES, CONFUSED_CLASSES = 40, 25
LARGEST_CONFUSIONS = 10

METRICS = {
    "mIoU": "intersection over union, averaged over the classes",
    "aAcc": "fraction of correct pixels",
    "mAcc": "fraction of correct pixels of a class, averaged over the classes",
    "fwIoU": "IoU of the classes, weighted by their number of pixels",
    "boundary_mIoU": "mIoU near the label edges",
    "mDice": "Dice coefficient, averaged over the classes",
}
GROUPS = {"worst": "Worst images", "typical": "Typical images, around the median mIoU"}


class Sample(NamedTuple):
    """An image of the report.

    `image` is uint8 (H, W, 3), `label` and `prediction` are class ids, uint8 (H, W). `miou` is a fraction or nan, and
    `group` is "worst" or "typical".
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    miou: float
    group: str


def write_report(
    path: Path | str,
    results: dict,
    matrix: np.ndarray,
    samples: Sequence[Sample],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    curves: Mapping[str, Curve] = MappingProxyType({}),
) -> None:
    """Write the report atomically.

    Args:
        path: The HTML file.
        results: The content of metrics.json, with None or nan for undefined values.
        matrix: int64 (C, C) confusion matrix; rows are labels.
        samples: The images to show.
        classes: Names of the C classes.
        palette: RGB colors of the C classes.
        curves: The result of `training_log.read_curves`; the page shows nothing of an empty one.

    Raises:
        UserError: The file cannot be written.
        ValueError: The sizes are inconsistent, or the group of a sample is unknown.
    """
    path, matrix = Path(path), np.asarray(matrix)
    if not matrix.shape == (len(classes),) * 2 or len(palette) != len(classes) or not classes:
        raise ValueError(f"{len(classes)} classes and {len(palette)} colors for a matrix of shape {matrix.shape}")
    for sample in samples:
        if sample.group not in GROUPS or not sample.image.shape[:2] == sample.label.shape == sample.prediction.shape:
            raise ValueError(
                f"{sample.name}: group {sample.group!r}, sizes {sample.image.shape[:2]}, "
                f"{sample.label.shape} and {sample.prediction.shape}"
            )
    text = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            results=results,
            dataset=dataset_title(results["provenance"]["dataset"], results["provenance"].get("directory") or ""),
            metrics=METRICS,
            comparison=_comparison(results),
            rows=_class_rows(results, classes, palette),
            bars=report_graphics.bar_charts(
                [printable(name) for name in classes],
                [results["classes"][name]["iou"] for name in classes],
                _number(results["mIoU"]),
            ),
            confusion=_confusion(matrix, classes),
            groups=_groups(samples, palette),
            ignored_color=_hex(report_graphics.ignored_color(palette)),
            error_color=_hex(report_graphics.ERROR_COLOR),
            ignored_gray=_hex((report_graphics.IGNORED_GRAY,) * 3),
            boundary=_boundary(results, samples),
            training=_training(curves),
            settings=list(_settings(results["config"])),
        )
    )
    try:
        atomic_files.write_text(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def printable(text: str) -> str:
    """Escape unprintable characters, including the lone surrogates of file names that are not UTF-8 (PEP 383)."""
    # This is the usual case, and data URIs are long.
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "points": _points, "fixed": _fixed, "minutes": _minutes}
    return environment


def _finalize(value: Any) -> Any:
    """Return a template value as it appears on the page: None and nan become an en dash."""
    if value is None or value != value:
        return "–"
    # The parts of HTML markup were made printable before.
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _percent(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else _fixed(100 * value, digits)


def _fixed(value: float | None, digits: int) -> str | None:
    return None if value is None or value != value else f"{value:.{digits}f}"


def _points(value: float | None) -> str | None:
    """Format a difference of fractions in percentage points, with its sign."""
    # Adding 0 turns -0.0 into 0.0. The minus sign U+2212 is as wide as the plus sign.
    return None if value is None or value != value else f"{round(100 * value, 2) + 0:+.2f}".replace("-", "−")


def _minutes(date: str | None) -> str | None:
    """Format an ISO date in UTC to the minute."""
    return None if date is None else date[:16].replace("T", " ") + " UTC"


def _hex(color: Sequence[int]) -> str:
    return "#" + "".join(f"{int(value):02x}" for value in color)


def _comparison(results: dict) -> dict:
    """Return the test protocol in words, its published mIoU and the difference from it."""
    published, protocol = results["published"], results["config"]["evaluate"]
    scales = ", ".join(f"{scale:g}" for scale in protocol["scales"])
    parts = [f"averaged over scales {scales}"] if scales else []
    parts += ["mirrored images"] if protocol["flip"] else []
    words = " and ".join(parts) or "single scale"
    if published is None:
        return {"words": words, "miou": None, "difference": None}
    miou = published["mIoU_tta" if parts else "mIoU"]
    return {"words": words, "miou": miou, "difference": None if miou is None else _number(results["mIoU"]) - miou}


def _class_rows(results: dict, classes: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> list[dict]:
    boundary_ious = results["boundary"]["classes"]
    return [
        {
            "name": name,
            "color": _hex(color),
            "boundary": boundary_ious.get(name),
            "fraction": results["classes"][name]["pixels"] / results["pixels"] if results["pixels"] else None,
            **results["classes"][name],
        }
        for name, color in zip(classes, palette)
    ]


def _confusion(matrix: np.ndarray, classes: Sequence[str]) -> dict:
    """Return the heat map, its number of classes, and the largest confusions as fractions of the ground truth."""
    labels = matrix.sum(1, keepdims=True)
    fractions = np.divide(matrix, labels, out=np.full(matrix.shape, np.nan), where=labels > 0)
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, matrix)
    shown = np.arange(len(classes))
    if len(classes) > MOST_CLASSES:
        # They are ranked by pixels: a ranking by fractions would fill the map with rare classes that are never correct.
        shown = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:CONFUSED_CLASSES])
    errors = np.where(wrong > 0, fractions, 0)
    largest = [
        np.unravel_index(index, errors.shape)
        for index in np.argsort(-errors, axis=None, kind="stable")[:LARGEST_CONFUSIONS]
    ]
    return {
        "map": report_graphics.heat_map(
            fractions[np.ix_(shown, shown)], [printable(classes[index]) for index in shown]
        ),
        "shown": len(shown),
        "all": len(classes),
        "largest": [
            {
                "label": classes[row],
                "prediction": classes[column],
                "fraction": float(errors[row, column]),
                "pixels": int(matrix[row, column]),
            }
            for row, column in largest
            if errors[row, column] > 0
        ],
    }


def _groups(samples: Sequence[Sample], palette: Sequence[tuple[int, int, int]]) -> list[dict]:
    return [
        {"title": title, "cards": [_card(sample, palette) for sample in samples if sample.group == group]}
        for group, title in GROUPS.items()
        if any(sample.group == group for sample in samples)
    ]


def _card(sample: Sample, palette: Sequence[tuple[int, int, int]]) -> dict:
    labeled = sample.label != IGNORED
    pixels = np.count_nonzero(labeled)
    wrong = np.count_nonzero((sample.prediction != sample.label) & labeled)
    height, width = sample.label.shape
    return {
        "name": sample.name,
        "miou": sample.miou,
        "width": width,
        "height": height,
        "wrong": wrong / pixels if pixels else None,
        "images": {
            "image": report_graphics.jpeg_image(sample.image),
            "ground truth": report_graphics.png_label_map(sample.label, palette),
            "prediction": report_graphics.png_label_map(sample.prediction, palette),
            "errors": report_graphics.jpeg_image(
                report_graphics.error_map(sample.image, sample.label, sample.prediction)
            ),
        },
    }


def _boundary(results: dict, samples: Sequence[Sample]) -> dict:
    """Return the boundary curve and its table, with widths in pixels for the sample of median diagonal."""
    boundary = results["boundary"]
    sizes = sorted((sample.label.shape for sample in samples), key=lambda size: np.hypot(*size))
    size = sizes[len(sizes) // 2] if sizes else None
    radii = [size and max(1, round(width * float(np.hypot(*size)))) for width in boundary["widths"]]
    labels = [
        f"{100 * width:g}%" + (f"\n{radius} px" if radius else "") for width, radius in zip(boundary["widths"], radii)
    ]
    rows = [
        {
            "width": f"{100 * width:g}",
            "radius": radius,
            "miou": miou,
            "marked": width == boundary["width"],
            "fraction": count / results["pixels"] if count is not None and results["pixels"] else None,
        }
        for width, radius, miou, count in zip(boundary["widths"], radii, boundary["mIoU"], boundary["pixels"])
    ]
    return {
        "rows": rows,
        "size": size and f"{size[1]} x {size[0]}",
        "curve": report_graphics.boundary_curve(
            boundary["widths"], boundary["mIoU"], labels, boundary["width"], _number(results["mIoU"])
        ),
    }


def _training(curves: Mapping[str, Curve]) -> list[str]:
    """Return a chart for each curve of the training."""
    shown = (
        ("loss", "loss", 1),
        ("val/mIoU", "validation mIoU in percent", 100),
        ("learning_rate", "learning rate", 1),
    )
    return [
        report_graphics.step_curve(
            curves[name].steps, [factor * value for value in curves[name].values], title, f"steps{number}"
        )
        for number, (name, title, factor) in enumerate(shown)
        if name in curves
    ]


def _settings(config: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every config value with its dotted key, as `--set` takes it."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield prefix + key, ", ".join(str(item) for item in value)
        else:
            yield prefix + key, str(value)
