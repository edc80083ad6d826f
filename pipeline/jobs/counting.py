"""The Beam job that counts a split by kseg.evaluation.counter, in parts that any number of workers share.

Nothing here imports TFX, so that a worker starts quickly. The confusion matrix has the bits of kseg.evaluate's: whole
numbers, added up in whatever order.
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

# A runner may use several threads; the model would not be faster for it.
COUNTING = threading.Lock()


class CountPart(beam.DoFn):
    """Counts examples [start, end) of a split with a model, and yields (start, Counts), or (start, what is wrong)."""

    def __init__(self, model: str, examples_uri: str, split: str):
        self.model, self.examples_uri, self.split = model, examples_uri, split

    def process(self, part: tuple[int, int]) -> Iterator[tuple[int, Counts | str]]:
        start, end = part
        with COUNTING, tempfile.TemporaryDirectory() as directory:
            counter, config = counter_of(self.model, self.examples_uri)
            data = artifacts.part_config(config.data, self.split, start, end, Path(directory))
            try:
                counts = counter.count(registry.open_split(data, self.split))
            # A runner would hand it on as text among its own, and another attempt would come to the same.
            except UserError as error:
                yield start, str(error)
                return
            names = registry.open_split(config.data, self.split).names[start:end]
        yield start, counts._replace(names=names)


@functools.lru_cache(maxsize=2)
def counter_of(model: str, examples_uri: str) -> tuple[Counter, Config]:
    """Return what counts a model, compiled once in a process for all parts, and a config that reads all examples."""
    network, config, dataset = load_model_artifact(model, examples_uri)
    return Counter(network, protocol_of(config), len(dataset.classes), tf.distribute.get_strategy()), config


class AddCounts(beam.CombineFn):
    """Adds up the int64 confusion matrices of the parts of a split, and joins the rows of their images.

    An accumulator is {start: Counts}: a part that a runner hands on twice counts once. Gives Counts, or what is wrong
    with the first part of which anything is.
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
        return fault or Counts(sum(part.bands for part in ordered), names, *(
            np.concatenate([getattr(part, key) for part in ordered]) for key in ("hits", "truth", "predicted")))


def load_model_artifact(model: str, examples_uri: str) -> tuple[keras.Model, Config, Dataset]:
    """Return (model, config, data set record) of a Model artifact, its config reading the examples of an artifact."""
    network, config, dataset = trained_model.load_trained(trained_directory(model))
    config = artifacts.artifact_config(config, artifacts.mounted_path(examples_uri))
    trained_model.require_same_classes(dataset, registry.find_dataset(config.data), "the model")
    return network, config, dataset


def trained_directory(model: str) -> Path:
    """Return where a Model artifact keeps what kseg reads."""
    return Path(artifacts.mounted_path(model), "Format-TFMA")


def add_counting(job: beam.Pipeline, model: str, examples_uri: str, split: str, total: int, per_bundle: int,
                 out: str) -> None:
    """Add to a Beam job that a model's counts of a split are written to the file `out`."""
    parts = [(start, min(start + per_bundle, total)) for start in range(0, total, per_bundle)]
    label = posixpath.basename(out)
    _ = (job | f"parts of {label}" >> beam.Create(parts) | f"spread {label}" >> beam.Reshuffle()
         | f"count {label}" >> beam.ParDo(CountPart(model, examples_uri, split))
         | f"add {label}" >> beam.CombineGlobally(AddCounts()) | f"write {label}" >> beam.Map(write_counts, out))


def write_counts(counts: Counts | str, path: str) -> None:
    """Write counts, or what is wrong, to a file that appears when it is whole."""
    data = io.BytesIO()
    if isinstance(counts, str):
        np.savez(data, fault=np.array(counts))
    else:
        np.savez(data, **counts._asdict() | {"names": np.array(counts.names, str)})
    with tf.io.gfile.GFile(f"{path}.part", "wb") as file:
        file.write(data.getvalue())
    tf.io.gfile.rename(f"{path}.part", path, overwrite=True)


def read_counts(path: str, names: tuple[str, ...]) -> Counts:
    """Return what was counted; raises DataError where that failed or is not each image of `names` once."""
    with tf.io.gfile.GFile(path, "rb") as file:
        data = io.BytesIO(file.read())
    with np.load(data) as found:
        if "fault" in found:
            raise DataError(str(found["fault"]))
        counts = Counts(found["bands"], tuple(found["names"].tolist()), found["hits"], found["truth"],
                        found["predicted"])
    if counts.names != names:
        raise DataError(f"{len(counts.names)} images were counted, not the {len(names)} of the split, each once")
    return counts
