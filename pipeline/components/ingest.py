"""Convert a dataset to an Examples artifact with the component Ingest, one image at a time."""

import dataclasses
import hashlib
import json
import posixpath
from pathlib import Path

import apache_beam as beam
import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_beam_component, base_beam_executor, executor_spec
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ExecutionParameter

from kseg.config import Config
from kseg.config.sections import Data
from kseg.datasets import registry
from kseg.errors import ConfigError, DataError
from pipeline import artifacts
from pipeline.jobs import shards
from pipeline.metadata import code_digest

# Placeholder for the number of a span in data.directory.
SPAN = "{SPAN}"


def source_fingerprint(data: Data, splits: tuple[str, ...]) -> str:
    """Return a digest of a source's classes and of its files' names, sizes and times, without reading them."""
    dataset = registry.find_dataset(data)
    digest = hashlib.sha256(repr((dataset.name, dataset.classes, dataset.label_table)).encode())
    if dataset.label_colors:
        digest.update(repr((dataset.label_colors, dataset.other_colors)).encode())
    for split in splits:
        opened = registry.open_split(data, split)
        files = [Path(name) for name in (*opened.names, *opened.label_names)]
        # The names of examples in record files are not paths, so all files of the dataset are used instead.
        if not files[0].is_file():
            files = sorted(path for path in Path(opened.location).rglob("*") if path.is_file())
        digest.update(repr((split, opened.names)).encode())
        for path in files:
            status = path.stat()
            digest.update(f"{path.relative_to(opened.location)}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def locate_span(config: Config, span: int | None = None) -> tuple[Config, int]:
    """Return a config with an absolute data directory, and the number of its span (0 without spans).

    In a directory such as data/span-{SPAN}, {SPAN} is replaced by `span`, or by the highest existing number. Raises
    DataError if there is no such directory, and ConfigError for a `span` without {SPAN} in the directory.
    """
    directory = registry.directory_of(config.data).resolve()
    before, placeholder, after = str(directory).partition(SPAN)
    if span is not None and not placeholder:
        raise ConfigError(f"--span {span} needs {SPAN} in data.directory, got {config.data.directory}")
    if placeholder:
        parent, _, prefix = before.rpartition("/")
        suffix = after.partition("/")[0]
        numbers = [
            path.name.removeprefix(prefix).removesuffix(suffix) for path in Path(parent).glob(f"{prefix}*{suffix}")
        ]
        spans = sorted(int(number) for number in numbers if number.isascii() and number.isdigit())
        if not spans or span is not None and span not in spans:
            raise DataError(
                f"{directory}: no span {'' if span is None else span}; existing spans: "
                f"{', '.join(map(str, spans)) or 'none'}"
            )
        span = spans[-1] if span is None else span
        number = next(number for number in numbers if number.isdigit() and int(number) == span)
        directory = Path(f"{before}{number}{after}")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, directory=str(directory))), span or 0


class Executor(base_beam_executor.BaseBeamExecutor):
    """Run the Beam job that writes the records, then write their index."""

    def Do(self, input_dict: dict, output_dict: dict, exec_properties: dict) -> None:
        artifact = artifact_utils.get_single_instance(output_dict["examples"])
        uri = artifacts.mounted_path(artifact.uri)
        data = Data(**json.loads(exec_properties["data"]))
        splits = json.loads(exec_properties["splits"])
        per_shard = exec_properties["images_per_shard"]
        dataset = registry.find_dataset(data)
        elements = []
        for split in splits:
            count = -(-len(registry.open_split(data, split).names) // per_shard)
            elements += [(split, number, count) for number in range(count)]
        with self._make_beam_pipeline() as job:
            _ = (
                job
                | beam.Create(elements)
                | beam.Reshuffle()
                | beam.ParDo(shards.WriteShard(json.loads(exec_properties["data"]), uri))
            )
        rows = []
        for split, number, _ in elements:
            with tf.io.gfile.GFile(posixpath.join(uri, shards.ROWS, f"{split}-{number:05d}"), "r") as file:
                rows += map(json.loads, file)
        tf.io.gfile.rmtree(posixpath.join(uri, shards.ROWS))
        rows_by_split = {split: [row for row in rows if row["split"] == split] for split in splits}
        shards.finish_ingest(uri, dataset, rows_by_split, exec_properties["largest_unreadable_share"])
        artifact.split_names = artifact_utils.encode_split_names(splits)
        artifact.span = exec_properties["span"]
        artifact.set_string_custom_property("fingerprint", exec_properties["fingerprint"])
        artifact.set_string_custom_property("data", exec_properties["data"])
        artifact.set_int_custom_property("images", sum("fault" not in row for row in rows))
        artifact.set_int_custom_property("unreadable", sum("fault" in row for row in rows))


class IngestSpec(types.ComponentSpec):
    PARAMETERS = {
        "data": ExecutionParameter(type=str),
        "splits": ExecutionParameter(type=str),
        "fingerprint": ExecutionParameter(type=str),
        "span": ExecutionParameter(type=int),
        "images_per_shard": ExecutionParameter(type=int),
        "program": ExecutionParameter(type=str),
        "largest_unreadable_share": ExecutionParameter(type=float),
    }
    INPUTS = {}
    OUTPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples)}


class Ingest(base_beam_component.BaseBeamComponent):
    """TFX component that outputs the `examples` of a dataset's splits.

    Args:
        data: JSON of {"name", "directory"} of the source.
        splits: JSON list of split names.
        fingerprint: Digest of the source; a cached result is reused while it is unchanged.
        span: Number of the span, stored with the examples.
        images_per_shard: Number of images in a record file.
        max_unreadable_fraction: Fraction of a split that may be skipped as unreadable; more is an error.
    """

    SPEC_CLASS = IngestSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self, data: str, splits: str, fingerprint: str, span: int, images_per_shard: int, max_unreadable_fraction: float
    ):
        super().__init__(
            IngestSpec(
                data=data,
                splits=splits,
                fingerprint=fingerprint,
                span=span,
                images_per_shard=images_per_shard,
                largest_unreadable_share=max_unreadable_fraction,
                program=code_digest.code_digest(__name__),
                examples=types.Channel(type=standard_artifacts.Examples),
            )
        )
