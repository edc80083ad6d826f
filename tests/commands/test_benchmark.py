"""The benchmark of the input pipeline: its stages, its table, its advice and its errors."""

import dataclasses
import io
import json
import re
import resource

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kseg import benchmark
from kseg.config import Config
from kseg.config.sections import Augment, Data, Train
from kseg.datasets import registry
from kseg.errors import ConfigError, DataError
from kseg.input_pipeline import batching
from kseg.profiling import input_benchmark
from kseg.profiling.input_benchmark import DataFigures, Stage
from tests.helpers import prepared_sets
from tests.helpers.exhaustive import exhaustive
from tests.helpers.small_sets import config, folder
from tests.helpers.splits import train_split, unread_split


def shapes_config(directory, **augment):
    return Config(
        data=Data(directory=str(directory)),
        augment=Augment(crop=(64, 96), **augment),
        train=Train(global_batch=2, steps=1),
    )


def figures(own, cores_used=2.0):
    """Return figures of a machine with two cores whose stages have these CPU seconds of their own."""
    totals = np.cumsum(own)
    stages = tuple(Stage(*values) for values in zip(input_benchmark.STAGES, 1 / totals, totals, own))
    return DataFigures(stages, 2**30, cores_used, 2)


def measure_data(config, **settings):
    return input_benchmark.measure_data(train_split(config), config, **settings)


@exhaustive
def test_costs_of_all_stages_add_up_to_the_whole_pipeline(shapes_directory):
    reports = []
    results = measure_data(shapes_config(shapes_directory), batches=2, rounds=2, report=reports.append)
    assert tuple(stage.name for stage in results.stages) == input_benchmark.STAGES
    assert all(stage.rate > 0 and stage.cpu_seconds > 0 and stage.own_cpu_seconds >= 0 for stage in results.stages)
    assert sum(stage.own_cpu_seconds for stage in results.stages) == pytest.approx(results.stages[-1].cpu_seconds)
    assert results.dominant.own_cpu_seconds == max(stage.own_cpu_seconds for stage in results.stages)
    assert 0 < results.peak_memory <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert results.cores_used > 0
    assert len(reports) == 3 and "round 2 of 2" in reports[-1]


@exhaustive
def test_cut_pipelines_agree_with_the_training_pipeline(shapes_directory):
    settings = shapes_config(shapes_directory, scale_range=(1.0, 1.0), extra=())
    cut = input_benchmark.cut_pipelines(train_split(settings), settings)
    elements = {
        name: [tf.nest.map_structure(lambda tensor: tensor.numpy(), element) for element in pipeline]
        for name, pipeline in cut.items()
    }
    [batch] = elements[input_benchmark.FINISH]
    originals = list(batching.eval_examples(registry.open_split(settings.data, "train")))
    for position, index in enumerate(batch["index"]):
        original = originals[index]
        encoded, label = elements[input_benchmark.READ][position]
        assert np.array_equal(np.array(Image.open(io.BytesIO(encoded)).convert("RGB")), original["image"])
        assert np.array_equal(elements[input_benchmark.LABEL][position], original["label"])
        image, label = elements[input_benchmark.DISTORT][position]
        assert np.array_equal(image, batch["image"][position])
        assert np.array_equal(label, batch["label"][position])
        part, label = elements[input_benchmark.IMAGE][position]
        resized, resized_label = elements[input_benchmark.RESIZE][position]
        # At scale 1 the crop is an unchanged window of the original.
        assert np.array_equal(resized, part[:64, :96]) and np.array_equal(label, resized_label)
        windows = np.lib.stride_tricks.sliding_window_view(original["image"], (64, 96, 3)).reshape(-1, 64, 96, 3)
        assert any(np.array_equal(window, resized) for window in windows)
        assert np.array_equal(elements[input_benchmark.CROP][position][1], resized_label)


def test_unreadable_image_is_named(tmp_path):
    settings = config(folder(tmp_path, {"train": [np.zeros((8, 8))] * 3}))
    damaged = tmp_path / "train" / "images" / "e01.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(DataError, match="e01.png"):
        measure_data(settings, batches=2, rounds=1, report=lambda line: None)


@pytest.mark.parametrize("wrong", [{"batches": 0}, {"rounds": 0}, {"batches": -3}])
def test_invalid_numbers_are_errors(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
        input_benchmark.measure_data(unread_split("shapes"), Config(), **wrong)


DECODING = [1, 1, 1, 6, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    "name, own, cores_used, line",
    [
        ("cityscapes", DECODING, 2.0, "decode the image takes 60% .*`python -m kseg.data prepare cityscapes --fast`"),
        # The synthetic set cannot be prepared.
        ("shapes", DECODING, 2.0, "decode the image takes 60% .*data.service"),
        ("cityscapes", [1, 1, 1, 1, 1, 5, 0], 1.9, "flip and distort takes 50% .*data.service"),
        ("cityscapes", DECODING, 0.5, "decode the image takes 60% .*0.5 of 2 cores"),
    ],
)
def test_advice_names_the_dominant_stage_and_a_remedy(name, own, cores_used, line):
    assert re.match(line, input_benchmark.input_advice(figures(own, cores_used), unread_split(name)))


@pytest.mark.parametrize("fast, advised", [(False, True), (True, False)])
def test_advice_for_a_prepared_set(tmp_path, fast, advised):
    source = folder(tmp_path / "source", {"train": [np.zeros((8, 8))]})
    prepared_sets.run("folder", tmp_path / "source", tmp_path / "out", fast=fast)
    line = input_benchmark.input_advice(
        figures(DECODING), registry.open_split(Data(name="folder", directory=str(tmp_path / "out")), "train")
    )
    assert ("prepare folder --fast" in line) == advised
    assert "prepare folder --fast" in input_benchmark.input_advice(
        figures(DECODING), registry.open_split(source, "train")
    )


def test_table_has_a_line_for_each_stage():
    lines = input_benchmark.data_table(figures([0.001, 0.002, 0.001, 0.004, 0.001, 0.0005, 0.0005])).splitlines()
    assert len(lines) == len(input_benchmark.STAGES) + 2
    assert lines[4].split() == ["decode", "the", "image", "125.0", "8.00", "4.00", "40%"]
    assert "1024 MiB" in lines[-1]


def test_command_prints_and_writes_the_same_figures(shapes_directory, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert (
        benchmark.main(
            [
                "data",
                "--config",
                "encnet_shapes",
                "--set",
                f"data.directory={shapes_directory}",
                "augment.crop=32,32",
                "train.global_batch=2",
                "--batches",
                "1",
                "--rounds",
                "1",
                "--json",
                str(path),
            ]
        )
        == 0
    )
    stored = json.loads(path.read_text())
    results = DataFigures(tuple(Stage(**stage) for stage in stored.pop("stages")), **stored)
    assert dataclasses.asdict(results)["stages"][0]["name"] == input_benchmark.READ
    assert input_benchmark.data_table(results) in capsys.readouterr().out


def test_unknown_config_is_an_error():
    with pytest.raises(ConfigError, match="encnet_shape"):
        benchmark.main(["data", "--config", "encnet_shape"])
