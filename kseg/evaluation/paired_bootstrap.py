"""Compare two evaluations of the same images by a paired bootstrap over the images."""

import json
import math
import os
from collections import Counter
from typing import NamedTuple

import numpy as np

from kseg.errors import ConfigError, DataError
from kseg.evaluation.metrics import MEANS, ious_and_means, percent_points
from kseg.evaluation.results import Evaluation, count_with_names
from kseg.images import image_files

MAX_SAMPLES = 100_000
# Above this level too few bootstrap resamples lie in the tails.
MAX_CONFIDENCE = 0.999
# Maximum number of 8-byte values that a block of resamples holds: 64 MiB.
BLOCK = 1 << 23


class ClassDifference(NamedTuple):
    """The difference of one score between A and B, in fractions, nan where it is undefined.

    `low` and `high` are the limits of the interval. `images` is the number of images whose labels or predictions
    contain the class. `verdict` is "better", "worse" or "".
    """

    name: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    images: int
    verdict: str


class Comparison(NamedTuple):
    """The differences of the classes, worst first, and of MEANS; a verdict takes at least `needed` images."""

    a: Evaluation
    b: Evaluation
    classes: tuple[ClassDifference, ...]
    means: tuple[ClassDifference, ...]
    samples: int
    seed: int
    confidence: float
    needed: int


def pair_images(a: Evaluation, b: Evaluation) -> tuple[Evaluation, Evaluation]:
    """Return both evaluations with B's images in A's order.

    Images are matched by the part of their names that differs within an evaluation, since the dataset may have moved
    or have been prepared in between: a/val/1.png and a/val/2.png match b/1 and b/2.

    Raises:
        DataError: The two differ in dataset, split, classes, images or labels.
    """
    for kind, one, other in (("dataset", a.dataset, b.dataset), ("split", a.split, b.split)):
        if one != other:
            raise DataError(
                f"{a.path} has {kind} {one!r}, but {b.path} has {other!r}: only evaluations of the same "
                "images can be compared"
            )
    if a.classes != b.classes:
        raise DataError(
            f"the {len(a.classes)} classes of {a.path} and the {len(b.classes)} classes of {b.path} "
            f"differ: {_difference(a.classes, b.classes, 'class') or 'their order is not the same'}"
        )
    names_a, names_b = _distinct_parts(a.names), _distinct_parts(b.names)
    if difference := _difference(names_a, names_b, "image"):
        raise DataError(
            f"the {len(names_a)} images of {a.path} and the {len(names_b)} images of {b.path} differ: {difference}"
        )
    order = np.empty(len(names_a), np.int64)
    # The sort is stable: images with equal names are matched in their order.
    order[np.argsort(names_a, kind="stable")] = np.argsort(names_b, kind="stable")
    b = b._replace(names=a.names, hits=b.hits[order], truth=b.truth[order], predicted=b.predicted[order])
    relabeled = [name for name, differs in zip(a.names, (a.truth != b.truth).any(1)) if differs]
    if relabeled:
        raise DataError(
            f"{a.path} and {b.path} were computed with different labels for {count_with_names(relabeled, 'image')}"
        )
    return a, b


