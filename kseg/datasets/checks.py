"""Check all files of a dataset and report its statistics."""

import functools
import json
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow as tf

from kseg.config.files import config_names
from kseg.config.sections import Data
from kseg.datasets import diagnosis, labeled_pixels, registry, statistics
from kseg.datasets.palettes import used_colors
from kseg.datasets.plausibility import Plausibility
from kseg.datasets.registry import Dataset, Split
from kseg.datasets.statistics import ExampleCounts
from kseg.errors import DataError, MissingSplit, UserError, unknown
from kseg.system import atomic_files
from kseg.system.paths import printable
from kseg.system.progress import Progress

FAULTS_LISTED = 10
# Splits without which published datasets are complete enough to train on.
OPTIONAL_SPLITS = ("test", "trainaug")
# The settings of the splits that training reads, their defaults, and other usual names.
SPLIT_SETTINGS = (("train_split", "train", ("training",)), ("val_split", "val", ("valid", "validation", "dev", "test")))


def check_dataset(data: Data, splits: Sequence[str] = (), report: Callable[[str], None] = print) -> dict[str, dict]:
    """Decode every example, and report the label values of each split.

    Faulty examples are not counted, except for the pixels of labels with values that the dataset does not define.

    Args:
        data: The dataset.
        splits: Names of the splits to check; all if empty.
        report: Receives progress and the report as text.

    Returns:
        `statistics.summarize_split` of each split, by name.

    Raises:
        DataError: The dataset, a split or a directory is missing; raised at once. Or, after all files have been read,
            files are unpaired, damaged or of the wrong kind, a label's size differs from its image's, a label has
            undefined values, or a split is empty; the message lists the first ten faults.
    """
    findings = Plausibility(registry.find_dataset(data), data.value_range)

    def decoded_size(name: str, image_data: tf.Tensor) -> tuple[int, int]:
        picture = diagnosis.read_picture(name, image_data, data.value_range)
        findings.add_picture(name, picture)
        return picture.pixels.shape[:2]

    try:
        results = _inspect(data, splits, findings, decoded_size, statistics.describe_values, report)
    finally:
        for note in findings.warnings():
            report(f"warning: {note}")
    report(_next_steps(data, sum(result["images"] for result in results.values())))
    return results


def dataset_stats(
    data: Data, splits: Sequence[str] = (), out: Path | None = None, report: Callable[[str], None] = print
) -> dict[str, dict]:
    """Report image sizes, class frequencies and the void fraction of each split.

    Labels are decoded, images are not. Damage behind an image's header therefore goes unnoticed.

    Args:
        data: The dataset.
        splits: Names of the splits to count; all if empty.
        out: JSON file that receives `statistics.plain_summary` of each split.
        report: Receives progress and the report as text.

    Returns:
        `statistics.summarize_split` of each split, by name.

    Raises:
        DataError: The dataset is missing or faulty, see `check_dataset`; `out` is not written.
        UserError: `out` cannot be written.
    """
    try:
        if out:
            # An unwritable directory must be reported before all files are read.
            out.parent.mkdir(parents=True, exist_ok=True)
        findings = Plausibility(registry.find_dataset(data), data.value_range)
        results = _inspect(data, splits, findings, diagnosis.image_size, statistics.describe_classes, report)
        if out:
            plain = {name: statistics.plain_summary(findings.dataset, name, result) for name, result in results.items()}
            atomic_files.write_text(out, json.dumps(plain, indent=2) + "\n")
            report(f"wrote {out}")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    return results


