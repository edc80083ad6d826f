"""The commands check, stats and show of python -m kseg.data: counts, collected faults, drawn samples."""

import dataclasses
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kseg import config as configs
from kseg import data
from kseg.config.sections import Augment, Data, Train
from kseg.datasets import checks, registry
from kseg.errors import ConfigError, DataError, UserError
from kseg.images import drawing, image_files, picture_reader
from kseg.input_pipeline import preview
from tests.helpers.counted_sets import counted
from tests.helpers.prepared_sets import run
from tests.helpers.shared_files import CAMVID, needs_camvid
from tests.helpers.small_sets import config, folder, write
from tests.helpers.splits import step_indices


def silent(text):
    pass


def test_counts_equal_numbers_computed_by_hand(tmp_path):
    results = checks.check_dataset(counted(tmp_path), report=silent)
    assert list(results) == ["train"]
    result = results["train"]
    assert result["images"] == 2 and result["sizes"] == {(2, 4): 1, (2, 2): 1}
    assert {value: int(count) for value, count in enumerate(result["pixels"]) if count} == {0: 6, 3: 1, 7: 1, 255: 4}
    images = {value: int(count) for value, count in enumerate(result["images_with"]) if count}
    assert images == {0: 2, 3: 1, 7: 1, 255: 2}
    assert result["class_pixels"].tolist() == [6, 4, 1, 0]
    assert result["class_images"].tolist() == [2, 2, 1, 0]
    assert result["void_share"] == 1 / 12 and result["unseen"] == ["unseen"]


def test_weights_equal_numbers_computed_by_hand(tmp_path):
    # Frequencies: background 6/12, object 4/12, rare 1/4 of the one image with it. The median is 1/3.
    weights = checks.check_dataset(counted(tmp_path), report=silent)["train"]["weights"]
    assert weights[:3] == pytest.approx([2 / 3, 1, 4 / 3]) and math.isnan(weights[3])


def test_report_lists_values_and_weights(tmp_path):
    lines = []
    checks.check_dataset(counted(tmp_path), report=lines.append)
    words = [line.split() for line in "\n".join(lines).splitlines()]
    assert "value 255 is the class 'object'" in lines[0] and "2/2 images of train" in lines[1]
    assert ["0", "0", "background", "6", "50.00%", "2"] in words and ["255", "1", "object", "4", "33.33%", "2"] in words
    assert ["9", "3", "unseen", "0", "0.00%", "0"] in words and ["7", "255", "ignored", "1", "8.33%", "1"] in words
    text = lines[2]
    assert text.startswith("train: 2 images, 2x2 (1), 4x2 (1)\n")
    assert "never seen: unseen\n" in text and "void: 8.33% of all pixels\n" in text
    assert "median-frequency weights: 0.6667 1.0000 1.3333 nan\n" in text


def test_all_faults_are_collected(tmp_path):
    good = np.zeros((2, 3), np.uint8)
    source = folder(tmp_path, {"train": [good] * 13, "val": [good] * 3, "test": [good]})
    for index in range(11):
        write(tmp_path / f"train/labels/e{index:02d}.png", np.full((2, 3), 100 + index, np.uint8))
    (tmp_path / "val/images/e01.png").write_bytes(b"")
    write(tmp_path / "val/labels/e02.png", np.zeros((5, 5), np.uint8))
    (tmp_path / "test/labels/e00.png").unlink()
    lines = []
    with pytest.raises(DataError) as error:
        checks.check_dataset(source, report=lines.append)
    message = str(error.value).splitlines()
    # One unopenable split, eleven labels of train, two examples of val.
    assert message[0] == "folder has 14 faults:" and len(message) == 12 and message[11] == "  and 4 more"
    assert "image without label" in message[1] and "test/images/e00.png" in message[1]
    assert "train/labels/e08.png: value 108 (6 pixels) " in message[10] and "0-2, 255" in message[10]
    # Readable examples are still reported, including their undefined values.
    assert any("  108         -  not a label value" in line for line in lines)
    with pytest.raises(DataError) as error:
        checks.check_dataset(source, ["val"], silent)
    message = str(error.value).splitlines()
    assert message[0] == "folder has 2 faults:" and "val/images/e01.png: not a readable JPEG" in message[1]
    assert "labels/e02.png is 5x5, its image" in message[2]


def test_split_without_readable_examples(tmp_path):
    source = folder(tmp_path, {"train": [np.zeros((2, 2), np.uint8)]})
    (tmp_path / "train/labels/e00.png").write_bytes(b"")
    lines = []
    with pytest.raises(DataError, match="folder has 1 fault:\n  .*e00.png: not a PNG file"):
        checks.check_dataset(source, report=lines.append)
    assert lines[-1] == "train: no readable example\n"


