"""Convert the archives or tree of a dataset to checked record files.

    python -m kseg.data prepare NAME --source DIR [--out DIR] [--split SPLIT ...] [--subset] [--fast]

Every image and label is read once and checked. The set is written to a hidden directory, split by split, and renamed
when it is complete. A restarted command keeps finished splits.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from kseg.config.sections import Data
from kseg.datasets import (
    archive_files,
    class_list,
    diagnosis,
    file_lists,
    layouts,
    prepared,
    registry,
    sources,
    tfds_builder,
)
from kseg.datasets.diagnosis import decode_pair, image_size
from kseg.datasets.palettes import used_colors
from kseg.datasets.plausibility import Plausibility
from kseg.datasets.registry import Dataset
from kseg.datasets.sources import Pair, Pairs
from kseg.datasets.statistics import value_counts
from kseg.errors import DataError, unknown
from kseg.images.decoding import encode_pixels
from kseg.system.paths import path_fault
from kseg.system.progress import Progress

# Size of record files and descriptions relative to the stored images and labels.
OVERHEAD = 1.05
# Number of images per split whose size is read to estimate the size of the decoded pixels.
MEASURED = 50
# File of a split's directory that is written once all its records are complete.
NAMES = "names.txt"


def prepare_dataset(
    data: Data,
    source: Path,
    splits: Sequence[str] = (),
    subset: bool = False,
    fast: bool = False,
    report: Callable[[str], None] = print,
) -> Path:
    """Convert the dataset in `source` to a prepared set in the directory of `data`.

    An existing prepared set is left unchanged.

    Args:
        data: The dataset; its directory receives the prepared set.
        source: Directory of the published archives or of their extracted tree.
        splits: Splits to prepare; all if empty.
        subset: Accept splits smaller than published.
        fast: Store decoded pixels, not records.
        report: Receives progress.

    Returns:
        The directory of the prepared set.

    Raises:
        DataError: The name or a split is unknown; an archive is missing, damaged or not the published one; an image
            has no label; the number of examples differs from the published one; a label is not an 8-bit id image or
            has undefined values (the message names the file); another process is preparing the same set; or the disk
            is too small.
    """
    dataset, chosen = _choose(data, source, splits)
    directory = registry.directory_of(data)
    if fault := path_fault(directory):
        raise DataError(f"--directory {directory} {fault}")
    layout = prepared.FORMATS[data.name]
    final = directory / (layout.pixels_directory if fast else layout.records_directory)
    if final.is_dir():
        existing = prepared.prepared_split_names(str(final), data.name)
        if not set(splits) <= set(existing):
            raise DataError(
                f"{final} already exists with only {', '.join(existing)}; delete it to prepare other splits"
            )
        report(f"{final} already exists with {', '.join(existing)}; delete it to prepare it again")
        return final
    pairs = sources.SOURCES[data.name](source, chosen, report)
    for split, examples in pairs.items():
        _check_count(dataset, split, len(examples), subset)
    parent = directory if directory.is_dir() else directory.parent
    hidden = parent / f".{data.name}{'-pixels' if fast else ''}-preparing"
    try:
        hidden.mkdir(parents=True, exist_ok=True)
        with (hidden / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"another process is preparing {data.name} in {hidden}") from None
            parts = {
                split: hidden / f"{split}-{_digest(dataset, examples, data.value_range)}"
                for split, examples in pairs.items()
            }
            _remove_leftovers(hidden, parts, report)
            remaining = {split: examples for split, examples in pairs.items() if not (parts[split] / NAMES).is_file()}
            needed = _pixels_size(remaining) if fast else _records_size(source, data.name, hidden, remaining)
            require_disk_space(hidden, needed, report)
            findings = Plausibility(dataset, data.value_range)
            for split, examples in remaining.items():
                _write_part(findings, data.value_range, source, split, examples, parts[split], fast, report)
            finished = hidden / "finished"
            finished.mkdir()
            (_join_pixels if fast else _join_records)(data.name, parts, finished)
            if data.name == "folder":
                _write_classes(dataset, source, finished)
            # An unreadable set must not be published.
            for split in parts:
                layouts.prepared_examples(str(finished), data.name, split)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(finished, final)
            shutil.rmtree(hidden)
    except OSError as error:
        raise DataError(f"cannot prepare {data.name} in {hidden}: {archive_files.error_text(error)}") from error
    # The prepared set has neither further pages nor palettes, so nothing can find them in it.
    for note in findings.notes():
        report(f"warning: {note}")
    counts = ", ".join(f"{split} {len(examples)}" for split, examples in pairs.items())
    report(f"prepared {final}: {counts}; {source} is no longer needed")
    return final


def _choose(data: Data, source: Path, splits: Sequence[str]) -> tuple[Dataset, tuple[str, ...]]:
    """Return the dataset's definition and the splits to prepare."""
    if data.name not in sources.SOURCES:
        raise DataError(unknown("dataset to prepare", data.name, sources.SOURCES))
    if not source.is_dir():
        raise DataError(
            f"no directory {source}; --source takes the directory of the archives or of the extracted "
            f"tree of {data.name}"
        )
    file_lists.require_utf8(source)
    dataset = registry.read_classes(source) if data.name == "folder" else registry.DATASETS[data.name]
    available = dataset.splits or layouts.folder_splits(source)
    for split in splits:
        if split not in available:
            raise DataError(unknown(f"split of {data.name}", split, available))
    if not available:
        raise DataError(f"no directory SPLIT/images in {source}")
    return dataset, tuple(dict.fromkeys(splits or available))


