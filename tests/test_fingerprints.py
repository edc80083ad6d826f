"""Fingerprints: alike for copies, different for whatever makes training different."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_sets

from kseg import fingerprints
from kseg.errors import DataError

LABELS = {"train": [np.zeros((8, 8)), np.ones((8, 8)), np.eye(8)], "val": [np.eye(8)]}


@pytest.fixture
def data(tmp_path):
    return small_sets.folder(tmp_path / "set", LABELS)


def test_a_copy_elsewhere_is_alike(data, tmp_path):
    shutil.copytree(data.directory, tmp_path / "elsewhere")
    copy = replace(data, directory=f"{tmp_path}/elsewhere/")
    assert fingerprints.data(data, "train") == fingerprints.data(copy, "train")
    assert fingerprints.data(data, "train").startswith("3 examples ")
    assert fingerprints.data(data, "train") != fingerprints.data(data, "val")


@pytest.mark.parametrize("change", [
    lambda root: (root / "train/images/e00.png").write_bytes(b"of another size"),
    lambda root: (root / "train/labels/e00.png").write_bytes(b"of another size"),
    lambda root: [(root / f"train/{part}/e00.png").rename(root / f"train/{part}/f00.png")
                  for part in ("images", "labels")],
    lambda root: [(root / f"train/{part}/e00.png").unlink() for part in ("images", "labels")],
    lambda root: (root / "classes.txt").write_text("sky\nhouse\nground\n"),
    lambda root: (root / "classes.txt").write_text("sky\n2 ground\n1 house\n"),
], ids=["image", "label", "name", "number", "classes", "label values"])
def test_what_trains_otherwise_is_told_apart(data, change):
    before = fingerprints.data(data, "train")
    change(Path(data.directory))
    assert fingerprints.data(data, "train") != before


def test_records_and_pixels_are_told_apart_by_what_they_hold(data, tmp_path):
    from prepared_sets import run

    found = {}
    for name, fast in (("records", False), ("pixels", True)):
        found[name], _ = run("folder", Path(data.directory), tmp_path / name, fast=fast, subset=False)
        shutil.copytree(tmp_path / name, tmp_path / f"copy of {name}")
        copy = replace(found[name], directory=str(tmp_path / f"copy of {name}"))
        assert fingerprints.data(found[name], "train") == fingerprints.data(copy, "train")
    assert fingerprints.data(found["records"], "train") != fingerprints.data(found["pixels"], "train")
    (shard,) = (tmp_path / "records").rglob("*-train.tfrecord-*")
    before = fingerprints.data(found["records"], "train")
    shard.write_bytes(shard.read_bytes() + b"more")
    assert fingerprints.data(found["records"], "train") != before


def test_the_synthetic_set_has_one(shapes_directory):
    data = small_sets.Data(name="shapes", directory=str(shapes_directory))
    assert fingerprints.data(data, "train").startswith("64 examples ")


def test_missing_data_is_the_error_of_opening_it(data):
    with pytest.raises(DataError, match="test"):
        fingerprints.data(data, "test")


def test_facts_hold_every_value_but_a_hosts_own(data):
    config = small_sets.config(data)
    facts = fingerprints.facts(config)
    assert facts["train.global_batch"] == "2" and facts["augment.crop"] == "(8, 8)" and facts["devices"] == "1 x CPU"
    other = replace(config, data=replace(data, directory=data.directory + "/", memory=2.0))
    assert fingerprints.facts(other) == facts
    changed = fingerprints.facts(replace(config, train=replace(config.train, seed=1)))
    assert {key for key in facts if facts[key] != changed[key]} == {"train.seed"}


def test_the_code_counts_by_its_contents(tmp_path, monkeypatch):
    package = tmp_path / "kseg"
    shutil.copytree(Path(fingerprints.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))

    def digest():
        fingerprints.code.cache_clear()
        return fingerprints.code()

    here = digest()
    monkeypatch.setattr(fingerprints, "__file__", str(package / "fingerprints.py"))
    assert digest() == here
    with (package / "losses.py").open("a") as file:
        file.write("\n")
    assert digest() != here
    fingerprints.code.cache_clear()
