"""Preparation of datasets: rejected sources, killed and repeated preparations, and reading the prepared sets."""

import dataclasses
import functools
import json
import shutil
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.core import shuffle

from kseg.config.sections import Data
from kseg.datasets import checks, diagnosis, prepare, prepared, registry
from kseg.errors import DataError
from tests.helpers import original_archives
from tests.helpers.prepared_sets import contents, run
from tests.helpers.running import start
from tests.helpers.small_sets import config, folder, write
from tests.helpers.splits import train_batches

LABEL = np.array([[0, 1, 2, 150]] * 3, np.uint8)


def files_of(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def test_prepared_folder_gives_the_classes_and_batches_of_its_source(tmp_path):
    labels = [np.full((8, 8), 255 * (number % 2), np.uint8) for number in range(4)]
    source = folder(tmp_path / "source", {"train": labels, "val": labels[:2]}, "0 background\n255 object\n7 ignore\n")
    data, _ = run("folder", tmp_path / "source", tmp_path / "out", subset=False)
    (tmp_path / "source").rename(tmp_path / "gone")
    source = Data(name="folder", directory=str(tmp_path / "gone"))
    assert registry.find_dataset(data) == registry.find_dataset(source)
    assert registry.split_names(data) == ("train", "val")
    for batch, expected in zip(train_batches(config(data)).take(3), train_batches(config(source)).take(3)):
        assert all(np.array_equal(batch[key], expected[key]) for key in ("image", "label", "index"))
    assert checks.check_dataset(data, report=lambda line: None)["val"]["images"] == 2


def test_order_is_kept_beyond_the_memory_buffer(tmp_path, monkeypatch):
    # Above this size the builder collects examples in files, and reads one file at a time.
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 300)
    longest, read = [], shuffle._Bucket.read_values

    def recording(bucket):
        longest.append(len(bucket))
        return read(bucket)

    monkeypatch.setattr(shuffle._Bucket, "read_values", recording)
    labels = [np.full((4, 4), number % 3, np.uint8) for number in range(12)]
    folder(tmp_path / "source", {"train": labels})
    data, _ = run("folder", tmp_path / "source", tmp_path / "out")
    found = contents(data, "train")
    assert max(longest) == 1 and sum(longest) == 12
    assert list(found) == [f"e{number:02d}.png" for number in range(12)]
    assert [int(image[0, 0, 0]) for image, _ in found.values()] == list(range(12))


def gray16():
    return original_archives.encoded(Image.new("I;16", (4, 3)))


