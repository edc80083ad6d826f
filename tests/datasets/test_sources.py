"""Each benchmark dataset prepared from its archives and trees equals their contents."""

import functools
import io
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from kseg.config.sections import Data
from kseg.datasets import prepared, registry
from kseg.errors import DataError
from tests.helpers import original_archives
from tests.helpers.prepared_sets import contents, run
from tests.helpers.shared_files import ADE20K, CAMVID, VOC2012, needs_ade20k, needs_camvid, needs_voc2012


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
    assert "3/3 pairs of val" in " ".join(lines) and lines[-1].startswith(f"prepared {tmp_path}")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@needs_voc2012
def test_voc2012_samples(tmp_path):
    data, _ = run("voc2012", VOC2012, tmp_path / "out")
    root = VOC2012 / "VOCdevkit/VOC2012"
    counts = {split: len(registry.open_split(data, split).names) for split in ("train", "trainaug", "val")}
    assert counts == {"train": 120, "trainaug": 250, "val": 130}
    found = {split: contents(data, split, every=6) for split in counts}
    for pairs in found.values():
        for name, (_, label) in pairs.items():
            # SegmentationClassAug stores the same label without a palette.
            assert np.array_equal(label, Image.open(root / "SegmentationClassAug" / name.replace(".jpg", ".png")))
    # Stored labels are gray, so that no reader can mistake colors for ids.
    location = prepared.find_prepared(tmp_path / "out", "voc2012")
    _, stored = registry.open_split(data, "val").read(tf.constant(6, tf.int64))
    assert Image.open(io.BytesIO(stored.numpy())).mode == "L"
    # tensorflow-datasets reads the same label.
    [example] = tfds.builder_from_directory(location).as_dataset(split="val[6:7]")
    name = example["name"].numpy().decode()
    assert np.array_equal(example["segmentation_mask"][..., 0], found["val"][name][1])


VOC_LISTS = {"train": ["2007_000001", "2007_000002"], "val": ["2007_000003"], "trainval": []}
VOC_LABELS = {f"2007_00000{number}": np.full((8, 12), 4 * number, np.uint8) for number in (1, 2, 3)}
# One name of train, one of val, and one with an SBD mask only.
SBD_MASKS = {
    name: np.arange(96, dtype=np.uint8).reshape(8, 12) // 5 for name in ("2007_000002", "2007_000003", "2009_000001")
}


def write_sbd(source, form):
    pngs = {f"SegmentationClassAug/{name}.png": original_archives.encoded(mask) for name, mask in SBD_MASKS.items()}
    if form == "benchmark.tgz":
        original_archives.write_tar(source / form, original_archives.sbd(SBD_MASKS), "w:gz")
    elif form == "SegmentationClassAug.zip":
        original_archives.write_zip(source / form, pngs)
    else:
        original_archives.write_tree(source, original_archives.sbd(SBD_MASKS) if form == "benchmark_RELEASE" else pngs)


@pytest.mark.parametrize(
    "form", ["benchmark.tgz", "SegmentationClassAug.zip", "benchmark_RELEASE", "SegmentationClassAug"]
)
def test_voc2012_archives(tmp_path, form):
    original_archives.write_tar(
        tmp_path / "VOCtrainval_11-May-2012.tar", original_archives.voc2012(VOC_LISTS, VOC_LABELS)
    )
    write_sbd(tmp_path, form)
    data, _ = run("voc2012", tmp_path, tmp_path / "out")
    assert {name: int(label[0, 0]) for name, (_, label) in contents(data, "train").items()} == {
        "2007_000001.jpg": 4,
        "2007_000002.jpg": 8,
    }
    assert list(contents(data, "val")) == ["2007_000003.jpg"]
    augmented = contents(data, "trainaug")
    assert list(augmented) == ["2007_000001.jpg", "2007_000002.jpg", "2009_000001.jpg"]
    # An official label takes precedence over SBD's.
    assert (augmented["2007_000002.jpg"][1] == 8).all()
    assert np.array_equal(augmented["2009_000001.jpg"][1], SBD_MASKS["2009_000001"])


def test_voc2012_with_missing_and_damaged_masks(tmp_path):
    original_archives.write_tree(tmp_path, original_archives.voc2012(VOC_LISTS, VOC_LABELS))
    with pytest.raises(DataError, match="no masks for trainaug.* --split train val"):
        run("voc2012", tmp_path, tmp_path / "out")
    data, _ = run("voc2012", tmp_path, tmp_path / "out", ["val", "train"])
    assert registry.split_names(data) == ("val", "train")
    with pytest.raises(DataError, match="unknown split of the prepared set .*'trainaug'.*train, val"):
        registry.open_split(data, "trainaug")
    with pytest.raises(DataError, match="val, train; delete it to prepare other splits"):
        run("voc2012", tmp_path, tmp_path / "out", ["trainaug"])
    whole = original_archives.sbd(SBD_MASKS)
    for members, message in (
        ({name: content for name, content in whole.items() if "cls" not in name}, "holds no benchmark_RELEASE/"),
        (
            whole | {"benchmark_RELEASE/dataset/cls/2009_000001.mat": b"MATLAB 5.0 MAT-file"},
            "benchmark.tgz: benchmark_RELEASE/dataset/cls/2009_000001.mat: no mask GTcls.Segmentation",
        ),
        (
            whole
            | {"benchmark_RELEASE/dataset/cls/2009_000001.mat": original_archives.matlab(np.ones((8, 12), np.int32))},
            r"GTcls.Segmentation is int32 \(8, 12\), not uint8",
        ),
    ):
        original_archives.write_tar(tmp_path / "benchmark.tgz", members, "w:gz")
        with pytest.raises(DataError, match=message):
            run("voc2012", tmp_path, tmp_path / "other")
    (tmp_path / "benchmark.tgz").write_bytes((tmp_path / "benchmark.tgz").read_bytes()[:900])
    with pytest.raises(DataError, match="benchmark.tgz is damaged"):
        run("voc2012", tmp_path, tmp_path / "other")


