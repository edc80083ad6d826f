"""Unusual files are counted and unusable ones named, by `check` and by `stats`."""

import dataclasses
import io
import warnings

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kseg.config.sections import Data
from kseg.datasets import checks, diagnosis, registry
from kseg.errors import DataError
from kseg.images import picture_reader
from tests.helpers import drawn_files
from tests.helpers.small_sets import folder

RANDOM = np.random.default_rng(3)
LABEL = RANDOM.integers(0, 3, (40, 60)).astype(np.uint8)
PHOTO = RANDOM.integers(0, 256, (40, 60, 3), np.uint8)
BOTH = pytest.mark.parametrize("count", [checks.check_dataset, checks.dataset_stats])


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def written(directory, part, content, suffix="png"):
    """Return a set of three pairs whose second image or label has the given content."""
    source = folder(directory, {"train": [LABEL] * 3})
    (directory / "train" / part / "e01.png").unlink()
    (directory / "train" / part / f"e01.{suffix}").write_bytes(content)
    return source


def silent(line):
    pass


def rgb16():
    """Return a 16-bit RGB PNG, which Pillow cannot write; its high bytes are PHOTO."""
    pixels = tf.constant(PHOTO.astype(np.uint16) * 256 + 77)
    return tf.io.encode_png(pixels).numpy()


def animation():
    frames = [Image.fromarray(np.full((40, 60), shade, np.uint8)) for shade in (10, 200)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated_jpeg(orientation=3):
    exif = Image.Exif()
    exif[picture_reader.EXIF_ORIENTATION] = orientation
    return encoded(PHOTO, "JPEG", quality=95, exif=exif.tobytes())


USABLE = {
    "CMYK JPEG": (encoded(Image.fromarray(PHOTO).convert("CMYK"), "JPEG", quality=98), "jpg"),
    "gray JPEG": (encoded(PHOTO[..., 0], "JPEG"), "jpg"),
    "progressive JPEG": (encoded(PHOTO, "JPEG", progressive=True), "jpeg"),
    "JPEG named .png": (encoded(PHOTO, "JPEG"), "png"),
    "rotated JPEG": (rotated_jpeg(), "jpg"),
    "16-bit RGB": (rgb16(), "png"),
    "16-bit gray": (encoded(Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257)), "png"),
    "RGBA": (encoded(np.dstack([PHOTO, PHOTO[..., :1]])), "png"),
    "palette": (encoded(Image.fromarray(PHOTO).quantize(16)), "png"),
    "1-bit": (encoded(Image.fromarray(PHOTO[..., 0] > 100)), "png"),
    "PNG named .PNG": (encoded(PHOTO), "PNG"),
    "animation named .png": (animation(), "png"),
    "BMP": (encoded(PHOTO, "BMP"), "bmp"),
    "palette BMP": (encoded(Image.fromarray(PHOTO).quantize(16), "BMP"), "bmp"),
    "TIFF named .png": (encoded(PHOTO, "TIFF"), "png"),
    "WebP": (encoded(PHOTO, "WEBP"), "webp"),
}


@BOTH
@pytest.mark.parametrize("kind", USABLE)
def test_unusual_images_are_counted(tmp_path, kind, count):
    source = written(tmp_path, "images", *USABLE[kind])
    result = count(source, report=silent)["train"]
    assert result["images"] == 3 and result["sizes"] == {(40, 60): 3}
    assert result["turned"] == (kind == "rotated JPEG")


@pytest.mark.parametrize("kind", ["CMYK JPEG", "rotated JPEG", "RGBA", "16-bit RGB", "animation named .png"])
def test_decoded_pixels_of_unusual_images(kind):
    content, _ = USABLE[kind]
    found = diagnosis.read_image("e01", tf.constant(content)).astype(int)
    if kind == "16-bit RGB":
        assert np.array_equal(found, PHOTO)
    elif kind == "animation named .png":
        assert (found == 10).all()
    else:
        # Decoders interpolate JPEG's subsampled chroma differently, so noise differs slightly.
        expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")).astype(int)
        assert found.shape == expected.shape and np.abs(found - expected).mean() < 1


def truncated(content, fraction):
    return content[: int(len(content) * fraction)]


