"""kseg.prepare: each data set from its archives and trees, against what was put in; faults, and killed preparations."""

import dataclasses
import functools
import io
import json
import shutil
import signal
import zipfile

import numpy as np
import original_archives as original
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from running import start
from shared_files import ADE20K, CAMVID, VOC2012, needs_ade20k, needs_camvid, needs_voc2012
from small_sets import config, folder, write

from kseg import data as batches
from kseg import datasets, inspections, prepare
from kseg.builders import prepared
from kseg.config import Data
from kseg.errors import DataError

LABEL = np.array([[0, 1, 2, 150]] * 3, np.uint8)


def run(name, source, out, splits=(), subset=True):
    """Prepare a data set and return its config and the lines that were reported."""
    data, lines = Data(name=name, directory=str(out)), []
    prepare.prepare(data, source, splits, subset, lines.append)
    return data, lines


def contents(data, split):
    """Return {picture's file name: (image, raw label)} of a prepared split."""
    record, found = datasets.find(data), datasets.open_split(data, split)
    return {name.rsplit("/", 1)[1]: batches.examine(record, found, index) for index, name in enumerate(found.names)}


def files_of(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def jpeg(stored):
    return np.array(Image.open(io.BytesIO(stored)))


@needs_ade20k
@pytest.mark.parametrize("form", ["tree", "zip"])
def test_ade20k_samples(tmp_path, form):
    source = ADE20K
    if form == "zip":
        source = tmp_path / "archives"
        source.mkdir()
        shutil.make_archive(str(source / "ADEChallengeData2016"), "zip", ADE20K, "ADEChallengeData2016")
    data, lines = run("ade20k", source, tmp_path / "out")
    root = ADE20K / "ADEChallengeData2016"
    for split, part in (("train", "training"), ("val", "validation")):
        found = contents(data, split)
        assert sorted(found) == sorted(path.name for path in (root / "images" / part).iterdir()) and len(found) == 3
        for name, (image, label) in found.items():
            truth = np.array(Image.open(root / "images" / part / name).convert("RGB")).astype(int)
            assert np.abs(image - truth).max() <= 1
            assert np.array_equal(label, Image.open(root / "annotations" / part / name.replace(".jpg", ".png")))
    assert "3/3 pairs of val" in " ".join(lines) and lines[-1].endswith(f"it needs {source} no more")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@needs_voc2012
def test_voc2012_samples(tmp_path):
    data, _ = run("voc2012", VOC2012, tmp_path / "out")
    root = VOC2012 / "VOCdevkit/VOC2012"
    found = {split: contents(data, split) for split in ("train", "trainaug", "val")}
    assert {split: len(pairs) for split, pairs in found.items()} == {"train": 120, "trainaug": 250, "val": 130}
    for split, pairs in found.items():
        for name, (_, label) in pairs.items():
            # The other file of the same label, without a palette.
            assert np.array_equal(label, Image.open(root / "SegmentationClassAug" / name.replace(".jpg", ".png")))
    # What is stored is grey, so that no reader can take colours for ids.
    place = prepared.find(tmp_path / "out", "voc2012")
    stored = prepared.open_split(place, "voc2012", "val")[0][7]["segmentation_mask"]
    assert Image.open(io.BytesIO(stored)).mode == "L"
    # And the library's own reading agrees.
    example = tfds.builder_from_directory(place).as_data_source(split="val")[7]
    assert np.array_equal(example["segmentation_mask"][..., 0], found["val"][example["name"].decode()][1])


VOC_LISTS = {"train": ["2007_000001", "2007_000002"], "val": ["2007_000003"], "trainval": []}
VOC_LABELS = {f"2007_00000{number}": np.full((8, 12), 4 * number, np.uint8) for number in (1, 2, 3)}
# One in train, one in val, and one that has an SBD mask only.
SBD_MASKS = {name: np.arange(96, dtype=np.uint8).reshape(8, 12) // 5 for name in
             ("2007_000002", "2007_000003", "2009_000001")}


def write_sbd(source, form):
    pngs = {f"SegmentationClassAug/{name}.png": original.encoded(mask) for name, mask in SBD_MASKS.items()}
    if form == "benchmark.tgz":
        original.write_tar(source / form, original.sbd(SBD_MASKS), "w:gz")
    elif form == "SegmentationClassAug.zip":
        original.write_zip(source / form, pngs)
    else:
        original.write_tree(source, original.sbd(SBD_MASKS) if form == "benchmark_RELEASE" else pngs)


@pytest.mark.parametrize("form", ["benchmark.tgz", "SegmentationClassAug.zip", "benchmark_RELEASE",
                                  "SegmentationClassAug"])
def test_voc2012_archives(tmp_path, form):
    original.write_tar(tmp_path / "VOCtrainval_11-May-2012.tar", original.voc2012(VOC_LISTS, VOC_LABELS))
    write_sbd(tmp_path, form)
    data, _ = run("voc2012", tmp_path, tmp_path / "out")
    assert {name: int(label[0, 0]) for name, (_, label) in contents(data, "train").items()} == {
        "2007_000001.jpg": 4, "2007_000002.jpg": 8}
    assert list(contents(data, "val")) == ["2007_000003.jpg"]
    augmented = contents(data, "trainaug")
    assert list(augmented) == ["2007_000001.jpg", "2007_000002.jpg", "2009_000001.jpg"]
    # An official label goes before SBD's.
    assert (augmented["2007_000002.jpg"][1] == 8).all()
    assert np.array_equal(augmented["2009_000001.jpg"][1], SBD_MASKS["2009_000001"])


def test_voc2012_without_masks_and_with_damaged_ones(tmp_path):
    original.write_tree(tmp_path, original.voc2012(VOC_LISTS, VOC_LABELS))
    with pytest.raises(DataError, match="no masks for trainaug.*prepare --split train val"):
        run("voc2012", tmp_path, tmp_path / "out")
    data, _ = run("voc2012", tmp_path, tmp_path / "out", ["val", "train"])
    assert datasets.split_names(data) == ("val", "train")
    with pytest.raises(DataError, match="unknown split of the prepared set .*'trainaug'.*train, val"):
        datasets.open_split(data, "trainaug")
    with pytest.raises(DataError, match="holds val, train only; delete it to prepare other splits"):
        run("voc2012", tmp_path, tmp_path / "out", ["trainaug"])
    whole = original.sbd(SBD_MASKS)
    for members, message in (
            ({name: content for name, content in whole.items() if "cls" not in name}, "holds no benchmark_RELEASE/"),
            (whole | {"benchmark_RELEASE/dataset/cls/2009_000001.mat": b"MATLAB 5.0 MAT-file"},
             "benchmark.tgz: benchmark_RELEASE/dataset/cls/2009_000001.mat: no mask GTcls.Segmentation"),
            (whole | {"benchmark_RELEASE/dataset/cls/2009_000001.mat": original.matlab(np.ones((8, 12), np.int32))},
             r"GTcls.Segmentation is int32 \(8, 12\), not uint8")):
        original.write_tar(tmp_path / "benchmark.tgz", members, "w:gz")
        with pytest.raises(DataError, match=message):
            run("voc2012", tmp_path, tmp_path / "other")
    (tmp_path / "benchmark.tgz").write_bytes((tmp_path / "benchmark.tgz").read_bytes()[:900])
    with pytest.raises(DataError, match="benchmark.tgz is damaged or not whole"):
        run("voc2012", tmp_path, tmp_path / "other")


def street(split):
    """Return CamVid's pictures of a split at Cityscapes' size, their classes as labelIds."""
    ids = np.array([23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 33, 0], np.uint8)
    pairs = []
    for path in sorted((CAMVID / split / "images").iterdir())[:len(original.CITYSCAPES[split])]:
        label = ids[np.minimum(np.array(Image.open(CAMVID / split / "labels" / f"{path.stem}.png")), 11)]
        pairs.append((np.array(Image.open(path).convert("RGB").resize((2048, 1024))),
                      np.array(Image.fromarray(label).resize((2048, 1024), Image.Resampling.NEAREST))))
    return pairs


@needs_camvid
@pytest.mark.parametrize("form", ["zips", "tree"])
def test_cityscapes_by_the_official_builder(tmp_path, form):
    # Whole pictures once; the tree differs in where files lie only.
    pairs = {split: street(split) for split in original.CITYSCAPES}
    if form == "tree":
        pairs = {split: [(image[::16, ::16], label[::16, ::16]) for image, label in some]
                 for split, some in pairs.items()}
    images, labels = original.cityscapes(pairs)
    if form == "zips":
        original.write_zip(tmp_path / "leftImg8bit_trainvaltest.zip", images)
        original.write_zip(tmp_path / "gtFine_trainvaltest.zip", labels)
    else:
        original.write_tree(tmp_path, images | labels)
    data, _ = run("cityscapes", tmp_path, tmp_path / "out")
    for split, some in pairs.items():
        found = contents(data, split)
        assert len(found) == len(some)
        for number, (image, label) in enumerate(some):
            image_found, label_found = found[f"{original.CITYSCAPES[split][number]}_{number:06d}_000019"]
            assert np.array_equal(image_found, image) and np.array_equal(label_found, label)
    builder = tfds.builder("cityscapes/semantic_segmentation", data_dir=tmp_path / "out")
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 3, "validation": 1, "test": 2}
    assert not list(tmp_path.rglob("extracted"))


