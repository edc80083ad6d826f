"""The training command without training: the dry run, missing data, and invalid arguments."""

import re

import pytest

from kseg import train
from kseg.distributed import devices, hosts
from kseg.errors import ConfigError
from tests.helpers.running import run_here, tiny


def test_dry_run(shapes_directory, capsys):
    output = run_here(train.main, [*tiny(shapes_directory), "--dry-run"], capsys)
    assert '"crop": [\n      64,\n      64\n    ]' in output
    assert "image (2, 64, 64, 3) uint8, label (2, 64, 64) uint8" in output
    assert "parameters: " in output and devices.device_line() in output


def test_cityscapes_without_its_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["--config", "encnet_cityscapes"]
    output = run_here(train.main, command, capsys, status=2)
    error = output[output.index("error:") :].strip()
    assert "leftImg8bit_trainvaltest.zip" in error and "data/cityscapes" in error and len(error.splitlines()) == 5
    assert not list(tmp_path.iterdir())
    output = run_here(train.main, [*command, "--dry-run"], capsys)
    assert "parameters: 35,891,961" in output and "(8, 512, 1024, 3) float32" in output


@pytest.mark.parametrize(
    "arguments, fragment",
    [
        (["--config", "encnet_camvd", "--dry-run"], "Did you mean encnet_camvid"),
        (["--config", "encnet_shapes", "--set", "train.step=3", "--dry-run"], "Did you mean train.steps"),
        (["--config", "encnet_shapes", "--set", "data.name=shape", "--dry-run"], "Did you mean shapes"),
        (["--config", "encnet_shapes", "--set", "model.head=encnt", "--dry-run"], "Did you mean encnet"),
        (["--config", "encnet_shapes", "--set", "train.steps=many", "--dry-run"], "train.steps takes int, got 'many'"),
        (["--config", "encnet_shapes", "--cpu-replicas", "0"], "--cpu-replicas must be at least 1"),
        (["--config", "encnet_shapes", "--set", "data.val_split=vall", "--dry-run"], "Did you mean val"),
    ],
)
def test_invalid_arguments_are_errors(arguments, fragment, shapes_directory, capsys):
    if "data.name=shape" not in arguments:
        arguments = [*arguments, "--set", f"data.directory={shapes_directory}"]
    assert fragment in run_here(train.main, arguments, capsys, status=2)


def test_several_hosts_cannot_skip_unreadable_examples(shapes_directory, tmp_path, capsys, monkeypatch):
    """Every host would skip other examples, and their parts would belong to different batches."""
    monkeypatch.setattr(hosts, "num_hosts", lambda strategy: 2)
    monkeypatch.setattr(hosts, "is_chief", lambda strategy: True)
    output = run_here(
        train.main, [*tiny(shapes_directory, "data.unreadable=skip"), "--workdir", tmp_path / "run"], capsys, status=2
    )
    assert "data.unreadable=skip" in output and not (tmp_path / "run").exists()


@pytest.mark.parametrize("text, expected", [("1:1", (1, 1)), ("11:15", (11, 15)), ("300:300", (300, 300))])
def test_valid_profile_ranges(text, expected):
    assert train.parse_step_range(text, 300) == expected


@pytest.mark.parametrize("text", ["11", "", "1-5", "a:5", "-1:5", "1:5:9", "1:", " 1:5", "0:5", "6:5"])
def test_invalid_profile_ranges_are_errors(text):
    with pytest.raises(ConfigError, match=f"FIRST:LAST.*{re.escape(repr(text))}"):
        train.parse_step_range(text, 300)


def test_profile_range_beyond_the_run_is_an_error():
    with pytest.raises(ConfigError, match="train.steps=300.*'5:301'"):
        train.parse_step_range("5:301", 300)
