"""Test the statistics of the scalars, and the anomalies that stop the pipeline."""

import json

import numpy as np
import pytest
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.types import standard_artifacts

from kseg.errors import DataError
from pipeline import artifacts
from pipeline.components import data_validator
from tests.helpers import small_sets
from tests.helpers.stored_artifacts import artifact, ingested

# Of the 12 pixels, nine are sky, two ground, and one house.
LABEL = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 2]])


def examine(examples, directory, baseline=None, drift=0.2, new_classes=False):
    outputs = {
        key: [artifact(kind, directory / key)]
        for key, kind in (
            ("statistics", standard_artifacts.ExampleStatistics),
            ("schema", standard_artifacts.Schema),
            ("anomalies", standard_artifacts.ExampleAnomalies),
        )
    }
    inputs = {"examples": [examples]} | ({"baseline_model": [baseline]} if baseline else {})
    data_validator.Executor().Do(inputs, outputs, {"drift": drift, "new_classes": new_classes})
    return {key: output for key, (output,) in outputs.items()}


def model_of(directory, classes, fractions):
    """Return a model that was trained on data with these classes and fractions."""
    model = artifact(standard_artifacts.Model, directory)
    trained = directory / "Format-TFMA"
    trained.mkdir()
    schema = data_validator.make_schema(classes)
    (trained / data_validator.SCHEMA).write_text(data_validator.text_format.MessageToString(schema))
    (trained / artifacts.CLASS_FRACTIONS).write_text(json.dumps({"train": dict(zip(classes, fractions))}))
    return model


@pytest.fixture
def examples(tmp_path):
    return ingested(small_sets.folder(tmp_path / "source", {"train": [LABEL] * 3, "val": [LABEL]}), tmp_path / "stored")


def test_statistics_describe_the_scalars(examples, tmp_path):
    outputs = examine(examples, tmp_path / "out")
    statistics = stats_artifact_utils.load_statistics(outputs["statistics"], "train").proto().datasets[0]
    assert statistics.num_examples == 3
    means = {feature.path.step[0]: feature.num_stats.mean for feature in statistics.features}
    assert means == pytest.approx(
        {"height": 3, "width": 4, "void_share": 0, "share/sky": 9 / 12, "share/ground": 2 / 12, "share/house": 1 / 12}
    )


def test_unchanged_data_is_accepted(examples, tmp_path):
    baseline = model_of(tmp_path / "model", ("sky", "ground", "house"), (0.6, 0.3, 0.1))
    outputs = examine(examples, tmp_path / "out", baseline, drift=0.16)
    assert (tmp_path / "out" / "schema" / data_validator.SCHEMA).is_file()
    assert outputs["anomalies"].split_names == '["train", "val"]'


def test_drift_is_an_error(examples, tmp_path):
    baseline = model_of(tmp_path / "model", ("sky", "ground", "house"), (0.6, 0.3, 0.1))
    # The fraction of sky changed most, by 0.15.
    with pytest.raises(DataError, match=r"train: class 'sky' has 75.00% .* had 60.00% .* more than 14.00%"):
        examine(examples, tmp_path / "out", baseline, drift=0.14)


def test_other_classes_are_an_error(examples, tmp_path):
    baseline = model_of(tmp_path / "model", ("sky", "ground", "tower"), (0.75, 0.17, 0.08))
    with pytest.raises(DataError) as raised:
        examine(examples, tmp_path / "out", baseline)
    lines = str(raised.value).splitlines()
    assert any(line.startswith("  train: share/house: New column") for line in lines)
    assert any(line.startswith("  val: share/tower: Column is completely missing") for line in lines)
    assert "--new-classes" in lines[-1]
    examine(examples, tmp_path / "accepted", baseline, new_classes=True)


def test_impossible_values_are_an_error(examples, tmp_path):
    path = tmp_path / "stored" / artifacts.SCALARS / "val.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"void_share": 1.5}) + "\n")
    with pytest.raises(DataError, match=r"val: void_share: Unexpectedly high value: 1\.5"):
        examine(examples, tmp_path / "out")
