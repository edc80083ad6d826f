"""Directories and split lists are read, skipped files are named, and names are matched."""

import dataclasses
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kseg.config.sections import Data
from kseg.datasets import archive_files, checks, file_lists, plausibility, prepare, registry
from kseg.errors import DataError
from tests.helpers.small_sets import folder, write

GRAY = np.zeros((2, 3), np.uint8)
COLOR = np.zeros((2, 3, 3), np.uint8)
COMPOSED = unicodedata.normalize("NFC", "Straße é")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def test_what_a_directory_passes_over_is_told(tmp_path):
    for name in (
        "a.png",
        "day/b.png",
        "day/.hidden.png",
        "empty/notes.txt",
        "c.heic",
        "d.HEIC",
        "e",
        ".f.gif",
        "Thumbs.db",
    ):
        write(tmp_path / name, GRAY, format="PNG")
    listed = file_lists.files_by_stem(tmp_path, (".png",))
    assert listed.paths == {"a": tmp_path / "a.png"} and set(listed.others) == {"c", "d", "e"}
    subdirectory, suffixes = listed.notes
    assert f"{tmp_path / 'day'} is not read" in subdirectory and "1 file)" in subdirectory
    assert ".HEIC (1), .heic (1), no suffix (1)" in suffixes


def test_notes_of_a_folder_reach_the_split(tmp_path):
    data = folder(tmp_path, {"train": [GRAY]})
    write(tmp_path / "val/Images/a.png", COLOR)
    # Results beside the splits are no images of a split.
    write(tmp_path / "predicted/overlay/a.png", COLOR)
    [note] = registry.open_split(data, "train").notes
    assert str(tmp_path / "val") in note and "Images" in note and "val/images" in note


def test_a_counterpart_of_another_suffix_is_named(tmp_path):
    data = folder(tmp_path, {"train": [GRAY]})
    (tmp_path / "train/labels/e00.png").rename(tmp_path / "train/labels/e00.jpg")
    with pytest.raises(DataError, match="image without label: .*e00.png .*labels/e00.jpg"):
        registry.open_split(data, "train")


def test_unicode_forms_are_matched(tmp_path):
    assert COMPOSED != DECOMPOSED
    data = folder(tmp_path, {"train": [GRAY]})
    write(tmp_path / f"train/images/{DECOMPOSED}.png", COLOR)
    write(tmp_path / f"train/labels/{COMPOSED}.png", GRAY)
    split = registry.open_split(data, "train")
    assert [Path(name).stem for name in split.names] == [DECOMPOSED, "e00"]
    assert [Path(name).stem for name in split.label_names] == [COMPOSED, "e00"]
    assert file_lists.match_keys({COMPOSED: 1, DECOMPOSED: 2}, {COMPOSED: 3}) == {COMPOSED: COMPOSED}


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    data = folder(tmp_path, {"train": [GRAY]})
    write(Path(os.fsdecode(os.fsencode(tmp_path / "train/images/caf") + b"\xe9.png")), COLOR, format="PNG")
    with pytest.raises(DataError, match=r"caf\\xe9.png.*not UTF-8"):
        registry.open_split(data, "train")
    moved = tmp_path.parent / os.fsdecode(b"caf\xe9-" + os.fsencode(tmp_path.name))
    tmp_path.rename(moved)
    directory = dataclasses.replace(data, directory=str(moved))
    for use in (
        lambda: registry.open_split(directory, "train"),
        lambda: registry.find_dataset(directory),
        lambda: prepare.prepare_dataset(data, moved),
    ):
        with pytest.raises(DataError, match=r"caf\\xe9-.*not UTF-8"):
            use()


def test_skipped_files_of_any_name_are_printable(tmp_path):
    data, lines = folder(tmp_path, {"train": [GRAY]}), []
    (tmp_path / "train/images" / os.fsdecode(b"x.\xff")).touch()
    (tmp_path / os.fsdecode(b"more\xff/Images")).mkdir(parents=True)
    plausibility.report_notes([registry.open_split(data, "train")], lines.append)
    checks.check_dataset(data, report=lines.append)
    for text in (r"more\xff is no split", r".\xff (1)"):
        assert sum(text in line for line in lines) == 2
    "".join(lines).encode()


def test_split_lists():
    assert file_lists.listed_names("l.txt", b"\xef\xbb\xbfa\r\nb \n\n") == ["a", "b"]
    for content, message in (
        (b"a\nb 1\n", "line 2: .*2 columns, 'b 1'"),
        (b"a\na\n", "repeats a"),
        (b"\n", "empty"),
        ("a".encode("utf-16"), "not UTF-8"),
    ):
        with pytest.raises(DataError, match=f"l.txt.*{message}"):
            file_lists.listed_names("l.txt", content)


def test_hidden_frames_of_macos_are_skipped(tmp_path):
    for part, suffix in (("leftImg8bit", "_leftImg8bit.png"), ("gtFine", "_gtFine_labelIds.png")):
        for name in ("ulm_0", "._ulm_0"):
            write(tmp_path / part / "train/ulm" / (name + suffix), GRAY if part == "gtFine" else COLOR)
    split = registry.open_split(Data(name="cityscapes", directory=str(tmp_path)), "train")
    assert [Path(name).name for name in split.names] == ["ulm_0_leftImg8bit.png"]


def test_a_zip_with_a_file_as_a_directory_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/y", b"")
        archive.writestr("x/y/z.png", b"")
    with pytest.raises(DataError, match="a.zip is damaged: x/y is a file and a directory"):
        archive_files.zip_files(tmp_path / "a.zip")