def _inspect(
    data: Data,
    splits: Sequence[str],
    findings: Plausibility,
    image_size: Callable[[str, tf.Tensor], tuple[int, int]],
    describe: Callable[[Dataset, str, dict], str],
    report: Callable[[str], None],
) -> dict[str, dict]:
    """Report and return the summary of each split."""
    dataset = findings.dataset
    available = registry.split_names(data)
    for name in splits:
        if name not in available:
            raise DataError(unknown(f"split of {data.name}", name, available))
    results, faults, told = {}, [], set()
    for name in dict.fromkeys(splits or available):
        try:
            split = registry.open_split(data, name)
        except DataError as error:
            if isinstance(error, MissingSplit) and not splits and name in OPTIONAL_SPLITS:
                report(f"warning: split {name!r} is missing, which training does not need: {error}")
                continue
            faults.append(str(error))
            report(f"{name}: cannot be opened\n")
            continue
        for note in split.notes:
            if note not in told:
                report(printable(f"warning: {note}"))
        told.update(split.notes)
        progress = Progress(len(split.names), f"images of {name}", report)
        read = functools.partial(_read, split, image_size)
        examples = _countable_examples(split, read, findings, progress, faults)
        results[name] = statistics.summarize_split(dataset, examples)
        report(describe(dataset, name, results[name]))
        if results[name]["images"] and not results[name]["class_pixels"].any():
            try:
                labeled_pixels.require_labeled_pixels(split)
            except DataError as error:
                # The labels of test splits are often withheld.
                if name == "test":
                    report(f"warning: {error}")
                else:
                    faults.append(str(error))
    if fault := findings.palette_fault():
        # It spoils all labels, so it precedes the faults of single files, of which only some are listed.
        faults.insert(0, fault)
    if faults:
        more = len(faults) - FAULTS_LISTED
        listed = [f"  {fault}" for fault in faults[:FAULTS_LISTED]] + [f"  and {more} more"] * (more > 0)
        raise DataError(f"{data.name} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n" + "\n".join(listed))
    return results


def _next_steps(data: Data, images: int) -> str:
    """Return what to do after a check without faults."""
    directory = registry.location_of(data)
    config = f"encnet_{data.name}" if f"encnet_{data.name}" in config_names() else "encnet"
    settings = f"data.directory={shlex.quote(directory)}"
    available = registry.split_names(data)
    absent = ""
    for key, wanted, likely in SPLIT_SETTINGS:
        if wanted not in available:
            settings += f" data.{key}={next((name for name in likely if name in available), 'SPLIT')}"
            absent += f"there is no split {wanted!r}, so choose one of {', '.join(available)} with data.{key}\n"
    return (
        f"{absent}no faults in {images} images. Next, look at augmented samples and start training:\n"
        f"  python -m kseg.data show {data.name} --directory {shlex.quote(directory)} --out samples.png\n"
        f"  python -m kseg.train --config {config} --set {settings}"
    )


def _countable_examples(
    split: Split,
    read: Callable[[int], tuple[ExampleCounts | None, str, dict[int, bytes]]],
    findings: Plausibility,
    progress: Progress,
    faults: list[str],
) -> Iterator[ExampleCounts]:
    """Yield the counts of a split's readable examples; collect faults in `faults`, and labels in `findings`."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        results = pool.map(read, range(len(split.names)))
        for done, ((example, fault, colors), label_name) in enumerate(zip(results, split.label_names, strict=True), 1):
            if fault:
                faults.append(fault)
            findings.palettes.add(label_name, colors)
            if example:
                findings.add_counts(example.counts)
                yield example
            progress.update(done)
    finally:
        # An interrupted command must not read the remaining files first.
        pool.shutdown(cancel_futures=True)


def _read(
    split: Split, image_size: Callable[[str, tf.Tensor], tuple[int, int]], index: int
) -> tuple[ExampleCounts | None, str, dict[int, bytes]]:
    """Return an example's counts, None if it cannot be read, its fault or "", and the colors of its indices."""
    name, label_name = split.names[index], split.label_names[index]
    try:
        image_data, label_data = diagnosis.read_pair(split, index)
        size = image_size(name, image_data)
        label = diagnosis.read_label(split.dataset, label_name, label_data)
        diagnosis.require_same_size(name, size, label_name, label.shape)
    except DataError as error:
        return None, str(error), {}
    counts = statistics.value_counts(label)
    fault = diagnosis.undefined_pixels(split.dataset, label, counts, label_data)
    example = ExampleCounts(name, label.shape, counts, diagnosis.has_exif_orientation(image_data))
    colors = {} if split.dataset.label_colors else used_colors(label_data.numpy(), counts)
    return example, fault and f"{label_name}: {fault}", colors
