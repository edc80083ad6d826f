"""Sizes, counts and weights of a split against numbers computed by hand, their text, and the command `stats`."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from kseg import data
from kseg.config.sections import Data
from kseg.datasets import checks, diagnosis, registry, statistics
from kseg.datasets.statistics import ExampleCounts
from kseg.errors import DataError, UserError
from tests.helpers.counted_sets import counted
from tests.helpers.shared_files import VOC2012, needs_voc2012
from tests.helpers.small_sets import folder


def silent(text):
    pass


CAMVID = registry.DATASETS["camvid"]


def example(name, size, has_orientation=False, **values):
    """Return the counts of an example; v0=3 means three pixels of value 0."""
    counts = np.zeros(256, np.int64)
    for value, count in values.items():
        counts[int(value[1:])] = count
    return ExampleCounts(name, size, counts, has_orientation)


# In CamVid, 11 and 255 are void.
EXAMPLES = [
    example("a", (2, 6), v0=6, v3=2, v11=4),
    example("b", (4, 2), True, v3=6, v255=2),
    example("c", (4, 2), v11=8),
    example("d", (10, 10), v0=100),
]
SUMMARY = statistics.summarize_split(CAMVID, EXAMPLES)


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (513, 3), (301, 299)])
def test_value_counts_equal_a_slow_count(shape):
    label = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    # A view of a larger array, whose rows are not contiguous.
    larger = np.zeros((shape[0] + 3, shape[1] + 5), np.uint8)
    larger[2:-1, 4:-1] = label
    for given in (label, larger[2:-1, 4:-1]):
        found = statistics.value_counts(given)
        assert found.dtype == np.int64 and found.shape == (256,)
        assert all(found[value] == (label == value).sum() for value in range(256))


def test_summary_equals_the_one_computed_by_hand():
    assert SUMMARY["images"] == 4 and SUMMARY["sizes"] == {(2, 6): 1, (4, 2): 2, (10, 10): 1}
    # The first of two equally small ones.
    assert SUMMARY["smallest"] == ((4, 2), "b") and SUMMARY["largest"] == ((10, 10), "d")
    assert SUMMARY["class_pixels"][[0, 3]].tolist() == [106, 8] and SUMMARY["class_pixels"].sum() == 114
    assert SUMMARY["class_images"][[0, 3]].tolist() == [2, 2] and SUMMARY["class_images"].sum() == 4
    assert SUMMARY["fill"][[0, 3]].tolist() == [106 / 112, 8 / 20] and np.isnan(SUMMARY["fill"]).sum() == 9
    assert SUMMARY["void_share"] == 14 / 128 and SUMMARY["void_images"] == 1 and SUMMARY["turned"] == 1
    assert SUMMARY["images_with"][[0, 3, 11, 255]].tolist() == [2, 2, 2, 1]


def test_raw_values_of_one_class_are_added():
    # In Cityscapes, 0 to 6 are void and 7 is road.
    record = registry.DATASETS["cityscapes"]
    result = statistics.summarize_split(record, [example("a", (1, 8), v1=2, v4=3, v7=3)])
    assert result["pixels"][[1, 4, 7]].tolist() == [2, 3, 3] and result["class_pixels"][0] == 3
    assert result["void_share"] == 5 / 8 and result["void_images"] == 0


def test_empty_split_has_a_summary():
    result = statistics.summarize_split(CAMVID, [])
    assert result["images"] == 0 and math.isnan(result["void_share"]) and np.isnan(result["weights"]).all()
    assert statistics.describe_classes(CAMVID, "train", result) == "train: no readable example\n"
    assert statistics.describe_values(CAMVID, "train", result) == "train: no readable example\n"


def test_median_of_two_frequencies_is_their_mean():
    assert statistics.class_weights(np.array([0.75, 0.25])) == pytest.approx([0.5 / 0.75, 0.5 / 0.25])


def test_text_lists_classes_by_frequency():
    lines = statistics.describe_classes(CAMVID, "train", SUMMARY).splitlines()
    assert lines[:5] == [
        "train: 4 of 367 images",
        "  sizes: 3, width 2 to 10, median 2; height 2 to 10, median 4",
        "  most common: 2x4 (2), 6x2 (1), 10x10 (1)",
        "  smallest: 2x4, b",
        "  largest: 10x10, d",
    ]
    assert [line.split() for line in lines[6:8]] == [
        ["sky", "0", "106", "92.98%", "2", "50.00%", "94.64%"],
        ["road", "3", "8", "7.02%", "2", "50.00%", "40.00%"],
    ]
    assert lines[8] == (
        "  never seen: building, pole, pavement, tree, sign, fence, car, pedestrian, bicyclist (9 classes)"
    )
    assert lines[9] == "  void: 10.94% of all 128 pixels; 1 image has no labeled pixel"
    assert lines[10].startswith("  1 image has an EXIF orientation")


def test_columns_are_aligned_with_their_titles():
    record = registry.DATASETS["ade20k"]
    result = statistics.summarize_split(record, [example("a", (9, 9), v1=80, v33=1)])
    title, *rows = statistics.describe_classes(record, "val", result).splitlines()[2:5]
    assert {len(row) for row in rows} == {len(title)}


def test_labels_of_void_only():
    result = statistics.summarize_split(CAMVID, [example("a", (2, 2), v11=4)])
    text = statistics.describe_classes(CAMVID, "test", result)
    assert "void: 100.00% of all 4 pixels; 1 image has no labeled pixel" in text and "nan" not in text
    plain = statistics.plain_summary(CAMVID, "test", result)
    assert plain["labelled_pixels"] == 0 and plain["classes"][0]["share"] is None


def test_plain_summary_is_valid_json_of_the_summary():
    plain = statistics.plain_summary(CAMVID, "train", SUMMARY)
    # Strict JSON has no NaN.
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["images"] == 4 and plain["published"] == 367 and plain["turned"] == 1 and plain["void_images"] == 1
    assert plain["width"] == {"least": 2, "median": 2, "largest": 10}
    assert plain["height"] == {"least": 2, "median": 4, "largest": 10}
    assert plain["sizes"][0] == {"width": 2, "height": 4, "images": 2}
    assert sum(entry["images"] for entry in plain["sizes"]) == 4
    assert [entry["train_id"] for entry in plain["classes"][:3]] == [0, 3, 1]
    assert sum(entry["share"] for entry in plain["classes"]) == pytest.approx(1)


@pytest.mark.parametrize("images, line", [(2, "train: 2 of 367 images"), (367, "train: 367 images")])
def test_partial_splits_report_the_published_size(images, line):
    result = statistics.summarize_split(CAMVID, [example("a", (2, 2), v0=4)] * images)
    assert statistics.describe_values(CAMVID, "train", result).startswith(f"{line}, all 2x2\n")
    assert statistics.describe_classes(CAMVID, "train", result).startswith(f"{line}\n  sizes: all 2x2\n")


def test_sizes_as_text():
    assert statistics.sizes_line({(360, 480): 7}) == "all 480x360"
    assert statistics.sizes_line({(2, 4): 1, (2, 2): 3}) == "2x2 (3), 4x2 (1)"
    many = {(10, 100): 1, (20, 90): 1, (30, 80): 3, (40, 70): 1, (50, 60): 1}
    assert statistics.sizes_line(many) == "width 60 to 100, median 80; height 10 to 50, median 30 (5 sizes)"


def test_stats_equal_numbers_computed_by_hand(tmp_path):
    lines = []
    result = checks.dataset_stats(counted(tmp_path), ["train"], tmp_path / "deep/stats.json", lines.append)["train"]
    # Both functions count the same labels.
    checked = checks.check_dataset(counted(tmp_path), report=silent)["train"]
    for key, value in checked.items():
        assert (
            np.array_equal(result[key], value, equal_nan=True)
            if isinstance(value, np.ndarray)
            else (result[key] == value)
        ), key
    assert lines[1].startswith("2/2 images of train") and lines[-1] == f"wrote {tmp_path / 'deep/stats.json'}"
    rows = [line.split() for line in lines[2].splitlines()]
    assert rows[6:9] == [
        ["background", "0", "6", "54.55%", "2", "100.00%", "50.00%"],
        ["object", "1", "4", "36.36%", "2", "100.00%", "33.33%"],
        ["rare", "2", "1", "9.09%", "1", "50.00%", "25.00%"],
    ]
    stored = json.loads((tmp_path / "deep/stats.json").read_text())["train"]
    assert stored["images"] == 2 and stored["pixels"] == 12 and stored["labelled_pixels"] == 11
    assert [entry["name"] for entry in stored["classes"]] == ["background", "object", "rare", "unseen"]
    assert stored["classes"][2] == {
        "name": "rare",
        "train_id": 2,
        "pixels": 1,
        "share": 1 / 11,
        "images": 1,
        "fill": 0.25,
        "weight": pytest.approx(4 / 3),
    }
    assert stored["classes"][3]["fill"] is stored["classes"][3]["weight"] is None


def test_stats_decodes_no_image(tmp_path, monkeypatch):
    source = folder(tmp_path, {"train": [np.zeros((4, 6), np.uint8)] * 2})

    def refuse(data):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(diagnosis, "decode_image", refuse)
    assert checks.dataset_stats(source, report=silent)["train"]["sizes"] == {(4, 6): 2}
    with pytest.raises(AssertionError, match="an image was decoded"):
        checks.check_dataset(source, report=silent)


def test_faulty_set_writes_no_statistics(tmp_path):
    source = folder(tmp_path / "set", {"train": [np.full((2, 2), 50, np.uint8)]})
    with pytest.raises(DataError, match="value 50"):
        checks.dataset_stats(source, (), tmp_path / "stats.json", silent)
    assert not (tmp_path / "stats.json").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write .*file/stats.json: File exists"):
        checks.dataset_stats(counted(tmp_path / "good"), (), tmp_path / "file/stats.json", silent)
    with pytest.raises(UserError, match=f"cannot write {tmp_path}: Is a directory"):
        checks.dataset_stats(counted(tmp_path / "good"), (), tmp_path, silent)


@needs_voc2012
def test_voc_stats_against_slow_counting(tmp_path):
    result = checks.dataset_stats(Data(name="voc2012", directory=str(VOC2012)), ["val"], report=silent)["val"]
    root = VOC2012 / "VOCdevkit/VOC2012"
    names = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    sizes, cats, cat_images, void = {}, 0, 0, 0
    for name in names:
        # Pillow reads labels from the files without a palette, and sizes from the images.
        label = np.array(Image.open(root / f"SegmentationClassAug/{name}.png"))
        cats, cat_images = cats + int((label == 8).sum()), cat_images + int((label == 8).any())
        void += int((label == 255).sum())
        size = Image.open(root / f"JPEGImages/{name}.jpg").size[::-1]
        sizes[size] = sizes.get(size, 0) + 1
    assert result["sizes"] == sizes and result["images"] == 130
    assert result["class_pixels"][8] == cats and result["class_images"][8] == cat_images
    assert result["pixels"][255] == void and result["void_share"] == void / result["pixels"].sum()


def test_command_stats(tmp_path, capsys):
    folder(tmp_path, {"train": [np.zeros((2, 2), np.uint8)], "val": [np.ones((2, 2), np.uint8)]})
    arguments = ["stats", "folder", "--directory", str(tmp_path), "--json", str(tmp_path / "stats.json")]
    assert data.main(arguments) == 0
    out = capsys.readouterr().out
    assert "train: 1 image\n  sizes: all 2x2\n" in out and "val: 1 image\n" in out
    assert list(json.loads((tmp_path / "stats.json").read_text())) == ["train", "val"]
    assert data.main([*arguments, "--split", "val"]) == 0
    assert "train:" not in capsys.readouterr().out
    assert list(json.loads((tmp_path / "stats.json").read_text())) == ["val"]
