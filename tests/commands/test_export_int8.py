"""The export command refuses a wrong calibration at once, and opens the splits of a good one."""

from pathlib import Path

import pytest

from kseg import cli, export
from kseg.config import Config, checks
from kseg.config.sections import Export
from kseg.datasets import registry
from kseg.errors import ConfigError, UserError
from kseg.exporting import exporter
from tests.helpers.small_sets import folder


@pytest.mark.parametrize("text", ["train", "train:", ":5", "train:0", "train:-1", "train:1.5", "train:x", "5", ""])
def test_malformed_calibrations(text):
    with pytest.raises(ConfigError, match=r"SPLIT:COUNT.*such as train:200; got"):
        export.calibration_choice("int8", text)


def test_calibrations_belong_to_int8():
    assert export.calibration_choice("int8", "a:b:07") == ("a:b", 7)
    assert export.calibration_choice("float32", None) is None
    with pytest.raises(ConfigError, match="--calibrate train:200"):
        export.calibration_choice("int8", None)
    with pytest.raises(ConfigError, match="export.precision=bfloat16"):
        export.calibration_choice("bfloat16", "train:5")


def test_no_gpu_computes_integers():
    with pytest.raises(ConfigError, match="export.device must be cpu with export.precision=int8"):
        checks.check_config(Config(export=Export(precision="int8")))
    checks.check_config(Config(export=Export(precision="int8", device="cpu")))


def test_the_command_opens_the_splits(tmp_path, monkeypatch):
    data = folder(tmp_path / "set", {"train": [[[0]], [[1]]], "val": [[[2]]], "other": [[[2]]]})
    config = Config(data=data, export=Export(precision="int8", device="cpu"))
    monkeypatch.setattr(cli, "model_config", lambda values: config)
    monkeypatch.setattr(cli, "load_model", lambda values: ("model", config, registry.find_dataset(data)))
    calls = []
    monkeypatch.setattr(
        exporter, "export", lambda *arguments, calibration, formats: calls.append(calibration) or Path("out")
    )
    command = ["--out", str(tmp_path / "out"), "--weights", "w"]
    assert (
        export.main([*command, "--calibrate", "train:9"])
        == export.main([*command, "--calibrate", "other:1", "--split", "train"])
        == 0
    )
    assert [(each.split.name, each.images, each.test_split.name) for each in calls] == [
        ("train", 9, "val"),
        ("other", 1, "train"),
    ]
    for wrong in ("trian:9", "train:9x"):
        with pytest.raises(Exception, match="train") as raised:
            export.main([*command, "--calibrate", wrong])
        assert isinstance(raised.value, UserError)
