"""Tests of the base configs for images of one's own."""

from pathlib import Path

import pytest

from kseg import config as configs
from kseg.config import files
from kseg.datasets import registry
from kseg.errors import DataError
from kseg.models import HEADS


@pytest.mark.parametrize("head", HEADS)
def test_every_head_has_a_config_that_needs_only_a_directory(head, tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nground\n")
    config = configs.load(head, [f"data.directory={tmp_path}"])
    assert config.model.head == head and not files.read_config_file(head).variants
    assert registry.find_dataset(config.data).classes == ("sky", "ground")


@pytest.mark.parametrize(
    "directory, workdir",
    [
        ("data/my flowers/", "runs/encnet-my-flowers"),
        ("gs://bucket/roads[1]", "runs/encnet-roads-1-"),
        ("", "runs/encnet"),
    ],
)
def test_the_default_workdir_names_the_data(directory, workdir):
    assert configs.default_workdir(configs.load("encnet", [f"data.directory={directory}"])) == Path(workdir)


def test_the_present_directory_is_named_by_its_place(tmp_path, monkeypatch):
    (tmp_path / "leaves").mkdir()
    monkeypatch.chdir(tmp_path / "leaves")
    assert configs.dataset_title("folder", ".") == "leaves" and configs.dataset_title("camvid", ".") == "camvid"


def test_a_missing_directory_is_asked_for_by_its_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="data.directory is not set: set data.directory=DIR"):
        registry.find_dataset(configs.load("encnet").data)