@needs_camvid
def test_camvid_whole(tmp_path):
    data, _ = run("camvid", CAMVID, tmp_path, subset=False)
    direct, found = (datasets.open_split(one, "test") for one in (Data(name="camvid", directory=str(CAMVID)), data))
    assert len(found.names) == 233
    for index in (0, 111, 232):
        for one, other in zip(direct.read(tf.constant(index, tf.int64)), found.read(tf.constant(index, tf.int64))):
            assert one.numpy() == other.numpy()


def test_folder_keeps_classes_and_trains(tmp_path):
    labels = [np.full((8, 8), 255 * (number % 2), np.uint8) for number in range(4)]
    source = folder(tmp_path / "source", {"train": labels, "val": labels[:2]}, "0 background\n255 object\n7 ignore\n")
    data, _ = run("folder", tmp_path / "source", tmp_path / "out", subset=False)
    (tmp_path / "source").rename(tmp_path / "gone")
    source = Data(name="folder", directory=str(tmp_path / "gone"))
    assert datasets.find(data) == datasets.find(source) and datasets.split_names(data) == ("train", "val")
    for one, other in zip(batches.train_batches(config(data)).take(3), batches.train_batches(config(source)).take(3)):
        assert all(np.array_equal(one[key], other[key]) for key in ("image", "label", "index"))
    assert inspections.check(data, report=lambda line: None)["val"]["images"] == 2


