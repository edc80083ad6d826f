"""Count the confusion matrices of a split with Beam, in parts that any number of workers share.

This module does not import TFX, so that workers start quickly. The confusion matrix is bit-identical to that of
kseg.evaluate, since it is a sum of integers, which does not depend on the order.
"""

import functools
import io
import posixpath
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import apache_beam as beam
import keras
import numpy as np
import tensorflow as tf

from kseg.config import Config
from kseg.datasets import registry
from kseg.datasets.registry import Dataset
from kseg.errors import DataError, UserError
from kseg.evaluation.counter import Counter, Counts
from kseg.inference import trained_model
from kseg.inference.prediction import protocol_of
from pipeline import artifacts

# A runner may use several threads, but the model would not run faster in them.
COUNTING = threading.Lock()


class CountPart(beam.DoFn):
    """Beam function that counts the examples [start, end) of a split with a model.

    Yields (start, Counts), or (start, error message).
    """

    def __init__(self, model: str, examples_uri: str, split: str):
        self.model, self.examples_uri, self.split = model, examples_uri, split

    def process(self, part: tuple[int, int]) -> Iterator[tuple[int, Counts | str]]:
        start, end = part
        with COUNTING, tempfile.TemporaryDirectory() as directory:
            counter, config = cached_counter(self.model, self.examples_uri)
            data = artifacts.part_config(config.data, self.split, start, end, Path(directory))
            try:
                counts = counter.count(registry.open_split(data, self.split))
            # A runner would bury the error in its own messages, and retry the part without any chance of success.
            except UserError as error:
                yield start, str(error)
                return
            names = registry.open_split(config.data, self.split).names[start:end]
        yield start, counts._replace(names=names)


@functools.lru_cache(maxsize=2)
def cached_counter(model: str, examples_uri: str) -> tuple[Counter, Config]:
    """Return the counter of a Model artifact, and a config that reads the examples of an artifact.

    The cache lets a process compile the model once for all parts.
    """
    network, config, dataset = load_model_artifact(model, examples_uri)
    return Counter(network, protocol_of(config), len(dataset.classes), tf.distribute.get_strategy()), config


class AddCounts(beam.CombineFn):
    """Beam function that adds the int64 confusion matrices of parts, and joins the rows of their images.

    An accumulator is {start: Counts or error message}, so that a part delivered twice counts once. The output is
    Counts, or the message of the first part with an error.
    """

    def create_accumulator(self) -> dict[int, Counts | str]:
        return {}

    def add_input(self, accumulator: dict, element: tuple[int, Counts | str]) -> dict:
        return accumulator | dict([element])

    def merge_accumulators(self, accumulators: Iterable[dict]) -> dict:
        return {start: counts for parts in accumulators for start, counts in parts.items()}

    def extract_output(self, accumulator: dict) -> Counts | str:
        ordered = [accumulator[start] for start in sorted(accumulator)]
        fault = next((part for part in ordered if isinstance(part, str)), None)
        names = tuple(name for part in ordered for name in getattr(part, "names", ()))
        return fault or Counts(
            sum(part.bands for part in ordered),
            names,
            *(np.concatenate([getattr(part, key) for part in ordered]) for key in ("hits", "truth", "predicted")),
        )


def load_model_artifact(model: str, examples_uri: str) -> tuple[keras.Model, Config, Dataset]:
    """Return (model, config, dataset) of a Model artifact; the config reads the examples of an artifact."""
    network, config, dataset = trained_model.load_trained(trained_directory(model))
    config = artifacts.artifact_config(config, artifacts.mounted_path(examples_uri))
    trained_model.require_same_classes(dataset, registry.find_dataset(config.data), "the model")
    return network, config, dataset


def trained_directory(model: str) -> Path:
    """Return the directory of a Model artifact that kseg reads as a working directory."""
    return Path(artifacts.mounted_path(model), "Format-TFMA")


def add_counting(
    job: beam.Pipeline, model: str, examples_uri: str, split: str, total: int, per_bundle: int, out: str
) -> None:
    """Add steps to a Beam job that write a model's counts of a split to the file `out`."""
    parts = [(start, min(start + per_bundle, total)) for start in range(0, total, per_bundle)]
    label = posixpath.basename(out)
    _ = (
        job
        | f"parts of {label}" >> beam.Create(parts)
        | f"spread {label}" >> beam.Reshuffle()
        | f"count {label}" >> beam.ParDo(CountPart(model, examples_uri, split))
        | f"add {label}" >> beam.CombineGlobally(AddCounts())
        | f"write {label}" >> beam.Map(write_counts, out)
    )


def write_counts(counts: Counts | str, path: str) -> None:
    """Write counts, or an error message, to a file that is renamed when it is complete."""
    data = io.BytesIO()
    if isinstance(counts, str):
        np.savez(data, fault=np.array(counts))
    else:
        np.savez(data, **counts._asdict() | {"names": np.array(counts.names, str)})
    with tf.io.gfile.GFile(f"{path}.part", "wb") as file:
        file.write(data.getvalue())
    tf.io.gfile.rename(f"{path}.part", path, overwrite=True)


def read_counts(path: str, names: tuple[str, ...]) -> Counts:
    """Return the counts in a file; raises DataError if counting failed or the images are not exactly `names`."""
    with tf.io.gfile.GFile(path, "rb") as file:
        data = io.BytesIO(file.read())
    with np.load(data) as stored:
        if "fault" in stored:
            raise DataError(str(stored["fault"]))
        counts = Counts(
            stored["bands"], tuple(stored["names"].tolist()), stored["hits"], stored["truth"], stored["predicted"]
        )
    if counts.names != names:
        raise DataError(
            f"{len(counts.names)} images were counted instead of the {len(names)} images of the split, each once"
        )
    return counts
