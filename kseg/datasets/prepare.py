"""Preparing a data set: its archives or trees become record files that say nothing false.

    python -m kseg.data prepare NAME --source DIR [--directory OUT] [--split SPLIT ...] [--subset] [--fast]

Every picture and label is read once and checked. All is written in a hidden directory, split by split, which takes its
final place in one step when everything is there; started again, finished splits are kept.
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
from PIL import Image

from kseg.config.sections import Data
from kseg.datasets import archive_files, layouts, prepared, registry, sources, tfds_builder
from kseg.datasets.diagnosis import decode_pair, header_size
from kseg.datasets.registry import Dataset
from kseg.datasets.sources import Pair, Pairs
from kseg.errors import DataError, unknown
from kseg.images.decoding import KIND, PALETTE, encode_pixels
from kseg.system.progress import Progress

# Record files and their descriptions beside what they store.
OVERHEAD = 1.05
# Of so many pictures of a split the sides are read, to know how large its pixels will be.
MEASURED = 50
# In a split's directory, written when its records are whole.
NAMES = "names.txt"


def prepare_dataset(data: Data, source: Path, splits: Sequence[str] = (), subset: bool = False, fast: bool = False,
                    report: Callable[[str], None] = print) -> Path:
    """Prepare a data set from `source` into the directory that `data` means, and return where its records lie.

    `splits`, none given: all, are prepared; `subset`: they may be smaller than published; `fast`: pixels are stored
    decoded. A set that is already there is left as it is. Raises DataError for an unknown name or split; where archives
    are missing, damaged or not the ones published; for pictures without a label, counts other than published, and
    labels that are no 8-bit ids or hold values that the data set does not define, naming the file; where another
    process prepares the same, or the disk has too little room.
    """
    dataset, wanted = _choose(data, source, splits)
    directory = registry.directory_of(data)
    form = prepared.FORMATS[data.name]
    final = directory / (form.pixels if fast else form.place)
    if final.is_dir():
        there = prepared.prepared_split_names(str(final), data.name)
        if not set(splits) <= set(there):
            raise DataError(f"{final} is there and holds {', '.join(there)} only; delete it to prepare other splits")
        report(f"{final} is there already, with {', '.join(there)}; delete it to have it prepared again")
        return final
    found = sources.SOURCES[data.name](source, wanted, report)
    for split, examples in found.items():
        _check_count(dataset, split, len(examples), subset)
    around = directory if directory.is_dir() else directory.parent
    hidden = around / f".{data.name}{'-pixels' if fast else ''}-preparing"
    try:
        hidden.mkdir(parents=True, exist_ok=True)
        with (hidden / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"another process is preparing {data.name} in {hidden}") from None
            parts = {split: hidden / f"{split}-{_digest(dataset, examples)}" for split, examples in found.items()}
            _keep(hidden, parts, report)
            left = {split: examples for split, examples in found.items() if not (parts[split] / NAMES).is_file()}
            needed = _room_for_pixels(left) if fast else _room_for_records(source, data.name, hidden, left)
            require_room(hidden, needed, report)
            for split, examples in left.items():
                _write_part(dataset, source, split, examples, parts[split], fast, report)
            finished = hidden / "finished"
            finished.mkdir()
            (_join_pixels if fast else _join_records)(data.name, parts, finished)
            if data.name == "folder":
                shutil.copyfile(source / "classes.txt", finished / "classes.txt")
            # What cannot be read shall not take its place.
            for split in parts:
                layouts.open_prepared_split(str(finished), data.name, split)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(finished, final)
            shutil.rmtree(hidden)
    except OSError as error:
        raise DataError(f"cannot prepare {data.name} in {hidden}: {archive_files.error_text(error)}") from error
    counts = ", ".join(f"{split} {len(examples)}" for split, examples in found.items())
    report(f"prepared {final}: {counts}; it needs {source} no more")
    return final


def _choose(data: Data, source: Path, splits: Sequence[str]) -> tuple[Dataset, tuple[str, ...]]:
    """Return the record of a data set and which of its splits are to be prepared."""
    if data.name not in sources.SOURCES:
        raise DataError(unknown("data set to prepare", data.name, sources.SOURCES))
    if not source.is_dir():
        raise DataError(f"no directory {source}; --source names the one in which the archives or the extracted tree of "
                        f"{data.name} lie")
    dataset = registry.read_classes(source) if data.name == "folder" else registry.DATASETS[data.name]
    known = dataset.splits or layouts.folder_splits(source)
    for split in splits:
        if split not in known:
            raise DataError(unknown(f"split of {data.name}", split, known))
    if not known:
        raise DataError(f"no directory SPLIT/images in {source}")
    return dataset, tuple(dict.fromkeys(splits or known))


def _check_count(dataset: Dataset, split: str, count: int, subset: bool) -> None:
    published = dataset.published.get(split, count)
    if count > published or count < published and not subset:
        hint = "; with --subset a part of the published set will do" if count < published else ""
        raise DataError(f"{dataset.name} {split}: {count} of {published} pairs{hint}")


def _digest(dataset: Dataset, examples: list[Pair]) -> str:
    """Return what tells a split from another state of its source: names and sizes, and which label values are fine."""
    lines = [(pair.name, pair.image.size, pair.label.size) for pair in examples]
    return hashlib.sha256(repr((prepared.VERSION, dataset.label_table, lines)).encode()).hexdigest()[:16]


def _keep(hidden: Path, parts: dict[str, Path], report: Callable[[str], None]) -> None:
    """Remove whatever an earlier process left, but finished splits of the same source and extracted archives."""
    for path in hidden.iterdir():
        if path in parts.values() and (path / NAMES).is_file():
            report(f"{path.name.rsplit('-', 1)[0]} was finished before and is kept")
        elif path.is_dir() and path.name != "downloads":
            shutil.rmtree(path)


def _room_for_records(source: Path, name: str, hidden: Path, left: Pairs) -> int:
    """Return how many bytes preparing will take at its peak, the finished set included."""
    # The builder collects a split's records in files before it writes them, but removes each when it has read it.
    needed = sum(pair.image.size + pair.label.size for examples in left.values() for pair in examples)
    if name == "cityscapes" and left:
        archives = {path for path in sources.cityscapes_roots(source) if path.is_file()}
        extracted = sum(file.size for path in archives for file in archive_files.zip_files(path).values())
        there = sum(file.size for file in archive_files.tree_files(hidden, ("downloads",)).values())
        needed += max(extracted - there, 0)
    return int(OVERHEAD * needed)


def _room_for_pixels(left: Pairs) -> int:
    """Return how many bytes decoded pixels will take, by some pictures of each split."""
    needed = 0.0
    for examples in left.values():
        some = examples[::len(examples) // MEASURED + 1]
        areas = [math.prod(header_size(pair.image.where, tf.constant(pair.image.read()))) for pair in some]
        # Three colours and an id.
        needed += 4 * len(examples) * sum(areas) / len(areas)
    return int(OVERHEAD * needed)


def require_room(directory: Path, needed: int, report: Callable[[str], None]) -> None:
    """Report how many bytes are needed and free in `directory`; raises DataError where they do not suffice."""
    free = shutil.disk_usage(directory).free
    line = f"needs {needed / 1e9:.3g} GB on the disk of {directory.parent}, where {free / 1e9:.3g} GB are free"
    if needed > free:
        raise DataError(line)
    report(line)


def _write_part(dataset: Dataset, source: Path, split: str, examples: list[Pair], part: Path, fast: bool,
                report: Callable[[str], None]) -> None:
    """Check a split and write its records or pixels into `part`, and last its names."""
    # Builders are silenced, but not what counts their examples; taken here, for a generator runs within them.
    out, progress = sys.stdout, Progress(len(examples), f"pairs of {split}", report)

    def update(done: int) -> None:
        with contextlib.redirect_stdout(out):
            progress.update(done)

    checked = _checked(dataset, examples, update)
    if fast:
        _write_pixels(checked, part)
    elif dataset.name == "cityscapes":
        _write_cityscapes(source, split, checked, part, report)
    else:
        stored = (_stored(pair, label) for pair, _, label in checked)
        tfds_builder.write_split(tfds_builder.BUILDERS[dataset.name](part, split, stored, len(examples)))
    (part / f".{NAMES}").write_text("".join(f"{pair.name}\n" for pair in examples), encoding="utf-8")
    os.replace(part / f".{NAMES}", part / NAMES)


def _checked(dataset: Dataset, examples: list[Pair],
             update: Callable[[int], None]) -> Iterator[tuple[Pair, np.ndarray, np.ndarray]]:
    """Yield the pairs with picture and raw label; raises DataError naming the first file that cannot be used."""
    for done, pair in enumerate(examples, 1):
        encoded = (tf.constant(file.read()) for file in (pair.image, pair.label))
        yield pair, *decode_pair(dataset, pair.image.where, pair.label.where, *encoded)
        update(done)


def _stored(pair: Pair, label: np.ndarray) -> dict[str, bytes | str]:
    """Return a pair as the builders store it."""
    encoded = pair.label.read()
    # Every reader takes a grey PNG for ids, and many a palette for colours.
    if encoded[KIND] == PALETTE:
        encoded = tfds_builder.png(Image.fromarray(label))
    return {"image": pair.image.read(), "segmentation_mask": encoded, "name": pair.name}


def _write_pixels(checked: Iterator[tuple[Pair, np.ndarray, np.ndarray]], part: Path) -> None:
    """Write the decoded pixels of a split."""
    part.mkdir()
    for number, (_, *both) in enumerate(checked):
        for kind, pixels in zip(prepared.KINDS, both, strict=True):
            (part / prepared.pixels_file(number, kind)).write_bytes(encode_pixels(pixels))


def _write_cityscapes(source: Path, split: str, checked: Iterator, part: Path, report: Callable[[str], None]) -> None:
    """Let the builder of tensorflow-datasets write a split once all its files are found good.

    It extracts both archives in whole, once for all splits. An extracted tree it reads where it lies.
    """
    for _ in checked:
        pass
    theirs = prepared.FORMATS["cityscapes"].theirs(split)
    builder = tfds.builder("cityscapes/semantic_segmentation", data_dir=part)
    generators = builder._split_generators
    if (source / "leftImg8bit").is_dir() and (source / "gtFine").is_dir():
        builder._split_generators = lambda dl_manager: {theirs: builder._generate_examples(
            images_left=str(source / "leftImg8bit" / split), segmentation_labels=str(source / "gtFine" / split))}
    else:
        builder._split_generators = lambda dl_manager: [
            generator for generator in generators(dl_manager) if generator.name == theirs]
    report(f"tensorflow-datasets writes {split} of cityscapes")
    tfds_builder.write_split(builder, part.parent / "downloads", source)


def _join_records(name: str, parts: dict[str, Path], finished: Path) -> None:
    """Bring the splits, which the builders wrote one by one, into one directory that reads as if written at once."""
    form, descriptions = prepared.FORMATS[name], []
    for part in parts.values():
        for path in (part / form.place).iterdir():
            if path.name == prepared.DESCRIPTION:
                descriptions.append(json.loads(path.read_text(encoding="utf-8")))
            else:
                os.replace(path, finished / path.name)
    joined = descriptions[0] | {"splits": [split for one in descriptions for split in one["splits"]]}
    (finished / prepared.DESCRIPTION).write_text(json.dumps(joined, indent=2) + "\n", encoding="utf-8")
    for split in parts:
        prepared.write_prepared_index(str(finished), name, split)


def _join_pixels(name: str, parts: dict[str, Path], finished: Path) -> None:
    """Bring the splits of decoded pixels into one directory."""
    form, described = prepared.FORMATS[name], []
    for split, part in parts.items():
        names = part / NAMES
        count = len(names.read_text(encoding="utf-8").splitlines())
        described.append({"name": form.theirs(split), "shardLengths": [str(count)]})
        os.replace(names, finished / prepared.INDEX.format(split=form.theirs(split)))
        os.replace(part, finished / split)
    text = json.dumps({"name": name, prepared.PIXELS: True, "splits": described}, indent=2) + "\n"
    (finished / prepared.DESCRIPTION).write_text(text, encoding="utf-8")