UNUSABLE = {
    "16-bit label": ("labels", encoded(Image.fromarray(LABEL.astype(np.uint16))), "e01.png: 16-bit gray PNG; a label"),
    "RGB label": ("labels", encoded(PHOTO), "e01.png: 8-bit RGB PNG; a label"),
    "RGBA label": ("labels", encoded(np.dstack([PHOTO, PHOTO[..., :1]])), "e01.png: 8-bit RGBA PNG; a label"),
    "1-bit gray label": ("labels", encoded(LABEL > 0), "e01.png: 1-bit gray PNG; a label"),
    "JPEG as label": ("labels", encoded(LABEL, "JPEG"), "e01.png: not a PNG file"),
    "animation as label": ("labels", animation(), "e01.png: not a PNG file"),
    "empty label": ("labels", b"", "e01.png: not a PNG file"),
    "label truncated": ("labels", truncated(encoded(LABEL), 0.5), r"e01.png: damaged PNG \("),
    "palette label truncated": (
        "labels",
        truncated(encoded(Image.fromarray(LABEL).convert("P")), 0.9),
        r"e01.png: damaged PNG \(",
    ),
    "label's header truncated": ("labels", encoded(LABEL)[:20], "e01.png: not a PNG file"),
    "stray value": (
        "labels",
        encoded(np.where(np.arange(60) == 7, 9, LABEL).astype(np.uint8)),
        r"e01.png: value 9 \(40 pixels\) .* of folder; .* 0-2, 255",
    ),
    "label of another size": ("labels", encoded(LABEL[:39]), r"e01.png is 60x39, its image \S+images/e01.png 60x40"),
    "rotated label": ("labels", encoded(LABEL.T), r"e01.png is 40x60, its image \S+images/e01.png 60x40"),
    "empty image": ("images", b"", "e01.png: not a readable JPEG"),
    "HTML page instead of an image": ("images", b"<html>not found</html>", "e01.png: not a readable JPEG"),
    "PNG's header truncated": ("images", encoded(PHOTO)[:20], "e01.png: not a readable JPEG"),
    "JPEG's header truncated": ("images", encoded(PHOTO, "JPEG")[:20], "e01.png: not a readable JPEG"),
    "two headers": (
        "labels",
        drawn_files.png(np.random.default_rng(0), 3, 2, label=True, headers=2),
        "e01.png: a PNG with two headers",
    ),
}


@BOTH
@pytest.mark.parametrize("fault", UNUSABLE)
def test_unusable_files_are_named(tmp_path, fault, count):
    part, content, message = UNUSABLE[fault]
    source, lines = written(tmp_path, part, content), []
    with pytest.raises(DataError, match=rf"folder has 1 fault:\n  {tmp_path}/train/{part}/{message}"):
        count(source, report=lines.append)
    # Other examples are still counted, and so is a label with undefined values.
    assert any(line.startswith(f"train: {3 if fault == 'stray value' else 2} images") for line in lines)


@pytest.mark.parametrize(
    "content", [truncated(encoded(PHOTO), 0.5), truncated(encoded(PHOTO, "JPEG"), 0.7)], ids=["PNG", "JPEG"]
)
def test_only_check_finds_images_truncated_behind_their_header(tmp_path, content):
    source = written(tmp_path, "images", content)
    with pytest.raises(DataError, match=r"1 fault:\n  \S+images/e01.png: not a readable JPEG, PNG, BMP, .* \("):
        checks.check_dataset(source, report=silent)
    assert checks.dataset_stats(source, report=silent)["train"]["images"] == 3


@BOTH
def test_image_on_its_side_differs_from_its_label_in_size(tmp_path, count):
    source = written(tmp_path, "images", rotated_jpeg(6), "jpg")
    with pytest.raises(DataError, match=r"labels/e01.png is 60x40, its image \S+images/e01.jpg 40x60; .*EXIF"):
        count(source, report=silent)