ADE = "ADEChallengeData2016/{}/training/ADE_train_00000002.{}"
LABEL_PATH, IMAGE_PATH = ADE.format("annotations", "png"), ADE.format("images", "jpg")
FAULTS = {
    "stray value": (
        LABEL_PATH,
        original_archives.encoded(LABEL + np.uint8(1)),
        r"00000002.png: value 151 \(3 pixels\) .* of ade20k",
    ),
    "16-bit label": (LABEL_PATH, gray16(), "00000002.png: 16-bit gray PNG"),
    "label of another size": (
        LABEL_PATH,
        original_archives.encoded(LABEL[:, :3]),
        r"00000002.png is 3x3, its image .* 4x3",
    ),
    "truncated label": (LABEL_PATH, original_archives.encoded(LABEL)[:50], "00000002.png: damaged PNG"),
    "truncated image": (
        IMAGE_PATH,
        original_archives.encoded(original_archives.noise(1), "JPEG")[:300],
        "00000002.jpg: not a readable",
    ),
    "no label": (LABEL_PATH, None, "image without label: .*ADE_train_00000002.jpg"),
    "no image": (IMAGE_PATH, None, "label without image: .*ADE_train_00000002.png"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", ["tree", "zip"])
def test_faults_are_named_and_no_files_remain(tmp_path, fault, form):
    path, content, message = FAULTS[fault]
    members = original_archives.ade20k({"train": [LABEL] * 3, "val": [LABEL]}) | {path: content}
    members = {name: stored for name, stored in members.items() if stored is not None}
    source = tmp_path / "source"
    if form == "tree":
        original_archives.write_tree(source, members)
    else:
        source.mkdir()
        original_archives.write_zip(source / "ADEChallengeData2016.zip", members)
    with pytest.raises(DataError, match=message) as error:
        run("ade20k", source, tmp_path / "out")
    assert f"{source}/ADEChallengeData2016" in str(error.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="no directory .*out"):
        registry.open_split(Data(name="ade20k", directory=str(tmp_path / "out")), "train")


def test_missing_truncated_and_wrong_archives(tmp_path):
    attempt = functools.partial(run, "ade20k", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match=f"no ADEChallengeData2016.zip in {tmp_path}, nor an extracted tree"):
        attempt()
    path = original_archives.write_zip(
        tmp_path / "ADEChallengeData2016.zip", original_archives.ade20k({"train": [LABEL] * 3})
    )
    with pytest.raises(DataError, match="no images/validation/NAME.jpg in .*ADEChallengeData2016.zip"):
        attempt()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="ADEChallengeData2016.zip is damaged .*: File is not a zip file"):
        attempt()
    original_archives.write_zip(path, {"ADE20K_2021_17_01/index.txt": b""})
    with pytest.raises(DataError, match="no images/training/NAME.jpg"):
        attempt()
    # One wrong byte of an image contradicts its checksum.
    members = original_archives.ade20k({"train": [LABEL] * 3, "val": [LABEL]})
    original_archives.write_zip(path, members)
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo(IMAGE_PATH).header_offset
    stored = bytearray(path.read_bytes())
    stored[offset + 200] ^= 255
    path.write_bytes(stored)
    with pytest.raises(DataError, match=f"ADEChallengeData2016.zip: {IMAGE_PATH} cannot be read: "):
        attempt()
    assert not (tmp_path / "out").exists()


def test_wrong_counts_names_and_directories(tmp_path):
    source = original_archives.write_tree(
        tmp_path / "source", original_archives.ade20k({"train": [LABEL] * 3, "val": [LABEL]})
    )
    with pytest.raises(DataError, match="ade20k train: 3 of 20210 pairs; .*--subset"):
        run("ade20k", source, tmp_path / "out", subset=False)
    with pytest.raises(DataError, match="unknown dataset to prepare 'ade'. Did you mean ade20k"):
        run("ade", source, tmp_path / "out")
    with pytest.raises(DataError, match="unknown split of ade20k 'vla'. Did you mean val"):
        run("ade20k", source, tmp_path / "out", ["vla"])
    with pytest.raises(DataError, match="no directory .*nowhere; --source takes"):
        run("ade20k", tmp_path / "nowhere", tmp_path / "out")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(DataError, match="cannot prepare ade20k in .*: Not a directory"):
        run("ade20k", source, blocked / "out")


def test_more_examples_than_published_are_refused(tmp_path, monkeypatch):
    record = registry.DATASETS["ade20k"]
    monkeypatch.setitem(registry.DATASETS, "ade20k", dataclasses.replace(record, published={"train": 2}))
    source = original_archives.write_tree(
        tmp_path / "source", original_archives.ade20k({"train": [LABEL] * 3, "val": [LABEL]})
    )
    with pytest.raises(DataError, match="ade20k train: 3 of 2 pairs$"):
        run("ade20k", source, tmp_path / "out")


def test_full_disk_is_refused_before_writing(tmp_path, monkeypatch):
    source = original_archives.write_tree(
        tmp_path / "source", original_archives.ade20k({"train": [LABEL] * 3, "val": [LABEL]})
    )
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="needs .* GB on the disk of .* 1e-07 GB free"):
        run("ade20k", source, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*tfrecord*"))


def interrupted(tmp_path, monkeypatch, source):
    """Interrupt a preparation at the first pair of val, and return the list of images that the next one decodes."""
    decode, decoded = diagnosis.decode_pair, []

    def fail(record, name, *files):
        if "validation" in name:
            raise KeyboardInterrupt
        return decode(record, name, *files)

    def record_name(record, name, *files):
        decoded.append(name.rsplit("/", 1)[1])
        return decode(record, name, *files)

    monkeypatch.setattr(prepare, "decode_pair", fail)
    with pytest.raises(KeyboardInterrupt):
        run("ade20k", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(prepare, "decode_pair", record_name)
    return decoded


def test_finished_splits_are_kept(tmp_path, monkeypatch):
    source = original_archives.write_tree(
        tmp_path / "source", original_archives.ade20k({"train": [LABEL] * 3, "val": [LABEL]})
    )
    decoded = interrupted(tmp_path, monkeypatch, source)
    data, lines = run("ade20k", source, tmp_path / "out")
    assert decoded == ["ADE_val_00000001.jpg"] and any(line.startswith("keeping train") for line in lines)
    assert len(contents(data, "train")) == 3 and len(contents(data, "val")) == 1
    first = files_of(tmp_path / "out")
    _, lines = run("ade20k", source, tmp_path / "out")
    assert len(lines) == 1 and "already exists with train, val" in lines[0] and files_of(tmp_path / "out") == first


def test_finished_splits_of_a_changed_source_are_discarded(tmp_path, monkeypatch):
    source = original_archives.write_tree(
        tmp_path / "source", original_archives.ade20k({"train": [LABEL] * 3, "val": [LABEL]})
    )
    decoded = interrupted(tmp_path, monkeypatch, source)
    original_archives.write_tree(tmp_path / "source", original_archives.ade20k({"train": [LABEL] * 4, "val": [LABEL]}))
    data, _ = run("ade20k", source, tmp_path / "out")
    assert len(decoded) == 5 and len(contents(data, "train")) == 4


def test_killed_preparation_leaves_nothing_that_looks_finished(tmp_path):
    # Small files that take long to decode; those of val take a few seconds.
    label, image = (
        original_archives.encoded(np.zeros((1500, 1500), np.uint8)),
        original_archives.encoded(np.zeros((1500, 1500, 3), np.uint8), "JPEG"),
    )
    members = original_archives.ade20k({"train": [LABEL], "val": [LABEL]})
    for number in range(2, 200):
        members |= {
            f"ADEChallengeData2016/images/validation/ADE_val_{number:08d}.jpg": image,
            f"ADEChallengeData2016/annotations/validation/ADE_val_{number:08d}.png": label,
        }
    source = original_archives.write_tree(tmp_path / "source", members)
    process = start("kseg.data", "prepare", "ade20k", "--source", source, "--directory", tmp_path / "out", "--subset")
    for line in process.stdout:
        if "1/1 pairs of train" in line:
            break
    while not list(tmp_path.glob(".ade20k-preparing/val-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    for path in (source / "ADEChallengeData2016").glob("*/validation/*"):
        if not path.stem.endswith("0001"):
            path.unlink()
    data, lines = run("ade20k", source, tmp_path / "out")
    assert len(contents(data, "val")) == 1 and any(line.startswith("keeping train") for line in lines)
    assert files_of(tmp_path / "out") == [
        f"ade20k/{prepared.VERSION}/{name}"
        for name in (
            "ade20k-train.tfrecord-00000-of-00001",
            "ade20k-val.tfrecord-00000-of-00001",
            "dataset_info.json",
            "features.json",
            "index-train.txt",
            "index-val.txt",
        )
    ]
    assert not list(tmp_path.glob(".*"))


def test_concurrent_preparation_is_refused(tmp_path):
    source = original_archives.write_tree(
        tmp_path / "source", original_archives.ade20k({"train": [LABEL], "val": [LABEL]})
    )
    hidden = tmp_path / ".ade20k-preparing"
    hidden.mkdir()
    with (hidden / "lock").open("w") as lock:
        prepare.fcntl.flock(lock, prepare.fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is preparing ade20k"):
            run("ade20k", source, tmp_path / "out")


@pytest.mark.parametrize("damage", ["records", "dataset_info.json", "index-val.txt", "a line", "a number"])
def test_error_of_a_damaged_set_names_the_directory_to_delete(tmp_path, damage):
    labels = [np.zeros((4, 4), np.uint8)] * 2
    folder(tmp_path / "source", {"val": labels})
    data, _ = run("folder", tmp_path / "source", tmp_path / "out")
    location = Path(prepared.find_prepared(tmp_path / "out", "folder"))
    index = location / "index-val.txt"
    if damage == "a line":
        index.write_text(index.read_text().splitlines()[0] + "\n")
    elif damage == "a number":
        index.write_text(index.read_text().replace("0\t", "zero\t", 1))
    elif damage == "records":
        next(location.glob("*tfrecord*")).unlink()
    else:
        (location / damage).unlink()
    with pytest.raises(DataError, match=f"{location} is damaged; delete that directory"):
        registry.open_split(data, "val")


def test_faults_name_prepared_examples(tmp_path):
    write(tmp_path / "source/train/images/e00.png", original_archives.noise(1))
    write(tmp_path / "source/train/labels/e00.png", np.ones((8, 12), np.uint8))
    (tmp_path / "source/classes.txt").write_text("sky\nground\n")
    data, _ = run("folder", tmp_path / "source", tmp_path / "out")
    location = Path(prepared.find_prepared(tmp_path / "out", "folder"))
    (location / "classes.txt").write_text("0 sky\n7 ground\n")
    with pytest.raises(DataError, match="label of .*out/folder/[0-9.]*/train/e00.png: value 1 "):
        contents(data, "train")
    assert json.loads((location / "dataset_info.json").read_text())["name"] == "folder"