def street(split):
    """Return CamVid images of a split at Cityscapes' size, with labels in labelIds."""
    ids = np.array([23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 33, 0], np.uint8)
    pairs = []
    for path in sorted((CAMVID / split / "images").iterdir())[: len(original_archives.CITYSCAPES[split])]:
        label = ids[np.minimum(np.array(Image.open(CAMVID / split / "labels" / f"{path.stem}.png")), 11)]
        pairs.append(
            (
                np.array(Image.open(path).convert("RGB").resize((2048, 1024))),
                np.array(Image.fromarray(label).resize((2048, 1024), Image.Resampling.NEAREST)),
            )
        )
    return pairs


@needs_camvid
@pytest.mark.parametrize("form", ["zips", "tree"])
def test_cityscapes_of_the_official_builder(tmp_path, form):
    # Full-size images in one case only; the tree differs only in the location of files.
    pairs = {split: street(split) for split in original_archives.CITYSCAPES}
    if form == "tree":
        pairs = {
            split: [(image[::16, ::16], label[::16, ::16]) for image, label in examples]
            for split, examples in pairs.items()
        }
    images, labels = original_archives.cityscapes(pairs)
    if form == "zips":
        original_archives.write_zip(tmp_path / "leftImg8bit_trainvaltest.zip", images)
        original_archives.write_zip(tmp_path / "gtFine_trainvaltest.zip", labels)
    else:
        original_archives.write_tree(tmp_path, images | labels)
    data, _ = run("cityscapes", tmp_path, tmp_path / "out")
    for split, examples in pairs.items():
        found = contents(data, split)
        assert len(found) == len(examples)
        for number, (image, label) in enumerate(examples):
            image_found, label_found = found[f"{original_archives.CITYSCAPES[split][number]}_{number:06d}_000019"]
            assert np.array_equal(image_found, image) and np.array_equal(label_found, label)
    builder = tfds.builder("cityscapes/semantic_segmentation", data_dir=tmp_path / "out")
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 3,
        "validation": 1,
        "test": 2,
    }
    assert not list(tmp_path.rglob("extracted"))


@needs_camvid
def test_complete_camvid(tmp_path):
    data, _ = run("camvid", CAMVID, tmp_path, ["test"], subset=False)
    direct, found = (registry.open_split(one, "test") for one in (Data(name="camvid", directory=str(CAMVID)), data))
    assert len(found.names) == 233
    for index in (0, 111, 232):
        for one, other in zip(direct.read(tf.constant(index, tf.int64)), found.read(tf.constant(index, tf.int64))):
            assert one.numpy() == other.numpy()


def test_missing_truncated_and_wrong_tar(tmp_path):
    with pytest.raises(DataError, match="no VOCtrainval_11-May-2012.tar in"):
        run("voc2012", tmp_path, tmp_path / "out")
    path = original_archives.write_tar(
        tmp_path / "VOCtrainval_11-May-2012.tar", original_archives.voc2012(VOC_LISTS, VOC_LABELS)
    )
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="11-May-2012.tar is damaged|in .*11-May-2012.tar"):
        run("voc2012", tmp_path, tmp_path / "out")
    path.write_text("<html>not found</html>")
    with pytest.raises(DataError, match="11-May-2012.tar is damaged"):
        run("voc2012", tmp_path, tmp_path / "out")


def test_missing_and_wrong_cityscapes_archives(tmp_path):
    label = np.full((4, 8), 7, np.uint8)
    images, labels = original_archives.cityscapes(
        {split: [(original_archives.noise(1, 4, 8), label)] for split in ("train", "val")}
    )
    attempt = functools.partial(run, "cityscapes", tmp_path, tmp_path / "out", ["train", "val"])
    original_archives.write_zip(tmp_path / "leftImg8bit_trainvaltest.zip", images)
    with pytest.raises(DataError, match="no gtFine_trainvaltest.zip in"):
        attempt()
    coarse = {name.replace("gtFine", "gtCoarse"): content for name, content in labels.items()}
    original_archives.write_zip(tmp_path / "gtFine_trainvaltest.zip", coarse)
    with pytest.raises(DataError, match="no gtFine/train/CITY/FRAME_gtFine_labelIds.png in .*gtFine_trainvaltest.zip"):
        attempt()
    stray = next(name for name in labels if name.endswith("labelIds.png"))
    original_archives.write_zip(
        tmp_path / "gtFine_trainvaltest.zip", labels | {stray: original_archives.encoded(label + np.uint8(27))}
    )
    with pytest.raises(DataError, match="labelIds.png: value 34 .32 pixels. .* of cityscapes"):
        attempt()
    assert not (tmp_path / "out").exists()