def grey16():
    return original.encoded(Image.new("I;16", (4, 3)))


ADE = "ADEChallengeData2016/{}/training/ADE_train_00000002.{}"
LABEL_PATH, IMAGE_PATH = ADE.format("annotations", "png"), ADE.format("images", "jpg")
FAULTS = {
    "stray value": (LABEL_PATH, original.encoded(LABEL + np.uint8(1)),
                    r"00000002.png: value 151 \(3 pixels\) is no label value of ade20k"),
    "16-bit label": (LABEL_PATH, grey16(), "00000002.png: 16-bit grey PNG"),
    "label of another size": (LABEL_PATH, original.encoded(LABEL[:, :3]), r"00000002.png is 3x3, its image .* 4x3"),
    "label cut off": (LABEL_PATH, original.encoded(LABEL)[:50], "00000002.png: damaged PNG"),
    "image cut off": (IMAGE_PATH, original.encoded(original.picture(1), "JPEG")[:300], "00000002.jpg: not a readable"),
    "no label": (LABEL_PATH, None, "image without label: .*ADE_train_00000002.jpg"),
    "no image": (IMAGE_PATH, None, "label without image: .*ADE_train_00000002.png"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", ["tree", "zip"])
def test_faults_are_named_and_nothing_is_left(tmp_path, fault, form):
    path, content, message = FAULTS[fault]
    members = original.ade20k({"train": [LABEL] * 3, "val": [LABEL]}) | {path: content}
    members = {name: stored for name, stored in members.items() if stored is not None}
    source = tmp_path / "source"
    if form == "tree":
        original.write_tree(source, members)
    else:
        source.mkdir()
        original.write_zip(source / "ADEChallengeData2016.zip", members)
    with pytest.raises(DataError, match=message) as error:
        run("ade20k", source, tmp_path / "out")
    assert f"{source}/ADEChallengeData2016" in str(error.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="no directory .*out"):
        datasets.open_split(Data(name="ade20k", directory=str(tmp_path / "out")), "train")


def test_archives_missing_cut_off_or_wrong(tmp_path):
    attempt = functools.partial(run, "ade20k", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match=f"no ADEChallengeData2016.zip in {tmp_path}, nor an extracted tree"):
        attempt()
    path = original.write_zip(tmp_path / "ADEChallengeData2016.zip", original.ade20k({"train": [LABEL] * 3}))
    with pytest.raises(DataError, match="no images/validation/NAME.jpg in .*ADEChallengeData2016.zip"):
        attempt()
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(DataError, match="ADEChallengeData2016.zip is damaged or not whole: File is not a zip file"):
        attempt()
    original.write_zip(path, {"ADE20K_2021_17_01/index.txt": b""})
    with pytest.raises(DataError, match="no images/training/NAME.jpg"):
        attempt()
    # One byte of a picture, whose checksum tells.
    members = original.ade20k({"train": [LABEL] * 3, "val": [LABEL]})
    original.write_zip(path, members)
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo(IMAGE_PATH).header_offset
    stored = bytearray(path.read_bytes())
    stored[offset + 200] ^= 255
    path.write_bytes(stored)
    with pytest.raises(DataError, match=f"ADEChallengeData2016.zip: {IMAGE_PATH} cannot be read: "):
        attempt()
    assert not (tmp_path / "out").exists()


def test_tar_missing_cut_off_or_wrong(tmp_path):
    with pytest.raises(DataError, match="no VOCtrainval_11-May-2012.tar in"):
        run("voc2012", tmp_path, tmp_path / "out")
    path = original.write_tar(tmp_path / "VOCtrainval_11-May-2012.tar", original.voc2012(VOC_LISTS, VOC_LABELS))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="11-May-2012.tar is damaged or not whole|in .*11-May-2012.tar"):
        run("voc2012", tmp_path, tmp_path / "out")
    path.write_text("<html>not found</html>")
    with pytest.raises(DataError, match="11-May-2012.tar is damaged or not whole"):
        run("voc2012", tmp_path, tmp_path / "out")


def test_cityscapes_archives_missing_or_wrong(tmp_path):
    label = np.full((4, 8), 7, np.uint8)
    images, labels = original.cityscapes({split: [(original.picture(1, 4, 8), label)] for split in ("train", "val")})
    attempt = functools.partial(run, "cityscapes", tmp_path, tmp_path / "out", ["train", "val"])
    original.write_zip(tmp_path / "leftImg8bit_trainvaltest.zip", images)
    with pytest.raises(DataError, match="no gtFine_trainvaltest.zip in"):
        attempt()
    coarse = {name.replace("gtFine", "gtCoarse"): content for name, content in labels.items()}
    original.write_zip(tmp_path / "gtFine_trainvaltest.zip", coarse)
    with pytest.raises(DataError, match="no gtFine/train/CITY/FRAME_gtFine_labelIds.png in .*gtFine_trainvaltest.zip"):
        attempt()
    stray = next(name for name in labels if name.endswith("labelIds.png"))
    original.write_zip(tmp_path / "gtFine_trainvaltest.zip", labels | {stray: original.encoded(label + np.uint8(27))})
    with pytest.raises(DataError, match="labelIds.png: value 34 .32 pixels. is no label value of cityscapes"):
        attempt()
    assert not (tmp_path / "out").exists()


def test_counts_names_and_places(tmp_path):
    source = original.write_tree(tmp_path / "source", original.ade20k({"train": [LABEL] * 3, "val": [LABEL]}))
    with pytest.raises(DataError, match="ade20k train: 3 of 20210 pairs; with --subset"):
        run("ade20k", source, tmp_path / "out", subset=False)
    with pytest.raises(DataError, match="unknown data set to prepare 'ade'. Did you mean ade20k"):
        run("ade", source, tmp_path / "out")
    with pytest.raises(DataError, match="unknown split of ade20k 'vla'. Did you mean val"):
        run("ade20k", source, tmp_path / "out", ["vla"])
    with pytest.raises(DataError, match="no directory .*nowhere; --source names"):
        run("ade20k", tmp_path / "nowhere", tmp_path / "out")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(DataError, match="cannot prepare ade20k in .*: Not a directory"):
        run("ade20k", source, blocked / "out")


def test_more_than_published_is_another_version(tmp_path, monkeypatch):
    record = datasets.DATASETS["ade20k"]
    monkeypatch.setitem(datasets.DATASETS, "ade20k", dataclasses.replace(record, published={"train": 2}))
    source = original.write_tree(tmp_path / "source", original.ade20k({"train": [LABEL] * 3, "val": [LABEL]}))
    with pytest.raises(DataError, match="ade20k train: 3 of 2 pairs$"):
        run("ade20k", source, tmp_path / "out")


def test_a_disk_too_full_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    source = original.write_tree(tmp_path / "source", original.ade20k({"train": [LABEL] * 3, "val": [LABEL]}))
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="needs .* GB on the disk of .*, where 1e-07 GB are free"):
        run("ade20k", source, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*array_record*"))


def interrupted(tmp_path, monkeypatch, source):
    """Prepare until the first pair of val, and return the names of all files that were examined on the second try."""
    examine, seen = batches.examine, []

    def fail(record, split, index):
        if "validation" in split.names[index]:
            raise KeyboardInterrupt
        return examine(record, split, index)

    def note(record, split, index):
        seen.append(split.names[index].rsplit("/", 1)[1])
        return examine(record, split, index)

    monkeypatch.setattr(batches, "examine", fail)
    with pytest.raises(KeyboardInterrupt):
        run("ade20k", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(batches, "examine", note)
    return seen


def test_finished_splits_are_kept(tmp_path, monkeypatch):
    source = original.write_tree(tmp_path / "source", original.ade20k({"train": [LABEL] * 3, "val": [LABEL]}))
    seen = interrupted(tmp_path, monkeypatch, source)
    data, lines = run("ade20k", source, tmp_path / "out")
    assert seen == ["ADE_val_00000001.jpg"] and "train was finished before and is kept" in lines
    assert len(contents(data, "train")) == 3 and len(contents(data, "val")) == 1
    first = files_of(tmp_path / "out")
    _, lines = run("ade20k", source, tmp_path / "out")
    assert len(lines) == 1 and "is there already, with train, val" in lines[0] and files_of(tmp_path / "out") == first


def test_splits_of_a_changed_source_are_not_kept(tmp_path, monkeypatch):
    source = original.write_tree(tmp_path / "source", original.ade20k({"train": [LABEL] * 3, "val": [LABEL]}))
    seen = interrupted(tmp_path, monkeypatch, source)
    original.write_tree(tmp_path / "source", original.ade20k({"train": [LABEL] * 4, "val": [LABEL]}))
    data, _ = run("ade20k", source, tmp_path / "out")
    assert len(seen) == 5 and len(contents(data, "train")) == 4


def test_a_killed_preparation_leaves_nothing_that_looks_finished(tmp_path):
    labels = [np.zeros((64, 64), np.uint8)]
    source = original.write_tree(tmp_path / "source", original.ade20k({"train": labels, "val": labels * 4000}))
    process = start("kseg.data", "prepare", "ade20k", "--source", source, "--directory", tmp_path / "out", "--subset")
    for line in process.stdout:
        # Val has begun, and takes seconds.
        if "1/1 pairs of train" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    for path in (source / "ADEChallengeData2016").glob("*/validation/*"):
        if not path.stem.endswith("0001"):
            path.unlink()
    data, lines = run("ade20k", source, tmp_path / "out")
    assert len(contents(data, "val")) == 1 and "train was finished before and is kept" in lines
    assert files_of(tmp_path / "out") == [f"ade20k/1.0.0/{name}" for name in (
        "ade20k-train.array_record-00000-of-00001", "ade20k-val.array_record-00000-of-00001", "dataset_info.json",
        "features.json", "names-train.txt", "names-val.txt")]
    assert not list(tmp_path.glob(".*"))


def test_two_at_once(tmp_path):
    source = original.write_tree(tmp_path / "source", original.ade20k({"train": [LABEL], "val": [LABEL]}))
    hidden = tmp_path / ".ade20k-preparing"
    hidden.mkdir()
    with (hidden / "lock").open("w") as lock:
        prepare.fcntl.flock(lock, prepare.fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is preparing ade20k"):
            run("ade20k", source, tmp_path / "out")


@pytest.mark.parametrize("damage", ["records", "dataset_info.json", "features.json", "names-val.txt", "a name"])
def test_a_damaged_set_says_what_to_delete(tmp_path, damage):
    labels = [np.zeros((4, 4), np.uint8)] * 2
    folder(tmp_path / "source", {"val": labels})
    data, _ = run("folder", tmp_path / "source", tmp_path / "out")
    place = prepared.find(tmp_path / "out", "folder")
    if damage == "a name":
        (place / "names-val.txt").write_text("e00.png\n")
    elif damage == "records":
        next(place.glob("*array_record*")).unlink()
    else:
        (place / damage).unlink()
    with pytest.raises(DataError, match=f"{place} is damaged; delete that directory and prepare it again"):
        datasets.open_split(data, "val")


def test_a_prepared_file_is_named_in_faults(tmp_path):
    write(tmp_path / "source/train/images/e00.png", original.picture(1))
    write(tmp_path / "source/train/labels/e00.png", np.ones((8, 12), np.uint8))
    (tmp_path / "source/classes.txt").write_text("sky\nground\n")
    data, _ = run("folder", tmp_path / "source", tmp_path / "out")
    place = prepared.find(tmp_path / "out", "folder")
    (place / "classes.txt").write_text("0 sky\n7 ground\n")
    with pytest.raises(DataError, match="label of .*out/folder/1.0.0/train/e00.png: value 1 .* is no label value"):
        contents(data, "train")
    assert json.loads((place / "dataset_info.json").read_text())["name"] == "folder"
