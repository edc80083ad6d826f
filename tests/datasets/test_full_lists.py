"""Deriving VOC's trainaug from the complete lists gives the published splits; images and masks are empty files."""

import re

import pytest

from kseg.datasets import registry, sources
from tests.helpers import original_archives
from tests.helpers.shared_files import VOC2012, needs_voc2012

LISTS = VOC2012 / "full_lists"
ROOT = "VOCdevkit/VOC2012"
# Possible locations of the additional masks.
FORMS = ("SegmentationClassAug", "SegmentationClassAug.zip", "benchmark_RELEASE/dataset/cls")


def names(split):
    return (LISTS / f"{split}.txt").read_text().split()


def archive(lists):
    """Return the files of VOC's archive, including images that belong to no segmentation split."""
    official = {*names("train"), *names("val")}
    others = {f"2012_{number:06d}" for number in range(900_000, 900_100)}
    members = {
        f"{ROOT}/ImageSets/Segmentation/{split}.txt": "\n".join([*listed, ""]).encode()
        for split, listed in lists.items()
    }
    members |= {f"{ROOT}/JPEGImages/{name}.jpg": b"" for name in {*names("trainaug"), *official, *others}}
    return members | {f"{ROOT}/SegmentationClass/{name}.png": b"" for name in official}


def masks(form):
    """Return the files of the masks of trainaug and val in SegmentationClassAug or SBD."""
    masked = sorted({*names("trainaug"), *names("val")})
    if form.endswith("cls"):
        # SBD has masks of some official names only; every fourth name represents them.
        official = sorted({*names("train"), *names("val")})
        masked = sorted({*masked} - {*official} | {*official[::4]})
        return {f"{form}/{name}.mat": b"" for name in masked}
    return {f"SegmentationClassAug/{name}.png": b"" for name in masked}


@needs_voc2012
def test_lists_have_the_published_sizes():
    sizes = {split: len(set(names(split))) for split in ("train", "trainaug", "val")}
    assert sizes == {"train": 1464, "trainaug": 10582, "val": 1449} == registry.DATASETS["voc2012"].published
    assert set(names("train")) < set(names("trainaug")) and not set(names("val")) & set(names("trainaug"))
    assert all(re.fullmatch(r"20(07|08|09|10|11)_\d{6}", name) for name in names("trainaug"))


@needs_voc2012
@pytest.mark.parametrize("form", FORMS)
def test_trainaug_is_derived_from_all_lists(tmp_path, form):
    original_archives.write_tar(
        tmp_path / "VOCtrainval_11-May-2012.tar", archive({split: names(split) for split in ("train", "val")})
    )
    if form.endswith(".zip"):
        original_archives.write_zip(tmp_path / form, masks(form))
    else:
        original_archives.write_tree(tmp_path, masks(form))
    pairs = sources.open_voc2012(tmp_path, ("train", "trainaug", "val"), lambda line: None)
    assert {split: len(found) for split, found in pairs.items()} == registry.DATASETS["voc2012"].published
    for split, found in pairs.items():
        assert [pair.name for pair in found] == [f"{name}.jpg" for name in sorted(names(split))]
    # An official label takes precedence.
    official = set(names("train"))
    for pair in pairs["trainaug"]:
        assert ("/SegmentationClass/" in pair.label.name) == (pair.name[:-4] in official)


@needs_voc2012
def test_list_of_trainaug_takes_precedence_over_masks(tmp_path):
    chosen = names("trainaug")[:5000]
    lists = {"train": names("train"), "val": names("val"), "trainaug": chosen}
    original_archives.write_tar(tmp_path / "VOCtrainval_11-May-2012.tar", archive(lists))
    original_archives.write_zip(tmp_path / "SegmentationClassAug.zip", masks("SegmentationClassAug.zip"))
    pairs = sources.open_voc2012(tmp_path, ("trainaug",), lambda line: None)
    assert [pair.name[:-4] for pair in pairs["trainaug"]] == sorted(chosen)