@pytest.mark.parametrize(
    "splits, setting",
    [
        (("train", "val"), None),
        (("train", "valid"), "data.val_split=valid"),
        (("train",), "data.val_split=SPLIT"),
        (("training", "val"), "data.train_split=training"),
    ],
)
def test_next_steps_name_the_splits(tmp_path, splits, setting):
    lines = []
    checks.check_dataset(folder(tmp_path, {name: [np.zeros((2, 2))] for name in splits}), report=lines.append)
    command = lines[-1].splitlines()[-1]
    assert ("there is no split" in lines[-1]) == (setting is not None) and command.startswith("  python -m kseg.train")
    assert ("_split=" in command) == (setting is not None) and (setting or "") in command


def test_empty_split_is_a_fault(tmp_path):
    source = folder(tmp_path, {"train": [np.zeros((2, 2), np.uint8)]})
    for part in ("images", "labels"):
        (tmp_path / "val" / part).mkdir(parents=True)
    with pytest.raises(DataError, match="1 fault:\n.*split 'val' is empty"):
        checks.check_dataset(source, report=silent)


def test_wrong_names_are_reported_at_once(tmp_path):
    source = counted(tmp_path)
    with pytest.raises(DataError, match="unknown split of folder 'trian'. Did you mean train"):
        checks.check_dataset(source, ["trian"], silent)
    with pytest.raises(DataError, match="unknown dataset 'cityscape'. Did you mean cityscapes"):
        checks.check_dataset(Data(name="cityscape"), report=silent)
    with pytest.raises(DataError, match="camvid: no directory .* Get CamVid"):
        checks.check_dataset(Data(name="camvid", directory=str(tmp_path / "none")), report=silent)


def test_palette_labels_are_counted_by_index(tmp_path):
    source = counted(tmp_path)
    label = Image.new("P", (2, 2), 3)
    label.putpalette([200, 200, 200] * 256)
    label.save(tmp_path / "train/labels/e01.png")
    assert checks.check_dataset(source, report=silent)["train"]["pixels"][3] == 4


def rotated_set(directory):
    """Return a set of one upright image and two with another EXIF orientation."""
    source = folder(directory, {"train": [np.zeros(size, np.uint8) for size in ((20, 30), (30, 20), (30, 20))]})
    for number, orientation in ((0, 1), (1, 6), (2, 8)):
        exif = Image.Exif()
        exif[picture_reader.EXIF_ORIENTATION] = orientation
        (directory / f"train/images/e0{number}.png").unlink()
        write(directory / f"train/images/e0{number}.jpg", np.zeros((20, 30, 3), np.uint8), exif=exif.tobytes())
    return source


@pytest.mark.parametrize("count", [checks.check_dataset, checks.dataset_stats])
@pytest.mark.parametrize("form", ["tree", "prepared"])
def test_images_with_an_exif_orientation_are_reported(tmp_path, form, count):
    source, lines = rotated_set(tmp_path / "set"), []
    if form == "prepared":
        source, _ = run("folder", tmp_path / "set", tmp_path / "out")
        shutil.rmtree(tmp_path / "set")
    # A prepared set stores the images upright.
    turned = 2 if form == "tree" else 0
    assert count(source, report=lines.append)["train"]["turned"] == turned
    assert any("  2 images have an EXIF orientation" in line for line in lines) == (turned > 0)


@needs_camvid
def test_camvid_weights():
    result = checks.check_dataset(Data(name="camvid", directory=str(CAMVID)), ["train"], silent)["train"]
    assert result["images"] == 367 and result["sizes"] == {(360, 480): 367}
    assert result["pixels"][:12].tolist() == [
        10682767,
        14750079,
        623349,
        20076880,
        2845085,
        6166762,
        743859,
        714595,
        3719877,
        405385,
        184967,
        2503995,
    ]
    assert [round(float(weight), 4) for weight in result["weights"]] == [
        0.2793,
        0.2017,
        4.7865,
        0.1490,
        1.0,
        0.4217,
        3.8467,
        1.9736,
        0.7889,
        6.3747,
        8.8587,
    ]


def test_sample_cells_equal_pixels_computed_by_hand():
    record = dataclasses.replace(registry.DATASETS["camvid"], palette=((0, 100, 200),) * 11)
    image = np.full((1, 2, 3), 50, np.uint8)
    plain, colored, blended = preview.sample_cells(image, np.array([[0, 255]], np.uint8), record)
    assert plain is image
    assert colored.tolist() == [[[0, 100, 200], [60] * 3]]
    assert blended.tolist() == [[[25, 75, 125], [55] * 3]]


def test_stripes_alternate_between_two_grays():
    assert preview.stripes(1, 9)[0, :, 0].tolist() == [60] * 4 + [200] * 4 + [60]
    assert preview.stripes(5, 1)[:, 0, 0].tolist() == [60] * 4 + [200]