def test_narrow_16_bit_values_and_several_pages_are_said(tmp_path):
    lines = []
    deep = tf.io.encode_png(tf.constant(PHOTO.astype(np.uint16) * 16)).numpy()
    source = written(tmp_path, "images", deep)
    (tmp_path / "train/images/e00.png").write_bytes(animation())
    checks.check_dataset(source, report=lines.append)
    notes = [line for line in lines if line.startswith("warning")]
    assert len(notes) == 2 and "0..4080" in notes[0] and "e00.png" in notes[1]
    lines.clear()
    ranged = dataclasses.replace(source, value_range=(0.0, 4080.0))
    checks.check_dataset(ranged, report=lines.append)
    assert sum(line.startswith("warning") for line in lines) == 1
    assert np.array_equal(diagnosis.decode_example(registry.open_split(ranged, "train"), 1)[0], PHOTO)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_prepared_images_keep_16_bits_unless_a_range_is_given(shape):
    values = np.random.default_rng(0).integers(0, 4096, shape).astype(np.uint16)
    png = tf.io.encode_png(values.reshape(*shape[:2], -1)).numpy()
    tiff = encoded(values, "TIFF") if values.ndim == 2 else png
    ranged = (0.0, 4095.0)
    for data in (png, tiff):
        plain = diagnosis.read_image("image", tf.constant(data))
        reduced = diagnosis.read_image("image", tf.constant(data), ranged)
        stored = diagnosis.stored_image(data, plain)
        assert np.array_equal(diagnosis.read_image("image", tf.constant(stored), ranged), reduced)
        stored = diagnosis.stored_image(data, reduced, ranged)
        assert np.array_equal(diagnosis.read_image("image", tf.constant(stored)), reduced)


def test_files_that_only_pillow_reads_are_named_with_a_data_service(tmp_path):
    split = registry.open_split(written(tmp_path, "images", encoded(PHOTO, "TIFF"), "tif"), "train")
    diagnosis.require_plain(split, 0)
    with pytest.raises(DataError, match=r"images/e01.tif: .*kseg.data prepare folder --source"):
        diagnosis.require_plain(split, 1)


@BOTH
def test_image_without_a_label_is_named(tmp_path, count):
    source = folder(tmp_path, {"train": [LABEL] * 3, "val": [LABEL]})
    (tmp_path / "train/labels/e01.png").unlink()
    lines = []
    with pytest.raises(DataError, match=r"1 fault:\n.*image without label: \S+train/images/e01.png"):
        count(source, report=lines.append)
    assert any(line.startswith("val: 1 image") for line in lines)


def test_file_that_disappears_is_named(tmp_path):
    source = folder(tmp_path, {"train": [LABEL]})
    split = registry.open_split(source, "train")
    (tmp_path / "train/images/e00.png").unlink()
    with pytest.raises(DataError, match=r"images/e00.png or its label \S+labels/e00.png cannot be read: .*No such"):
        diagnosis.read_pair(split, 0)


def test_damaged_exif_data_counts_as_none():
    whole = rotated_jpeg()
    start = whole.index(b"Exif\0\0") + 6
    for noise in (b"\xff" * 8, b"MM\0\x2a\xff\xff\xff\xff"):
        with warnings.catch_warnings():
            # Pillow may warn about damaged EXIF data.
            warnings.simplefilter("ignore")
            assert not diagnosis.has_exif_orientation(tf.constant(whole[:start] + noise + whole[start + 8 :]))
    assert diagnosis.has_exif_orientation(tf.constant(whole))
    assert not diagnosis.has_exif_orientation(tf.constant(whole[:4]))
    assert not diagnosis.has_exif_orientation(tf.constant(encoded(PHOTO)))


@pytest.mark.parametrize("kind", ["progressive JPEG", "16-bit RGB", "BMP", "animation named .png"])
def test_image_size_without_decoding(kind):
    assert diagnosis.image_size("e01", tf.constant(USABLE[kind][0])) == (40, 60)


@BOTH
def test_unknown_names_are_reported_at_once(tmp_path, count):
    with pytest.raises(DataError, match="unknown split of folder 'trian'. Did you mean train"):
        count(folder(tmp_path, {"train": [LABEL]}), ["trian"], report=silent)
    with pytest.raises(DataError, match="camvid: no directory .* Get CamVid"):
        count(Data(name="camvid", directory=str(tmp_path / "none")), report=silent)
