"""Validate ingested examples with the component Examiner: their statistics, schema and drift.

The component reads only scalars of the examples (sizes, fractions of classes and of void), never images, so that its
memory does not depend on their sizes. Any anomaly stops the pipeline.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tfx import types
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ExecutionParameter
from tfx.utils import path_utils

# Without its SQL library, tensorflow_data_validation can only be imported after tfx.
import tensorflow_data_validation as tfdv  # isort: skip
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from kseg.config.sections import Data
from kseg.datasets import registry
from kseg.errors import DataError
from pipeline import artifacts
from pipeline.metadata import code_digest

SCHEMA, ANOMALIES = "schema.pbtxt", "SchemaDiff.pb"


def example_scalars(uri: str, split: str, classes: Sequence[str]) -> pd.DataFrame:
    """Return a row for each example: height, width, void_share, and share/CLASS, its fraction of labeled pixels."""
    rows = []
    for row in artifacts.read_scalars(uri, split):
        pixels = np.array(row["class_pixels"], np.float64)
        fractions = pixels / max(pixels.sum(), 1)
        rows.append(
            {"height": row["height"], "width": row["width"], "void_share": row["void_share"]}
            | {f"share/{name}": fraction for name, fraction in zip(classes, fractions, strict=True)}
        )
    return pd.DataFrame(rows)


def make_schema(classes: Sequence[str]) -> schema_pb2.Schema:
    """Return the schema of an example: positive sizes, and fractions from 0 to 1 of void and of each class."""
    schema = schema_pb2.Schema()
    for name in ("height", "width", "void_share", *(f"share/{name}" for name in classes)):
        feature = schema.feature.add(name=name)
        feature.presence.min_fraction, feature.presence.min_count = 1.0, 1
        feature.shape.dim.add(size=1)
        if name in ("height", "width"):
            feature.type, feature.int_domain.min = schema_pb2.INT, 1
        else:
            feature.type, feature.float_domain.min, feature.float_domain.max = schema_pb2.FLOAT, 0.0, 1.0
    return schema


def anomaly_lines(split: str, anomalies: anomalies_pb2.Anomalies) -> list[str]:
    """Return TFDV's anomalies of a split as lines."""
    lines = [f"{split}: {name}: {info.description}" for name, info in sorted(anomalies.anomaly_info.items())]
    if anomalies.HasField("dataset_anomaly_info"):
        lines.append(f"{split}: {anomalies.dataset_anomaly_info.description}")
    return lines


def drift_lines(split: str, classes: Sequence[str], new: np.ndarray, old: dict[str, float], limit: float) -> list[str]:
    """Return a line about the class whose fraction changed most, empty unless the change exceeds a limit.

    Args:
        split: Name of the split.
        classes: Class names of the new data.
        new: Fractions of the labeled pixels by class, (C,).
        old: Fractions in the last blessed model's data by class name. A class missing on one side has fraction 0 there.
        limit: Maximum change.
    """
    fractions = dict(zip(classes, new.tolist(), strict=True))
    changes = {name: abs(fractions.get(name, 0.0) - old.get(name, 0.0)) for name in {*fractions, *old}}
    name = max(changes, key=lambda name: (changes[name], name))
    if not changes[name] > limit:
        return []
    return [
        f"{split}: class {name!r} has {fractions.get(name, 0.0):.2%} of the labeled pixels, but had "
        f"{old.get(name, 0.0):.2%} in the last blessed model's data, a change of more than {limit:.2%}"
    ]


class Executor(base_executor.BaseExecutor):
    """Write statistics, schema and anomalies like TFX's components; raises DataError for anomalies."""

    def Do(self, input_dict: dict, output_dict: dict, exec_properties: dict) -> None:
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        baseline = next(iter(input_dict.get("baseline_model") or []), None)
        statistics, schema_artifact, anomalies_artifact = (
            artifact_utils.get_single_instance(output_dict[key]) for key in ("statistics", "schema", "anomalies")
        )
        splits, uri = artifact_utils.decode_split_names(examples.split_names), artifacts.mounted_path(examples.uri)
        source = json.loads(examples.get_string_custom_property("data"))
        classes = registry.find_dataset(Data(name=artifacts.stored_name(source["name"]), directory=uri)).classes
        schema, old_fractions = make_schema(classes), {}
        if baseline:
            model = Path(artifacts.mounted_path(path_utils.eval_model_dir(baseline.uri)))
            old_fractions = json.loads((model / artifacts.CLASS_FRACTIONS).read_text(encoding="utf-8"))
            if not exec_properties["new_classes"]:
                schema = text_format.Parse((model / SCHEMA).read_text(encoding="utf-8"), schema_pb2.Schema())
        lines = []
        for split in splits:
            split_statistics = tfdv.generate_statistics_from_dataframe(example_scalars(uri, split, classes))
            _write_message(statistics, split, stats_artifact_utils.BINARY_PB_BASENAME, split_statistics)
            anomalies = tfdv.validate_statistics(split_statistics, schema)
            _write_message(anomalies_artifact, split, ANOMALIES, anomalies)
            lines += anomaly_lines(split, anomalies)
            if split in old_fractions:
                lines += drift_lines(
                    split,
                    classes,
                    artifacts.class_fractions(uri, split),
                    old_fractions[split],
                    exec_properties["drift"],
                )
        directory = Path(artifacts.mounted_path(schema_artifact.uri))
        (directory / SCHEMA).write_text(text_format.MessageToString(schema), encoding="utf-8")
        for artifact in (statistics, anomalies_artifact):
            artifact.split_names, artifact.span = examples.split_names, examples.span
        if lines:
            raise DataError(
                "\n".join(
                    [
                        f"the data has {len(lines)} anomalies:",
                        *(f"  {line}" for line in lines),
                        "Fix the data, or accept the change with --new-classes or --drift FRACTION",
                    ]
                )
            )


def _write_message(
    artifact: types.Artifact,
    split: str,
    name: str,
    message: statistics_pb2.DatasetFeatureStatisticsList | anomalies_pb2.Anomalies,
) -> None:
    directory = Path(artifacts.mounted_path(artifact.uri)) / f"Split-{split}"
    directory.mkdir(parents=True)
    (directory / name).write_bytes(message.SerializeToString(deterministic=True))


class ExaminerSpec(types.ComponentSpec):
    PARAMETERS = {
        "drift": ExecutionParameter(type=float),
        "new_classes": ExecutionParameter(type=bool),
        "program": ExecutionParameter(type=str),
    }
    INPUTS = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "baseline_model": ChannelParameter(type=standard_artifacts.Model, optional=True),
    }
    OUTPUTS = {
        "statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics),
        "schema": ChannelParameter(type=standard_artifacts.Schema),
        "anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies),
    }


class Examiner(base_component.BaseComponent):
    """TFX component that outputs the `statistics`, `schema` and `anomalies` of examples.

    The schema is that of the last blessed model, unless there is none or `new_classes` allows other classes. `drift` is
    the maximum change of a class's fraction of the pixels.
    """

    SPEC_CLASS = ExaminerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        drift: float,
        new_classes: bool,
        baseline_model: types.BaseChannel | None = None,
    ):
        super().__init__(
            ExaminerSpec(
                examples=examples,
                baseline_model=baseline_model,
                drift=drift,
                new_classes=new_classes,
                program=code_digest.code_digest(__name__),
                statistics=types.Channel(type=standard_artifacts.ExampleStatistics),
                schema=types.Channel(type=standard_artifacts.Schema),
                anomalies=types.Channel(type=standard_artifacts.ExampleAnomalies),
            )
        )
