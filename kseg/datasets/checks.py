"""Looking at a data set before training on it: every label value counted, and augmented samples drawn."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow as tf

from kseg.config.sections import Data
from kseg.datasets import diagnosis, registry, statistics
from kseg.datasets.registry import Dataset, Split
from kseg.datasets.statistics import Example
from kseg.errors import DataError, UserError, unknown
from kseg.system import atomic_files
from kseg.system.progress import Progress

FAULTS_LISTED = 10


def check_dataset(data: Data, splits: Sequence[str] = (), report: Callable[[str], None] = print) -> dict[str, dict]:
    """Read every example of the splits (none given: all), report what their labels hold, and return it by split.

    A split's dict is that of `statistics.summarise`. Faulty examples are not counted, but the pixels of a label with
    values that the data set does not define are. Raises DataError for an unknown data set or split or a missing
    directory at once, and after all files were read with the first ten faults: files without a partner, damaged or of
    the wrong kind, labels of another size than their image, values that the data set does not define, empty splits.
    """
    _, results = _inspect(data, splits, _image_size, statistics.describe_values, report)
    return results


def dataset_stats(data: Data, splits: Sequence[str] = (), out: Path | None = None,
                  report: Callable[[str], None] = print) -> dict[str, dict]:
    """Report sizes, frequencies of classes and void share of the splits (none given: all), and return them by split.

    As `check`, but pictures are not decoded, only labels are: faults are all of `check`'s but a picture that is damaged
    behind its header. `out` is given the same numbers, `statistics.plain` by split, as JSON, if there is no fault.
    Raises UserError where it cannot be written.
    """
    try:
        if out:
            # Told before all files are read, and not after.
            out.parent.mkdir(parents=True, exist_ok=True)
        dataset, results = _inspect(data, splits, diagnosis.header_size, statistics.describe_classes, report)
        if out:
            plain = {name: statistics.plain_summary(dataset, name, result) for name, result in results.items()}
            atomic_files.write_text(out, json.dumps(plain, indent=2) + "\n")
            report(f"wrote {out}")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    return results


def _inspect(data: Data, splits: Sequence[str], image_size: Callable[[str, tf.Tensor], tuple[int, int]],
             describe: Callable[[Dataset, str, dict], str], report: Callable[[str], None]) -> tuple[Dataset, dict[str, dict]]:
    """Return the data set and the summary of each split, and report each."""
    dataset = registry.find_dataset(data)
    known = registry.split_names(data)
    for name in splits:
        if name not in known:
            raise DataError(unknown(f"split of {data.name}", name, known))
    results, faults = {}, []
    for name in dict.fromkeys(splits or known):
        try:
            split = registry.open_split(data, name)
        except DataError as error:
            faults.append(str(error))
            report(f"{name}: cannot be opened\n")
            continue
        progress = Progress(len(split.names), f"images of {name}", report)
        read = functools.partial(_read, split, image_size)
        results[name] = statistics.summarize_split(dataset, _counted(split, read, progress, faults))
        report(describe(dataset, name, results[name]))
    if faults:
        more = len(faults) - FAULTS_LISTED
        listed = [f"  {fault}" for fault in faults[:FAULTS_LISTED]] + [f"  and {more} more"] * (more > 0)
        raise DataError(f"{data.name} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n" + "\n".join(listed))
    return dataset, results


def _counted(split: Split, read: Callable[[int], tuple[Example | None, str]], progress: Progress,
             faults: list[str]) -> Iterator[Example]:
    """Yield the examples of a split in order as far as they can be counted, adding what is wrong to `faults`."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for done, (example, fault) in enumerate(pool.map(read, range(len(split.names))), 1):
            if fault:
                faults.append(fault)
            if example:
                yield example
            progress.update(done)
    finally:
        # An interrupted command shall not read the rest first.
        pool.shutdown(cancel_futures=True)


def _read(split: Split, image_size: Callable[[str, tf.Tensor], tuple[int, int]],
          index: int) -> tuple[Example | None, str]:
    """Return what an example adds to the statistics, None where it cannot be read, and what is wrong with it or ""."""
    name, label_name = split.names[index], split.label_names[index]
    try:
        image_data, label_data = diagnosis.read_pair(split, index)
        size = image_size(name, image_data)
        label = diagnosis.read_label(label_name, label_data)
        diagnosis.require_same_size(name, size, label_name, label.shape)
    except DataError as error:
        return None, str(error)
    counts = statistics.value_counts(label)
    fault = diagnosis.unmapped(split.dataset, counts)
    return Example(name, label.shape, counts, diagnosis.is_turned(image_data)), fault and f"{label_name}: {fault}"


def _image_size(name: str, data: tf.Tensor) -> tuple[int, int]:
    """Return (height, width) of an encoded picture that is decoded in whole."""
    return diagnosis.read_image_header(name, data).shape[:2]
