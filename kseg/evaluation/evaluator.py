"""Evaluate a model on a split: count, summarize, pick images to show, and write the results."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kseg.config import Config
from kseg.datasets import diagnosis
from kseg.datasets.registry import Dataset, Split
from kseg.distributed import devices, hosts
from kseg.errors import WorkdirError
from kseg.evaluation import html_report, metrics, results
from kseg.evaluation.counter import Counter, Counts
from kseg.images import drawing, image_files
from kseg.inference import trained_model
from kseg.inference.prediction import predictor, protocol_of
from kseg.system.progress import Progress

PICTURES = 6
# Of the report: so many of the worst images, and as many around the median.
SAMPLES = 12


def sample_rows(predict: Callable[[np.ndarray], np.ndarray], split: Split, palette: Sequence[tuple[int, int, int]],
                count: int) -> list[list[np.ndarray]]:
    """Return [image, truth, prediction] as uint8 (H, W, 3) for `count` images spread evenly over a split."""
    total = len(split.names)
    rows = []
    for index in np.linspace(0, total - 1, min(count, total)).astype(int):
        image, truth, ids = predict_example(predict, split, int(index))
        rows.append([image, drawing.colorize(truth, palette), drawing.colorize(ids, palette)])
    return rows


def predict_example(predict: Callable[[np.ndarray], np.ndarray], split: Split,
                    index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the image (H, W, 3), true ids (H, W) and predicted ids (H, W) of an example, all uint8."""
    image, raw = diagnosis.decode_example(split, index)
    return image, np.array(split.dataset.label_table, np.uint8)[raw], predict(image)


def choose_samples(counts: Counts) -> list[tuple[str, int]]:
    """Return ("worst", index) of the images of the lowest mIoU, and ("typical", index) of those in the middle."""
    mious = results.image_mious(counts)
    order = [index for index in results.worst_first(counts) if not np.isnan(mious[index])]
    worst, rest = order[:SAMPLES], order[SAMPLES:]
    # In the middle of all, as far as the worst ones leave it.
    first = max(0, min((len(order) - SAMPLES) // 2 - len(worst), len(rest) - SAMPLES))
    return [("worst", index) for index in worst] + [("typical", index) for index in rest[first:first + SAMPLES]]


def evaluate(model: keras.Model, config: Config, dataset: Dataset, split: Split, out: Path | None = None,
             report: Callable[[str], None] = print, strategy: tf.distribute.Strategy | None = None,
             weights: Path | None = None) -> dict:
    """Return `results.summary` of a split, with timing and provenance.

    Images are shared by the replicas of `strategy`, under whose scope the model was built; by default there is one.
    `weights` is the file that the model's come from, for the record. Writes what kseg.evaluation.results and kseg.evaluation.html_report tell,
    and predictions.png (image, truth, prediction), to `out`. Raises DataError where an example cannot be read,
    WeightsError where scores are not finite, WorkdirError where `out` cannot be written.
    """
    trained_model.require_same_classes(dataset, split.dataset, "the model")
    strategy = strategy or tf.distribute.get_strategy()
    names = split.names
    writes = out is not None and hosts.is_chief(strategy)
    if writes:
        # Now, and not when all is counted.
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkdirError(f"cannot write to {out}: {error.strerror}") from None
    started = time.monotonic()
    counter = Counter(model, protocol_of(config), len(dataset.classes), strategy)
    counts = counter.count(split, Progress(len(names), "images", report))
    seconds = time.monotonic() - started
    found = results.summarize_split(counts, config, dataset, split.name) | {
        "timing": {"seconds": seconds, "images_per_second": len(names) / seconds,
                   "devices": devices.devices_line(strategy)},
        "provenance": results.provenance(config, dataset, weights)}
    report(metrics.class_table(found))
    report(_against_published(found))
    report(f"{len(counts.names)} of {len(names)} images of {dataset.name} {split.name} in {seconds:.0f} s "
           f"on {devices.devices_line(strategy)}")
    if writes:
        try:
            results.write_results(out, found, counts, dataset.classes)
        except OSError as error:
            raise WorkdirError(f"cannot write to {out}: {error.strerror}") from None
        _draw(predictor(model, protocol_of(config)), dataset, split, counts, found, out, report)
    return found


def _against_published(found: dict) -> str:
    """Return the boundary mIoU's line, and beside the mIoU what was published for the variant."""
    line = f"boundary mIoU {100 * found['boundary_mIoU']:.2f} within {found['boundary']['width']:.1%} of the diagonal"
    target = found["published"]
    if not target:
        return line
    settings = found["config"]["evaluate"]
    multiple = bool(settings["scales"]) or settings["flip"]
    goal = target["mIoU_tta"] if multiple else target["mIoU"]
    if goal is None:
        return line
    return line + (f"\npublished mIoU of {target['config']} ({target['source']}"
                   f"{', several scales and flip' if multiple else ''}): {100 * goal:.2f}, "
                   f"here {100 * (found['mIoU'] - goal):+.2f}")


def _draw(predict: Callable[[np.ndarray], np.ndarray], dataset: Dataset, split: Split, counts: Counts, found: dict,
          out: Path, report: Callable[[str], None]) -> None:
    """Write predictions.png and report.html."""
    report("drawing the report")
    rows = sample_rows(predict, split, dataset.palette, PICTURES)
    image_files.save_image(drawing.grid(rows, ("image", "truth", "prediction")), out / "predictions.png")
    write_evaluation_report(predict, dataset, split, counts, found, out)
    report(f"wrote report.html, metrics.json, per_image.csv, confusion.npy and predictions.png to {out}")


def write_evaluation_report(predict: Callable[[np.ndarray], np.ndarray], dataset: Dataset, split: Split, counts: Counts,
                            found: dict, out: Path) -> None:
    """Write report.html of an evaluation into `out`."""
    names, mious = results.image_names(counts), results.image_mious(counts)
    samples = [html_report.Sample(names[index], *predict_example(predict, split, index), float(mious[index]), group)
               for group, index in choose_samples(counts)]
    html_report.write_report(out / "report.html", found, counts.matrix, samples, dataset.classes, dataset.palette)
