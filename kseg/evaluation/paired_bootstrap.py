"""Compare two evaluations of the same images by a paired bootstrap over the images."""

import json
import math
from typing import NamedTuple

import numpy as np

from kseg.errors import ConfigError
from kseg.evaluation.result_reading import MEANS, Evaluation, pair, points, scores, some

MAX_SAMPLES = 100_000
# Of which few resamples know the tails.
MAX_CONFIDENCE = 0.999
# Numbers of 8 bytes that a block of resamples holds at once: 64 MiB.
BLOCK = 1 << 23


class Row(NamedTuple):
    """A score of A and B as fractions, nan where there is none; `images` is how many hold the class, in truth or in a
    prediction, and `verdict` "better", "worse" or ""."""

    name: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    images: int
    verdict: str


class Comparison(NamedTuple):
    """The classes' rows, worst difference first, and those of MEANS; `needed` images allow a verdict."""

    a: Evaluation
    b: Evaluation
    classes: tuple[Row, ...]
    means: tuple[Row, ...]
    samples: int
    seed: int
    confidence: float
    needed: int


def draw(images: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Return how often each image is in each resample: float64 (samples, images), each row's sum `images`."""
    drawn = generator.integers(images, size=(samples, images)) + images * np.arange(samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=samples * images).reshape(samples, images).astype(np.float64)


def resample(a: Evaluation, b: Evaluation, samples: int, seed: int, block: int = BLOCK) -> np.ndarray:
    """Return B's scores less A's in each resample: float64 (samples, classes + 3), in the order of `scores`.

    `block` bounds how many numbers are held at once beside the result, which does not depend on it.
    """
    images, classes = a.truth.shape
    # Exact although not int64, for which there is no fast product: sums of pixels are far below 2**53.
    counts = np.concatenate([a.truth, a.hits, a.predicted, b.hits, b.predicted], 1).astype(np.float64)
    generator = np.random.default_rng(seed)
    rows = max(1, block // (4 * images + 20 * classes))
    differences = np.empty((samples, classes + len(MEANS)))
    for start in range(0, samples, rows):
        part = differences[start:start + rows]
        sums = draw(images, len(part), generator) @ counts
        truth, a_hits, a_predicted, b_hits, b_predicted = np.split(sums, 5, 1)
        part[:] = scores(b_hits, truth, b_predicted) - scores(a_hits, truth, a_predicted)
    return differences


def compare(a: Evaluation, b: Evaluation, samples: int = 2000, seed: int = 0, confidence: float = 0.95) -> Comparison:
    """Return the differences B less A with their intervals; of one image alone there are none.

    A verdict needs so many images that all of them favouring one side would be less likely than 1 - confidence if both
    sides were alike: 6 at 95 %. Fewer images, and the resamples of what they share seem surer than they are.
    Raises DataError where the two cannot be paired, ConfigError for values outside their range.
    """
    if not 0 < confidence <= MAX_CONFIDENCE:
        raise ConfigError(f"--confidence is a share above 0 and at most {MAX_CONFIDENCE}, got {confidence:g}")
    least = math.ceil(round(2 / (1 - confidence), 6))
    if not least <= samples <= MAX_SAMPLES:
        raise ConfigError(f"--samples {samples}: an interval of {_percent(confidence)} takes {least} to {MAX_SAMPLES}")
    if seed < 0:
        raise ConfigError(f"--seed is not negative, got {seed}")
    a, b = pair(a, b)
    needed = math.ceil(round(1 - math.log2(1 - confidence), 6))
    images = len(a.names)
    held = [*((a.truth + a.predicted + b.predicted) > 0).sum(0).tolist(), *[images] * len(MEANS)]
    of_a, of_b = (scores(each.hits.sum(0), each.truth.sum(0), each.predicted.sum(0)) for each in (a, b))
    resampled = resample(a, b, samples, seed) if images > 1 else np.full((1, len(held)), np.nan)
    rows = []
    for index, name in enumerate((*a.classes, *MEANS)):
        known = resampled[:, index][np.isfinite(resampled[:, index])]
        difference = of_b[index] - of_a[index]
        # Where the split itself has no difference, that of the resamples which have one would mean nothing.
        tails = (0.5 - confidence / 2, 0.5 + confidence / 2)
        low, high = np.quantile(known, tails) if known.size and np.isfinite(difference) else (np.nan, np.nan)
        verdict = "" if held[index] < needed else "worse" if high < 0 else "better" if low > 0 else ""
        rows.append(Row(name, *map(float, (of_a[index], of_b[index], difference, low, high)), held[index], verdict))
    classes = sorted(rows[:-len(MEANS)], key=lambda row: math.inf if math.isnan(row.difference) else row.difference)
    return Comparison(a, b, tuple(classes), tuple(rows[-len(MEANS):]), samples, seed, confidence, needed)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _interval(row: Row) -> str:
    return "-" if math.isnan(row.low) else f"{points(row.low, '+')} to {points(row.high, '+')}"


def table(comparison: Comparison) -> str:
    """Return the rows as text, in points; what there is none of reads "-"."""
    width = max(len(row.name) for row in (*comparison.classes, *comparison.means))
    head = ("class".ljust(width), f"{'IoU A':>6}", f"{'IoU B':>6}", f"{'B - A':>7}",
            f"{_percent(comparison.confidence) + ' interval':>16}", f"{'images':>6}")
    lines = ["  ".join(head)]
    for position, row in enumerate((*comparison.classes, *comparison.means)):
        if position == len(comparison.classes):
            lines.append("")
        cells = (row.name.ljust(width), f"{points(row.a):>6}", f"{points(row.b):>6}",
                 f"{points(row.difference, '+'):>7}", f"{_interval(row):>16}", f"{row.images:>6}", row.verdict)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def verdict(comparison: Comparison) -> str:
    """Return in one sentence what the difference of mIoU is and whether it is more than chance."""
    row = comparison.means[0]
    if math.isnan(row.difference):
        return "mIoU cannot be compared: no pixel of the split is labelled"
    if row.difference == 0:
        said = "A and B have the same mIoU"
    else:
        size = f"{100 * abs(row.difference):.2f}" if abs(row.difference) >= 0.00005 else "less than 0.01"
        said = f"B is {'better' if row.difference > 0 else 'worse'} than A by {size} points of mIoU"
    if row.images == 1:
        return f"{said} on the one image there is: no interval, for what is chance shows only over several images"
    said += (f" ({_percent(comparison.confidence)} interval {_interval(row)}; {comparison.samples} resamples of "
             f"{row.images} images)")
    if row.images < comparison.needed:
        return f"{said}: too few images to tell it from chance, {comparison.needed} are needed"
    return f"{said}: {'more than chance' if row.verdict else 'no difference told from chance'}"


def remarks(comparison: Comparison) -> list[str]:
    """Return what has to be known to read the classes' marks, a sentence each."""
    if comparison.means[0].images < comparison.needed:
        return []
    lines = []
    compared = [row for row in comparison.classes if not math.isnan(row.low) and row.images >= comparison.needed]
    if marked := [row for row in compared if row.verdict]:
        lines.append(f"marked: {len(marked)} of {len(compared)} classes; by chance alone about "
                     f"{(1 - comparison.confidence) * len(compared):.1f} would be")
    if few := [row.name for row in comparison.classes if 0 < row.images < comparison.needed]:
        lines.append(f"in fewer than {comparison.needed} images, too few for a mark: {some(few, 'class')}")
    return lines


def to_json(comparison: Comparison) -> str:
    """Return the comparison as JSON text: scores and differences as fractions, null where there is none."""
    def plain(row: Row) -> dict:
        return {key: None if value != value else value for key, value in row._asdict().items() if key != "name"}

    values = {"a": str(comparison.a.path), "b": str(comparison.b.path), "dataset": comparison.a.dataset,
              "split": comparison.a.split, "images": len(comparison.a.names), "samples": comparison.samples,
              "seed": comparison.seed, "confidence": comparison.confidence, "verdict": verdict(comparison),
              **{row.name: plain(row) for row in comparison.means},
              "classes": {row.name: plain(row) for row in comparison.classes}}
    return json.dumps(values, indent=2) + "\n"
