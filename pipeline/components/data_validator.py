"""The component Examiner: statistics of what was ingested, held against the schema and the last blessed model's data.

Only scalars derived from the examples are looked at (sizes, shares of classes and of void), never a picture's bytes, so
that its memory does not grow with the pictures. Any anomaly ends the pipeline.
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

# Where its SQL library is missing, tensorflow_data_validation can be imported after tfx alone.
import tensorflow_data_validation as tfdv  # isort: skip
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from kseg.config import Data
from kseg.datasets import registry
from kseg.errors import DataError
from pipeline import artifacts
from pipeline.metadata import code_digest

SCHEMA, ANOMALIES = "schema.pbtxt", "SchemaDiff.pb"


def scalars(uri: str, split: str, classes: Sequence[str]) -> pd.DataFrame:
    """Return a row for each example: height, width, void_share, and share/CLASS of its labelled pixels."""
    rows = []
    for row in artifacts.read_scalars(uri, split):
        pixels = np.array(row["class_pixels"], np.float64)
        shares = pixels / max(pixels.sum(), 1)
        rows.append({"height": row["height"], "width": row["width"], "void_share": row["void_share"]}
                    | {f"share/{name}": share for name, share in zip(classes, shares, strict=True)})
    return pd.DataFrame(rows)


def schema_of(classes: Sequence[str]) -> schema_pb2.Schema:
    """Return what every example has to have: sizes from 1 on, and shares from 0 to 1 of void and of each class."""
    schema = schema_pb2.Schema()
    for name in ("height", "width", "void_share", *(f"share/{each}" for each in classes)):
        feature = schema.feature.add(name=name)
        feature.presence.min_fraction, feature.presence.min_count = 1.0, 1
        feature.shape.dim.add(size=1)
        if name in ("height", "width"):
            feature.type, feature.int_domain.min = schema_pb2.INT, 1
        else:
            feature.type, feature.float_domain.min, feature.float_domain.max = schema_pb2.FLOAT, 0.0, 1.0
    return schema


def told(split: str, anomalies: anomalies_pb2.Anomalies) -> list[str]:
    """Return TFDV's anomalies as lines."""
    lines = [f"{split}: {name}: {info.description}" for name, info in sorted(anomalies.anomaly_info.items())]
    if anomalies.HasField("dataset_anomaly_info"):
        lines.append(f"{split}: {anomalies.dataset_anomaly_info.description}")
    return lines


def drifted(split: str, classes: Sequence[str], now: np.ndarray, then: dict[str, float], limit: float) -> list[str]:
    """Return a line where a class's share of all labelled pixels moved by more than `limit`: the one that moved most.

    `now` is (C,), `then` the shares of the last blessed model's data by class; a class that one side does not know has
    a share of 0 there.
    """
    shares = dict(zip(classes, now.tolist(), strict=True))
    moves = {name: abs(shares.get(name, 0.0) - then.get(name, 0.0)) for name in {*shares, *then}}
    name = max(moves, key=lambda each: (moves[each], each))
    if not moves[name] > limit:
        return []
    return [f"{split}: class {name!r} has {shares.get(name, 0.0):.2%} of the labelled pixels, and had "
            f"{then.get(name, 0.0):.2%} in the last blessed model's data: more than {limit:.2%} apart"]


class Executor(base_executor.BaseExecutor):
    """Writes statistics, schema and anomalies as TFX's components do; raises DataError where there are anomalies."""

    def Do(self, input_dict: dict, output_dict: dict, exec_properties: dict) -> None:
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        baseline = next(iter(input_dict.get("baseline_model") or []), None)
        statistics, schema_artifact, anomalies_artifact = (
            artifact_utils.get_single_instance(output_dict[key]) for key in ("statistics", "schema", "anomalies"))
        splits, uri = artifact_utils.decode_split_names(examples.split_names), artifacts.mounted(examples.uri)
        source = json.loads(examples.get_string_custom_property("data"))
        classes = registry.find(Data(name=artifacts.stored_name(source["name"]), directory=uri)).classes
        schema, then = schema_of(classes), {}
        if baseline:
            place = Path(artifacts.mounted(path_utils.eval_model_dir(baseline.uri)))
            then = json.loads((place / artifacts.SHARES).read_text(encoding="utf-8"))
            if not exec_properties["new_classes"]:
                schema = text_format.Parse((place / SCHEMA).read_text(encoding="utf-8"), schema_pb2.Schema())
        lines = []
        for split in splits:
            found = tfdv.generate_statistics_from_dataframe(scalars(uri, split, classes))
            _write(statistics, split, stats_artifact_utils.BINARY_PB_BASENAME, found)
            anomalies = tfdv.validate_statistics(found, schema)
            _write(anomalies_artifact, split, ANOMALIES, anomalies)
            lines += told(split, anomalies)
            if split in then:
                lines += drifted(split, classes, artifacts.class_shares(uri, split), then[split],
                                 exec_properties["drift"])
        place = Path(artifacts.mounted(schema_artifact.uri))
        (place / SCHEMA).write_text(text_format.MessageToString(schema), encoding="utf-8")
        for artifact in (statistics, anomalies_artifact):
            artifact.split_names, artifact.span = examples.split_names, examples.span
        if lines:
            raise DataError("\n".join([f"the data does not fit; {len(lines)} anomalies:", *(f"  {x}" for x in lines),
                                       "Mend the data, or accept it: --new-classes, --drift SHARE"]))


def _write(artifact: types.Artifact, split: str, name: str,
           message: statistics_pb2.DatasetFeatureStatisticsList | anomalies_pb2.Anomalies) -> None:
    place = Path(artifacts.mounted(artifact.uri)) / f"Split-{split}"
    place.mkdir(parents=True)
    (place / name).write_bytes(message.SerializeToString(deterministic=True))


class ExaminerSpec(types.ComponentSpec):
    PARAMETERS = {"drift": ExecutionParameter(type=float), "new_classes": ExecutionParameter(type=bool),
                  "program": ExecutionParameter(type=str)}
    INPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples),
              "baseline_model": ChannelParameter(type=standard_artifacts.Model, optional=True)}
    OUTPUTS = {"statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics),
               "schema": ChannelParameter(type=standard_artifacts.Schema),
               "anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies)}


class Examiner(base_component.BaseComponent):
    """Gives `statistics`, `schema` and `anomalies` of examples.

    The schema is the last blessed model's where there is one and `new_classes` does not allow others. The share of a
    class may move by `drift`.
    """

    SPEC_CLASS = ExaminerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, examples: types.BaseChannel, drift: float, new_classes: bool,
                 baseline_model: types.BaseChannel | None = None):
        super().__init__(ExaminerSpec(
            examples=examples, baseline_model=baseline_model, drift=drift, new_classes=new_classes,
            program=code_digest.digest(__name__), statistics=types.Channel(type=standard_artifacts.ExampleStatistics),
            schema=types.Channel(type=standard_artifacts.Schema),
            anomalies=types.Channel(type=standard_artifacts.ExampleAnomalies)))
