"""Evaluate a model on a split: count its pixels, compute the scores, and write results and report."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import keras
import numpy as np
import tensorflow as tf

from kseg.config import Config, dataset_title
from kseg.datasets import diagnosis, labeled_pixels, plausibility
from kseg.datasets.registry import Dataset, Split
from kseg.distributed import devices, hosts
from kseg.errors import WorkdirError
from kseg.evaluation import html_report, metrics, results, training_log
from kseg.evaluation.counter import Counter, Counts
from kseg.evaluation.sample_images import SampleImages
from kseg.evaluation.training_log import Curve, read_curves
from kseg.images import drawing, image_files
from kseg.inference import trained_model
from kseg.inference.prediction import predictor, protocol_of
from kseg.system.progress import Progress
from kseg.tracking import trackers

# Number of images in predictions.png.
PREVIEW_IMAGES = 6
# Number of images in each group of the report: the worst ones, and those around the median.
SAMPLES = 12


def predict_example(
    predict: Callable[[np.ndarray], np.ndarray], split: Split, index: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the image (H, W, 3), label (H, W) and prediction (H, W) of an example, all uint8."""
    image, raw = diagnosis.decode_example(split, index)
    return image, np.array(split.dataset.label_table, np.uint8)[raw], predict(image)


def choose_samples(counts: Counts) -> list[tuple[str, int]]:
    """Return ("worst", index) of the images with the lowest mIoU and ("typical", index) of those around the median."""
    mious = results.image_mious(counts)
    order = [index for index in results.worst_first(counts) if not np.isnan(mious[index])]
    worst, rest = order[:SAMPLES], order[SAMPLES:]
    # The range is centered on the median of all images, and shifted if it would overlap the worst ones.
    first = max(0, min((len(order) - SAMPLES) // 2 - len(worst), len(rest) - SAMPLES))
    return [("worst", index) for index in worst] + [("typical", index) for index in rest[first : first + SAMPLES]]


def evaluate(
    model: keras.Model,
    config: Config,
    dataset: Dataset,
    split: Split,
    out: Path | None = None,
    report: Callable[[str], None] = print,
    strategy: tf.distribute.Strategy | None = None,
    weights: Path | None = None,
) -> dict:
    """Evaluate a model on a split at original resolution.

    Args:
        model: A model built under the scope of `strategy`.
        config: The config of the model; its section `evaluate` is the protocol.
        dataset: The dataset that the model was trained on.
        split: The split, of a dataset with the same classes.
        out: Directory for predictions.png, report.html and the files of kseg.evaluation.results, written by the chief.
        report: Function that prints progress and results.
        strategy: Its replicas share the images; a single replica by default.
        weights: The file that the weights come from, recorded in the provenance.

    Returns:
        The content of metrics.json, with nan for undefined scores: the scores of `metrics.summarize` with the boundary
        mIoU, the published scores, timing, provenance and config.

    Raises:
        DataError: The split has no labeled pixel; or an image or label cannot be read, is too large, or has pixels
            outside the classes.
        WeightsError: The model's scores are not finite.
        WorkdirError: `out` cannot be written, or the classes of `dataset` and `split` differ.

    Example:
        >>> from kseg.datasets import registry
        >>> from kseg.evaluation.evaluator import evaluate
        >>> from kseg.inference import trained_model
        >>> model, config, dataset = trained_model.load_trained(workdir, overrides=[f"data.directory={data}"])
        >>> split = registry.open_split(config.data, "val")
        >>> results = evaluate(model, config, dataset, split, report=lambda line: None)
        >>> results["images"], results["pixels"] > 0, 0 <= results["mIoU"] <= 1
        (16, True, True)
    """
    trained_model.require_same_classes(dataset, split.dataset, "the model")
    labeled_pixels.require_labeled_pixels(split)
    strategy = strategy or tf.distribute.get_strategy()
    if hosts.is_chief(strategy):
        plausibility.report_notes((split,), report)
    names = split.names
    writes = out is not None and hosts.is_chief(strategy)
    if writes:
        # An unwritable directory is reported before hours of counting.
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkdirError(f"cannot write to {out}: {error.strerror}") from None
    started = time.monotonic()
    counter = Counter(model, protocol_of(config), len(dataset.classes), strategy)
    samples = SampleImages(split, PREVIEW_IMAGES)
    counts = counter.count(split, Progress(len(names), "images", report), samples.examine if writes else None)
    seconds = time.monotonic() - started
    summary = results.summarize_split(counts, config, dataset.classes, split.name) | {
        "timing": {
            "seconds": seconds,
            "images_per_second": len(names) / seconds,
            "devices": devices.devices_line(strategy),
        },
        "provenance": results.provenance(dataset.name, config.data.directory, weights),
    }
    try:
        # A character that stdout cannot print, or a closed pipe, must not lose hours of counting.
        if writes:
            curves = read_curves(weights.parent / training_log.FILE) if weights else {}
            _write(predictor(model, protocol_of(config)), dataset, split, counts, samples, summary, out, report, curves)
    finally:
        # A full disk must not lose the scores either.
        report(metrics.class_table(summary))
        report(_headline(summary))
        title = dataset_title(dataset.name, config.data.directory)
        report(
            f"{len(counts.names)} of {len(names)} images of {title} {split.name} in {seconds:.0f} s "
            f"on {devices.devices_line(strategy)}"
        )
    if writes:
        report(f"wrote report.html, metrics.json, per_image.csv, confusion.npy and predictions.png to {out}")
    return summary


def track_evaluation(config: Config, workdir: Path, out: Path, scores: dict, report: Callable[[str], None]) -> None:
    """Add the scores and files of an evaluation to the tracked run of a working directory, if it has one.

    Args:
        config: The config of the run.
        workdir: Its working directory.
        out: The directory of the evaluation's files.
        scores: The result of `evaluate`.
        report: Receives failures, which raise nothing.
    """
    folder = f"evaluation/{scores['split']}"
    values = {f"{folder}/{name}": scores[name] for name in ("mIoU", "mAcc", "aAcc", "boundary_mIoU")}
    files = [out / name for name in ("report.html", "metrics.json", "predictions.png")]
    trackers.log_results(config, workdir, files, folder, values, report)


def _headline(summary: dict) -> str:
    """State the boundary mIoU and, if one was published for the protocol, the published mIoU."""
    line = (
        f"boundary mIoU {metrics.percent_points(summary['boundary_mIoU'])} within "
        f"{summary['boundary']['width']:.1%} of the diagonal"
    )
    published = summary["published"]
    if not published:
        return line
    protocol = summary["config"]["evaluate"]
    averaged = bool(protocol["scales"]) or protocol["flip"]
    miou = published["mIoU_tta"] if averaged else published["mIoU"]
    if miou is None:
        return line
    return line + (
        f"\npublished mIoU of {published['config']} ({published['source']}"
        f"{', multiple scales and flip' if averaged else ''}): {100 * miou:.2f}, "
        f"difference {metrics.percent_points(summary['mIoU'] - miou, '+')}"
    )


def _write(
    predict: Callable[[np.ndarray], np.ndarray],
    dataset: Dataset,
    split: Split,
    counts: Counts,
    samples: SampleImages,
    summary: dict,
    out: Path,
    report: Callable[[str], None],
    curves: Mapping[str, Curve],
) -> None:
    """Write the results, predictions.png and report.html to `out`; raises WorkdirError if that fails."""
    try:
        results.write_results(out, summary, counts, dataset.classes)
    except OSError as error:
        raise WorkdirError(f"cannot write to {out}: {error.strerror}") from None
    report("drawing the report")
    image_files.save_image(drawing.grid(samples.rows, ("image", "ground truth", "prediction")), out / "predictions.png")
    write_evaluation_report(predict, dataset, split, counts, summary, out, curves)


def write_evaluation_report(
    predict: Callable[[np.ndarray], np.ndarray],
    dataset: Dataset,
    split: Split,
    counts: Counts,
    summary: dict,
    out: Path,
    curves: Mapping[str, Curve] = MappingProxyType({}),
) -> None:
    """Write report.html to `out`, with the curves of the training if there are any."""
    names, mious = results.image_names(counts), results.image_mious(counts)
    samples = [
        html_report.Sample(names[index], *predict_example(predict, split, index), float(mious[index]), group)
        for group, index in choose_samples(counts)
    ]
    html_report.write_report(
        out / "report.html", summary, counts.matrix, samples, dataset.classes, dataset.palette, curves
    )
