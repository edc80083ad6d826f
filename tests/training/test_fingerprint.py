"""Fingerprints: equal for copies, different for everything that changes training."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kseg
from kseg.config import sections
from kseg.datasets import registry
from kseg.training import fingerprint
from tests.helpers import small_sets
from tests.helpers.splits import train_split, val_split

LABELS = {"train": [np.zeros((8, 8)), np.ones((8, 8)), np.eye(8)], "val": [np.eye(8)]}


@pytest.fixture
def data(tmp_path):
    return small_sets.folder(tmp_path / "set", LABELS)


def digest(data, split="train"):
    return fingerprint.data_digest(registry.open_split(data, split))


def test_copy_in_another_directory_has_the_same_digest(data, tmp_path):
    shutil.copytree(data.directory, tmp_path / "elsewhere")
    copy = replace(data, directory=f"{tmp_path}/elsewhere/")
    assert digest(data) == digest(copy)
    assert digest(data).startswith("3 examples ")
    assert digest(data) != digest(data, "val")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "train/images/e00.png").write_bytes(b"of another size"),
        lambda root: (root / "train/labels/e00.png").write_bytes(b"of another size"),
        lambda root: [
            (root / f"train/{part}/e00.png").rename(root / f"train/{part}/f00.png") for part in ("images", "labels")
        ],
        lambda root: [(root / f"train/{part}/e00.png").unlink() for part in ("images", "labels")],
        lambda root: (root / "classes.txt").write_text("sky\nhouse\nground\n"),
        lambda root: (root / "classes.txt").write_text("sky\n2 ground\n1 house\n"),
    ],
    ids=["image", "label", "name", "number", "classes", "label values"],
)
def test_changed_data_has_another_digest(data, change):
    before = digest(data)
    change(Path(data.directory))
    assert digest(data) != before


def test_digests_of_records_and_pixels(data, tmp_path):
    from tests.helpers.prepared_sets import run

    prepared = {}
    for name, fast in (("records", False), ("pixels", True)):
        prepared[name], _ = run("folder", Path(data.directory), tmp_path / name, fast=fast, subset=False)
        shutil.copytree(tmp_path / name, tmp_path / f"copy of {name}")
        copy = replace(prepared[name], directory=str(tmp_path / f"copy of {name}"))
        assert digest(prepared[name]) == digest(copy)
    assert digest(prepared["records"]) != digest(prepared["pixels"])
    (shard,) = (tmp_path / "records").rglob("*-train.tfrecord-*")
    before = digest(prepared["records"])
    shard.write_bytes(shard.read_bytes() + b"more")
    assert digest(prepared["records"]) != before


def test_digest_of_the_synthetic_set(shapes_directory):
    data = sections.Data(name="shapes", directory=str(shapes_directory))
    assert digest(data).startswith("64 examples ")


def test_facts_include_all_values_but_host_specific_ones(data):
    config = small_sets.config(data)
    splits = train_split(config), val_split(config)
    facts = fingerprint.run_facts(config, splits)
    assert facts["train.global_batch"] == "2" and facts["augment.crop"] == "(8, 8)" and facts["devices"] == "1 x CPU"
    other = replace(config, data=replace(data, directory=data.directory + "/", memory=2.0))
    assert fingerprint.run_facts(other, splits) == facts
    changed = fingerprint.run_facts(replace(config, train=replace(config.train, seed=1)), splits)
    assert {key for key in facts if facts[key] != changed[key]} == {"train.seed"}


def test_code_digest_depends_on_contents_only(tmp_path, monkeypatch):
    package = tmp_path / "kseg"
    shutil.copytree(Path(kseg.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))

    def code_digest():
        fingerprint.code_digest.cache_clear()
        return fingerprint.code_digest()

    original = code_digest()
    monkeypatch.setattr(kseg, "__file__", str(package / "__init__.py"))
    assert code_digest() == original
    with (package / "training" / "losses.py").open("a") as file:
        file.write("\n")
    assert code_digest() != original
    fingerprint.code_digest.cache_clear()