def test_sheet_holds_the_training_samples(tmp_path):
    labels = [np.full((20, 30), index % 3, np.uint8) for index in range(5)]
    settings = config(folder(tmp_path / "set", {"train": labels}), crop=(32, 40), batch=2, steps=1)
    lines = []
    preview.show(settings, 3, 4, tmp_path / "grid.png", lines.append)
    longer = dataclasses.replace(settings, train=Train(global_batch=2, steps=6))
    expected = [int(index) for step in (4, 5) for index in step_indices(longer, step)][:3]
    assert [line.rsplit("/", 1)[1] for line in lines[:3]] == [f"e{index:02d}.png" for index in expected]
    assert lines[3].startswith(f"wrote {tmp_path / 'grid.png'}: 3 samples of folder train from step 4, crop 40x32")
    sheet = image_files.read_image(tmp_path / "grid.png")
    left, top = drawing.GAP, drawing.FONT_SIZE + 3 * drawing.GAP
    first = sheet[top : top + 32, left : left + 40]
    assert (first[:20, :30] == expected[0]).all()
    # Padding has the mean color, which is zero after normalization.
    assert (first[20:] == (124, 116, 104)).all() and (first[:, 30:] == (124, 116, 104)).all()
    second = sheet[top : top + 32, left + 40 + drawing.GAP :][:, :40]
    assert (second[:20, :30] == registry.find_dataset(settings.data).palette[expected[0] % 3]).all()
    assert set(second[20:].ravel().tolist()) == {60, 200}


def test_show_names_the_unreadable_file(tmp_path):
    settings = config(folder(tmp_path / "set", {"train": [np.zeros((8, 8), np.uint8)] * 2}))
    write(tmp_path / "set/train/labels/e01.png", np.full((8, 8), 99, np.uint8))
    with pytest.raises(DataError, match="e01.png: value 99 .64 pixels. "):
        preview.show(settings, 2, 0, tmp_path / "grid.png", silent)
    for count, step in ((0, 0), (1, -1)):
        with pytest.raises(ConfigError, match=f"got {count} and {step}"):
            preview.show(settings, count, step, tmp_path / "grid.png", silent)
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize("size, crop", [((20, 30), (20, 30)), ((600, 40), (512, 40)), ((30, 1100), (30, 1024))])
def test_plain_config_takes_the_size_of_the_first_image(tmp_path, size, crop):
    source = folder(tmp_path, {"train": [np.zeros(size, np.uint8), np.zeros((9, 9), np.uint8)]})
    settings = preview.plain_config(source, ["augment.flip=0"])
    assert settings.augment == dataclasses.replace(Augment(), crop=crop, flip=0.0)
    # An override takes precedence, and may also set the location of the data.
    overrides = ["augment.crop=8,16", f"data.directory={tmp_path}"]
    assert preview.plain_config(Data(name="folder"), overrides).augment.crop == (8, 16)
    with pytest.raises(ConfigError, match="augment.crop must be above 0"):
        preview.plain_config(source, ["augment.crop=0,4"])


def test_command_show(tmp_path, capsys):
    folder(tmp_path / "set", {"train": [], "other": [np.zeros((8, 16), np.uint8)]})
    arguments = [
        "show",
        "folder",
        "--directory",
        str(tmp_path / "set"),
        "--out",
        str(tmp_path / "deep/grid.png"),
        "--split",
        "other",
        "--count",
        "1",
    ]
    assert data.main([*arguments, "--set", "augment.photometric=false", "train.global_batch=1"]) == 0
    assert "1 sample of folder other from step 0, crop 16x8" in capsys.readouterr().out
    assert Image.open(tmp_path / "deep/grid.png").format == "PNG"
    with pytest.raises(ConfigError, match="config encnet_shapes is for shapes, not for folder"):
        data.main([*arguments, "--config", "encnet_shapes"])
    name = ["--config", "encnet_shapes", "--set", "data.name=folder", "train.global_batch=1", "augment.crop=8,9"]
    assert data.main([*arguments, *name]) == 0
    assert "crop 9x8" in capsys.readouterr().out


def test_command_check(tmp_path, capsys):
    folder(tmp_path, {"train": [np.zeros((2, 2), np.uint8)], "val": [np.ones((2, 2), np.uint8)]})
    assert data.main(["check", "folder", "--directory", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "train: 1 image, all 2x2" in out and "val: 1 image, all 2x2" in out
    assert data.main(["check", "folder", "--directory", str(tmp_path), "--split", "val"]) == 0
    assert "train: 1 image" not in capsys.readouterr().out
    with pytest.raises(UserError, match="Did you mean shapes"):
        data.main(["check", "shape"])


@pytest.mark.parametrize("command", ["check", "show", "stats"])
def test_help_lists_the_data_sets(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        data.main([command, "--help"])
    assert stopped.value.code == 0
    assert "datasets: ade20k, camvid, cityscapes, folder, shapes, voc2012" in capsys.readouterr().out


def test_exit_status_of_a_faulty_set(tmp_path):
    folder(tmp_path, {"train": [np.full((2, 2), 50, np.uint8)]})
    done = subprocess.run(
        [sys.executable, "-m", "kseg.data", "check", "folder", "--directory", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: folder has 1 fault:" in done.stderr and "e00.png: value 50 (4 pixels)" in done.stderr
    assert "not a label value" in done.stdout


def test_plain_config_is_a_complete_config(tmp_path):
    source = folder(tmp_path, {"train": [np.zeros((4, 4), np.uint8)]})
    settings = preview.plain_config(source)
    assert configs.from_json(configs.to_json(settings)) == settings