def _check_count(dataset: Dataset, split: str, count: int, subset: bool) -> None:
    published = dataset.published.get(split, count)
    if count > published or count < published and not subset:
        hint = "; --subset accepts a part of the published set" if count < published else ""
        raise DataError(f"{dataset.name} {split}: {count} of {published} pairs{hint}")


def _digest(dataset: Dataset, examples: list[Pair], value_range: tuple[float, ...]) -> str:
    """Return a digest of a split's files, defined label values and range.

    Only the names and sizes of the files are considered.
    """
    lines = [(pair.name, pair.image.size, pair.label.size) for pair in examples]
    colors = [(dataset.label_colors, dataset.other_colors)] if dataset.label_colors else []
    more = [*colors, *([value_range] if value_range else [])]
    return hashlib.sha256(repr((prepared.VERSION, dataset.label_table, lines, *more)).encode()).hexdigest()[:16]


def _write_classes(dataset: Dataset, source: Path, finished: Path) -> None:
    """Write the classes.txt of a prepared set, whose labels store values."""
    if dataset.label_colors:
        text = class_list.classes_text(dataset.classes, dataset.palette, dataset.label_table)
        (finished / "classes.txt").write_text(text, encoding="utf-8")
    else:
        shutil.copyfile(source / "classes.txt", finished / "classes.txt")


def _remove_leftovers(hidden: Path, parts: dict[str, Path], report: Callable[[str], None]) -> None:
    """Remove the files of an interrupted preparation.

    Finished splits of the same source and extracted archives are kept.
    """
    for path in hidden.iterdir():
        if path in parts.values() and (path / NAMES).is_file():
            report(f"keeping {path.name.rsplit('-', 1)[0]}, which an earlier run finished")
        elif path.is_dir() and path.name != "downloads":
            shutil.rmtree(path)


def _records_size(source: Path, name: str, hidden: Path, remaining: Pairs) -> int:
    """Return the peak disk space in bytes of writing records, including the finished set."""
    # The builder first collects a split's records in temporary files, but removes each file once it has read it.
    needed = sum(pair.image.size + pair.label.size for examples in remaining.values() for pair in examples)
    if name == "cityscapes" and remaining:
        archives = {path for path in sources.cityscapes_roots(source) if path.is_file()}
        extracted = sum(file.size for path in archives for file in archive_files.zip_files(path).values())
        existing = sum(file.size for file in archive_files.tree_files(hidden, ("downloads",)).values())
        needed += max(extracted - existing, 0)
    return int(OVERHEAD * needed)


