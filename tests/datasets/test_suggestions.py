"""Suggested settings follow from the counted images, and `kseg train` takes the printed command."""

import shlex

import numpy as np
import pytest
from PIL import Image

from kseg import config as configs
from kseg import data, train
from kseg.datasets import suggestions
from kseg.datasets.statistics import class_weights
from tests.helpers.running import run_here


def counted(images, size, pixels=(50, 50), fill=None):
    fill = np.array(fill if fill else [0.5] * len(pixels))
    return {
        "images": images,
        "sizes": {size: images},
        "class_pixels": np.array(pixels),
        "weights": class_weights(np.where(np.array(pixels) > 0, fill, np.nan)),
    }


def settings(*arguments, head="encnet", memory=None):
    result = counted(*arguments)
    classes = tuple(f"c{index}" for index in range(len(result["class_pixels"])))
    found = suggestions.suggest_settings(head, result, classes, memory)
    return {item.key: item.value for item in found}


@pytest.mark.parametrize(
    "images, size, crop, batch, rate, window",
    [
        # These are the published recipes of Cityscapes and of ADE20K.
        (2975, (1024, 2048), "512,1024", "8", "0.01", ""),
        (20210, (512, 683), "512,512", "16", "0.01", ""),
        (367, (360, 480), "352,480", "16", "0.01", ""),
        (4, (360, 480), "352,480", "4", "0.0025", ""),
        (900, (4000, 6000), "512,1024", "8", "0.01", "512,1024"),
    ],
)
def test_sizes(images, size, crop, batch, rate, window):
    found = settings(images, size)
    assert found["augment.crop"] == crop and found["train.global_batch"] == batch
    assert found["train.learning_rate"] == rate and found["evaluate.window"] == window
    assert ("resnet18" if images < 500 else "resnet50") == found["model.backbone"]
    assert "loss.class_weights" not in found and "train.accumulate" not in found


def test_steps_are_those_of_cityscapes():
    assert abs(int(settings(2975, (1024, 2048))["train.steps"]) - 40_000) < 300
    assert settings(10, (512, 512))["train.steps"] == "2400"


def test_weights_of_rare_classes():
    # The last class has no pixel; the rarest weight 0.5 / 0.01 is limited.
    found = settings(100, (64, 64), (9000, 900, 10, 0), [0.5, 0.5, 0.01, 1.0])
    assert found["loss.class_weights"] == "1,1,10,1"


def test_shortcut_of_resnet18():
    assert settings(100, (64, 64), head="deeplabv3plus")["model.deeplab.shortcut_channels"] == "12"
    assert "model.deeplab.shortcut_channels" not in settings(900, (64, 64), head="deeplabv3plus")


def test_memory():
    # 8.6 GB for two crops: one GPU of 11 GB holds two of the eight crops, so four parts.
    assert settings(2975, (1024, 2048), memory=11)["train.accumulate"] == "4"
    assert settings(2975, (1024, 2048), memory=80)["train.accumulate"] == "1"
    assert settings(2975, (1024, 2048), memory=1)["train.accumulate"] == "8"


@pytest.mark.parametrize("head", suggestions.REPORTED_MEMORY)
def test_config_takes_the_suggestions_of_each_head(head):
    found = settings(900, (4000, 6000), (9000, 1), head=head, memory=8)
    config = configs.load(f"{head}_ade20k", [f"{key}={value}" for key, value in found.items()])
    assert config.augment.crop == config.evaluate.window == (512, 1024)
    assert config.train.accumulate == int(found["train.accumulate"]) > 1


def test_training_takes_the_command(tmp_path, capsys):
    directory = tmp_path / "my data"
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (directory / split / part).mkdir(parents=True)
        Image.new("RGB", (70, 40)).save(directory / split / "images" / "a.png")
        Image.fromarray(np.arange(2800, dtype=np.uint8).reshape(40, 70) % 2).save(
            directory / split / "labels" / "a.png"
        )
    (directory / "classes.txt").write_text("road\ncar\n")
    output = run_here(data.main, ["suggest", "folder", "--directory", str(directory), "--head", "fcn"], capsys)
    words = shlex.split(output.strip().splitlines()[-1])
    assert words[:2] == ["kseg", "train"]
    output = run_here(train.main, [*words[2:], "--dry-run"], capsys)
    assert "image (1, 32, 64, 3)" in output and '"backbone": "resnet18"' in output
