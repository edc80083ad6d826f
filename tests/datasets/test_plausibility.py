"""Check, prepare, training and evaluation report the same findings about examples in the same words."""

import numpy as np
import pytest
from PIL import Image

from kseg import train
from kseg.config.sections import Data
from kseg.datasets import checks, diagnosis, plausibility, registry
from kseg.errors import DataError
from kseg.images import picture_reader
from kseg.input_pipeline import preview
from tests.helpers.prepared_sets import run
from tests.helpers.running import run_here, tiny
from tests.helpers.small_sets import config, folder, write
from tests.helpers.small_training import SMALL, build_small_networks

LABEL = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


def indexed(path, colors):
    label = Image.fromarray(LABEL).convert("P")
    label.putdata(LABEL.ravel().tolist())
    label.putpalette(colors)
    label.save(path)


def unusual(directory, count=1):
    """Write a set with one fault of each kind, `count` usual pairs, and differing palettes in train and val."""
    source = folder(directory, {"train": [LABEL] * (3 + count), "val": [LABEL] * 2})
    images = directory / "train/images"
    write(images / "e00.png", LABEL.astype(np.uint16) * 2000)
    Image.fromarray(LABEL * 100).save(images / "e01.tif", save_all=True, append_images=[Image.fromarray(LABEL)])
    exif = Image.Exif()
    exif[picture_reader.EXIF_ORIENTATION] = 3
    write(images / "e02.jpg", np.zeros((2, 3, 3), np.uint8), exif=exif.tobytes())
    for number in (1, 2):
        (images / f"e0{number}.png").unlink()
    (images / "more").mkdir()
    write(images / "more/e09.png", LABEL)
    indexed(directory / "train/labels/e00.png", [255, 0, 0, 0, 255, 0, 0, 0, 255])
    indexed(directory / "val/labels/e01.png", [255, 0, 0, 9, 9, 9, 0, 0, 255])
    return source


def require_all(notes):
    """Assert that the sentences name each fault once: the skipped file, the range, the pages and the palettes."""
    for words in (
        ("more", "subdirectory"),
        ("1 image", "0..4000"),
        ("1 image", "e01.tif"),
        ("index 1", "#00ff00", "train/labels/e00.png", "#090909", "val/labels/e01.png"),
    ):
        assert sum(all(word in note for word in words) for note in notes) == 1, (words, notes)


def test_check_compares_the_palettes_of_all_splits(tmp_path):
    lines = []
    with pytest.raises(DataError) as caught:
        checks.check_dataset(unusual(tmp_path), report=lines.append)
    require_all([line for line in lines if line.startswith("warning")] + [str(caught.value)])
    assert str(caught.value).count("\n") == 1


def test_training_names_them_when_it_starts(tmp_path, capsys, monkeypatch):
    build_small_networks(monkeypatch)
    source = unusual(tmp_path / "set")
    arguments = [*tiny(source.directory, *SMALL, "data.name=folder"), "--workdir", str(tmp_path / "run")]
    # A missing file of weights ends the start after the data have been looked at.
    missing = ["--set", "init.weights=missing.pth"]
    for more, status in (["--dry-run"], 0), (missing, 2):
        notes = [
            line
            for line in run_here(train.main, [*arguments, *more], capsys, status=status).splitlines()
            if line.startswith("warning")
        ]
        require_all(notes)
        assert any("1 image has an EXIF orientation" in note for note in notes)
        # All examples were looked at.
        assert not any("sample" in note for note in notes)


def test_show_and_prepare_name_them(tmp_path):
    source, lines = unusual(tmp_path / "set"), []
    preview.show(config(source, batch=1), 1, 0, tmp_path / "samples.png", lines.append)
    assert sum("subdirectory" in line for line in lines) == 1 and any("0..4000" in line for line in lines)
    prepared, lines = run("folder", tmp_path / "set", tmp_path / "out")
    require_all([line for line in lines if line.startswith("warning")])
    # The palettes are no longer there to be found.
    splits = [registry.open_split(prepared, name) for name in ("train", "val")]
    [note] = plausibility.sampled_notes(splits)
    assert "0..4000" in note


def test_a_large_set_is_sampled(tmp_path, monkeypatch):
    split = registry.open_split(unusual(tmp_path, count=60), "train")
    read, indices = diagnosis.read_pair, []
    monkeypatch.setattr(diagnosis, "read_pair", lambda split, index: indices.append(index) or read(split, index))
    [note] = plausibility.sampled_notes([split, split])
    # The only unusual one of the 16 is the first example.
    assert note.startswith("in a sample of 16 of 63 examples 1 image with more than 8 bits")
    assert len(indices) == 16 and {0, 62} < set(indices)


def test_files_that_cannot_be_read_are_left_to_training(tmp_path):
    source = folder(tmp_path, {"train": [LABEL] * 3})
    (tmp_path / "train/images/e00.png").write_bytes(b"")
    indexed(tmp_path / "train/labels/e01.png", [1, 2, 3] * 3)
    content = (tmp_path / "train/labels/e01.png").read_bytes()
    (tmp_path / "train/labels/e01.png").write_bytes(content[:-30])
    split = registry.open_split(source, "train")
    (tmp_path / "train/images/e02.png").unlink()
    assert plausibility.sampled_notes([split]) == []


def test_labels_with_colors_may_have_any_palette(tmp_path):
    source = unusual(tmp_path)
    (tmp_path / "classes.txt").write_text("#ff0000 a\n#00ff00,#090909 b\n#0000ff c\n* ignore\n")
    assert not any(
        "palette" in note
        for note in plausibility.sampled_notes([registry.open_split(source, name) for name in ("train", "val")])
    )


@pytest.mark.parametrize(
    "classes, values, is_told",
    [
        ("ground\nobject\n", (0, 255), True),
        ("ground\nobject\nmore\n", (0, 255), True),
        ("0 ground\n255 object\n", (0, 255), False),
        ("ground\nobject\n", (0, 1), False),
        ("ground\nobject\n", (0, 0), False),
        ("#000000 ground\n#ffffff object\n", (0, 255), False),
    ],
)
def test_masks_of_0_and_255_whose_classes_do_not_say_so(tmp_path, classes, values, is_told):
    label = np.where(np.arange(20).reshape(4, 5) < 15, *np.array(values, np.uint8)).astype(np.uint8)
    source, lines = folder(tmp_path, {"train": [label], "val": [label]}, classes), []
    checks.check_dataset(source, report=lines.append)
    plausibility.report_notes([registry.open_split(source, "train")], lines.append)
    told = [line for line in lines if "one class only, 'ground'" in line]
    assert len(told) == 2 * is_told and all("25.0%" in line and "`255 object`" in line for line in told)


def test_a_drawn_set_is_usual(shapes_directory):
    assert plausibility.sampled_notes([registry.open_split(Data("shapes", str(shapes_directory)), "val")]) == []