def _pixels_size(remaining: Pairs) -> int:
    """Return the estimated size in bytes of the decoded pixels."""
    needed = 0.0
    for examples in remaining.values():
        measured = examples[:: len(examples) // MEASURED + 1]
        areas = [math.prod(image_size(pair.image.name, tf.constant(pair.image.read()))) for pair in measured]
        # A pixel takes three bytes of color and one class id.
        needed += 4 * len(examples) * sum(areas) / len(areas)
    return int(OVERHEAD * needed)


def require_disk_space(directory: Path, needed: int, report: Callable[[str], None]) -> None:
    """Report the needed and the free disk space.

    Raises DataError if `needed` bytes are not free.
    """
    free = shutil.disk_usage(directory).free
    line = f"needs {needed / 1e9:.3g} GB on the disk of {directory.parent}, which has {free / 1e9:.3g} GB free"
    if needed > free:
        raise DataError(line)
    report(line)


def _write_part(
    findings: Plausibility,
    value_range: tuple[float, ...],
    source: Path,
    split: str,
    examples: list[Pair],
    part: Path,
    fast: bool,
    report: Callable[[str], None],
) -> None:
    """Check a split, write its records or pixels to `part`, and finally its names; add to `findings`."""
    dataset = findings.dataset
    # The progress report runs inside a generator that the builder consumes with its output suppressed, so it restores
    # the stdout saved here.
    out, progress = sys.stdout, Progress(len(examples), f"pairs of {split}", report)

    def update(done: int) -> None:
        with contextlib.redirect_stdout(out):
            progress.update(done)

    decoded = _decode(findings, value_range, examples, update)
    if fast:
        _write_pixels(decoded, part)
    elif dataset.name == "cityscapes":
        _write_cityscapes(source, split, decoded, part, report)
    else:
        features = (_features(dataset, value_range, *example) for example in decoded)
        tfds_builder.write_split(tfds_builder.BUILDERS[dataset.name](part, split, features, len(examples)))
    (part / f".{NAMES}").write_text("".join(f"{pair.name}\n" for pair in examples), encoding="utf-8")
    os.replace(part / f".{NAMES}", part / NAMES)


def _decode(
    findings: Plausibility, value_range: tuple[float, ...], examples: list[Pair], update: Callable[[int], None]
) -> Iterator[tuple[Pair, np.ndarray, np.ndarray]]:
    """Yield each pair with its image and raw label; add them to `findings`.

    Raises DataError naming the first unusable file.
    """
    for done, pair in enumerate(examples, 1):
        image_data, label_data = pair.image.read(), pair.label.read()
        picture, label = decode_pair(
            findings.dataset,
            pair.image.name,
            pair.label.name,
            tf.constant(image_data),
            tf.constant(label_data),
            value_range,
        )
        findings.add_picture(pair.image.name, picture)
        counts = value_counts(label)
        findings.add_counts(counts)
        findings.palettes.add(pair.label.name, used_colors(label_data, counts))
        yield pair, picture.pixels, label
        update(done)


def _features(
    dataset: Dataset, value_range: tuple[float, ...], pair: Pair, image: np.ndarray, label: np.ndarray
) -> dict[str, bytes | str]:
    """Return the features of a pair's record."""
    return {
        "image": diagnosis.stored_image(pair.image.read(), image, value_range),
        "segmentation_mask": diagnosis.stored_label(dataset, pair.label.read(), label),
        "name": pair.name,
    }


def _write_pixels(decoded: Iterator[tuple[Pair, np.ndarray, np.ndarray]], part: Path) -> None:
    """Write the decoded pixels of a split."""
    part.mkdir()
    for number, (_, *arrays) in enumerate(decoded):
        for kind, pixels in zip(prepared.KINDS, arrays, strict=True):
            (part / prepared.pixels_file(number, kind)).write_bytes(encode_pixels(pixels))


def _write_cityscapes(source: Path, split: str, decoded: Iterator, part: Path, report: Callable[[str], None]) -> None:
    """Check all files of a split, then write it with the builder of tensorflow-datasets.

    The builder extracts both archives completely, once for all splits. It reads an extracted tree in place.
    """
    for _ in decoded:
        pass
    stored_split = prepared.FORMATS["cityscapes"].stored_split(split)
    builder = tfds.builder("cityscapes/semantic_segmentation", data_dir=part)
    generators = builder._split_generators
    if (source / "leftImg8bit").is_dir() and (source / "gtFine").is_dir():
        builder._split_generators = lambda dl_manager: {
            stored_split: builder._generate_examples(
                images_left=str(source / "leftImg8bit" / split), segmentation_labels=str(source / "gtFine" / split)
            )
        }
    else:
        builder._split_generators = lambda dl_manager: [
            generator for generator in generators(dl_manager) if generator.name == stored_split
        ]
    report(f"tensorflow-datasets is writing {split} of cityscapes")
    tfds_builder.write_split(builder, part.parent / "downloads", source)


def _join_records(name: str, parts: dict[str, Path], finished: Path) -> None:
    """Move the builders' splits into one directory with a joint description."""
    layout, descriptions = prepared.FORMATS[name], []
    for part in parts.values():
        for path in (part / layout.records_directory).iterdir():
            if path.name == prepared.DESCRIPTION:
                descriptions.append(json.loads(path.read_text(encoding="utf-8")))
            else:
                os.replace(path, finished / path.name)
    joined = descriptions[0] | {"splits": [split for description in descriptions for split in description["splits"]]}
    (finished / prepared.DESCRIPTION).write_text(json.dumps(joined, indent=2) + "\n", encoding="utf-8")
    for split in parts:
        prepared.write_prepared_index(str(finished), name, split)


def _join_pixels(name: str, parts: dict[str, Path], finished: Path) -> None:
    """Move the splits of decoded pixels into one directory."""
    layout, entries = prepared.FORMATS[name], []
    for split, part in parts.items():
        names = part / NAMES
        count = len(names.read_text(encoding="utf-8").splitlines())
        entries.append({"name": layout.stored_split(split), "shardLengths": [str(count)]})
        os.replace(names, finished / prepared.INDEX.format(split=layout.stored_split(split)))
        os.replace(part, finished / split)
    text = json.dumps({"name": name, prepared.PIXELS: True, "splits": entries}, indent=2) + "\n"
    (finished / prepared.DESCRIPTION).write_text(text, encoding="utf-8")