def _distinct_parts(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return paths without their common directories and without the suffix of an image file."""
    paths = [name.split("/") for name in names]
    common = len(os.path.commonprefix([path[:-1] for path in paths]))
    stems = [os.path.splitext(path[-1]) for path in paths]
    return tuple(
        "/".join([*path[common:-1], stem if suffix.lower() in image_files.SUFFIXES else stem + suffix])
        for path, (stem, suffix) in zip(paths, stems)
    )


def _difference(a: tuple[str, ...], b: tuple[str, ...], noun: str) -> str:
    """Describe the names that only one side has; "" if both sides have the same names."""
    exclusive = {"first": Counter(a) - Counter(b), "second": Counter(b) - Counter(a)}
    return "; ".join(
        f"only the {side} has {count_with_names(list(names.elements()), noun)}"
        for side, names in exclusive.items()
        if names
    )


def draw_resamples(images: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Return float64 (samples, images): how often each resample contains each image; every row sums to `images`."""
    drawn = generator.integers(images, size=(samples, images)) + images * np.arange(samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=samples * images).reshape(samples, images).astype(np.float64)


def resample(a: Evaluation, b: Evaluation, samples: int, seed: int, block: int = BLOCK) -> np.ndarray:
    """Return the differences B - A of `ious_and_means` in each resample, float64 (samples, classes + len(MEANS)).

    `block` limits the number of values in memory beside the result, which does not depend on it.
    """
    images, classes = a.truth.shape
    # float64 has a fast matrix product, and it is exact here: sums of pixels stay far below 2**53.
    counts = np.concatenate([a.truth, a.hits, a.predicted, b.hits, b.predicted], 1).astype(np.float64)
    generator = np.random.default_rng(seed)
    rows = max(1, block // (4 * images + 20 * classes))
    differences = np.empty((samples, classes + len(MEANS)))
    for start in range(0, samples, rows):
        part = differences[start : start + rows]
        sums = draw_resamples(images, len(part), generator) @ counts
        truth, a_hits, a_predicted, b_hits, b_predicted = np.split(sums, 5, 1)
        part[:] = ious_and_means(b_hits, truth, b_predicted) - ious_and_means(a_hits, truth, a_predicted)
    return differences


def compare_evaluations(
    a: Evaluation, b: Evaluation, samples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Comparison:
    """Compute the score differences B - A with bootstrap percentile intervals.

    A single image has no intervals. A verdict needs so many images that, if A and B were equally good, the probability
    that all images favor the same one would be at most 1 - confidence: 6 images at 95%. With fewer images the intervals
    are too narrow.

    Args:
        a, b: Evaluations of the same images.
        samples: Number of resamples.
        seed: Seed of the resamples.
        confidence: Fraction of the resamples that an interval contains.

    Raises:
        DataError: The evaluations cannot be paired.
        ConfigError: `samples`, `seed` or `confidence` is out of range.
    """
    if not 0 < confidence <= MAX_CONFIDENCE:
        raise ConfigError(f"--confidence must be above 0 and at most {MAX_CONFIDENCE}, got {confidence:g}")
    least = math.ceil(round(2 / (1 - confidence), 6))
    if not least <= samples <= MAX_SAMPLES:
        raise ConfigError(
            f"--samples must be between {least} and {MAX_SAMPLES} at a confidence of "
            f"{_percent(confidence)}, got {samples}"
        )
    if seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {seed}")
    a, b = pair_images(a, b)
    needed = math.ceil(round(1 - math.log2(1 - confidence), 6))
    images = len(a.names)
    image_counts = [*((a.truth + a.predicted + b.predicted) > 0).sum(0).tolist(), *[images] * len(MEANS)]
    scores_a, scores_b = (ious_and_means(side.hits.sum(0), side.truth.sum(0), side.predicted.sum(0)) for side in (a, b))
    resampled = resample(a, b, samples, seed) if images > 1 else np.full((1, len(image_counts)), np.nan)
    rows = []
    for index, name in enumerate((*a.classes, *MEANS)):
        defined = resampled[:, index][np.isfinite(resampled[:, index])]
        difference = scores_b[index] - scores_a[index]
        tails = (0.5 - confidence / 2, 0.5 + confidence / 2)
        # Without a difference on the whole split, the differences of some resamples mean nothing.
        low, high = np.quantile(defined, tails) if defined.size and np.isfinite(difference) else (np.nan, np.nan)
        verdict = "" if image_counts[index] < needed else "worse" if high < 0 else "better" if low > 0 else ""
        rows.append(
            ClassDifference(
                name,
                *map(float, (scores_a[index], scores_b[index], difference, low, high)),
                image_counts[index],
                verdict,
            )
        )
    classes = sorted(rows[: -len(MEANS)], key=lambda row: math.inf if math.isnan(row.difference) else row.difference)
    return Comparison(a, b, tuple(classes), tuple(rows[-len(MEANS) :]), samples, seed, confidence, needed)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g}%"


def _interval(row: ClassDifference) -> str:
    return "-" if math.isnan(row.low) else f"{percent_points(row.low, '+')} to {percent_points(row.high, '+')}"


def comparison_table(comparison: Comparison) -> str:
    """Format the differences as a text table in percent; an undefined value is "-"."""
    width = max(len(row.name) for row in (*comparison.classes, *comparison.means))
    head = (
        "class".ljust(width),
        f"{'IoU A':>6}",
        f"{'IoU B':>6}",
        f"{'B - A':>7}",
        f"{_percent(comparison.confidence) + ' interval':>16}",
        f"{'images':>6}",
    )
    lines = ["  ".join(head)]
    for position, row in enumerate((*comparison.classes, *comparison.means)):
        if position == len(comparison.classes):
            lines.append("")
        cells = (
            row.name.ljust(width),
            f"{percent_points(row.a):>6}",
            f"{percent_points(row.b):>6}",
            f"{percent_points(row.difference, '+'):>7}",
            f"{_interval(row):>16}",
            f"{row.images:>6}",
            row.verdict,
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def verdict_text(comparison: Comparison) -> str:
    """State the difference in mIoU and whether it is significant, in one sentence."""
    row = comparison.means[0]
    if math.isnan(row.difference):
        return "mIoU cannot be compared: the split has no labeled pixels"
    if row.difference == 0:
        result = "A and B have the same mIoU"
    else:
        size = f"{100 * abs(row.difference):.2f}" if abs(row.difference) >= 0.00005 else "less than 0.01"
        result = f"B is {'better' if row.difference > 0 else 'worse'} than A by {size} points of mIoU"
    if row.images == 1:
        return f"{result} on a single image; an interval needs at least two images"
    result += (
        f" ({_percent(comparison.confidence)} interval {_interval(row)}; {comparison.samples} resamples of "
        f"{row.images} images)"
    )
    if row.images < comparison.needed:
        return f"{result}: too few images to judge significance, at least {comparison.needed} are needed"
    return f"{result}: {'significant' if row.verdict else 'not significant'}"


def remarks(comparison: Comparison) -> list[str]:
    """Return the sentences that help to read the verdicts of the classes."""
    if comparison.means[0].images < comparison.needed:
        return []
    lines = []
    judged = [row for row in comparison.classes if not math.isnan(row.low) and row.images >= comparison.needed]
    if significant := [row for row in judged if row.verdict]:
        lines.append(
            f"{len(significant)} of {len(judged)} classes differ significantly; by chance alone about "
            f"{(1 - comparison.confidence) * len(judged):.1f} would"
        )
    if rare := [row.name for row in comparison.classes if 0 < row.images < comparison.needed]:
        lines.append(f"not judged, in fewer than {comparison.needed} images: {count_with_names(rare, 'class')}")
    return lines


def comparison_json(comparison: Comparison) -> str:
    """Format the comparison as JSON; scores and differences are fractions, null where they are undefined."""

    def plain(row: ClassDifference) -> dict:
        return {key: None if value != value else value for key, value in row._asdict().items() if key != "name"}

    values = {
        "a": str(comparison.a.path),
        "b": str(comparison.b.path),
        "dataset": comparison.a.dataset,
        "split": comparison.a.split,
        "images": len(comparison.a.names),
        "samples": comparison.samples,
        "seed": comparison.seed,
        "confidence": comparison.confidence,
        "verdict": verdict_text(comparison),
        **{row.name: plain(row) for row in comparison.means},
        "classes": {row.name: plain(row) for row in comparison.classes},
    }
    return json.dumps(values, indent=2) + "\n"
