"""Images of 1x1 and of 12000x12000 pixels in checks, statistics, training and evaluation."""

import dataclasses
import struct
import warnings
import zlib

import numpy as np
import pytest

from kseg.config.sections import Augment, Train
from kseg.datasets import checks, registry
from kseg.input_pipeline import batching
from tests.helpers.exhaustive import all_of
from tests.helpers.small_sets import config, example, folder
from tests.helpers.splits import network_inputs, train_batches

SIDE = 12_000
GRAY, RGB, PALETTE = 0, 2, 3


def flat_png(side, kind, first, second):
    """Return a PNG with an upper half of `first` and a lower half of `second` pixels without a full image in memory."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer, rows = zlib.compressobj(1), []
    for pixel in (first, second):
        # The first byte of each row is its filter; 0 means none.
        row = b"\0" + pixel * side
        rows += [packer.compress(row) for _ in range(side // 2)]
    header = struct.pack(">IIBBBBB", side, side, 8, kind, 0, 0, 0)
    # All entries of the palette are equal, so indices cannot be derived from colors.
    palette = chunk(b"PLTE", bytes([90] * 768)) if kind == PALETTE else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"IDAT", b"".join([*rows, packer.flush()]))
        + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module", params=all_of([PALETTE], GRAY), ids={GRAY: "gray", PALETTE: "palette"}.get)
def huge(request, tmp_path_factory):
    """Return a set with one pair of 144 megapixels: black with label 0 above (250, 120, 30) with label 2."""
    directory = tmp_path_factory.mktemp("huge")
    source = folder(directory, {})
    for part, content in (
        ("images", flat_png(SIDE, RGB, bytes(3), bytes([250, 120, 30]))),
        ("labels", flat_png(SIDE, request.param, b"\0", b"\2")),
    ):
        (directory / "train" / part).mkdir(parents=True)
        (directory / "train" / part / "e00.png").write_bytes(content)
    return source


@pytest.mark.parametrize("count", [checks.check_dataset, checks.dataset_stats])
def test_checks_and_statistics_of_a_huge_pair(huge, count):
    with warnings.catch_warnings():
        # Pillow warns about images above 89 megapixels and refuses them above 179.
        warnings.simplefilter("error")
        result = count(huge, report=lambda line: None)["train"]
    assert result["sizes"] == {(SIDE, SIDE): 1}
    assert result["class_pixels"].tolist() == [SIDE * SIDE // 2, 0, SIDE * SIDE // 2]


@pytest.mark.parametrize("scale", all_of([(512, 2048)], ((),)), ids=["fitted", "own size"])
def test_training_on_a_huge_pair(huge, scale):
    settings = config(huge, crop=(64, 96), batch=1, steps=2)
    augment = Augment(scale=scale, scale_range=(0.5, 1.0), crop=(64, 96), flip=0.5, photometric=False)
    settings = dataclasses.replace(settings, augment=augment)
    mean, std = np.float32(settings.data.mean), np.float32(settings.data.std)
    for batch in train_batches(settings):
        image, label = network_inputs(batch, settings).numpy()[0] * std + mean, batch["label"].numpy()[0]
        assert image.shape == (64, 96, 3) and label.shape == (64, 96)
        rows = {tuple(np.unique(row)) for row in label}
        assert rows <= {(0,), (2,)}
        # Resizing may blend rows near the border between the halves, so these are excluded.
        upper = np.flatnonzero((label[:, 0] == 0) & (np.roll(label[:, 0], -2) == 0))[:-2]
        lower = np.flatnonzero((label[:, 0] == 2) & (np.roll(label[:, 0], 2) == 2))[2:]
        assert np.allclose(image[upper], 0, atol=1e-3) and np.allclose(image[lower], [250, 120, 30], atol=1e-3)


@pytest.fixture
def tiny(tmp_path):
    """Return a set with two pairs of one pixel, one of them ignored, and a pair that is one pixel high."""
    source = folder(tmp_path, {"train": [np.array([[1]]), np.array([[255]]), np.array([[0, 1, 2, 2, 1, 0, 0]])]})
    example(tmp_path, "val", "e00", np.array([[2]]))
    return source


@pytest.mark.parametrize("count", [checks.check_dataset, checks.dataset_stats])
def test_checks_and_statistics_of_one_pixel(tiny, count):
    lines = []
    results = count(tiny, report=lines.append)
    assert results["train"]["sizes"] == {(1, 1): 2, (1, 7): 1}
    assert results["train"]["class_pixels"].tolist() == [3, 3, 2] and results["train"]["void_images"] == 1
    assert results["val"]["sizes"] == {(1, 1): 1} and results["val"]["class_pixels"].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "scale, scale_range",
    all_of(
        [((), (0.5, 2.0)), ((8, 20), (0.1, 0.2))],
        ((8, 20), (0.5, 2.0)),
        ((), (0.1, 0.2)),
        ((), (1.0, 1.0)),
        ((8, 20), (1.0, 1.0)),
    ),
)
def test_training_on_one_pixel(tiny, scale, scale_range):
    settings = config(tiny, crop=(16, 24))
    settings = dataclasses.replace(
        settings,
        augment=Augment(scale=scale, scale_range=scale_range, crop=(16, 24)),
        train=Train(global_batch=3, steps=8),
    )
    steps = 0
    for batch in train_batches(settings):
        image, label, index = (batch[key].numpy() for key in ("image", "label", "index"))
        assert image.shape == (3, 16, 24, 3) and image.dtype == np.uint8 and sorted(index) == [0, 1, 2]
        for position, labels in zip(index, label, strict=True):
            assert set(np.unique(labels)) <= ({1, 255}, {255}, {0, 1, 2, 255})[position]
        # The crop always contains a part of the image.
        assert (label[list(index).index(0)] == 1).any()
        steps += 1
    assert steps == 8


def test_batch_contains_the_single_pixel(tiny):
    settings = config(tiny, crop=(2, 3), batch=3, steps=1)
    (batch,) = train_batches(settings)
    index = batch["index"].numpy().tolist()
    assert batch["label"][index.index(0)].numpy().tolist() == [[1, 255, 255], [255] * 3]


def test_evaluation_example_of_one_pixel(tiny):
    (evaluated,) = batching.eval_examples(registry.open_split(tiny, "val"))
    assert evaluated["image"].shape == (1, 1, 3) and evaluated["label"].numpy().tolist() == [[2]]
